"""The policy artifact: a folder that holds a trained policy, and the pointer to the champion.

    policy.json       this module's `PolicyCard`, written last: a folder without it is not a policy
    linear.npz        linear policies: `theta` [K, D] and `covariance` [K, D, D] (the inverse of A), float32, and
                      `num_samples` [K]; serves without TensorFlow
    network.npz       neural policies: `weights_0` [D, H], `bias_0` [H], `weights_1` … (each followed by a relu),
                      then `theta` [K, E] and `bias` [K] on the output of the layers, and `covariance` [K, E, E] if the
                      policy estimates its uncertainty; serves without TensorFlow
    saved_model/      SavedModel with TF-Agents' `action` signature
    checkpoint/       the state from which the next training continues

`contracts.policy_arrays` reads and writes the two npz files. A policy store is a folder of policy folders, with
`champion.json`, which names the policy that serves, and `withdrawn.json`, which lists the ids of items that were masked
or retired since it was trained.
"""

import math
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from contracts import documents
from contracts.errors import InputError
from contracts.features import FeatureSpec
from contracts.items import Item
from contracts.records import Action, PolicyVersion, Timestamp
from contracts.windows import Split, TrainingWindow

CARD_NAME = "policy.json"
LINEAR_NAME = "linear.npz"
NETWORK_NAME = "network.npz"
SAVED_MODEL_NAME = "saved_model"
CHECKPOINT_NAME = "checkpoint"
CHAMPION_NAME = "champion.json"
WITHDRAWN_NAME = "withdrawn.json"
SCHEMA_VERSION = 2

Share = Annotated[float, Meta(ge=0, le=1)]
AnchorShare = Annotated[
    float,
    Meta(
        ge=0,
        le=0.5,
        description="share of the decisions that the last confirmed version keeps while a newer one is on probation; "
        "0: newer versions serve without probation",
    ),
]


class ArmColumn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One column of arm features: a number of the items, scaled, or whether an item has a category."""

    attribute: str
    category: str | None = None  # None: the attribute is a number
    center: float = 0.0
    scale: Annotated[float, Meta(gt=0)] = 1.0


class TrainedWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One split of one window that a policy (or one of its ancestors) was trained on, once."""

    window: TrainingWindow
    split: Split
    records: Annotated[int, Meta(ge=0)]
    revision: Annotated[int, Meta(ge=0)] = 0  # of the window; JSON omits 0
    # The share of the evidence of earlier windows that was kept when this one was trained on, where the half-life is "auto";
    # stands at the training split. JSON omits 1.
    kept: Annotated[float, Meta(gt=0, le=1)] = 1.0


