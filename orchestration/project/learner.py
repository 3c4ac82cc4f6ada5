"""Learns from the traffic of a project folder: one training window after the other, as the watermark closes them.

    python -m orchestration.project.learner --project news

The command `up` starts it. Windows that closed while it was busy become one. Each window that has decisions is exported, audited, watched, trained on and judged by the steps
of `orchestration.learning`, which the closed loop uses too. It is safe to kill at any time: a window is finished when the
journal has it, and the steps of one that is not finished are taken again.
"""

import logging
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from beam_jobs.closing import Waited, wait_until_complete
from beam_jobs.warehouses import EmbeddedWarehouse, Warehouse
from contracts.command_line import FlagParser, run_main, say
from contracts.errors import InputError
from contracts.watermarks import Watermark
from contracts.windows import MANIFEST_NAME, TrainingWindow, decode_manifest, window_of
from orchestration import ingestion, policy_store
from orchestration.learning import Learning, timed
from orchestration.loop.run_folder import JournalEntry
from orchestration.pipelines.plan import GRID_ORIGIN, exported_windows
from orchestration.processes import native_messages_withheld
from orchestration.project.folder import LearnerState, ProjectFolder

PROGRAM = "orchestration.project.learner"
STATE_SECONDS = 1.0
MOST_JOINED = 12  # windows that closed while the learner was busy or away become one


class Learner:
    """Finishes windows of one project, in order."""

    def __init__(self, folder: ProjectFolder) -> None:
        self._folder = folder
        self._grid = folder.project().windows
        self._source: Warehouse = EmbeddedWarehouse(folder.warehouse)
        self._stated_at = datetime.min.replace(tzinfo=UTC)
        self._mark: Watermark | None = None
        self._waits_for = self._waits_since = datetime.now(UTC)
        self._left = self._unfinished()
        for path in (folder.events, folder.windows):
            path.mkdir(exist_ok=True)

    def run(self) -> None:
        """Finishes what an earlier learner left, then every window that closes. Never returns."""
        with native_messages_withheld():
            import tensorflow  # noqa: F401 - takes seconds, which the first window need not wait for

        begin = self._begin()
        while True:
            begin = self.step(begin)

    def step(self, begin: datetime) -> datetime:
        """Waits until the window at `begin` has closed, and finishes all that have. Returns where the next one begins."""
        first = TrainingWindow(begin, window_of(begin, GRID_ORIGIN, self._grid.window_seconds).end)
        waited = self._wait(first)
        closed = waited.mark.complete_until - timedelta(seconds=self._grid.closing_seconds)
        until = max(first.end, window_of(closed, GRID_ORIGIN, self._grid.window_seconds).start)
        windows = [*self._left, *_joined(self._with_decisions(begin, until), MOST_JOINED)]
        if windows:
            self._finish(windows, waited)
            self._left = []
        return until

    def _begin(self) -> datetime:
        """The end of the newest exported window; without one, the window in which the first policy began to serve."""
        exported = exported_windows(self._folder.windows)
        if exported:
            return max(window.end for window in exported)
        history = policy_store.history(self._folder.policies)
        if not history:
            raise InputError(f"{self._folder.policies}: has no policy that serves")
        return window_of(history[0].promoted_at, GRID_ORIGIN, self._grid.window_seconds).start

    def _wait(self, window: TrainingWindow) -> Waited:
        moment = window.closes_at(self._grid.reward_window_seconds, self._grid.settle_seconds)
        self._waits_for, self._waits_since = moment, max(moment, datetime.now(UTC))

        def advance() -> Watermark:
            self._mark = ingestion.advance(
                self._folder.events, self._source, moment, lambda: ingestion.ingest(self._folder)
            )
            self._state()
            return self._mark

        return wait_until_complete(advance, moment, self._grid.wait_settings, say, self._state)

    def _state(self) -> None:
        """Writes down how far it has come, if it has not done so within the last second."""
        now = datetime.now(UTC)
        if (now - self._stated_at).total_seconds() < STATE_SECONDS:
            return
        self._stated_at = now
        # While it waits for the clock, nothing is known to be missing.
        mark = self._mark or Watermark(complete_until=now, at=now)
        waited = (now - self._waits_since).total_seconds()
        self._folder.write(
            LearnerState(
                at=now,
                complete_until=mark.complete_until,
                held_by=mark.held_by if waited > 0 else "",
                waits_for=self._waits_for,
                overdue=waited > self._grid.watermark_limit_seconds,
            )
        )

    def _unfinished(self) -> list[TrainingWindow]:
        """Windows that were exported and not finished, because the learner was killed in between."""
        done = {entry.window for entry in self._folder.journal()}
        return [window for window in exported_windows(self._folder.windows) if window not in done]

    def _with_decisions(self, begin: datetime, end: datetime) -> Iterator[TrainingWindow]:
        """The windows of the grid in `[begin, end)` that have decisions. A quiet night costs a few queries."""
        if begin >= end or not self._source.observation_dims(begin, end):
            return
        first_end = window_of(begin, GRID_ORIGIN, self._grid.window_seconds).end
        if end <= first_end:
            yield TrainingWindow(begin, end)
            return
        middle = window_of(begin + (end - begin) / 2, GRID_ORIGIN, self._grid.window_seconds).start
        middle = middle if middle > begin else first_end
        yield from self._with_decisions(begin, middle)
        yield from self._with_decisions(middle, end)

    def _finish(self, windows: Sequence[TrainingWindow], waited: Waited) -> None:
        learning = Learning(self._folder, self._source, self._folder.recipe())
        with timed() as export_seconds:
            revised = {manifest.window: manifest.revision for manifest in learning.revise(windows[0].start)}
            for window in revised:
                say(f"LATE {window.folder}: rows came after it was exported; revised")
            learning.export(windows)
        with timed() as audit_seconds:
            audits = learning.audit(revised | dict.fromkeys(windows, 0))
        for audit in audits:
            if not audit.accepted:
                say(f"REFUSED {audit.name}: {audit.reason}")
        looks = learning.watch(windows)
        update = learning.learn()
        number = len(self._folder.journal()) + 1
        for index, (window, look) in enumerate(zip(windows, looks, strict=True)):
            entry = JournalEntry(
                number=number + index,
                window=window,
                interrupted=False,
                candidate=update.candidate,
                gate=update.gate,
                true_value=None,
                ingest_seconds=waited.seconds,
                held_by=waited.held_by,
                overdue=waited.overdue,
                export_seconds=export_seconds[0],
                audit_seconds=audit_seconds[0],
                train_seconds=update.train_seconds,
                gate_seconds=update.gate_seconds,
                serving_at=datetime.now(UTC) if update.gate.promoted else None,
                look=look,
            )
            self._folder.append(entry)
            say(line(self._folder, entry))


