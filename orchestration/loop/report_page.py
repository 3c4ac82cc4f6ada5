"""`report.html`: one self-contained page that shows whether the loop learns, with plots by matplotlib as SVG."""

import html
import io
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from beam_jobs.movielens import MovieLens
from contracts.policies import Movie
from orchestration.loop.accounting import Totals
from orchestration.loop.report import Report, WindowReport, build, waited
from orchestration.loop.run_folder import RunFolder
from orchestration.places import replace_file

INK, GRID = "#1f2933", "#d9e2ec"
SERVED, ORACLE, FIXED, UNIFORM, REFUSED = "#0b6e4f", "#334e68", "#b44d12", "#829ab1", "#b42318"
# Lines differ by their dashes too, not by colour alone.
DASHES = {ORACLE: (0, (6, 2)), FIXED: (0, (2, 2)), UNIFORM: (0, (1, 2))}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; max-width: 1080px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.15em; margin: 2em 0 .4em; }
.good { color: #0b6e4f; } .bad { color: #b42318; } .note { color: #52606d; max-width: 48em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(225px, 1fr)); gap: .8em; margin: 1.2em 0; }
.tiles > div { border: 1px solid #d9e2ec; border-radius: 6px; padding: .7em 1em; }
.tiles b { display: block; font-size: 1.3em; line-height: 1.3; } .tiles small { color: #52606d; display: block; }
svg { width: 100%; height: auto; } .row { display: flex; gap: 1.5em; flex-wrap: wrap; } .row > div { flex: 1 1 320px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88em; }
th, td { text-align: right; padding: .25em .5em; border-bottom: 1px solid #d9e2ec; vertical-align: top; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } .scroll { overflow-x: auto; }
td:first-child { white-space: nowrap; } .gate td:nth-child(2) { min-width: 9em; } .gate td:nth-child(4) { white-space: nowrap; }
.gate td:last-child { min-width: 20em; }
code, abbr { background: #f0f4f8; padding: 0 .25em; text-decoration: none; overflow-wrap: anywhere; }
"""


def write(folder: RunFolder, movielens: MovieLens) -> Report:
    """Writes `report.json` and `report.html` of the run in `folder`, and returns the figures.

    Raises InputError when a part of the run cannot be read.
    """
    report = build(folder, movielens)
    replace_file(folder.report_json, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    replace_file(folder.report_html, render(report, movielens.catalogue).encode())
    return report


def render(report: Report, catalogue: Sequence[Movie]) -> str:
    """The page as HTML, with no reference to anything outside it."""
    # Figures are made without pyplot, which looks for a display and keeps global state.
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none", "font.size": 10, "axes.edgecolor": GRID}):
        figures = [
            _figure(_reward_axes, report),
            _figure(_regret_axes, report),
            _figure(_off_policy_axes, report),
            _figure(_freshness_axes, report),
        ]
    reward, regret, off_policy, freshness = figures
    settings = report.settings
    windows = [report.bootstrap, *report.windows]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The closed loop: {_share(_served(report)[-1]):.1%} of the oracle</title><style>{_STYLE}</style></head><body>
<h1>The closed loop</h1>
<p class="note">{settings.algorithm}, {settings.exploration} with epsilon {settings.epsilon:g}, {settings.num_actions} movies,
ratings <code>{html.escape(settings.ratings)}</code>, seed {settings.seed};
{_moment(report.bootstrap.end)} to {_moment(windows[-1].end)} UTC. Champion <code>{html.escape(report.champion)}</code>.</p>
{_tiles(report)}
<h2>Does it learn?</h2>
<div class="row"><div>{reward}</div><div>{regret}</div></div>
<h2>Can its estimates be trusted, and how fresh is it?</h2>
<div class="row"><div>{off_policy}</div><div>{freshness}</div></div>
<h2>Window by window</h2>
<div class="scroll">{_outcome_table(report)}</div>
{_waits(report)}
<h2>What served, and why</h2>
<p class="note">The gate judges each new policy on held-back decisions on which neither it nor the champion was trained. The
interval is 95%. Where the new policy chooses actions that the champion hardly ever tried, the log holds no evidence, and
the interval is wider. The gate promotes a policy that is better, and refuses one that is worse. While the evidence is
undecided, it promotes a policy only if it is the champion's own next update: the same settings, with more data. A
policy's name here is the end of its version.</p>
<div class="scroll gate">{_gate_table(windows)}</div>
<h2>Is anything lost or counted twice?</h2>
<div class="scroll">{_ledger(report.totals)}</div>
<h2>Faults injected and found</h2>
<p class="note">The simulated viewers and a simulated bad transport repeat, delay, break and invent events, and record each
fault. More rewards may be late on a slow machine, and other users of the predictor may cause more faults.</p>
<div class="scroll">{_fault_table(report.totals)}</div>
<h2>The movies</h2>
<p class="note">The ten most rated of {len(catalogue)} movies:
{html.escape("; ".join(movie.title or movie.movie_id for movie in catalogue[:10]))}.</p>
<h2>Settings</h2>
<div class="scroll">{_table(["setting", "value"], msgspec.structs.asdict(settings).items())}</div>
<p class="note">Ratings: MovieLens (F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and
Context. ACM TiiS 5, 4, Article 19).</p>
</body></html>
"""


def _served(report: Report) -> list[WindowReport]:
    """The windows with decisions; the bootstrap when there are none."""
    return [window for window in report.windows if window.decisions] or [report.bootstrap]


def _tiles(report: Report) -> str:
    """The four answers at the top: does it learn, what was lost, what was promoted, how fresh is it."""
    totals, served, fresh = report.totals, _served(report), report.freshness_seconds
    last = served[-1]
    sound = totals.lost == totals.duplicated == totals.misattributed_rewards == 0
    promoted = sum(window.promoted for window in report.windows)
    kept = len(report.windows) - promoted
    tiles = [
        (
            last.mean_expected_reward > last.best_fixed_reward,
            f"{_share(last):.1%} of the oracle",
            f"in the last window; {_share(served[0]):.1%} in the first. The best fixed movie: "
            f"{_share_of_best_fixed(last):.1%}, uniform choice: {_share(report.bootstrap):.1%}",
        ),
        (
            sound,
            f"{totals.lost:,} lost, {totals.duplicated:,} duplicated",
            f"{totals.misattributed_rewards:,} misattributed rewards, of {totals.decisions_served:,} decisions",
        ),
        (
            None,
            f"{promoted} of {len(report.windows)} promoted",
            f"updates of the policy; {f'not promoted: {kept}' if kept else 'each of them served'}",
        ),
        (
            None,
            "freshness unknown" if fresh.p50 is None else f"fresh after {_seconds(fresh.p50)}",
            f"median time from sending a reward to serving a policy that was trained on it; 99%: {_seconds(fresh.p99) or 'none'}",
        ),
    ]
    marks = {True: ' class="good">✓ ', False: ' class="bad">✗ ', None: ">"}
    return (
        '<div class="tiles">'
        + "".join(f"<div><b{marks[good]}{title}</b><small>{text}</small></div>\n" for good, title, text in tiles)
        + "</div>"
    )


def _figure(draw: Callable[[Any, Report], str], report: Report) -> str:
    """The plot as SVG; the title that `draw` returns is also its label for screen readers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    title = draw(axes, report)
    axes.set(title=title, xlabel="training window")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.set_xlim(-0.5, _positions([report.bootstrap, *report.windows]).max() + 0.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)  # never on top of what is plotted
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _positions(windows: Sequence[WindowReport]) -> np.ndarray:
    """[N] float: the position of each window on the axis; an interrupted one stands between two numbers."""
    return np.array([window.number + 0.5 * window.interrupted for window in windows])


def _reward_axes(axes: Any, report: Report) -> str:
    windows = [report.bootstrap, *_served(report)] if report.windows else [report.bootstrap]
    at = _positions(windows)
    for name, values, color in (
        ("oracle", [window.oracle_reward for window in windows], ORACLE),
        ("best fixed movie of the window", [window.best_fixed_reward for window in windows], FIXED),
        ("uniform", [window.uniform_reward for window in windows], UNIFORM),
    ):
        axes.plot(at, values, linestyle=DASHES[color], color=color, label=name)
    rewards = [window.mean_expected_reward for window in windows]
    axes.plot(at, rewards, "o-", color=SERVED, lw=2, ms=4, label="served (window 0: uniform)")
    for position in sorted({min(1, len(windows) - 1), len(windows) - 1}):
        axes.annotate(
            f"{_share(windows[position]):.0%}",
            (at[position], rewards[position]),
            xytext=(4, -14),
            textcoords="offset points",
            ha="left" if position < len(windows) - 1 else "right",
            color=SERVED,
            fontsize=9,
        )
    stayed = [not window.promoted for window in windows]
    if any(stayed):
        axes.plot(
            at[stayed], np.array(rewards)[stayed], "x", color=REFUSED, ms=8, mew=2, label="next policy not promoted"
        )
    axes.set_ylim(0, None)
    return "Expected reward per decision"


def _regret_axes(axes: Any, report: Report) -> str:
    at, windows = _positions(report.windows), report.windows
    decisions = np.array([window.decisions for window in windows])
    oracle = np.array([window.oracle_reward for window in windows])
    for name, value, color in (
        ("uniform", np.array([window.uniform_reward for window in windows]), UNIFORM),
        ("best fixed movie of each window", np.array([window.best_fixed_reward for window in windows]), FIXED),
    ):
        axes.plot(at, np.cumsum((oracle - value) * decisions), linestyle=DASHES[color], color=color, label=name)
    axes.plot(at, np.cumsum([window.regret for window in windows]), "o-", color=SERVED, lw=2, ms=4, label="served")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, None)
    return "Cumulative regret"


def _off_policy_axes(axes: Any, report: Report) -> str:
    judged = [
        (position, estimate)
        for window, position in zip(
            [report.bootstrap, *report.windows], _positions([report.bootstrap, *report.windows]), strict=True
        )
        if (estimate := window.off_policy) is not None
    ]
    at = np.array([position for position, _ in judged])
    values = np.array([estimate.estimate for _, estimate in judged])
    spread = [values - [e.low for _, e in judged], [e.high for _, e in judged] - values]
    axes.errorbar(at, values, yerr=spread, fmt="o", color=SERVED, ms=5, capsize=3, label="estimate, 95% interval")
    truths = [estimate.truth for _, estimate in judged]
    known = [truth for truth in truths if truth is not None]
    axes.plot(
        at, [np.nan if truth is None else truth for truth in truths], "D", color=FIXED, mfc="none", ms=8, label="truth"
    )
    title = "Value of the policy trained on the window"
    if known:
        # An interval from few effective decisions may be huge; the plot keeps to where the values are.
        low, high = min(*known, *values), max(*known, *values)
        margin = max(0.5, high - low)
        axes.set_ylim(low - margin, high + margin)
        if any(e.low < low - margin or e.high > high + margin for _, e in judged):
            title += "\n(some intervals go beyond the plot)"
    return title


def _freshness_axes(axes: Any, report: Report) -> str:
    at, windows = _positions(report.windows), report.windows
    for name, label, style, color in (("p50", "median", "o-", SERVED), ("p99", "99%", "s--", ORACLE)):
        seconds = [getattr(window.freshness_seconds, name) for window in windows]
        axes.plot(at, [np.nan if value is None else value for value in seconds], style, color=color, ms=4, label=label)
    axes.set_ylabel("seconds")
    axes.set_ylim(0, None)
    return "From reward sent to policy serving"


def _outcome_table(report: Report) -> str:
    settings = report.settings
    columns: list[tuple[str, Callable[[WindowReport], Any]]] = [
        ("window", _name),
        ("decisions", lambda window: window.decisions),
        ("rewards", lambda window: window.rewards),
        ("dropped", lambda window: window.dropped)
        if settings.missing_reward == "drop"
        else ("defaulted", lambda window: window.defaulted),
        ("late", lambda window: window.late_rewards),
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
        ("of oracle", lambda window: f"{_share(window):.1%}" if window.decisions else ""),
        ("regret", lambda window: f"{window.regret:,.0f}"),
        ("waited for events", lambda window: f"{window.ingest_seconds:.1f} s{' ✗' if window.overdue else ''}"),
        ("trained in", lambda window: f"{window.train_seconds:.2f} s"),
        ("fresh after (median)", lambda window: _seconds(window.freshness_seconds.p50)),
    ]
    rows = [[value(window) for _, value in columns] for window in (report.bootstrap, *report.windows)]
    return _table([name for name, _ in columns], rows)


def _waits(report: Report) -> str:
    """Which windows waited for events on their way, and what held them; nothing when none did."""
    return "".join(f'<p class="note">{html.escape(waited(one))}</p>' for one in report.windows if one.held_by)


def _gate_table(windows: Sequence[WindowReport]) -> str:
    rows = []
    for window in windows:
        judged = window.off_policy
        shares = [
            f"{share.decisions / window.decisions:.0%} {_short(version)}"
            for version, share in window.policy_versions.items()
        ]
        estimate = f"{judged.estimate:.2f} [{judged.low:.2f}, {judged.high:.2f}]" if judged else ""
        if judged and not judged.reliable:
            estimate += ", not reliable"
        truth = f"{judged.truth:.2f}" if judged and judged.truth is not None else ""
        outcome = ("promoted: " if window.promoted else "kept the champion: ") + window.reason
        rows.append(
            [_name(window), _Html(", ".join(shares)), _Html(_short(window.candidate)), estimate, truth, outcome]
        )
    header = ["window", "served by", "policy trained on it", "its value, estimated", "in truth", "the gate"]
    return _table(header, rows, text=(1, 2, 5))


def _ledger(totals: Totals) -> str:
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
    return _table(["", "count", "lost on the way"], rows)


def _fault_table(totals: Totals) -> str:
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
    return _table(["fault", "injected", "found", "as"], rows, text=(3,))


def _short(version: str) -> str:
    """The last part of a policy version; the whole version appears on hovering."""
    return f'<abbr title="{html.escape(version)}">{html.escape(version.rsplit("-", 1)[-1])}</abbr>'


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _name(window: WindowReport) -> str:
    if window.interrupted:
        return f"after {window.number} (interrupted)"
    return f"{window.number} (uniform)" if window.number == 0 else str(window.number)


def _share(window: WindowReport) -> float:
    """The window's reward as a share of the oracle's; 0 when the window has no decisions."""
    return window.mean_expected_reward / window.oracle_reward if window.oracle_reward else 0.0


def _share_of_best_fixed(window: WindowReport) -> float:
    return window.best_fixed_reward / window.oracle_reward if window.oracle_reward else 0.0


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


class _Html(str):
    """Text that is HTML and must not be escaped."""


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], text: tuple[int, ...] = ()) -> str:
    def cell(tag: str, column: int, value: Any) -> str:
        shown = value if isinstance(value, _Html) else html.escape(_shown(value))
        return f"<{tag}{' class=text' if column in text else ''}>{shown}</{tag}>"

    head = "".join(cell("th", column, name) for column, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", column, value) for column, value in enumerate(row)) + "</tr>\n" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
