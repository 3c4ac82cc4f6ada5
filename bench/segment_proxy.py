"""A process between the event log of a running loop and its ingestion: rewrites each segment as soon as it is sealed.

    python -m bench.segment_proxy --out runs/demo --sabotage "rewards permuted" --first-bad 6 --seed 0

What it does to the rows is `bench.simulated_loop.Sabotages`. It changes the decisions made from the start of one window
on, and their rewards. The product knows nothing of it. `<out>.proxy.json` says how many segments it rewrote, and how many
of them had been ingested already. It ends when the run has its report.
"""

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.simulated_loop import Rows, Sabotage, Sabotages
from contracts.command_line import FlagParser, run_main
from contracts.event_segments import sealed_segments
from contracts.records import UNREADABLE, Decision, Event, RewardEvent, encoder, event_decoder, utc_microseconds
from orchestration import policy_store
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.truth import SessionStart, TruthReader, decided_milliseconds

PROGRAM = "bench.segment_proxy"
POLL_SECONDS = 0.005
ROWS_OF_DECISIONS = ("policy_version", "observation", "action", "propensity")


class Proxy:
    """Rewrites the segments of one run with one sabotage, from window `first_bad` on."""

    def __init__(self, folder: RunFolder, name: str, first_bad: int, seed: int) -> None:
        self._folder = folder
        self._name = name
        self._first_bad = first_bad
        self._rng = np.random.default_rng([seed, 2])
        self._truth = TruthReader(folder.truth)
        self._settings = folder.settings()
        self._bad_from: float | None = None  # microseconds since the epoch
        self._done: set[str] = set()
        self._decisions: dict[str, Decision] = {}  # as they were logged
        self._rewritten: dict[bytes, bytes] = {}  # lines that the transport may deliver again
        self.segments = 0
        self.too_late = 0  # segments that were ingested before they were rewritten

    def look(self) -> None:
        """Rewrites the segments that have been sealed since the last call."""
        if self._bad_from is None:
            starts = [entry.start for entry in self._truth.read() if isinstance(entry, SessionStart)]
            if starts:
                self._bad_from = (starts[0] + (self._first_bad - 1) * self._settings.window_seconds) * 1e6
        for segment in sealed_segments(self._folder.events):
            if segment.name not in self._done:
                self._done.add(segment.name)
                self._rewrite(segment)

    def _rewrite(self, segment: Path) -> None:
        lines = segment.read_bytes().splitlines()
        again = [self._rewritten.get(line) for line in lines]
        events = [None if known is not None else _decoded(line) for line, known in zip(lines, again, strict=True)]
        for event in events:
            if isinstance(event, Decision):
                self._decisions[event.decision_id] = event
        changed = self._sabotaged(events)
        new = [
            known if known is not None else changed.get(place, line)
            for place, (line, known) in enumerate(zip(lines, again, strict=True))
        ]
        self._rewritten.update((lines[place], line) for place, line in changed.items())
        if new == lines:
            return
        hidden = segment.with_name(f".{segment.name}.rewritten")
        hidden.write_bytes(b"".join(line + b"\n" for line in new if line))
        os.utime(hidden, (segment.stat().st_atime, segment.stat().st_mtime))
        hidden.replace(segment)
        self.segments += 1
        self.too_late += (self._folder.warehouse / "ingested" / f"{segment.stem}.json").exists()

    def _sabotaged(self, events: Sequence[Event | None]) -> dict[int, bytes]:
        """The lines that change, by their place; an event that is lost becomes an empty line."""
        bad = [
            (place, event)
            for place, event in enumerate(events)
            if event is not None
            and self._bad_from is not None
            and decided_milliseconds(event.decision_id) * 1e3 >= self._bad_from
        ]
        decisions = [(place, event) for place, event in bad if isinstance(event, Decision)]
        rewards = [(p, one) for p, one in bad if isinstance(one, RewardEvent) and one.decision_id in self._decisions]
        lines: dict[int, bytes] = {}
        if decisions:
            rows = self._apply(_rows([event for _, event in decisions], None))
            for row, (place, decision) in enumerate(decisions):
                values = (rows.version[row], rows.observation[row], rows.action[row], rows.propensity[row])
                new = {name: value.tolist() for name, value in zip(ROWS_OF_DECISIONS, values, strict=True)}
                lines[place] = encoder.encode(msgspec.structs.replace(decision, **new))
        if rewards:
            known = [self._decisions[reward.decision_id] for _, reward in rewards]
            rows = self._apply(_rows(known, [reward for _, reward in rewards]))
            for row, (place, reward) in enumerate(rewards):
                occurred_at = datetime.fromtimestamp(int(rows.occurred_at[row]) / 1e6, UTC)
                changed = msgspec.structs.replace(reward, reward=float(rows.reward[row]), occurred_at=occurred_at)
                lines[place] = encoder.encode(changed) if rows.answered[row] else b""
        return lines

    def _apply(self, rows: Rows) -> Rows:
        assert self._bad_from is not None
        passed = (rows.decided_at[0] - self._bad_from) / (self._settings.window_seconds * 1e6)
        versions = policy_store.versions(self._folder.policies)
        sabotages = Sabotages(self._first_bad, versions, self._settings.num_actions).by_name
        sabotage: Sabotage = sabotages[self._name]
        return sabotage(rows, self._first_bad + int(passed), self._rng)


def _decoded(line: bytes) -> Event | None:
    try:
        return event_decoder.decode(line)
    except UNREADABLE:
        return None  # a broken copy stays as it is


def _rows(decisions: Sequence[Decision], rewards: Sequence[RewardEvent] | None) -> Rows:
    """Decisions, and their rewards if these are what is to be changed."""
    count = len(decisions)
    return Rows(
        decision_id=np.array([one.decision_id for one in decisions]),
        decided_at=np.array([utc_microseconds(one.decided_at) for one in decisions]),
        version=np.array([one.policy_version for one in decisions]),
        observation=np.array([one.observation for one in decisions]),
        action=np.array([one.action for one in decisions]),
        propensity=np.array([one.propensity for one in decisions]),
        reward=np.array([one.reward for one in rewards]) if rewards else np.zeros(count),
        occurred_at=np.array([utc_microseconds(one.occurred_at) for one in rewards]) if rewards else np.zeros(count),
        answered=np.full(count, rewards is not None),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs beside a loop until that has ended."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the folder of the run")
    parser.add_argument("--sabotage", required=True, choices=list(Sabotages(0, [], 1).by_name), metavar="NAME")
    parser.add_argument("--first-bad", type=int, required=True, help="the first window whose events are changed")
    parser.add_argument("--seed", type=int, default=0, help="of what is changed at random")
    given = parser.parse_args(argv)
    folder = RunFolder(given.out)
    while not (folder.root / "settings.json").is_file():
        time.sleep(POLL_SECONDS)
    proxy = Proxy(folder, given.sabotage, given.first_bad, given.seed)
    while not folder.report_json.is_file():
        proxy.look()
        time.sleep(POLL_SECONDS)
    result: dict[str, Any] = {"segments": proxy.segments, "too_late": proxy.too_late}
    given.out.with_name(f"{given.out.name}.proxy.json").write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
