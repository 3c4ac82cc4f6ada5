"""What each run of a pipeline did: one line a step while it goes on, one report when it has ended.

<root>/runs/<run>.jsonl   a line as a step of ours begins, and one as it ends, with its seconds and what came of it
<root>/runs/<run>.json    the report: promoted, refused, rolled back, nothing new, or failed, and why
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from contracts.errors import InputError
from orchestration.places import Places, replace_file

KILLED = "ended from outside before it was done (killed, or out of memory)"
Outcome = Literal["promoted", "refused", "rolled back", "nothing new", "failed"]


class StepRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One step. `outcome` where it decided what becomes of the run."""

    step: str
    seconds: float = 0.0
    said: str = ""
    error: str = ""
    version: str = ""
    outcome: Outcome | None = None
    windows: int = 0  # exported for this run
    decisions: int = 0  # in them
    begun: bool = False  # the line that is written as it begins; what it ends with takes its place


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run."""

    run_id: str
    pipeline: str
    outcome: Outcome
    reason: str
    version: str  # the candidate, where there was one
    ended_at: datetime
    seconds: dict[str, float]  # by step
    windows: int = 0  # exported for this run
    decisions: int = 0  # in them

    @property
    def line(self) -> str:
        """The report in one line."""
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        version = f" {self.version}" if self.version else ""
        return f"{self.pipeline} {self.run_id}: {self.outcome}{version}: {self.reason} ({self.cost}seconds: {steps})"

    @property
    def wrong_input(self) -> bool:
        """Whether it failed because something was given that cannot be."""
        return self.outcome == "failed" and self.reason.partition(": ")[2].startswith(f"{InputError.__name__}: ")

    @property
    def cost(self) -> str:
        """What a window took, where there were any."""
        if not self.windows:
            return ""
        each = sum(self.seconds.values()) / self.windows
        return f"{self.windows} window(s) of {self.decisions} decisions, {each:.1f} s a window; "


@contextmanager
def step(root: str, run_id: str, name: str) -> Iterator[StepRecord]:
    """Records what happens inside; the block fills in what it says. A failure is recorded and goes on its way."""
    record = StepRecord(step=name)
    _append(root, run_id, StepRecord(step=name, error=KILLED, begun=True))
    begin = time.monotonic()
    try:
        yield record
    except BaseException as error:
        record.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise
    finally:
        record.seconds = round(time.monotonic() - begin, 3)
        _append(root, run_id, record)
        print(f"{name}: {record.error or record.said} ({record.seconds:.1f} s)")


def records(root: Path, run_id: str) -> list[StepRecord]:
    """The steps of a run so far."""
    path = Places(root).runs / f"{run_id}.jsonl"
    if not path.is_file():
        return []
    found: list[StepRecord] = []
    for line in path.read_bytes().splitlines():
        record = msgspec.json.decode(line, type=StepRecord)
        begun = [place for place, one in enumerate(found) if one.begun and one.step == record.step]
        if begun and not record.begun:
            found[begun[-1]] = record
        else:
            found.append(record)
    return found


def close(root: Path, run_id: str, pipeline: str, state: str, error: str, now: datetime) -> RunReport:
    """Writes the report of a run that ended in `state` (as KFP says it: SUCCEEDED, FAILED, CANCELLED)."""
    done = records(root, run_id)
    decided = [record for record in done if record.outcome]
    failed = [record for record in done if record.error]
    outcome: Outcome = "failed"
    if state == "SUCCEEDED" and decided:
        outcome, reason = decided[-1].outcome or "failed", decided[-1].said
    elif failed:
        reason = f"{failed[-1].step}: {failed[-1].error}"
    else:  # a task ended before its step could begin: no machine, no image, killed as it started
        after = f"after the step {done[-1].step}" if done else "before the first step"
        reason = f"{after}: {error or f'the pipeline ended in state {state}'}"
    seconds: dict[str, float] = {}
    for record in done:  # a job of each window is a step of the same name
        seconds[record.step] = round(seconds.get(record.step, 0.0) + record.seconds, 3)
    report = RunReport(
        run_id=run_id,
        pipeline=pipeline,
        outcome=outcome,
        reason=reason,
        version=next((record.version for record in reversed(done) if record.version), ""),
        ended_at=now,
        seconds=seconds,
        windows=sum(record.windows for record in done),
        decisions=sum(record.decisions for record in done),
    )
    folder = Places(root).runs
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{run_id}.json", msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def reports(root: Path) -> list[RunReport]:
    """Of all runs that ended, oldest first. Raises InputError for a report that cannot be read."""
    found = []
    for path in Places(root).runs.glob("[!.]*.json"):  # with a dot: one that is being written
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=RunReport))
        except msgspec.DecodeError as error:
            raise InputError(f"{path}: not the report of a run: {error}") from None
    return sorted(found, key=lambda report: report.ended_at)


def unreported(root: Path) -> list[str]:
    """The runs that began and have no report: they go on, or were killed."""
    folder = Places(root).runs
    return sorted(path.stem for path in folder.glob("*.jsonl") if not path.with_suffix(".json").is_file())


def _append(root: str, run_id: str, record: StepRecord) -> None:
    folder = Places(Path(root)).runs
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run_id}.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")
