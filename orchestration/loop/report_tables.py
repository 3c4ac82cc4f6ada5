"""The tables of the report's page as HTML: windows, what served and why, the ledger of counts, the faults.

On a narrow screen each row becomes a block of its own, with the column's name before each value.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from orchestration.loop.accounting import Totals
from orchestration.loop.report import Report, WindowReport, waited


def outcome_table(report: Report) -> str:
    """What came of each window."""
    settings = report.settings
    columns: list[tuple[str, Callable[[WindowReport], Any]]] = [
        ("window", window_name),
        ("decisions", lambda window: window.decisions),
        ("rewards", lambda window: window.rewards),
        ("dropped", lambda window: window.dropped)
        if settings.missing_reward == "drop"
        else ("defaulted", lambda window: window.defaulted),
        ("late, came late", lambda window: f"{window.late_rewards}, {window.came_late}"),
        ("orphan", lambda window: window.orphan_rewards),
        ("duplicates", lambda window: window.duplicates),
        ("dead letters", lambda window: window.dead_letters),
    ]
    if settings.new_movies:
        columns.append(("new movies shown", lambda window: window.new_movie_decisions))
    if settings.masked_movies:
        columns.append(("masked shown", lambda window: window.masked_movie_decisions))
    columns += [
        ("reward", lambda window: f"{window.mean_expected_reward:.3f}"),
        ("of oracle", lambda window: f"{share(window):.1%}" if window.decisions else ""),
        ("regret", lambda window: f"{window.regret:,.0f}"),
        ("waited for events", lambda window: f"{window.ingest_seconds:.1f} s{' ✗' if window.overdue else ''}"),
        ("trained in", lambda window: f"{window.train_seconds:.2f} s"),
        ("fresh after (median)", lambda window: seconds_text(window.freshness_seconds.p50)),
    ]
    rows = [[value(window) for _, value in columns] for window in (report.bootstrap, *report.windows)]
    return table([name for name, _ in columns], rows)


def waits(report: Report) -> str:
    """Which windows waited for events on their way, and what held them; nothing when none did."""
    return "".join(f'<p class="note">{html.escape(waited(one))}</p>' for one in report.windows if one.held_by)


def gate_table(windows: Sequence[WindowReport]) -> str:
    """What the gate decided in each window and why, in words; the versions come last."""
    rows = []
    for window in windows:
        judged = window.off_policy
        served_by = [
            f"{one.decisions / window.decisions:.0%} {short(version)}"
            for version, one in window.policy_versions.items()
        ]
        estimate = f"{judged.estimate:.2f} [{judged.low:.2f}, {judged.high:.2f}]" if judged else ""
        if judged and not judged.reliable:
            estimate += ", not reliable"
        truth = f"{judged.truth:.2f}" if judged and judged.truth is not None else ""
        outcome = ("promoted: " if window.promoted else "✗ kept the champion: ") + window.reason
        rows.append(
            [window_name(window), outcome, estimate, truth, Html(short(window.candidate)), Html(", ".join(served_by))]
        )
    header = ["window", "the gate", "value of the new policy, estimated", "in truth", "the new policy", "served by"]
    return table(header, rows, text=(1, 4, 5))


def ledger(totals: Totals) -> str:
    """The counts of decisions and rewards along their way, with the losses at each step."""
    rows = [
        ("decisions answered", totals.decisions_served, ""),
        ("decisions in the tables", totals.decisions_stored, totals.lost_decisions),
        ("… that the viewers did not ask for", totals.decisions_of_others, ""),
        ("… made after the last window", totals.decisions_outside_windows, ""),
        ("rewards accepted", totals.rewards_sent, ""),
        ("rewards in the tables, with orphans", totals.rewards_stored, totals.lost_rewards),
        ("interactions in the training windows", totals.interactions_exported, totals.lost_between_tables_and_windows),
        (
            "interactions that the champion is trained on",
            totals.interactions_trained,
            totals.lost_between_windows_and_training,
        ),
        ("… held back, for the next update to train on", totals.interactions_held_back, ""),
        ("all lost", "", totals.lost),
        ("interactions duplicated", totals.duplicated, ""),
        ("rewards misattributed", totals.misattributed_rewards, ""),
        ("requests that failed", totals.failed_requests, ""),
    ]
    return table(["", "count", "lost on the way"], rows)


def fault_table(totals: Totals) -> str:
    """The faults that were injected, beside what was found of them."""
    injected, found = totals.faults_injected, totals.faults_found
    rows = [
        ("decisions delivered again", injected["redelivered_decisions"], found["duplicate_decisions"], "duplicates"),
        (
            "rewards delivered again, or sent twice",
            injected["redelivered_rewards"] + injected["rewards_sent_twice"],
            found["duplicate_rewards"],
            "duplicates",
        ),
        ("broken copies of events", injected["malformed"], found["malformed"], "dead letters"),
        ("rewards for decisions that were never made", injected["orphan_rewards"], found["orphan_rewards"], "orphans"),
        ("rewards after the reward window", injected["late_rewards"], found["late_rewards"], "late rewards"),
        ("malformed requests", "", injected["refused_requests"], "refused by the predictor"),
    ]
    return table(["fault", "injected", "found", "as"], rows, text=(3,))


def short(version: str) -> str:
    """The last part of a policy version; the whole version appears on hovering."""
    return f'<abbr title="{html.escape(version)}">{html.escape(version.rsplit("-", 1)[-1])}</abbr>'


def moment_text(moment: datetime) -> str:
    """A moment to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def window_name(window: WindowReport) -> str:
    """What a window is called."""
    if window.interrupted:
        return f"after {window.number} (interrupted)"
    return f"{window.number} (uniform)" if window.number == 0 else str(window.number)


def share(window: WindowReport) -> float:
    """The window's reward as a share of the oracle's; 0 when the window has no decisions."""
    return window.mean_expected_reward / window.oracle_reward if window.oracle_reward else 0.0


def share_of_best_fixed(window: WindowReport) -> float:
    """The reward of the best fixed movie as a share of the oracle's; 0 when the window has no decisions."""
    return window.best_fixed_reward / window.oracle_reward if window.oracle_reward else 0.0


def seconds_text(value: float | None) -> str:
    """A duration; nothing for an unknown one."""
    return "" if value is None else f"{value:.1f} s"


class Html(str):
    """Text that is HTML and must not be escaped."""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], text: tuple[int, ...] = ()) -> str:
    """A table; the columns in `text` are set to the left, as the first one. Each cell carries its column's name."""

    def cell(tag: str, column: int, value: Any) -> str:
        shown = value if isinstance(value, Html) else html.escape(_shown(value))
        name = f' data-name="{html.escape(header[column])}"' if tag == "td" and column else ""
        return f"<{tag}{' class=text' if column in text else ''}{name}>{shown}</{tag}>"

    head = "".join(cell("th", column, name) for column, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", column, value) for column, value in enumerate(row)) + "</tr>\n" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
