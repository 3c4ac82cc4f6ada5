"""The canary: a candidate takes a share of the decisions, and is watched as a version on probation is.

The id of a decision decides which of the two serves it (on Vertex AI, the endpoint by chance). `orchestration.watch`
compares the two: with the champion as the anchor, the candidate is confirmed, rolled back, or still undecided when the
canary's time is over.

The evidence is kept in `<root>/canary.json`, with which a later canary of the same settings beside the same champion goes
on: each candidate is then an update of the one before it. When an undecided candidate becomes the champion on probation,
the evidence goes on as well.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts import documents, policies
from contracts.errors import InputError
from contracts.policies import Champion, PolicyCard, SharedBy
from orchestration import policy_store
from orchestration.places import replace_file
from orchestration.watch import Caution, Evidence, Look
from predictor import policy as serving

STATE_NAME = "canary.json"
SCHEMA_VERSION = 1
POLL_SECONDS = 1.0


class Canary(Caution, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a candidate is tried out: in its canary beside the champion, and then on probation."""

    share: Annotated[
        float, Meta(ge=0, lt=1, description="share of the decisions that the candidate takes; 0: none")
    ] = 0.1
    decisions: Annotated[
        int, Meta(ge=0, description="decisions of the candidate after which an undecided canary ends")
    ] = 200
    seconds: Annotated[float, Meta(ge=0, description="after which an undecided canary ends")] = 30.0


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """`canary.json`: what the newest canary showed."""

    schema_version: int = SCHEMA_VERSION
    candidate: str
    champion: str
    evidence: Evidence
    look: Look

    def goes_on(self, store: Path, candidate: PolicyCard, champion: str, settings: Canary) -> bool:
        """Whether a canary of `candidate` beside `champion`, with these settings, continues this one."""
        path = store / self.candidate / policies.CARD_NAME
        if self.look.outcome != "on probation" or not path.is_file():
            return False
        before = serving.read_card(path.parent)
        alike = all(
            getattr(before, name) == getattr(candidate, name)
            for name in ("algorithm", "hyperparameters", "exploration", "num_actions", "observation_dim")
        )
        return (
            alike
            and self.champion == champion
            and self.evidence.anchor_share == 1 - settings.share
            and self.evidence.margin == settings.margin * self.evidence.scale.unit
        )


def start(store: Path, version: str, share: float, shared_by: SharedBy = "ids") -> Champion:
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
    return _point(
        store,
        msgspec.structs.replace(current, candidate=version, candidate_share=share, mode="canary", shared_by=shared_by),
    )


def end(store: Path) -> Champion:
    """Gives all decisions back to the champion. Does nothing if no candidate is tried out."""
    current = policy_store.champion(store)
    if current is None:
        raise InputError(f"{store} has no champion")
    if current.candidate is None:
        return current
    return _point(store, msgspec.structs.replace(current, candidate=None, candidate_share=0.0, shared_by="ids"))


def watch(
    look: Callable[[datetime], tuple[Look, int]], begin: datetime, settings: Canary, settle_seconds: float
) -> Look:
    """Looks each second until there is a verdict, or the canary's decisions or its seconds have passed. Returns the last look.

    Args:
      look: what is known from the decisions made before a time, and how many the candidate made since the canary began;
        later decisions are too young to judge.
      begin: when the canary started.
      settings: when an undecided canary ends.
      settle_seconds: how long after a decision it can be judged: its reward window, and the time to reach the log.
    """
    deadline = begin + timedelta(seconds=settings.seconds)
    while True:
        now = datetime.now(UTC)
        found, decisions = look(min(now, deadline) - timedelta(seconds=settle_seconds))
        if found.outcome != "on probation" or now >= deadline or decisions >= settings.decisions:
            return found
        time.sleep(min(POLL_SECONDS, max(0.05, (deadline - now).total_seconds())))


def read(root: Path) -> Trial | None:
    """What the newest canary showed; None if there never was one. Raises InputError when the file cannot be read."""
    path = root / STATE_NAME
    if not path.is_file():
        return None
    return documents.decode(path.read_bytes(), Trial, "canary", str(path), SCHEMA_VERSION)


def write(root: Path, trial: Trial) -> None:
    """Keeps what a canary showed, in the place of the one before it."""
    replace_file(root / STATE_NAME, documents.encode(trial))


def _point(store: Path, pointer: Champion) -> Champion:
    if pointer != policy_store.champion(store):
        policy_store.set_pointer(store, pointer, datetime.now(UTC))
    return pointer
