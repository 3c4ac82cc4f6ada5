"""The bodies of Azure Personalizer's Rank, Reward and Activate, and what they mean here.

An action of the request is an item of the policy's catalogue: its id is the item's. A policy without a catalogue takes the
numbers of its actions as ids. Features of the context become the context that the policy's feature spec encodes: the names
of nested groups are joined by points, so `[{"user": {"age": 30}}, {"device": "phone"}]` has `user.age` and `device`. A policy
without a feature spec takes one feature, `observation`, a list of numbers. The features of actions and slots are not used: the
policy learns from the attributes in its catalogue.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from contracts.errors import InputError
from contracts.records import UUID7_PATTERN, Decision, Observation, Reward
from predictor.messages import NamedInstance
from predictor.policy import Policy

PREFIX = "/personalizer"
RANK_ROUTE, EVENTS_ROUTE = f"{PREFIX}/rank", f"{PREFIX}/events"  # what the routes count as
KEY_HEADER = b"ocp-apim-subscription-key"
_UUID7 = re.compile(UUID7_PATTERN)

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Features = list[Any] | None


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A body with Personalizer's names of fields."""


class RankableAction(_Body, frozen=True):
    """One action that may be chosen."""

    id: Id
    features: Features = None


class RankRequest(_Body, frozen=True):
    """Body of Rank."""

    actions: Annotated[list[RankableAction], Meta(min_length=1, max_length=1000)]
    context_features: Features = None
    excluded_actions: list[Id] | None = None
    event_id: Id | None = None
    defer_activation: bool | None = None


class RankSlot(_Body, frozen=True):
    """One slot of a multi-slot Rank."""

    id: Id
    baseline_action: Id
    features: Features = None
    excluded_actions: list[Id] | None = None


class MultiSlotRankRequest(_Body, frozen=True):
    """Body of the multi-slot Rank."""

    actions: Annotated[list[RankableAction], Meta(min_length=1, max_length=1000)]
    slots: Annotated[list[RankSlot], Meta(min_length=1, max_length=100)]
    context_features: Features = None
    event_id: Id | None = None
    defer_activation: bool | None = None


class RankedAction(_Body, frozen=True):
    """An action and its probability of being chosen."""

    id: str
    probability: float


class RankResponse(_Body, frozen=True):
    """Answer of Rank: `reward_action_id` was chosen, and is the first in `ranking` that is not excluded."""

    ranking: list[RankedAction]
    event_id: str
    reward_action_id: str


class RankedSlot(_Body, frozen=True):
    """The action chosen for a slot."""

    id: str
    reward_action_id: str


class MultiSlotRankResponse(_Body, frozen=True):
    """Answer of the multi-slot Rank, slots in the order of the request."""

    slots: list[RankedSlot]
    event_id: str


class RewardRequest(_Body, frozen=True):
    """Body of Reward."""

    value: Reward


class SlotReward(_Body, frozen=True):
    """The reward of one slot."""

    slot_id: Id
    value: Reward


class MultiSlotRewardRequest(_Body, frozen=True):
    """Body of the multi-slot Reward."""

    reward: Annotated[list[SlotReward], Meta(min_length=1, max_length=100)]


class PersonalizerError(_Body, frozen=True):
    """What was wrong."""

    code: str
    message: str


class ErrorResponse(_Body, frozen=True):
    """Answer to a request that was refused."""

    error: PersonalizerError


def counted_as(path: str) -> str:
    """The route that a path belongs to: one for the ranks and one for the events, whatever id the path has."""
    if not path.startswith(f"{PREFIX}/"):
        return path
    return EVENTS_ROUTE if "/events/" in path else RANK_ROUTE


def decision_id(event_id: str, slot_id: str | None = None) -> str:
    """The id of the decision for an event, and a slot of it: the event's own id if that is a UUIDv7 and there is no slot.

    Another id is hashed into the random bits of a UUIDv7 whose time is 0. Any server can so find the decision of an event,
    and the same event has the same decision.
    """
    if slot_id is None and _UUID7.fullmatch(event_id) and len(event_id) == 36:
        return event_id
    text = event_id if slot_id is None else f"{len(event_id)} {event_id} {slot_id}"
    digits = blake2b(text.encode(), digest_size=10).hexdigest()
    variant = f"{8 + int(digits[3], 16) % 4:x}"
    return f"00000000-0000-7{digits[:3]}-{variant}{digits[4:7]}-{digits[7:19]}"


