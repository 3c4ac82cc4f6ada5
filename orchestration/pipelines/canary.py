"""The canary: a candidate takes a share of the decisions, and its mean reward is compared with the champion's.

The id of a decision decides which of the two serves it. The two groups of decisions therefore differ only in the policy,
and the difference of their mean rewards estimates the candidate's gain, whatever it was trained on.
"""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Champion
from orchestration import policy_store

STANDARD_ERRORS = 1.96  # a two-sided interval of 95%, tested once, at the end
HARM_STANDARD_ERRORS = 4.0  # tested every second, so each test has a false alarm rate of only 1 in 30,000
MIN_DECISIONS = 30  # with fewer, the mean is not close to normally distributed
POLL_SECONDS = 1.0


class Canary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a candidate is tried out beside the champion."""

    share: Annotated[
        float, Meta(ge=0, le=1, description="share of the decisions that the candidate takes; 0: none")
    ] = 0.1
    decisions: Annotated[int, Meta(ge=0, description="decisions of the candidate that are enough to judge it")] = 200
    seconds: Annotated[float, Meta(ge=0, description="how long to wait for these decisions at most")] = 30.0


class Arm(NamedTuple):
    """The rewards of one policy's decisions."""

    decisions: int
    mean: float
    variance: float  # of one reward, unbiased

    @classmethod
    def of(cls, rewards: list[float]) -> "Arm":
        """The arm that received `rewards`."""
        count = len(rewards)
        mean = math.fsum(rewards) / count if count else 0.0
        spread = math.fsum((reward - mean) ** 2 for reward in rewards) / (count - 1) if count > 1 else 0.0
        return cls(count, mean, spread)


class Trial(NamedTuple):
    """Candidate and champion, side by side."""

    candidate: Arm
    champion: Arm

    @property
    def gain(self) -> float:
        """Mean reward per decision of the candidate, minus the champion's."""
        return self.candidate.mean - self.champion.mean

    @property
    def standard_error(self) -> float:
        """The standard error of the gain (Welch, 1947); infinite while an arm has fewer than MIN_DECISIONS decisions."""
        if min(self.candidate.decisions, self.champion.decisions) < MIN_DECISIONS:
            return math.inf
        arms = (self.candidate, self.champion)
        return math.sqrt(sum(arm.variance / arm.decisions for arm in arms))

    def worse(self, standard_errors: float) -> bool:
        """Whether the interval of the gain, `standard_errors` wide on either side, lies below 0."""
        return self.gain + standard_errors * self.standard_error < 0

    def __str__(self) -> str:
        if math.isinf(self.standard_error):
            return f"{self.candidate.decisions} of its decisions against {self.champion.decisions}, too few to tell"
        half = STANDARD_ERRORS * self.standard_error
        return (
            f"gain {self.gain:+.3f} [{self.gain - half:+.3f}, {self.gain + half:+.3f}] on "
            f"{self.candidate.decisions} of its decisions against {self.champion.decisions}"
        )


class Verdict(NamedTuple):
    """What to do with the candidate, and why."""

    action: Literal["promote", "roll back"]
    reason: str


def start(store: Path, version: str, share: float) -> Champion:
    """Lets `version` take `share` (from 0 to 1) of the champion's decisions. Does nothing if it takes them already.

    Raises InputError for a version that is not in the store, a store without champion, or one whose champion is on
    probation.
    """
    current = policy_store.champion(store)
    if current is None:
        raise InputError(f"{store} has no champion beside which to try {version}")
    if not (store / version / policies.CARD_NAME).is_file():
        raise InputError(f"{store} has no policy {version!r}")
    if version == current.version:
        raise InputError(f"{version} is the champion: it cannot be its own canary")
    if current.anchor is not None:
        raise InputError(f"{current.version} is on probation: {version} can be tried beside it once it is confirmed")
    return _point(store, msgspec.structs.replace(current, candidate=version, candidate_share=share, mode="canary"))


def end(store: Path) -> Champion:
    """Gives all decisions back to the champion. Does nothing if no candidate is tried out."""
    current = policy_store.champion(store)
    if current is None:
        raise InputError(f"{store} has no champion")
    return _point(store, msgspec.structs.replace(current, candidate=None, candidate_share=0.0))


def watch(measure: Callable[[datetime], Trial], begin: datetime, settings: Canary, settle_seconds: float) -> Verdict:
    """Waits until the candidate has made `settings.decisions` whose rewards have arrived, or its seconds have passed.

    Args:
      measure: the trial up to a time; later decisions are too young to judge.
      begin: when the canary started.
      settings: how many decisions are enough, and how long to wait for them at most.
      settle_seconds: how long after a decision it can be judged: its reward window, and the time to reach the log.
    """
    deadline = begin + timedelta(seconds=settings.seconds)
    while True:
        now = datetime.now(UTC)
        trial = measure(min(now, deadline) - timedelta(seconds=settle_seconds))
        if trial.worse(HARM_STANDARD_ERRORS):
            return Verdict("roll back", f"clearly worse in the canary: {trial}")
        if now >= deadline or trial.candidate.decisions >= settings.decisions:
            if trial.worse(STANDARD_ERRORS):
                return Verdict("roll back", f"worse in the canary: {trial}")
            return Verdict("promote", f"not worse in the canary: {trial}")
        time.sleep(min(POLL_SECONDS, max(0.05, (deadline - now).total_seconds())))


def _point(store: Path, pointer: Champion) -> Champion:
    if pointer != policy_store.champion(store):
        policy_store.set_pointer(store, pointer, datetime.now(UTC))
    return pointer