Strategy = Literal["greedy", "uniform", "epsilon_greedy", "ucb", "softmax", "inverse_gap", "thompson"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Exploration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How actions are drawn when this policy serves. It is not trained, so changing it needs no retraining.

    `predictor.exploration` says what each strategy does with these settings. Raises ValueError for a number that is not
    finite.
    """

    strategy: Annotated[Strategy, Meta(description="how served actions are drawn")] = "ucb"
    epsilon: Annotated[float, Meta(ge=0, le=1, description="share of decisions drawn uniformly")] = 0.02
    alpha: Annotated[float, Meta(ge=0, description="width of the confidence bound, in standard deviations")] = 0.5
    temperature: Annotated[
        float, Meta(gt=0, description="softmax: how much more reward makes an action e times as probable")
    ] = 1.0
    gamma: Annotated[float, Meta(gt=0, description="inverse_gap: the larger, the greedier")] = 100.0
    new_item_share: Annotated[
        float,
        Meta(
            ge=0,
            le=0.5,
            description="share of the decisions that all items added later have together at most while they are new, and at most"
            " 0.02 times their number",
        ),
    ] = 0.1
    new_item_samples: Annotated[
        float,
        Meta(
            ge=0,
            description="an added item is new until the policy has learned from so many of its decisions, or from as many as"
            " of the median item",
        ),
    ] = 100.0

    def __post_init__(self) -> None:
        for name, value in msgspec.structs.asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")


class SlateValue(msgspec.Struct, frozen=True, kw_only=True):
    """An off-policy estimate of what a policy earns with a slate, the sum of its places' rewards."""

    estimator: str
    value: float
    low: float
    high: float
    slates: int
    reliable: bool
    reason: str | None  # why it is not reliable


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """An off-policy estimate of a policy's reward per decision."""

    estimator: str
    value: float
    low: float
    high: float
    effective_sample_size: float
    decisions: int
    reliable: bool = True
    reason: str | None = None  # why it is not reliable
    slate: SlateValue | None = None  # where decisions were made in slates


class PolicyCard(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `policy.json`: how the policy was trained, its catalogue, and how it explores."""

    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION
    version: PolicyVersion
    parent: PolicyVersion | None
    algorithm: str
    hyperparameters: dict[str, float | int | str | bool]
    observation_dim: Annotated[int, Meta(ge=1)]
    num_actions: Annotated[int, Meta(ge=1)]
    catalogue: list[Item]
    arm_columns: list[
        ArmColumn
    ] = []  # how the items' attributes became arm features, if the policy has learned with them
    trained_on: list[TrainedWindow]
    exploration: Exploration
    new_actions: list[Action] = []  # of items that were added later and that the policy knows too little of
    evaluation: Evaluation | None = None
    features: FeatureSpec | None = None  # of the observation; None: the application encodes it

    def __post_init__(self) -> None:
        if self.features is not None and self.features.dim != self.observation_dim:
            raise ValueError(f"features must take observation_dim {self.observation_dim}, got {self.features.dim}")
        if self.catalogue and [item.action for item in self.catalogue] != list(range(self.num_actions)):
            raise ValueError(f"catalogue must list actions 0 to {self.num_actions - 1} in order")


# Who picks the decisions of a candidate or an anchor: their ids, or an endpoint that splits the traffic by chance.
SharedBy = Literal["ids", "traffic"]


class Champion(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `champion.json`: the version that serves, and the one that a rollback returns to.

    `mode` says how a `candidate`, or in apprentice mode the champion, is tried out:

      canary      the candidate takes `candidate_share` of the decisions
      shadow      the champion takes all decisions; those that the candidate would take are logged apart
      apprentice  the safe baseline takes all decisions; those that the champion would take are logged apart
      probation   the champion is new and not confirmed yet: the `anchor`, the last version that was, takes
                  `anchor_share` of the decisions, by which the champion is watched

    Raises ValueError for a version on probation without an anchor, and for an anchor without a version on probation.
    """

    version: PolicyVersion
    previous: PolicyVersion | None
    promoted_at: Timestamp
    reason: str
    candidate: PolicyVersion | None = None
    candidate_share: Share = 0.0
    mode: Literal["canary", "shadow", "apprentice", "probation"] = "canary"
    rolled_back: PolicyVersion | None = None  # the version that this one replaced by a rollback
    anchor: PolicyVersion | None = None
    anchor_share: AnchorShare = 0.0
    shared_by: SharedBy = "ids"

    def __post_init__(self) -> None:
        if (self.mode == "probation") != (self.anchor is not None):
            raise ValueError(f"an anchor belongs to mode probation, got mode {self.mode} and anchor {self.anchor}")


Verdict = Literal["better", "worse", "undecided"]


def live_version(base: str, sequence: int) -> str:
    """The name of the live version with this sequence number over the policy `base`: `<base>+<sequence>`."""
    return f"{base}+{sequence}"


def split_version(version: str) -> tuple[str, int | None]:
    """The base and the sequence number of a live version; the version itself and None for any other."""
    base, plus, sequence = version.rpartition("+")
    return (base, int(sequence)) if plus and base and sequence.isdecimal() else (version, None)


def base_of(version: str) -> str:
    """The version by which decisions are counted: a live version's base, any other version itself."""
    return split_version(version)[0]


def decode_card(data: bytes, where: str) -> PolicyCard:
    """The card in `data`, of this or an earlier schema version. Raises InputError that names `where` and the fact."""
    if b'"movie_id"' in data:
        data = _from_schema_1(data)
    return documents.decode(data, PolicyCard, "policy", where, SCHEMA_VERSION)


def _from_schema_1(data: bytes) -> bytes:
    """A card of schema version 1, whose items were movies, as one of this version; other bytes as they are."""
    try:
        card = msgspec.json.decode(data)
        if card["schema_version"] != 1:
            return data
        for item in card["catalogue"]:
            item["item_id"] = item.pop("movie_id")
            known = {name: item.pop(name, None) for name in ("title", "year", "genres")}
            item["attributes"] = {name: value for name, value in known.items() if value}
        if card["hyperparameters"].get("arm_features", "none") != "none":
            genres = [genre for item in card["catalogue"] for genre in item["attributes"].get("genres", [])]
            card["arm_columns"] = [
                {"attribute": "year", "center": 1980.0, "scale": 10.0},
                *({"attribute": "genres", "category": genre} for genre in dict.fromkeys(genres)),
            ]
    except (msgspec.DecodeError, TypeError, KeyError):
        return data
    return msgspec.json.encode(card | {"schema_version": SCHEMA_VERSION})


def decode_champion(data: bytes, where: str) -> Champion:
    """The pointer in `data`. Raises InputError that names `where` and the fact."""
    try:
        return msgspec.json.decode(data, type=Champion)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not a champion pointer: {error}") from None


def decode_withdrawn(data: bytes, where: str) -> frozenset[str]:
    """The item ids in `data`. Raises InputError that names `where` and the fact."""
    try:
        return frozenset(msgspec.json.decode(data, type=list[str]))
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not a list of item ids: {error}") from None


def encode_json(value: PolicyCard | Champion) -> bytes:
    """`value` as indented JSON, the same bytes for the same value."""
    return documents.encode(value)
