"""Live learning in the loop: the processes that learn from open windows, and how fresh what they learned was.

`beam_jobs.learn_live` joins events as they come and writes provisional sums, `trainer.live` makes live versions of them,
and the predictor follows these. `orchestration.live_watch` watches them while they serve. The windows go on as without it: they are the record, and the champion is trained on them.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from beam_jobs.payloads import DecisionShape
from contracts import live_emissions, live_versions
from contracts.command_line import flag_name, say
from contracts.errors import InputError, OperationError
from contracts.policies import split_version
from contracts.windows import TrainingWindow
from orchestration import endpoint, live_control, policy_store
from orchestration.audit import guard
from orchestration.loop.backends import SEGMENT_SECONDS, Backend
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.processes import Child, wait_until
from trainer import agents

# A reward is where a version's watermark counts from at most so long after it was sent: in the event log, or its sender
# waits; and with Pub/Sub, published: a segment is sealed, and its events are sent.
LOGGED_SECONDS = {"local": 0.1, "emulators": 0.1 + SEGMENT_SECONDS + 0.2}
LONGEST_WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.5
SUMS_JOB = "learn_live"
READS = "learning live from"  # what the job says once it reads
START_TIMEOUT_SECONDS = 120.0
# How long the files of versions are kept at least: the audit of a window replays its decisions from them.
KEEP_SECONDS = 3600.0


def check(settings: LoopSettings) -> None:
    """Raises InputError for settings with which live learning does not run."""
    if settings.learning == "windows":
        return
    if settings.algorithm not in agents.LIVE_ALGORITHMS:
        allowed = ", ".join(agents.LIVE_ALGORITHMS)
        raise InputError(f"--learning: live needs --algorithm {allowed}, got {settings.algorithm}")


def predictor_flags(folder: RunFolder, settings: LoopSettings) -> list[str]:
    """The predictor's flags by which it follows live versions."""
    return ["--live", str(folder.live)] if settings.learning == "live" else []


def grid(settings: LoopSettings) -> datetime | None:
    """A start of windows from which live learning can begin before the viewers come, so that it misses none of them.

    None without live learning, and where windows are so long that the viewers should not wait for the next one: there it
    begins once they have come.
    """
    if settings.learning == "windows" or settings.window_seconds > LONGEST_WAIT_SECONDS:
        return None
    return datetime.now(UTC).replace(microsecond=0)


def wait_until_learning(folder: RunFolder, settings: LoopSettings, check_children: Callable[[], None]) -> None:
    """Returns once provisional sums have been written in this run. Raises OperationError when none come.

    From a subscription none come before the first event: there it returns once the job reads.
    """
    sums, log = folder.live / live_emissions.SUMS_FOLDER, folder.logs / f"{SUMS_JOB}.log"
    before = live_emissions.sequences(sums)[-1:]

    def learning() -> bool:
        if settings.backend == "emulators":
            return log.is_file() and READS in log.read_text(errors="replace")
        return live_emissions.sequences(sums)[-1:] != before

    if not wait_until(learning, START_TIMEOUT_SECONDS, check_children):
        raise OperationError(f"{sums}: no provisional sums came within {START_TIMEOUT_SECONDS:.0f} s")


def start(
    folder: RunFolder,
    settings: LoopSettings,
    backend: Backend,
    shape: DecisionShape,
    first_window: datetime,
    children: ExitStack,
) -> list[Child]:
    """Starts the three processes, which `children` will stop; none unless the settings ask for live learning."""
    if settings.learning == "windows":
        return []
    window = settings.window_settings()
    sums = [
        *(*backend.live_sums(), "--windows", str(folder.windows)),
        *("--live", str(folder.live), "--start", first_window.isoformat()),
        *("--window-seconds", str(settings.window_seconds)),
        *("--observation-dim", str(shape.observation_dim), "--num-actions", str(shape.num_actions)),
    ]
    if settings.algorithm not in agents.LINEAR_ALGORITHMS:
        champion = policy_store.champion(folder.policies)
        assert champion is not None  # the bootstrap made one
        sums += ["--encoder", str(folder.policies / champion.version)]
    as_exported = [part for name in window.__struct_fields__ for part in (flag_name(name), str(getattr(window, name)))]
    keep_seconds = max(KEEP_SECONDS, 4 * (settings.window_seconds + window.closing_seconds))
    versions = ["trainer.live", "--live", str(folder.live), "--policies", str(folder.policies)]
    versions += ["--keep-seconds", str(keep_seconds), "--keep-live", settings.keep_live]
    watch = ["orchestration.live_watch", "--events", str(folder.events), "--live", str(folder.live)]
    watch += ["--policies", str(folder.policies)]
    return [
        children.enter_context(
            Child(command[0], [sys.executable, "-m", *command], folder.logs / f"{command[0].rpartition('.')[2]}.log")
        )
        for command in ([*sums, *as_exported], versions, [*watch, *as_exported])
    ]


