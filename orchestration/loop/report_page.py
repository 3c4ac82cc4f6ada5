"""`report.html`: one self-contained page that shows whether the loop learns, with plots by matplotlib as SVG."""

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from beam_jobs.movielens import MovieLens
from contracts.items import Item
from orchestration.loop.report import Report, WindowReport, build, freshness_in_words
from orchestration.loop.report_tables import (
    fault_table,
    gate_table,
    ledger,
    moment_text,
    outcome_table,
    share,
    share_of_best_fixed,
    table,
    waits,
)
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.trials_section import section
from orchestration.loop.troubles import troubles
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
td:first-child { white-space: nowrap; } .gate td:nth-child(2) { min-width: 20em; }
.troubles { border-left: 6px solid #b42318; padding: .2em 1em; margin: 1em 0; } .troubles p { margin: .4em 0; }
/* A narrow screen: each row is a block, with the column's name before each value, so that no column is off the screen. */
@media (max-width: 640px) {
  body { margin: 1em auto; overflow-wrap: anywhere; } thead { position: absolute; left: -9999px; }
  table, tbody, tr, td { display: block; width: 100%; } tr { border-bottom: 2px solid #9fb3c8; padding: .4em 0; }
  td { border: 0; padding: .1em 0; } td, td.text { text-align: right; display: flex; justify-content: space-between; gap: 1em; }
  td:first-child { font-weight: 600; white-space: normal; } td:empty { display: none; } .gate td:nth-child(2) { min-width: 0; }
  td[data-name]::before { content: attr(data-name); color: #52606d; text-align: left; flex: none; max-width: 45%; }
}
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


def render(report: Report, catalogue: Sequence[Item]) -> str:
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
<title>The closed loop: {share(_served(report)[-1]):.1%} of the oracle</title><style>{_STYLE}</style></head><body>
<h1>The closed loop</h1>
<p class="note">{settings.algorithm}, {settings.exploration} with epsilon {settings.epsilon:g}, {settings.num_actions} movies,
ratings <code>{html.escape(settings.ratings)}</code>, seed {settings.seed};
{moment_text(report.bootstrap.end)} to {moment_text(windows[-1].end)} UTC. Champion <code>{html.escape(report.champion)}</code>.</p>
{troubles(report)}
{_tiles(report)}
<h2>Does it learn?</h2>
<div class="row"><div>{reward}</div><div>{regret}</div></div>
<h2>Can its estimates be trusted, and how fresh is it?</h2>
<div class="row"><div>{off_policy}</div><div>{freshness}</div></div>
<h2>Window by window</h2>
<div class="scroll">{outcome_table(report)}</div>
{waits(report)}
<h2>What served, and why</h2>
<p class="note">The gate judges each new policy on held-back decisions on which neither it nor the champion was trained. The
interval is 95%. Where the new policy chooses actions that the champion hardly ever tried, the log holds no evidence, and
the interval is wider. The gate promotes a policy that is better, and refuses one that is worse. While the evidence is
undecided, it promotes a policy only if it is the champion's own next update: the same settings, with more data. A
policy's name here is the end of its version.</p>
<div class="scroll gate">{gate_table(windows)}</div>
{section(windows, report.trials)}
<h2>Is anything lost or counted twice?</h2>
<div class="scroll">{ledger(report.totals)}</div>
<h2>Faults injected and found</h2>
<p class="note">The simulated viewers and a simulated bad transport repeat, delay, break and invent events, and record each
fault. More rewards may be late on a slow machine, and other users of the predictor may cause more faults.</p>
<div class="scroll">{fault_table(report.totals)}</div>
<h2>The movies</h2>
<p class="note">The ten most rated of {len(catalogue)} movies:
{html.escape("; ".join(item.name for item in catalogue[:10]))}.</p>
<h2>Settings</h2>
<div class="scroll">{table(["setting", "value"], msgspec.structs.asdict(settings).items())}</div>
<p class="note">Ratings: MovieLens (F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and
Context. ACM TiiS 5, 4, Article 19).</p>
</body></html>
"""


def _served(report: Report) -> list[WindowReport]:
    """The windows with decisions; the bootstrap when there are none."""
    return [window for window in report.windows if window.decisions] or [report.bootstrap]


def _tiles(report: Report) -> str:
    """The four answers at the top: does it learn, what was lost, what was promoted, how fresh is it."""
    totals, served = report.totals, _served(report)
    last = served[-1]
    sound = totals.lost == totals.duplicated == totals.misattributed_rewards == 0
    promoted = sum(window.promoted for window in report.windows)
    kept = len(report.windows) - promoted
    tiles = [
        (
            last.mean_expected_reward > last.best_fixed_reward,
            f"{share(last):.1%} of the oracle",
            f"in the last window; {share(served[0]):.1%} in the first. The best fixed movie: "
            f"{share_of_best_fixed(last):.1%}, uniform choice: {share(report.bootstrap):.1%}",
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
        (None, *freshness_in_words(report)),
    ]
    tiles.sort(key=lambda tile: tile[0] is not False)  # what is wrong comes first
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
            f"{share(windows[position]):.0%}",
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
