"""What each run of a pipeline did: one line a step while it goes on, one report when it has ended.

<root>/runs/<run>.jsonl   a line for each step of ours, with its seconds and what came of it
<root>/runs/<run>.json    the report: promoted, refused, rolled back, nothing new, or failed, and why
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from orchestration.plan import Places

Outcome = Literal["promoted", "refused", "rolled back", "nothing new", "failed"]


class StepRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One step. `outcome` where it decided what becomes of the run."""

    step: str
    seconds: float = 0.0
    said: str = ""
    error: str = ""
    version: str = ""
    outcome: Outcome | None = None


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run."""

    run_id: str
    pipeline: str
    outcome: Outcome
    reason: str
    version: str  # the candidate, where there was one
    ended_at: datetime
    seconds: dict[str, float]  # by step

    @property
    def line(self) -> str:
        """The report in one line."""
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        version = f" {self.version}" if self.version else ""
        return f"{self.pipeline} {self.run_id}: {self.outcome}{version}: {self.reason} (seconds: {steps})"


@contextmanager
def step(root: str, run_id: str, name: str) -> Iterator[StepRecord]:
    """Records what happens inside; the block fills in what it says. A failure is recorded and goes on its way."""
    record = StepRecord(step=name)
    begin = time.monotonic()
    try:
        yield record
    except BaseException as error:
        record.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise
    finally:
        record.seconds = round(time.monotonic() - begin, 3)
        folder = Places(Path(root)).runs
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{run_id}.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
        print(f"{name}: {record.error or record.said} ({record.seconds:.1f} s)")


def records(root: Path, run_id: str) -> list[StepRecord]:
    """The steps of a run so far."""
    path = Places(root).runs / f"{run_id}.jsonl"
    if not path.is_file():
        return []
    return [msgspec.json.decode(line, type=StepRecord) for line in path.read_bytes().splitlines()]


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
    else:
        reason = error or f"the pipeline ended in state {state} before a step of ours decided"
    report = RunReport(
        run_id=run_id,
        pipeline=pipeline,
        outcome=outcome,
        reason=reason,
        version=next((record.version for record in reversed(done) if record.version), ""),
        ended_at=now,
        seconds={record.step: record.seconds for record in done},
    )
    folder = Places(root).runs
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run_id}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def reports(root: Path) -> list[RunReport]:
    """Of all runs that ended, oldest first."""
    found = [msgspec.json.decode(path.read_bytes(), type=RunReport) for path in Places(root).runs.glob("*.json")]
    return sorted(found, key=lambda report: report.ended_at)