class LiveGuard:
    """Holds live learning in a run, and releases it.

    It is held while the guard holds the loop, and from the moment at which the predictor refuses a version, or the watch
    raises an alarm, until a window that reaches beyond that moment is accepted. What refused windows taught stays out after
    a release.
    """

    def __init__(self, folder: RunFolder, settings: LoopSettings) -> None:
        self._folder = folder
        self._learns_live = settings.learning == "live"
        self._endpoint: str | None = None
        self._next_look = 0.0

    def watch(self, endpoint: str) -> None:
        """Says where the predictor is."""
        self._endpoint = endpoint

    def look(self) -> None:
        """Asks the predictor, at most twice per second, whether it refused a live version, and holds if it did."""
        if not self._learns_live or self._endpoint is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            status = endpoint.live_status(self._endpoint)
        except OperationError:
            return  # it is busy, or has ended, which its parent notices
        if status is not None and status.error is not None and status.error.startswith("refused:"):
            self._hold(status.error)

    def after_audit(self, accepted: Sequence[TrainingWindow]) -> None:
        """Takes over the guard's state after windows have been audited, of which `accepted` were accepted."""
        state = guard.state(self._folder.root)
        if not self._learns_live:
            return
        live_control.refuse(self._folder.live, guard.refused_windows(self._folder), datetime.now(UTC))
        control = live_control.read(self._folder.live)
        if state is not None and state.held:
            self._hold(state.reason)
        elif control.held and any(window.end > control.changed_at for window in accepted):
            reason = "the window was accepted"
            if live_control.release(self._folder.live, reason, datetime.now(UTC)):
                say(f"Live learning goes on: {reason}")

    def _hold(self, reason: str) -> None:
        if live_control.hold(self._folder.live, reason, datetime.now(UTC)):
            say(f"HELD live learning: {reason}")


class ServedVersions:
    """When live versions first decided, and up to when the events are in each."""

    def __init__(self, live: Path, policy_version: np.ndarray, decided_at: np.ndarray) -> None:
        """Reads the files of versions that are kept in `live`.

        Args:
          live: the folder of live learning.
          policy_version: [N] the version of each decision.
          decided_at: [N] microseconds since the epoch.
        """
        complete = _watermarks(live)
        names, first = np.unique(policy_version.astype(str), return_inverse=True)
        earliest = np.full(len(names), np.iinfo(np.int64).max)
        np.minimum.at(earliest, first, decided_at)
        served = [
            (complete[sequence], at / 1e6)
            for name, at in zip(names.tolist(), earliest.tolist(), strict=True)
            if (sequence := split_version(name)[1]) in complete
        ]
        served.sort()
        self._complete = np.array([complete_until for complete_until, _ in served])
        decided = np.array([at for _, at in served])
        # The first decision by a version whose watermark is that one, or a later one.
        self._decided = np.minimum.accumulate(decided[::-1])[::-1]

    def lags(self, sent_at: np.ndarray, logged_seconds: float) -> np.ndarray:
        """[M] seconds from sending a reward to the first decision by a version that learned it; NaN without one.

        A version counts as having learned it when every event up to `logged_seconds` after it was sent is in the version.
        """
        place = np.searchsorted(self._complete, sent_at + logged_seconds)
        found = place < len(self._complete)
        lags = np.full(len(sent_at), np.nan)
        lags[found] = self._decided[place[found]] - sent_at[found]
        return lags


def _watermarks(live: Path) -> dict[int | None, float]:
    """Up to when every event is in a version, seconds since the epoch, by its sequence number."""
    versions = live / live_versions.VERSIONS_NAME
    if not versions.is_dir():
        return {}
    files = live_versions.listed([path.name for path in versions.iterdir()])
    found: dict[int | None, float] = {}
    for sequence, kind in files:
        version = live_versions.read(versions / live_versions.file_name(sequence, kind))
        if version.complete_until is not None:
            found[sequence] = version.complete_until.timestamp()
    return found
