"""The bodies of the predictor's requests and answers. Decoding them is their validation; light enough for any client."""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.records import (
    Action,
    Candidates,
    DecisionId,
    Observation,
    PolicyVersion,
    Propensity,
    Reward,
    Timestamp,
    UserId,
)


class Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request for an action: the context vector, whose it is, and the arms on offer (all when empty)."""

    observation: Observation
    user_id: UserId | None = None
    candidates: Candidates = []


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What holds for all instances of a request."""

    slate_size: Annotated[int, Meta(ge=1, le=1000, description="How many different arms, best place first.")] = 1


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of the predict route."""

    instances: Annotated[list[Instance], Meta(min_length=1)]
    parameters: Parameters | None = None


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a slate: a decision among the arms that the places before it left."""

    decision_id: DecisionId
    action: Action
    propensity: Annotated[Propensity, Meta(description="Given the places before it.")]
    movie_id: str | None
    title: str | None


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One logged decision; `movie_id` and `title` are null for a policy without a catalogue.

    For a slate the fields are those of its first place, `slate` lists all places and `slate_propensity` is the
    probability of the whole, in this order: the product of the places' propensities.
    """

    decision_id: DecisionId
    action: Action
    propensity: Propensity
    policy_version: PolicyVersion
    movie_id: str | None
    title: str | None
    slate: list[Slot] = []
    slate_propensity: Annotated[float, Meta(ge=0, le=1)] | None = None


class PredictResponse(msgspec.Struct, frozen=True):
    """Answer of the predict route: one prediction an instance, in order."""

    predictions: list[Prediction]


class SentReward(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What came back for a decision; it occurred now unless it says when."""

    decision_id: DecisionId
    reward: Reward
    occurred_at: Timestamp | None = None


class RewardsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of /rewards."""

    rewards: list[SentReward]


class RewardsResponse(msgspec.Struct, frozen=True):
    """Answer of /rewards: how many were taken. Whether they are of any decision is found out when they are joined."""

    accepted: int


class Refusal(msgspec.Struct, frozen=True):
    """Answer to a request that was not served, in one line: which field, what is wrong, what was given."""

    error: str