def _joined(windows: Iterable[TrainingWindow], most: int) -> list[TrainingWindow]:
    """Windows that follow each other without a gap as one, `most` of them at a time.

    A window costs some seconds, however short it is. So a learner that is behind catches up.
    """
    joined: list[TrainingWindow] = []
    parts = 0
    for window in windows:
        if joined and joined[-1].end == window.start and parts < most:
            joined[-1], parts = TrainingWindow(joined[-1].start, window.end), parts + 1
        else:
            joined.append(window)
            parts = 1
    return joined


def line(folder: ProjectFolder, entry: JournalEntry) -> str:
    """What became of a window, for people."""
    path = folder.windows / entry.window.folder / MANIFEST_NAME
    counts = decode_manifest(path.read_bytes(), str(path)).counts if path.is_file() else None
    what = f"{counts.decisions} decisions, {counts.rewards} with a reward" if counts else "removed"
    verdict = f"{entry.candidate} serves" if entry.gate.promoted else "nothing changes"
    look = f"; {entry.look.outcome} {entry.look.version}" if entry.look is not None else ""
    waited = f"; waited {entry.ingest_seconds:.0f} s for {entry.held_by}" if entry.overdue else ""
    return f"{entry.window.end:%H:%M:%S}  {what}: {verdict}, {entry.gate.reason}{look}{waited}"


def main(argv: Sequence[str] | None = None) -> int:
    """Learns until it is stopped; returns the exit code."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    parser.add_argument("--project", type=Path, required=True, help="a project folder")
    folder = ProjectFolder(parser.parse_args(argv).project)
    learner = Learner(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # it logs the exceptions that it raises
    learner.run()


if __name__ == "__main__":
    sys.exit(main())
