"""Decisions: checks requests against the line-up, chooses actions and slates, and replays logged decisions.

A request uses one line-up to the end, so a swap never splits a request, and each decision is logged with the version
that made it.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.records import (
    INT32_MAX,
    MAX_SLATE,
    Action,
    Decision,
    DecisionId,
    PolicyVersion,
    Propensity,
    Timestamp,
    encoder,
)
from predictor.line_up import LineUp
from predictor.messages import Instance, NamedInstance
from predictor.policy import Policy, in_common

_log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER_BYTES = 25  # the longest float64 in JSON, such as -2.2250738585072014e-308, and a comma
# The longest decision with one character of user, one candidate and no observation, by the bounds of contracts.records.
# A control character takes six bytes in JSON, which is the most per character.
_DECISION_BYTES = _NUMBER_BYTES + len(
    encoder.encode(
        Decision(
            decision_id="01a20375-ec4c-785b-98a2-17b9d72932ef",
            decided_at=_EPOCH + timedelta(microseconds=1),
            policy_version="\0" * 128,
            user_id="u",
            observation=[],
            candidates=[INT32_MAX],
            action=INT32_MAX,
            propensity=1.0,
            slate_id="01a20375-ec4c-785b-98a2-17b9d72932ef",
            place=MAX_SLATE - 1,
            deferred=True,
        )
    )
)


class ShadowDecision(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="shadow"):
    """The decision that a policy in the shadow would have made instead of the one that served. Logged apart.

    `action` and `propensity` are the shadow policy's. `propensity_of_served` is its probability of the action that was
    served, which an off-policy estimate of it needs.
    """

    decision_id: DecisionId
    decided_at: Timestamp
    policy_version: PolicyVersion
    action: Action
    propensity: Propensity
    served_action: Action
    propensity_of_served: float


@dataclass(frozen=True)
class Decided:
    """The result of a pass. `slates[i]` holds the decisions for instance i, one per place."""

    slates: list[list[Decision]]
    shadows: list[ShadowDecision] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # why a policy did not decide, one line each


@dataclass(frozen=True)
class Asked:
    """An instance that was checked: `candidates` are actions, none of them twice; empty: everything is on offer."""

    observation: list[float]
    user_id: str | None
    candidates: list[int]
    deferred: bool = False
    decision_ids: list[str] | None = None  # one per place; None: new ones


def check(instances: Sequence[Instance], line_up: LineUp, slate_size: int = 1, any_length: bool = False) -> list[Asked]:
    """The instances, with observations for named features and actions for the ids of items.

    With `any_length`, observations may have another length than the policy's, see `fitted`.

    Raises InputError unless `line_up` can decide for every one of them. It names the instance and the field: a context that
    the feature spec does not take, an observation of another length, a candidate that is unknown or repeated, no candidate
    on offer, nothing left by the exclusions, or a slate larger than the number of arms on offer.
    """
    policy = line_up.serving
    asked = []
    for i, instance in enumerate(instances):
        observation = instance.observation if instance.context is None else _encoded(i, instance, policy)
        if (length := len(observation)) != policy.card.observation_dim and not any_length:
            wanted = policy.card.observation_dim
            raise InputError(f"instances[{i}].observation: must have {wanted} numbers, got {length}")
        candidates = _actions(i, instance, policy) if instance.candidates else []
        if instance.exclude:
            candidates = _without(i, instance.exclude, candidates, policy)
        if line_up.withheld:
            candidates = [action for action in candidates or policy.on_offer if action not in line_up.withheld]
            if not candidates:
                raise InputError(f"instances[{i}].candidates: must include an item that is on offer, got none")
        if candidates or slate_size > 1:
            _check_offer(i, candidates, policy, slate_size)
        ids = instance.decision_ids if isinstance(instance, NamedInstance) else None
        asked.append(Asked(observation, instance.user_id, candidates, instance.deferred, ids))
    return asked


def _encoded(i: int, instance: Instance, policy: Policy) -> list[float]:
    """The observation that the policy's feature spec makes of the instance's context."""
    assert instance.context is not None
    if instance.observation:
        raise InputError(f"instances[{i}]: either observation or context expected, got both")
    if policy.encoder is None:
        version = policy.card.version
        raise InputError(
            f"instances[{i}].context: {version} has no feature spec; an observation expected, got a context"
        )
    return policy.encoder.encode(instance.context, f"instances[{i}].context")


def _actions(i: int, instance: Instance, policy: Policy) -> list[int]:
    """The instance's candidates as actions, without the items that the policy does not know."""
    named = [policy.action_of.get(one) if isinstance(one, str) else one for one in instance.candidates]
    known = [one for one in named if one is not None]
    if not known:
        raise InputError(
            f"instances[{i}].candidates: must include an item of the catalogue, got {instance.candidates[0]!r:.80}"
        )
    if (largest := max(known)) >= policy.card.num_actions:
        raise InputError(f"instances[{i}].candidates: must be below {policy.card.num_actions}, got {largest}")
    if len(set(known)) != len(known):
        raise InputError(f"instances[{i}].candidates: must differ, got one twice")
    return known


