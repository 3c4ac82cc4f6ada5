"""The canary: a candidate takes a share of the decisions, and its rewards are held against the champion's.

Which decisions it takes is drawn by the id of the decision, so the two groups differ in the policy alone, and the
difference of their mean rewards is what the candidate is worth, whatever it was trained on.
"""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Champion
from contracts.schemas import DECISIONS, REWARDS, Table
from orchestration import ingestion, policy_store
from orchestration.pipelines import plan
from orchestration.places import Places, replace_file

STANDARD_ERRORS = 1.96  # 95% on both sides, looked at once, at the end
HARM_STANDARD_ERRORS = 4.0  # so clear that it may be looked at every second: one in 30,000 by chance a look
MIN_DECISIONS = 30  # with fewer, a mean is not near a normal distribution
POLL_SECONDS = 1.0


class Arm(NamedTuple):
    """What decisions of one policy were rewarded with."""

    decisions: int
    mean: float
    variance: float  # of one reward, unbiased

    @classmethod
    def of(cls, rewards: list[float]) -> "Arm":
        """Of these rewards."""
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
        """Candidate minus champion, reward a decision."""
        return self.candidate.mean - self.champion.mean

    @property
    def standard_error(self) -> float:
        """Of the gain (Welch, 1947); infinite while an arm has too few decisions."""
        if min(self.candidate.decisions, self.champion.decisions) < MIN_DECISIONS:
            return math.inf
        arms = (self.candidate, self.champion)
        return math.sqrt(sum(arm.variance / arm.decisions for arm in arms))

    def worse(self, standard_errors: float) -> bool:
        """Whether the whole interval of the gain lies below 0."""
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
    """Lets `version` take `share` of the champion's decisions. Does nothing when it does so already.

    Raises InputError for a share outside [0, 1], a version that is not in the store, or a store without champion.
    """
    if not 0 <= share <= 1:
        raise InputError(f"canary_share must be from 0 to 1, got {share}")
    current = policy_store.champion(store)
    if current is None:
        raise InputError(f"{store} has no champion beside which to try {version}")
    if not (store / version / policies.CARD_NAME).is_file():
        raise InputError(f"{store} has no policy {version!r}")
    if version == current.version:
        raise InputError(f"{version} is the champion: it cannot be its own canary")
    return _point(store, msgspec.structs.replace(current, candidate=version, candidate_share=share, mode="canary"))


def end(store: Path) -> Champion:
    """Gives all decisions back to the champion. Does nothing when no candidate is tried out."""
    current = policy_store.champion(store)
    if current is None:
        raise InputError(f"{store} has no champion")
    return _point(store, msgspec.structs.replace(current, candidate=None, candidate_share=0.0))


def watch(
    measure: Callable[[datetime], Trial], begin: datetime, wanted_decisions: int, seconds: float, settle_seconds: float
) -> Verdict:
    """Waits until the candidate has made `wanted_decisions` whose rewards are in, or `seconds` have passed.

    Args:
      measure: the trial up to a moment (decisions after it are too young to judge).
      begin: when the canary started.
      wanted_decisions: enough to judge by.
      seconds: how long to wait for them at most.
      settle_seconds: how long a decision takes to be judged: its reward window, and to get into the log.
    """
    deadline = begin + timedelta(seconds=seconds)
    while True:
        now = datetime.now(UTC)
        trial = measure(min(now, deadline) - timedelta(seconds=settle_seconds))
        if trial.worse(HARM_STANDARD_ERRORS):
            return Verdict("roll back", f"clearly worse in the canary: {trial}")
        if now >= deadline or trial.candidate.decisions >= wanted_decisions:
            if trial.worse(STANDARD_ERRORS):
                return Verdict("roll back", f"worse in the canary: {trial}")
            return Verdict("promote", f"not worse in the canary: {trial}")
        time.sleep(min(POLL_SECONDS, max(0.05, (deadline - now).total_seconds())))


def measure(
    places: Places,
    warehouse: str,
    champion: str,
    candidate: str,
    begin: datetime,
    end: datetime,
    settings: plan.WindowSettings,
) -> Trial:
    """The trial on decisions made in `[begin, end)`, whose rewards are counted as in training.

    They are read from `warehouse`, `bigquery:PROJECT.DATASET`; or, when it is empty, from the embedded one, after what
    is new in the event log is ingested.
    """
    if end <= begin:
        return Trial(Arm.of([]), Arm.of([]))
    window = timedelta(seconds=settings.reward_window_seconds)
    if not warehouse:
        ingestion.ingest(places)
    decisions = _rows(places, warehouse, DECISIONS, begin, end, ("decision_id", "decided_at", "policy_version"))
    found: dict[str, tuple[datetime, float]] = {}
    for row in _rows(places, warehouse, REWARDS, begin, end + window + timedelta(microseconds=1), None):
        reward = (row["occurred_at"], row["reward"])
        found[row["decision_id"]] = min(reward, found.get(row["decision_id"], reward))
    by_version: dict[str, list[float]] = {champion: [], candidate: []}
    for decision in {row["decision_id"]: row for row in decisions}.values():  # each once, however often it was stored
        given = by_version.get(decision["policy_version"])
        if given is None:
            continue
        came = found.get(decision["decision_id"])
        if came is not None and decision["decided_at"] <= came[0] <= decision["decided_at"] + window:
            given.append(came[1])
        elif settings.missing_reward == "default":
            given.append(settings.default_reward)
    return Trial(Arm.of(by_version[candidate]), Arm.of(by_version[champion]))


def _rows(
    places: Places, warehouse: str, table: Table, begin: datetime, end: datetime, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    if warehouse:
        from beam_jobs import bigquery
        from beam_jobs.places import parse_dataset

        found = bigquery.read_all(parse_dataset(warehouse), table, begin, end, names)
    else:
        from beam_jobs import warehouse as embedded

        found = embedded.read(places.warehouse, table, begin, end, names).rows
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _point(store: Path, pointer: Champion) -> Champion:
    if pointer != policy_store.champion(store):
        replace_file(store / policies.CHAMPION_NAME, policies.encode_json(pointer))
    return pointer
