"""The lights of the page: one per thing that may be wrong, the worst first, each with its figures and what to do."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from contracts.windows import Manifest, TrainingWindow
from orchestration.audit.findings import Finding
from orchestration.audit.guard import GuardState
from orchestration.audit.window_audits import WindowAudit
from orchestration.page.state import Colour, Counts, Light

_ORDER: dict[Colour, int] = {"bad": 0, "warning": 1, "unknown": 2, "ok": 3}


def worst_first(lights: Sequence[Light]) -> list[Light]:
    """The lights with those first that need a look."""
    return sorted(lights, key=lambda light: _ORDER[light.colour])


def of_guard(state: GuardState | None, root: Path) -> Light:
    """Whether the loop is held."""
    if state is None or not state.held:
        return Light(name="guard", colour="ok", fact="training and promotion go on")
    return Light(
        name="guard",
        colour="bad",
        fact=f"held since {state.changed_at:%H:%M:%S} UTC: {state.reason}",
        meaning="nothing is trained or promoted; the last sound version serves"
        + (f" ({state.rolled_back_to})" if state.rolled_back_to else ""),
        advice=f"find the cause and repair it, then release the loop here, or with: {_command('guard release', root)}",
    )


def of_audit(audits: Sequence[WindowAudit], root: Path) -> list[Light]:
    """One light per check of the newest window, and one for the windows that are refused."""
    if not audits:
        return [Light(name="audit", colour="unknown", fact="no window has been audited yet")]
    refused = [one for one in audits if not one.accepted]
    newest = audits[-1]
    checked = f"{len(audits)} windows audited"
    lights = [
        Light(
            name="refused windows",
            colour="warning" if refused else "ok",
            fact=f"{len(refused)} of {len(audits)} windows" if refused else f"none; {checked}",
            meaning="policies are not trained on them" if refused else "",
            advice=f"to train on one after all: {_command('audit', root)} --accept {_name(refused[-1].window)}"
            if refused
            else "",
        )
    ]
    return lights + [_of_finding(finding, newest, root) for finding in newest.findings]


def of_predictor(health: dict[str, Any] | None, expected: bool) -> list[Light]:
    """Whether the predictor answers, with its own policy, and loses no events."""
    if health is None:
        fact = "the predictor does not answer" if expected else "no predictor runs"
        return [Light(name="predictor", colour="bad" if expected else "unknown", fact=fact)]
    lights = []
    status, error, fallbacks = str(health.get("status")), health.get("load_error"), int(health.get("fallbacks") or 0)
    if error or fallbacks:
        lights.append(
            Light(
                name="predictor",
                colour="bad" if error else "warning",
                fact=f"{status}; {error or 'every policy loads'}; {fallbacks} decisions by the baseline",
                meaning="the wanted policy does not load, or failed to decide",
                advice="see logs/predictor.log in the run's folder; roll back if the newest version is broken",
            )
        )
    else:
        lights.append(Light(name="predictor", colour="ok", fact=f"{status}, serves {health.get('policy_version')}"))
    live = health.get("live") or {}
    if live.get("error"):
        fact = f"no live version decides: {live['error']}"
        meaning = "live learning adds nothing until the cause is gone"
        lights.append(Light(name="live learning", colour="warning", fact=fact, meaning=meaning))
    events = health.get("events") or {}
    dropped, logged = int(events.get("dropped", 0)), int(events.get("logged", 0))
    lights.append(
        Light(
            name="event log",
            colour="bad" if dropped else "ok",
            fact=f"{dropped:,} of {logged:,} events dropped",
            meaning="decisions were served that nothing can be learned from" if dropped else "",
            advice="the disk is full or too slow; make room, or start the predictor with --on-overload block"
            if dropped
            else "",
        )
    )
    return lights


def of_counts(counts: Counts, broken_on_purpose: float) -> Light:
    """Whether every event of the log could be read. Simulated viewers break a share of them on purpose."""
    sum_up = (
        f"{counts.events:,} events = {counts.decisions:,} decisions + {counts.rewards:,} rewards"
        + (f" + {counts.statuses:,} activations and cancellations" if counts.statuses else "")
        + f" + {counts.unreadable:,} unreadable"
    )
    if counts.unreadable and broken_on_purpose:
        sum_up += f" (this run breaks some on purpose: --fault-rate {broken_on_purpose:g})"
    if not counts.unreadable or broken_on_purpose:
        return Light(name="events in", colour="ok", fact=sum_up)
    return Light(
        name="events in",
        colour="warning",
        fact=sum_up,
        meaning="unreadable events become dead letters",
        advice="read them in the table dead_letters; once the cause is repaired: python -m beam_jobs.replay_dead_letters",
    )


def of_windows(
    newest: Manifest | None, window_seconds: float | None, closing_seconds: float, now: datetime
) -> list[Light]:
    """Whether the newest window's counts add up, and how far the training windows lag behind now."""
    if newest is None:
        return [Light(name="training windows", colour="unknown", fact="none is exported yet")]
    counts = newest.counts
    sums = (
        f"{counts.decisions:,} decisions = {counts.rewards:,} with a reward + {counts.defaulted:,} defaulted"
        f" + {counts.dropped:,} dropped + {counts.set_aside:,} set aside"
    )
    if counts.not_activated or counts.cancelled:
        sums += f" + {counts.not_activated:,} not activated + {counts.cancelled:,} cancelled"
    whole = counts.decisions == counts.accounted
    lights = [
        Light(
            name="training windows",
            colour="ok" if whole else "bad",
            fact=f"{_name(newest.window)}: {sums}",
            meaning="" if whole else "decisions of the window are missing or counted twice",
        )
    ]
    lag = (now - newest.window.end).total_seconds()
    if window_seconds is not None:
        late = lag > 3 * window_seconds + closing_seconds
        lights.append(
            Light(
                name="lag",
                colour="warning" if late else "ok",
                fact=f"windows are exported up to {lag:.0f} s ago",
                meaning="windows close faster than they are processed, or no viewer comes" if late else "",
            )
        )
    return lights


def _of_finding(finding: Finding, audit: WindowAudit, root: Path) -> Light:
    if not finding.alarm:
        return Light(name=finding.check, colour="ok", fact=finding.fact)
    if finding.kind == "warning":
        return Light(name=finding.check, colour="warning", fact=finding.fact, meaning=finding.meaning)
    advice = "the log contradicts itself or its policies: repair what writes it, then release the loop"
    if finding.kind == "break":
        accept = f"{_command('audit', root)} --accept {_name(audit.window)}"
        advice = (
            f"ask whether rewards changed on purpose. If so: {accept}. If not: repair the feed, then release the loop"
        )
    return Light(
        name=finding.check,
        colour="bad",
        fact=f"{finding.fact} ({audit.window.folder})",
        meaning=finding.meaning,
        advice=advice,
    )


def _command(name: str, root: Path) -> str:
    return f"python -m orchestration.cli {name} --root {root}"


def _name(window: TrainingWindow) -> str:
    return window.folder.removeprefix("window=")