def _without(i: int, exclude: Sequence[int | str], candidates: list[int], policy: Policy) -> list[int]:
    """What the exclusions leave of the candidates, or of everything on offer."""
    excluded = {policy.action_of.get(one, -1) if isinstance(one, str) else one for one in exclude}
    left = [action for action in candidates or policy.on_offer if action not in excluded]
    if not left:
        raise InputError(f"instances[{i}].exclude: must leave something on offer, got {len(exclude)} exclusions")
    return left


def _check_offer(i: int, candidates: list[int], policy: Policy, slate_size: int) -> None:
    on_offer = len(candidates) or policy.card.num_actions
    if policy.active is not None:
        on_offer = int(policy.active[candidates or slice(None)].sum())
        if not on_offer:
            raise InputError(f"instances[{i}].candidates: must include an arm whose item is active, got none")
    if slate_size > on_offer:
        raise InputError(
            f"parameters.slate_size: must be at most the {on_offer} arms of instances[{i}], got {slate_size}"
        )


def decide(line_up: LineUp, instances: Sequence[Asked], slate_size: int = 1) -> Decided:
    """Decides for each instance, once per place of its slate; all decisions have the same time.

    Each place of a slate is a separate decision among the arms that the earlier places left, which are logged as its
    candidates, with the slate's id and the place. Its propensity is therefore exact for every explorer, and the slate's is
    the product. If a policy fails, the baseline decides for its instances.

    Args:
      line_up: the policies.
      instances: from `check`, for the same line-up.
      slate_size: places per instance.
    """
    now_microseconds = time.time_ns() // 1000
    decided_at = _EPOCH + timedelta(microseconds=now_microseconds)
    decided = Decided([[] for _ in instances])
    observations = fitted([instance.observation for instance in instances], line_up.serving)
    candidates = [instance.candidates for instance in instances]
    all_on_offer = line_up.serving.on_offer
    shares: list[tuple[Policy, list[int]]] = []
    slate_ids: list[str] = []
    for place in range(slate_size):
        decision_ids = _ids(instances, place, now_microseconds // 1000)
        if place:
            for i, slate in enumerate(decided.slates):
                candidates[i] = [action for action in candidates[i] or all_on_offer if action != slate[-1].action]
        else:
            shares, slate_ids = line_up.shares(decision_ids), decision_ids
            if line_up.common is not None:
                shares = _within_common(line_up, line_up.common, shares, candidates, slate_size)
        for policy, rows in shares:
            if len(shares) == 1:
                chosen = _choose_or_fall_back(policy, observations, candidates, decision_ids, line_up, decided)
            else:
                offered = [candidates[i] for i in rows]
                ids = [decision_ids[i] for i in rows]
                chosen = _choose_or_fall_back(policy, observations[rows], offered, ids, line_up, decided)
            version, actions, propensities = chosen
            for i, action, propensity in zip(rows, actions, propensities, strict=True):
                instance = instances[i]
                decision = Decision(
                    decision_id=decision_ids[i],
                    decided_at=decided_at,
                    policy_version=version,
                    user_id=instance.user_id,
                    observation=instance.observation,
                    candidates=candidates[i],
                    action=action,
                    propensity=propensity,
                    slate_id=slate_ids[i] if slate_size > 1 else None,
                    place=place if slate_size > 1 else None,
                    deferred=instance.deferred or None,
                )
                decided.slates[i].append(decision)
        if line_up.shadow is not None:
            _score_in_shadow(
                line_up.shadow, line_up.serving, observations, [slate[-1] for slate in decided.slates], decided
            )
    return decided


def _within_common(
    line_up: LineUp,
    common: list[int],
    shares: list[tuple[Policy, list[int]]],
    candidates: list[list[int]],
    slate_size: int,
) -> list[tuple[Policy, list[int]]]:
    """The shares when the policy beside `serving` may only choose from `common`.

    Its candidates are then listed in the log, by which its decisions can be replayed. Where too few of them are left, the
    policy that serves decides.
    """
    main, known = line_up.live or line_up.serving, set(common)
    rows_of: dict[bool, list[int]] = {False: [], True: []}
    for policy, rows in shares:
        for row in rows:
            left = [action for action in candidates[row] or common if action in known] if policy is not main else []
            if beside := len(left) >= slate_size:
                candidates[row] = left
            rows_of[beside].append(row)
    policies = (main, line_up.candidate or line_up.anchor)
    return [(policy, rows) for policy, rows in zip(policies, rows_of.values(), strict=True) if policy and rows]


def logged_bytes(instances: Sequence[Instance], slate_size: int, line_up: LineUp) -> int:
    """An upper bound of the bytes of events that `decide` leads to for these instances.

    Each place of a slate logs the user, the observation and the arms on offer again. The first place logs the candidates
    as given; the later ones list what is left of them, or of all arms if none were given. With exclusions, withdrawn items, or
    beside a policy that offers other items, the first place lists what is left as well.
    """
    card = line_up.serving.card
    num_actions = card.num_actions
    lists_all = line_up.common is not None or bool(line_up.withheld)
    action_bytes = len(str(num_actions)) + 1
    size = 0
    for instance in instances:
        numbers = len(instance.observation) or card.observation_dim  # of a context, the spec makes that many
        place = _DECISION_BYTES + _NUMBER_BYTES * numbers + 6 * len(instance.user_id or "")
        given = len(instance.candidates) or (num_actions if lists_all or instance.exclude else 0)
        size += slate_size * place + action_bytes * (given + (slate_size - 1) * (given or num_actions))
    return size


def _choose_or_fall_back(
    policy: Policy,
    observations: np.ndarray,
    candidates: Sequence[Sequence[int]],
    decision_ids: list[str],
    line_up: LineUp,
    decided: Decided,
) -> tuple[str, list[int], list[float]]:
    """The version that chose, its actions, and their propensities. A live version falls back to its base first."""
    attempts = ((policy, "base"), (line_up.serving, "baseline")) if policy is line_up.live else ((policy, "baseline"),)
    for attempt, instead in attempts:
        try:
            return attempt.card.version, *choose(attempt, observations, candidates, decision_ids)
        except Exception as error:  # noqa: BLE001 - the base or the baseline answers, whatever fails
            _log.exception("policy %s failed; the %s decides instead", attempt.card.version, instead)
            decided.failures.append(f"{attempt.card.version}: {error}")
    baseline = line_up.baseline
    return baseline.card.version, *choose(baseline, observations, candidates, decision_ids)


def fitted(observations: Sequence[list[float]], policy: Policy) -> np.ndarray:
    """[B, D] float32, as the policy takes them: the first D numbers of each, and 0 where it has fewer."""
    wanted = policy.card.observation_dim
    if all(len(observation) == wanted for observation in observations):
        return np.array(observations, np.float32).reshape(len(observations), wanted)
    found = np.zeros((len(observations), wanted), np.float32)
    for row, observation in zip(found, observations, strict=True):
        known = observation[:wanted]
        row[: len(known)] = known
    return found


def choose(
    policy: Policy, observations: np.ndarray, candidates: Sequence[Sequence[int]], decision_ids: list[str]
) -> tuple[list[int], list[float]]:
    """Actions and their propensities for observations [B, D] float32. The same ids give the same actions."""
    actions, propensities = np.zeros(len(observations), np.int64), np.zeros(len(observations))
    for one in policy.choices(observations, candidates):
        actions[one.rows] = drawn = one.draw([decision_ids[row] for row in one.rows], policy.card.version)
        propensities[one.rows] = one.of(drawn)
    return actions.tolist(), propensities.tolist()


def replay(policy: Policy, decisions: Sequence[Decision]) -> tuple[list[int], list[float]]:
    """The actions and propensities of logged decisions, computed again by the policy that made them."""
    observations = fitted([decision.observation for decision in decisions], policy)
    return choose(
        policy,
        observations,
        [decision.candidates for decision in decisions],
        [decision.decision_id for decision in decisions],
    )


def _ids(instances: Sequence[Asked], place: int, now_milliseconds: int) -> list[str]:
    """The ids of the decisions of one place: those that were given, else new ones."""
    new = new_decision_ids(now_milliseconds, len(instances))
    return [one.decision_ids[place] if one.decision_ids else id for one, id in zip(instances, new, strict=True)]


def new_decision_ids(now_milliseconds: int, count: int) -> list[str]:
    """UUIDv7 (RFC 9562): 48 bits of time, the rest random. They sort by time to the millisecond."""
    moment = f"{now_milliseconds:012x}"
    prefix = f"{moment[:8]}-{moment[8:]}-7"
    digits = os.urandom(10 * count).hex()  # from the system, so they cannot be guessed; 20 per id, of which 19 are used
    return [
        f"{prefix}{digits[i : i + 3]}-{_VARIANT[digits[i + 3]]}{digits[i + 4 : i + 7]}-{digits[i + 7 : i + 19]}"
        for i in range(0, len(digits), 20)
    ]


# The fourth digit of the random ones, its upper two bits set to 10.
_VARIANT = {f"{digit:x}": f"{8 + digit % 4:x}" for digit in range(16)}


def _score_in_shadow(
    shadow: Policy, serving: Policy, observations: np.ndarray, served: list[Decision], decided: Decided
) -> None:
    try:
        offered = [decision.candidates for decision in served]
        if (common := in_common(shadow, serving)) is not None:
            known = set(common)
            offered = [[action for action in some or common if action in known] for some in offered]
        choices = shadow.choices(observations, offered)
    except Exception as error:  # noqa: BLE001 - a shadow must not harm what serves
        _log.exception("policy %s failed in the shadow", shadow.card.version)
        decided.failures.append(f"{shadow.card.version}: {error}")
        return
    for one in choices:
        decisions = [served[row] for row in one.rows]
        actions = one.draw([decision.decision_id for decision in decisions], shadow.card.version)
        propensities = one.of(actions).tolist()
        of_served = one.of(np.array([decision.action for decision in decisions])).tolist()
        for decision, action, *chances in zip(decisions, actions.tolist(), propensities, of_served, strict=True):
            decided.shadows.append(
                ShadowDecision(
                    decision_id=decision.decision_id,
                    decided_at=decision.decided_at,
                    policy_version=shadow.card.version,
                    action=action,
                    propensity=chances[0],
                    served_action=decision.action,
                    propensity_of_served=chances[1],
                )
            )
