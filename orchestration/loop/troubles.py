"""What went wrong in a run, each with what it means and what to do: the beginning of the report's page."""

import html
from typing import NamedTuple

from orchestration.loop import accounting
from orchestration.loop.report import Report
from orchestration.loop.report_tables import window_name


class Trouble(NamedTuple):
    """Something that went wrong, and what to do about it."""

    fact: str
    advice: str


def found(report: Report) -> list[Trouble]:
    """What went wrong, the worst first; empty when nothing did."""
    root = report.settings.out
    troubles = [
        Trouble(
            problem, "the table of counts below shows between which two steps; the logs are in the run's folder, logs/"
        )
        for problem in accounting.problems(report.totals)
    ]
    held = [window for window in report.windows if window.reason.startswith("held ")]
    if held:
        troubles.append(
            Trouble(
                f"the guard held the loop in {len(held)} of {len(report.windows)} windows, first in {window_name(held[0])}",
                f"see what it found: python -m orchestration.cli audit --root {root}; once the cause is repaired:"
                f" python -m orchestration.cli guard release --root {root} --reason …",
            )
        )
    if report.totals.failed_requests:
        troubles.append(
            Trouble(
                f"{report.totals.failed_requests} requests of viewers failed",
                "the predictor was down or too slow; see logs/predictor.log and logs/simulator.log",
            )
        )
    overdue = [window for window in report.windows if window.overdue]
    if overdue:
        troubles.append(
            Trouble(
                f"{len(overdue)} windows were processed before all of their events had come",
                "events were on their way for longer than the loop waits; give it more time, or look at what held them below",
            )
        )
    refused = [window for window in report.windows if not window.promoted and window not in held]
    if refused:
        reasons = "; ".join(dict.fromkeys(window.reason for window in refused))
        troubles.append(
            Trouble(
                f"{len(refused)} new policies were not promoted: {reasons}",
                "the champion served on, so nothing is lost; if it happens in each window, look at the gate's estimates below",
            )
        )
    return troubles


def troubles(report: Report) -> str:
    """The same as HTML; nothing when nothing went wrong."""
    lines = "".join(
        f'<p><b class="bad">✗ {html.escape(one.fact)}.</b> What to do: {html.escape(one.advice)}.</p>\n'
        for one in found(report)
    )
    return f'<div class="troubles">\n{lines}</div>' if lines else ""
