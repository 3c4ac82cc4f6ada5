"""The records of the loop, declared once: JSON form, validation, BigQuery and Arrow schemas derive from these classes.

    Decision      a policy chose `action` for `observation` with probability `propensity`
    RewardEvent   what came back for a decision
    StatusEvent   a decision was activated (it was shown), or cancelled (it does not count)
    Interaction   a decision joined with its reward: of those in time by a rule, or the default reward
    DeadLetter    a payload that could not be read, kept as received so that it can be replayed

Decisions, rewards and statuses travel on one events topic as JSON objects told apart by `kind`. Decode them with
`event_decoder.decode(payload)`: a wrong value raises `msgspec.ValidationError` (not JSON at all: its parent
`msgspec.DecodeError`) that names the field and the fact.

Fields may be added as optional ones; never rename or reuse one.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

FLOAT32_MAX = 3.4028234663852886e38
FLOAT32_TINY = 1.1754943508222875e-38  # the smallest normal one: a smaller propensity would become 0
INT32_MAX = 2**31 - 1
MAX_SLATE = 1000  # places in a slate

UUID7_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"

# With its length: the pattern alone would let a newline after it through.
DecisionId = Annotated[
    str, Meta(pattern=UUID7_PATTERN, min_length=36, max_length=36, description="UUIDv7, lower case. The join key.")
]
Timestamp = Annotated[datetime, Meta(tz=True, description="UTC, microseconds.")]
PolicyVersion = Annotated[str, Meta(min_length=1, max_length=128, description="Identity of the logging policy.")]
UserId = Annotated[str, Meta(max_length=128, description="Pseudonymous.")]
# float32 once it reaches the trainer: a double beyond that range would become infinity there.
Float32 = Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
Observation = Annotated[list[Float32], Meta(min_length=1, max_length=65536, description="Context vector [D].")]
Action = Annotated[int, Meta(ge=0, le=INT32_MAX, description="Arm index in [0, K).")]
Candidates = Annotated[
    list[Action],
    Meta(
        max_length=1_000_000,
        description="Arm indexes on offer; when empty, all that the policy version offers. In a slate, what the earlier"
        " places left.",
    ),
]
Propensity = Annotated[
    float, Meta(ge=FLOAT32_TINY, le=1, description="The logging policy's probability of the action it took, in (0, 1].")
]
SlateId = Annotated[DecisionId, Meta(description="The slate that the decision belongs to: the id of its first place.")]
Place = Annotated[int, Meta(ge=0, lt=MAX_SLATE, description="The place in the slate, from 0.")]
Deferred = Annotated[
    bool, Meta(description="Whether the decision counts only once it is activated, within the reward window.")
]
Status = Annotated[
    Literal["activated", "cancelled"],
    Meta(description="activated: the decision was shown, so it counts; cancelled: it does not count."),
]
Reward = Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX, description="Scalar reward.")]


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="decision"):
    """One action taken by a policy. Raises ValueError for an action that was not on offer, and half a slate's fields."""

    decision_id: DecisionId
    decided_at: Timestamp
    policy_version: PolicyVersion
    user_id: UserId | None = None
    observation: Observation
    candidates: Candidates = []
    action: Action
    propensity: Propensity
    slate_id: SlateId | None = None
    place: Place | None = None
    deferred: Deferred | None = None

    def __post_init__(self) -> None:
        if self.candidates and self.action not in self.candidates:
            raise ValueError(f"action must be one of candidates, got {self.action} (decision_id={self.decision_id})")
        if (self.slate_id is None) != (self.place is None):
            raise ValueError(
                f"slate_id and place must be given together, got {self.slate_id} and {self.place}"
                f" (decision_id={self.decision_id})"
            )


class RewardEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="reward"):
    """A reward for a decision, at the time it occurred (not the time it arrived)."""

    decision_id: DecisionId
    occurred_at: Timestamp
    reward: Reward


class StatusEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="status"):
    """What became of a decision apart from its reward, and when that occurred."""

    decision_id: DecisionId
    occurred_at: Timestamp
    status: Status


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """A decision and its reward; `defaulted`: none came in time, `reward` is the default, `rewarded_at` None."""

    decision_id: DecisionId
    decided_at: Timestamp
    policy_version: PolicyVersion
    user_id: UserId | None = None
    observation: Observation
    candidates: Candidates = []
    action: Action
    propensity: Propensity
    slate_id: SlateId | None = None
    place: Place | None = None
    reward: Reward
    rewarded_at: Timestamp | None
    defaulted: bool


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A payload that was set aside, exactly as received; `source` says where it stood (file and line, message id)."""

    payload: bytes
    error_type: str
    error_message: str
    stage: str
    failed_at: Timestamp
    source: str | None = None


Event = Decision | RewardEvent | StatusEvent

event_decoder = msgspec.json.Decoder(Event)
encoder = msgspec.json.Encoder()

# All that `event_decoder` raises on bytes from outside: bytes in a string that are not UTF-8, and nesting without end,
# have exceptions of their own.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def utc_microseconds(moment: datetime) -> int:
    """Microseconds since the epoch, exact (a float of seconds is not). Raises ValueError for a naive datetime."""
    if moment.tzinfo is None:
        raise ValueError(f"timestamp must carry a time zone, got {moment.isoformat()}")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def describe_error(error: Exception, payload: bytes) -> str:
    """`error`, one of UNREADABLE, as one line of some hundred characters at most: field, fact, value.

    "propensity: Expected `float` <= 1.0, got 1.5 (decision_id=…)".
    """
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", str(error), re.DOTALL)
    try:
        received: Any = msgspec.json.decode(payload)
    except UNREADABLE:
        return one_line(str(error))  # not JSON at all: there is no value to point at
    identity = received.get("decision_id") if isinstance(received, dict) else None
    suffix = f" (decision_id={identity!s:.64})" if identity else ""
    if not match:
        suffix = "" if suffix[1:-1] in str(error) else suffix
        return one_line(f"{error!s:.300}{suffix}")
    fact, path = match.groups()
    value: Any = received
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (LookupError, TypeError, ValueError):
            return one_line(f"{path}: {fact:.300}{suffix}")
    return one_line(f"{path or 'event'}: {fact:.300}, got {value!r:.80}{suffix}")


def one_line(text: str, length: int = 500) -> str:
    """The beginning of `text`, and a space for each character that would break the line or cannot be printed."""
    return "".join(character if character.isprintable() else " " for character in text[:length])
