"""The bodies of the predictor's requests and answers. Decoding them is their validation; light enough for any client."""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.features import Context
from contracts.items import ItemId
from contracts.records import (
    MAX_SLATE,
    Action,
    DecisionId,
    Observation,
    PolicyVersion,
    Propensity,
    Reward,
    Timestamp,
    UserId,
)


class Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request for an action: the context, its user, and what is on offer (everything when empty).

    A number names an action, a text an item. A candidate that the policy's catalogue does not have is left out, and so is
    an exclusion: the application and the policy may learn of a change at different moments. At least one candidate must be
    known.

    The context is either a vector, `observation`, or named features, `context`, which a policy with a feature spec takes.
    """

    observation: Observation = []
    user_id: UserId | None = None
    candidates: Annotated[
        list[Action | ItemId],
        Meta(
            max_length=1_000_000,
            description="Actions or item ids on offer; everything when empty. 3.0 is taken for the integer 3.",
        ),
    ] = []
    exclude: Annotated[
        list[Action | ItemId],
        Meta(max_length=1_000_000, description="Actions or item ids that are not on offer this time."),
    ] = []
    context: Context | None = None
    deferred: Annotated[
        bool,
        Meta(
            description="Whether the decision counts only once it is activated. If it is not, within the reward window, it"
            " never happened."
        ),
    ] = False


class NamedInstance(Instance, frozen=True, kw_only=True):
    """An instance with the ids of its decisions, one per place. A part of the server makes it; no request holds it."""

    decision_ids: list[DecisionId]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Settings for all instances of a request."""

    slate_size: Annotated[
        int,
        Meta(
            ge=1, le=MAX_SLATE, description="How many different arms, best place first. 3.0 is taken for the integer 3."
        ),
    ] = 1


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of the predict route."""

    instances: Annotated[list[Instance], Meta(min_length=1)]
    parameters: Parameters | None = None


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a slate: a decision among the arms that the earlier places left."""

    decision_id: DecisionId
    action: Action
    propensity: Annotated[Propensity, Meta(description="Given the earlier places.")]
    item_id: str | None
    title: str | None


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One logged decision; `item_id` and `title` are null for a policy without a catalogue.

    For a slate the fields are those of its first place, `slate` lists all places and `slate_propensity` is the
    probability of the whole, in this order: the product of the places' propensities.
    """

    decision_id: DecisionId
    action: Action
    propensity: Propensity
    policy_version: PolicyVersion
    item_id: str | None
    title: str | None
    slate: list[Slot] = []
    slate_propensity: Annotated[float, Meta(ge=0, le=1)] | None = None


class PredictResponse(msgspec.Struct, frozen=True):
    """Answer of the predict route: one prediction per instance, in order."""

    predictions: list[Prediction]


class SentReward(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The reward of a decision. Without `occurred_at` the server takes the time at which it arrives."""

    decision_id: DecisionId
    reward: Reward
    occurred_at: Timestamp | None = None


class RewardsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of /rewards."""

    rewards: list[SentReward]


class RewardsResponse(msgspec.Struct, frozen=True):
    """Answer of /rewards: how many rewards were taken. The join finds out later whether each has a decision."""

    accepted: int


class StatusesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of /activate and /cancel: decisions that were shown, or that must not count.

    Of a slate, each place is a decision. Without `occurred_at` the server takes the time at which the request arrives.
    """

    decision_ids: Annotated[list[DecisionId], Meta(min_length=1)]
    occurred_at: Timestamp | None = None


class StatusesResponse(msgspec.Struct, frozen=True):
    """Answer of /activate and /cancel: how many were taken. The join finds out later whether each has a decision."""

    accepted: int


class Refusal(msgspec.Struct, frozen=True):
    """Answer to a refused request, in one line: the field, the fact, the value."""

    error: str
