"""What goes on in a project folder, in ten lines, and an exit code that says whether anything is wrong."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from contracts.command_line import HELD, OVERDUE
from contracts.errors import OperationError
from contracts.event_segments import open_segments, opened_at, sealed_segments
from contracts.records import UNREADABLE, Decision, RewardEvent, event_decoder
from orchestration import policy_store, probation
from orchestration.audit import guard
from orchestration.project.folder import ProjectFolder, UpState
from orchestration.project.learner import STATE_SECONDS, line

TRAFFIC = timedelta(minutes=1)
_SILENT_SECONDS = 30.0 * STATE_SECONDS  # a learner that trains writes nothing for a while
_RECENT = timedelta(minutes=10)


class Traffic(NamedTuple):
    """What the event log received within the last minute."""

    decisions: int
    rewards: int


def lines(folder: ProjectFolder, now: datetime) -> tuple[list[str], int]:
    """Ten lines for people, and the exit code: 0, or that of the worst thing that is wrong."""
    folder.project()
    up = folder.read_up() if folder.is_up() else None
    code, told = 0, []
    for problem, text in (_processes(up, now), *_policy(folder, now), _traffic(folder, now), *_learning(folder, now)):
        code = code or problem
        told.append(f"{'✗' if problem else ' '} {text}")
    return told, code


def traffic(folder: ProjectFolder, now: datetime) -> Traffic:
    """Counts the events of the last minute in the event log."""
    counts = [0, 0]
    begin = now - TRAFFIC
    for path in [*sealed_segments(folder.events), *open_segments(folder.events)]:
        if opened_at(path) < begin - TRAFFIC:
            continue
        for event in path.read_bytes().splitlines():
            try:
                read = event_decoder.decode(event)
            except UNREADABLE:  # an open segment ends anywhere
                continue
            if isinstance(read, Decision):
                counts[0] += read.decided_at >= begin
            elif isinstance(read, RewardEvent):
                counts[1] += read.occurred_at >= begin
    return Traffic(*counts)


_Line = tuple[int, str]  # the exit code that it asks for, and the text


def _processes(up: UpState | None, now: datetime) -> _Line:
    if up is None:
        return OperationError.exit_code, "processes   none; start them with the command up"
    down = [part.name for part in up.parts if not part.running]
    parts = ", ".join(
        f"{part.name} {'up' if part.running else 'down'} for {_ago(now - part.since)}"
        + (f" ({part.restarts} restarts)" if part.restarts else "")
        for part in up.parts
    )
    return OperationError.exit_code if down else 0, f"processes   {parts}; {up.predictor}"


def _policy(folder: ProjectFolder, now: datetime) -> Iterator[_Line]:
    champion = policy_store.champion(folder.policies)
    if champion is None:
        yield OperationError.exit_code, "serves      no policy"
        return
    yield 0, f"serves      {champion.version} for {_ago(now - champion.promoted_at)}"
    yield 0, f"because     {champion.reason}"
    trial = probation.read(folder.root)
    if trial is not None and trial.concerns(champion):
        yield 0, f"probation   beside {trial.anchor}, {champion.anchor_share:.0%} of the decisions: {trial.look.reason}"
    else:
        yield 0, "probation   none"


def _traffic(folder: ProjectFolder, now: datetime) -> _Line:
    found = traffic(folder, now)
    return 0, f"traffic     {found.decisions} decisions and {found.rewards} rewards in the last minute"


def _learning(folder: ProjectFolder, now: datetime) -> Sequence[_Line]:
    journal = folder.journal()
    window = f"last window {line(folder, journal[-1])}" if journal else "last window none is finished yet"
    held = guard.state(folder.root)
    guarded = (
        (HELD, f"guard       held since {held.changed_at:%Y-%m-%d %H:%M:%S}: {held.reason}")
        if held is not None and held.held
        else (0, f"guard       not held; {len(guard.refused_windows(folder))} windows refused")
    )
    problem = folder.last_problem()
    recent = problem is not None and now - problem.at < _RECENT
    last = f"{problem.at:%Y-%m-%d %H:%M:%S}: {problem.fact}" if problem is not None else "none"
    return [(0, window), _watermark(folder, now), guarded, (0, f"{'last' if recent else 'old '} problem {last}")]


def _watermark(folder: ProjectFolder, now: datetime) -> _Line:
    state = folder.read_learner()
    if state is None:
        return 0, "watermark   the learner has not begun"
    if (silent := now - state.at) > timedelta(seconds=_SILENT_SECONDS):
        return (
            0,
            f"watermark   {state.complete_until:%Y-%m-%d %H:%M:%S}; the learner has said nothing for {_ago(silent)}",
        )
    lag = max((now - state.complete_until).total_seconds(), 0.0)
    held_by = f", held by {state.held_by}" if state.held_by else ""
    text = f"watermark   complete up to {lag:.0f} s ago{held_by}; the next window closes {state.waits_for:%H:%M:%S}"
    return OVERDUE if state.overdue else 0, text


def _ago(span: timedelta) -> str:
    seconds = max(int(span.total_seconds()), 0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
