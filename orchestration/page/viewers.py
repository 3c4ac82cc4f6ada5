"""Be a viewer: whose observation it is, what is recommended, and when a reward became part of the policy that serves."""

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from contracts.errors import InputError
from contracts.windows import Split
from orchestration.event_tail import moment_of
from orchestration.loop.settings import LoopSettings
from orchestration.page.sources import Sources
from orchestration.page.state import Rewarded

if TYPE_CHECKING:
    from beam_jobs.movielens import MovieLens

REWARDS_FOLLOWED = 20


class Audience:
    """The viewers of a run. They are loaded when the first one is asked for, which takes seconds."""

    def __init__(self, settings: LoopSettings) -> None:
        self._settings = settings
        self._loaded: MovieLens | None = None

    def user_ids(self) -> list[int]:
        """The viewers there are."""
        return self._movielens().user_ids

    def observation(self, user_id: int) -> list[float]:
        """What policies see of a viewer. Raises InputError for an unknown one."""
        movielens = self._movielens()
        try:
            row = movielens.user_ids.index(user_id)
        except ValueError:
            raise InputError(f"user_id: a viewer of this run expected, got {user_id}") from None
        found: list[float] = movielens.observations[row].tolist()
        return found

    def observation_of(self, ratings: dict[int, float]) -> list[float]:
        """What policies would see of a viewer who rated these items, by action. Raises InputError for an unknown item."""
        movielens = self._movielens()
        if unknown := [action for action in ratings if not 0 <= action < movielens.num_actions]:
            raise InputError(f"ratings: actions below {movielens.num_actions} expected, got {unknown[0]}")
        found: list[float] = movielens.observation_of_ratings(ratings).tolist()
        return found

    def _movielens(self) -> "MovieLens":
        if self._loaded is None:
            from orchestration.loop.audience import load_movielens

            self._loaded = load_movielens(self._settings)
        return self._loaded


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A reward that the predictor took."""

    decision_id: str
    item: str
    reward: float
    sent_at: datetime


class RewardFollower:
    """Follows the rewards that were given on the page until a policy that is trained on them serves."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._open: list[Sent] = []
        self._known: dict[str, Rewarded] = {}

    def add(self, sent: Sent) -> None:
        """Follows one more; of more than REWARDS_FOLLOWED the oldest is forgotten."""
        self._open = [*self._open, sent][-REWARDS_FOLLOWED:]

    def rewarded(self) -> list[Rewarded]:
        """What became of each, the latest first. Raises InputError for a file that cannot be read."""
        settings = self._sources.settings()
        found = []
        for sent in reversed(self._open):
            known = self._known.get(sent.decision_id)
            if known is None or known.status in ("waiting", "held back"):
                known = self._known[sent.decision_id] = self._follow(sent, settings)
            found.append(known)
        self._known = {one.decision_id: one for one in found}
        return found

    def _follow(self, sent: Sent, settings: LoopSettings | None) -> Rewarded:
        decided_at = moment_of(sent.decision_id)
        waiting = Rewarded(
            decision_id=sent.decision_id,
            item=sent.item,
            reward=sent.reward,
            sent_at=sent.sent_at,
            status="waiting",
            words="waits for its training window to close",
        )
        after = (sent.sent_at - decided_at).total_seconds()
        if settings is not None and after > settings.reward_window_seconds:
            words = f"came {after:.1f} s after the decision; rewards count for {settings.reward_window_seconds:g} s"
            return msgspec.structs.replace(waiting, status="late", words=words)
        journal = self._sources.journal()
        entry = next((one for one in journal if one.window.start <= decided_at < one.window.end), None)
        if entry is None:
            return waiting
        if any(one.window == entry.window and not one.accepted for one in self._sources.audits()):
            return msgspec.structs.replace(waiting, status="refused", words="the guard refused its training window")
        split = _split(sent.decision_id, settings.holdback_share if settings else 0.0)
        for later in journal[journal.index(entry) :]:
            if later.serving_at is None:
                continue
            trained = self._sources.card(later.candidate).trained_on
            if any(one.window == entry.window and one.split == split for one in trained):
                seconds = (later.serving_at - sent.sent_at).total_seconds()
                return msgspec.structs.replace(
                    waiting,
                    status="learned",
                    words=f"a policy trained on it served {seconds:.1f} s later",
                    seconds=seconds,
                    version=later.candidate,
                )
        if split == "holdback":
            words = "is held back: it judges the next policy, and the one after is trained on it"
            return msgspec.structs.replace(waiting, status="held back", words=words)
        return msgspec.structs.replace(waiting, words="its window is closed; no policy trained on it serves yet")


def curl(predictor: str, path: str, body: object) -> str:
    """The same request for a terminal."""
    text = msgspec.json.encode(body).decode().replace("'", "'\\''")
    return f"curl -s {predictor}{path} --json '{text}'"


def _split(decision_id: str, holdback_share: float) -> Split:
    import pyarrow as pa

    from beam_jobs.reward_join import in_holdback  # it imports Beam

    return "holdback" if in_holdback(pa.array([decision_id]), holdback_share)[0] else "train"