def instance(
    request: RankRequest | MultiSlotRankRequest, policy: Policy, event_id: str, offered: Sequence[str]
) -> NamedInstance:
    """The request as an instance with the ids of its decisions, and the actions `offered` as candidates.

    Raises InputError for features that cannot be a context or an observation, and for ids of actions that are no numbers
    where the policy has no catalogue.
    """
    context, observation = _context(request.context_features or [], policy)
    slots = [slot.id for slot in request.slots] if isinstance(request, MultiSlotRankRequest) else [None]
    return NamedInstance(
        observation=observation,
        candidates=_known(offered, policy),
        context=context,
        deferred=bool(request.defer_activation),
        decision_ids=[decision_id(event_id, slot) for slot in slots],
    )


def offered(request: RankRequest | MultiSlotRankRequest) -> list[str]:
    """The ids of the actions that may be chosen. Raises InputError for one that comes twice, and if all are excluded."""
    ids = [action.id for action in request.actions]
    if len(set(ids)) != len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise InputError(f"actions: ids must differ, got {twice!r:.80} twice")
    excluded = set((request.excluded_actions if isinstance(request, RankRequest) else None) or [])
    if not (left := [one for one in ids if one not in excluded]):
        raise InputError(f"excludedActions: must leave an action, got all {len(ids)}")
    return left


def ranking(
    request: RankRequest, chosen: str, candidates: Sequence[str], probabilities: Mapping[str, float]
) -> list[RankedAction]:
    """The actions: what was chosen, then the others by their probability. Those excluded keep their places."""
    places = {one: place for place, one in enumerate(candidates)}
    best = sorted(candidates, key=lambda one: (one != chosen, -probabilities.get(one, 0.0), places[one]))
    left = iter(best)
    return [
        RankedAction(one, probabilities.get(one, 0.0))
        for one in (next(left) if action.id in places else action.id for action in request.actions)
    ]


def probabilities(decision: Decision, policy: Policy) -> dict[str, float]:
    """The probability of each candidate of a decision, by the id of its item."""
    row = policy.probabilities(np.array([decision.observation], np.float32), [decision.candidates])[0]
    return {item_id(action, policy): float(row[action]) for action in decision.candidates}


def item_id(action: int, policy: Policy) -> str:
    """What an action is called: by its item, or in a policy without a catalogue by its number."""
    return policy.card.catalogue[action].item_id if policy.card.catalogue else str(action)


def _known(ids: Sequence[str], policy: Policy) -> list[int | str]:
    """The actions that the policy can choose now."""
    if not policy.card.catalogue:
        if wrong := next((one for one in ids if not one.isdecimal()), None):
            version = policy.card.version
            raise InputError(
                f"actions: {version} has no catalogue; numbers of actions expected as ids, got {wrong!r:.80}"
            )
        known = [int(one) for one in ids if int(one) < policy.card.num_actions]
    else:
        known = [policy.action_of[one] for one in ids if one in policy.action_of]
    if not (known := [one for one in known if policy.active is None or policy.active[one]]):
        raise InputError(f"actions: must include an item that the catalogue offers, got {ids[0]!r:.80}")
    return [*known]


def _context(features: Sequence[Any], policy: Policy) -> tuple[dict[str, Any] | None, list[float]]:
    named: dict[str, Any] = {}
    for group in features:
        _flatten(group, "", named)
    if policy.encoder is not None:
        for name, value in named.items():
            if not isinstance(value, str | bool | int | float):
                raise InputError(f"contextFeatures.{name}: a number, a text, true or false expected, got {value!r:.80}")
        return named, []
    if set(named) != {"observation"}:
        raise InputError(
            f"contextFeatures: {policy.card.version} has no feature spec; one feature named observation expected, a list of"
            f" {policy.card.observation_dim} numbers, got {', '.join(sorted(named)) or 'none'!s:.80}"
        )
    try:
        return None, msgspec.convert(named["observation"], Observation)
    except msgspec.ValidationError as error:
        raise InputError(f"contextFeatures.observation: {error}") from None


def _flatten(value: Any, name: str, named: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(inner, f"{name}.{key}" if name else str(key), named)
    elif not name:
        raise InputError(f"contextFeatures: groups of features expected, got {value!r:.80}")
    elif name in named:
        raise InputError(f"contextFeatures.{name}: must come once, got it twice")
    else:
        named[name] = value
