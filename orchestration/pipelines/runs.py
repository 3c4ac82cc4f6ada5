"""The records of the pipelines' runs: lines per step while a run goes on, and one report when it has ended.

promoted      the candidate serves alone
on probation  it serves beside the version before, which keeps a share of the decisions
undecided     it was tried beside the champion, which serves alone again; a later canary goes on with the evidence
refused       the gate did not let it pass
rolled back   it was worse beside the champion, in its canary; or a version on probation was, and the one before serves
nothing new   there was nothing to train on
held          the guard holds the pipelines
failed        a step failed, or was killed

<root>/runs/<run>.jsonl   one line when a step begins, and one when it ends, with its seconds and its result
<root>/runs/<run>.json    the report: one of these outcomes, and why
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from contracts.command_line import HELD, ROLLED_BACK
from contracts.errors import InputError, OperationError
from orchestration.places import Places, replace_file

KILLED = "the process ended before the step did (killed, or out of memory)"
Outcome = Literal["promoted", "on probation", "undecided", "refused", "rolled back", "nothing new", "held", "failed"]
Failure = Literal["input", "operation", "bug"]
_EXIT_CODES: dict[Failure, int] = {"input": InputError.exit_code, "operation": OperationError.exit_code, "bug": 1}


class StepRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One step. `outcome` is set by the step that decides what becomes of the run, `failure` by one that fails."""

    step: str
    seconds: float = 0.0
    said: str = ""
    error: str = ""
    failure: Failure | None = None
    version: str = ""
    outcome: Outcome | None = None
    windows: int = 0  # exported for this run
    decisions: int = 0  # in them
    begun: bool = False  # the line that is written when the step begins; the line of its end replaces it


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one run."""

    run_id: str
    pipeline: str
    outcome: Outcome
    reason: str
    version: str  # the candidate; empty if the run made none
    ended_at: datetime
    seconds: dict[str, float]  # by step
    windows: int = 0  # exported for this run
    decisions: int = 0  # in them
    failure: Failure | None = None  # of a run that failed

    @property
    def line(self) -> str:
        """The report in one line."""
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        version = f" {self.version}" if self.version else ""
        return f"{self.pipeline} {self.run_id}: {self.outcome}{version}: {self.reason} ({self.cost}seconds: {steps})"

    @property
    def exit_code(self) -> int:
        """Of a command that ran it.

        0; 5 if the guard held it; 7 after a roll-back; 2 after wrong input, 3 after a failed operation, 1 after a bug.
        """
        match self.outcome:
            case "failed":
                return _EXIT_CODES[self.failure or "bug"]
            case "held":
                return HELD
            case "rolled back":
                return ROLLED_BACK
            case _:
                return 0

    @property
    def cost(self) -> str:
        """The seconds per window; empty if the run exported none."""
        if not self.windows:
            return ""
        each = sum(self.seconds.values()) / self.windows
        return f"{self.windows} window(s) of {self.decisions} decisions, {each:.1f} s per window; "


@contextmanager
def step(root: str, run_id: str, name: str) -> Iterator[StepRecord]:
    """Records the step that runs inside, which fills in the record. A failure is recorded and raised again."""
    record = StepRecord(step=name)
    _append(root, run_id, StepRecord(step=name, error=KILLED, failure="operation", begun=True))
    begin = time.monotonic()
    try:
        yield record
    except BaseException as error:
        record.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        record.failure = _failure_of(error)
        raise
    finally:
        record.seconds = round(time.monotonic() - begin, 3)
        _append(root, run_id, record)
        print(f"{name}: {record.error or record.said} ({record.seconds:.1f} s)")


def records(root: Path, run_id: str) -> list[StepRecord]:
    """The steps of a run so far, in the order in which they began."""
    path = Places(root).runs / f"{run_id}.jsonl"
    if not path.is_file():
        return []
    found: list[StepRecord] = []
    for line in path.read_bytes().splitlines():
        record = msgspec.json.decode(line, type=StepRecord)
        begun = [index for index, one in enumerate(found) if one.begun and one.step == record.step]
        if begun and not record.begun:
            found[begun[-1]] = record
        else:
            found.append(record)
    return found


def close(root: Path, run_id: str, pipeline: str, state: str, error: str, now: datetime) -> RunReport:
    """Writes the report of a run that ended in KFP's `state` (SUCCEEDED, FAILED or CANCELLED) with KFP's `error`."""
    done = records(root, run_id)
    decided = [record for record in done if record.outcome]
    failed = [record for record in done if record.error]
    outcome: Outcome = "failed"
    failure: Failure | None = None
    if state == "SUCCEEDED" and decided:
        outcome, reason = decided[-1].outcome or "failed", decided[-1].said
    elif failed:
        reason, failure = f"{failed[-1].step}: {failed[-1].error}", failed[-1].failure
    else:  # a task ended before its step could begin: no machine, no image, killed as it started
        failure = "operation"
        after = f"after the step {done[-1].step}" if done else "before the first step"
        reason = f"{after}: {error or f'the pipeline ended in state {state}'}"
    seconds: dict[str, float] = {}
    for record in done:  # each window's job is a step of the same name
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
        failure=failure,
    )
    folder = Places(root).runs
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{run_id}.json", msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def reports(root: Path) -> list[RunReport]:
    """The reports of all runs that ended, oldest first. Raises InputError for a report that cannot be read."""
    found = []
    for path in Places(root).runs.glob("[!.]*.json"):  # a name that begins with a dot is a report being written
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=RunReport))
        except msgspec.DecodeError as error:
            raise InputError(f"{path}: not the report of a run: {error}") from None
    return sorted(found, key=lambda report: report.ended_at)


def unreported(root: Path) -> list[str]:
    """The ids of runs that began and have no report: they are running, or were killed."""
    folder = Places(root).runs
    return sorted(path.stem for path in folder.glob("*.jsonl") if not path.with_suffix(".json").is_file())


def _failure_of(error: BaseException) -> Failure:
    match error:
        case InputError():
            return "input"
        case OperationError() | KeyboardInterrupt():
            return "operation"
        case _:
            return "bug"


def _append(root: str, run_id: str, record: StepRecord) -> None:
    folder = Places(Path(root)).runs
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run_id}.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")
