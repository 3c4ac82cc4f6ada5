"""`report.html`: one self-contained page that shows at a glance whether the loop learns. Plots by matplotlib, as SVG."""

import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from contracts.policies import Movie

if TYPE_CHECKING:
    from orchestration.report import Report, WindowReport

INK, GRID = "#1f2933", "#d9e2ec"
SERVED, ORACLE, FIXED, UNIFORM = "#0b6e4f", "#334e68", "#b44d12", "#829ab1"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.15em; margin: 2em 0 .4em; }
.verdict { font-size: 1.15em; } .good { color: #0b6e4f; } .bad { color: #b42318; } .note { color: #52606d; }
svg { width: 100%; height: auto; } .row { display: flex; gap: 1.5em; flex-wrap: wrap; } .row > div { flex: 1 1 460px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88em; }
th, td { text-align: right; padding: .25em .5em; border-bottom: 1px solid #d9e2ec; vertical-align: top; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } .scroll { overflow-x: auto; }
code { background: #f0f4f8; padding: 0 .25em; }
"""


def render(report: "Report", catalogue: Sequence[Movie]) -> str:
    """The page as HTML, with no reference to anything outside it."""
    # pyplot would look for a display and keep global state: figures are made directly.
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none", "font.size": 10, "axes.edgecolor": GRID}):
        figures = [
            _figure(_reward_axes, report),
            _figure(_regret_axes, report),
            _figure(_off_policy_axes, report),
            _figure(_freshness_axes, report),
        ]
    reward, regret, off_policy, freshness = figures
    settings, totals = report.settings, report.totals
    served = [window for window in report.windows if window.decisions] or [report.bootstrap]
    share = [_share(window) for window in (report.bootstrap, served[0], served[-1])]
    sound = totals.lost == totals.duplicated == totals.misattributed_rewards == 0
    facts = {
        "decisions served": totals.decisions_served,
        "stored": totals.decisions_stored,
        "of these, not asked for by the viewers": totals.decisions_of_others,
        "of these, after the last window": totals.decisions_outside_windows,
        "exported for training": totals.interactions_exported,
        "trained": totals.interactions_trained,
        "held back for the gate": totals.interactions_held_back,
        "lost": totals.lost,
        "duplicated": totals.duplicated,
        "misattributed rewards": totals.misattributed_rewards,
        "failed requests": totals.failed_requests,
    }
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The closed loop: {share[2]:.1%} of the oracle</title><style>{_STYLE}</style></head><body>
<h1>The closed loop</h1>
<p class="note">{settings.algorithm}, {settings.exploration} with epsilon {settings.epsilon:g}, {settings.num_actions} movies,
ratings <code>{html.escape(settings.ratings)}</code>, seed {settings.seed}. Champion <code>{html.escape(report.champion)}</code>.</p>
<p class="verdict">Uniform choice earned <b>{share[0]:.1%}</b> of the oracle's reward, the first trained policy's window
<b>{share[1]:.1%}</b>, the last window <b class="{"good" if share[2] > share[1] else "bad"}">{share[2]:.1%}</b>.
<span class="{"good" if sound else "bad"}">{totals.lost} lost, {totals.duplicated} duplicated,
{totals.misattributed_rewards} misattributed</span> of {totals.decisions_served:,} decisions.
From click to a policy trained on it serving: {_seconds(report.freshness_seconds.p50)} (median).</p>
<h2>Does it learn?</h2>
<div class="row"><div>{reward}</div><div>{regret}</div></div>
<h2>Can its estimates be trusted, and how fresh is it?</h2>
<div class="row"><div>{off_policy}</div><div>{freshness}</div></div>
<h2>Window by window</h2>
<div class="scroll">{_outcome_table([report.bootstrap, *report.windows])}</div>
<h2>What served, and why</h2>
<p class="note">A policy is judged on held-back decisions that neither it nor the champion was trained on, before they are.
Where it would choose what the champion hardly ever tried, the log has no say, and the interval says so.</p>
<div class="scroll">{_gate_table([report.bootstrap, *report.windows])}</div>
<h2>Is anything lost or counted twice?</h2>
{_table(["", "count"], facts.items())}
<h2>Faults injected and found</h2>
<p class="note">Viewers and a bad transport repeat, delay, break and invent events. Redelivered copies are found again as
duplicates, broken copies as dead letters, inventions as orphans.</p>
<div class="row"><div>{_table(["injected", "count"], totals.faults_injected.items())}</div>
<div>{_table(["found", "count"], totals.faults_found.items())}</div></div>
<h2>What it chose from</h2>
<p class="note">The ten most rated of {len(catalogue)} movies:
{html.escape("; ".join(movie.title or movie.movie_id for movie in catalogue[:10]))}.</p>
<h2>Settings</h2>
{_table(["setting", "value"], msgspec.structs.asdict(settings).items())}
<p class="note">Ratings: MovieLens (F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and
Context. ACM TiiS 5, 4, Article 19).</p>
</body></html>
"""


def _figure(draw: Any, report: "Report") -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, report)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _numbers(report: "Report") -> np.ndarray:
    return np.arange(1, len(report.windows) + 1)


def _reward_axes(axes: Any, report: "Report") -> None:
    all_windows = [report.bootstrap, *report.windows]
    numbers = np.arange(len(all_windows))
    axes.plot(numbers, [window.oracle_reward for window in all_windows], "--", color=ORACLE, label="oracle")
    best_fixed = [window.best_fixed_reward for window in all_windows]
    axes.plot(numbers, best_fixed, "--", color=FIXED, label="best fixed movie of the window")
    axes.plot(numbers, [window.uniform_reward for window in all_windows], "--", color=UNIFORM, label="uniform")
    rewards = [window.mean_expected_reward for window in all_windows]
    axes.plot(numbers, rewards, "o-", color=SERVED, lw=2, label="served (window 0: uniform)")
    for number, window in zip(numbers, all_windows, strict=True):
        if len(window.policy_versions) > 1:
            values = [share.mean_expected_reward for share in window.policy_versions.values()]
            axes.plot([number] * len(values), values, "_", color=SERVED, alpha=0.6)
    axes.set(title="Expected reward a decision", xlabel="training window", xticks=numbers, ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def _regret_axes(axes: Any, report: "Report") -> None:
    numbers, windows = _numbers(report), report.windows
    decisions = np.array([window.decisions for window in windows])
    oracle = np.array([window.oracle_reward for window in windows])
    for name, value, color in (
        ("uniform", np.array([window.uniform_reward for window in windows]), UNIFORM),
        ("best fixed movie of each window", np.array([window.best_fixed_reward for window in windows]), FIXED),
    ):
        axes.plot(numbers, np.cumsum((oracle - value) * decisions), "--", color=color, label=name)
    axes.plot(numbers, np.cumsum([window.regret for window in windows]), "o-", color=SERVED, lw=2, label="served")
    axes.set(title="Cumulative regret", xlabel="training window", xticks=numbers, ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def _off_policy_axes(axes: Any, report: "Report") -> None:
    windows = [report.bootstrap, *report.windows]
    judged = [window for window in windows if window.off_policy is not None]
    numbers = [position for position, window in enumerate(windows) if window.off_policy is not None]
    estimates = [window.off_policy for window in judged if window.off_policy is not None]
    values = np.array([estimate.estimate for estimate in estimates])
    spread = [values - [e.low for e in estimates], [e.high for e in estimates] - values]
    axes.errorbar(numbers, values, yerr=spread, fmt="o", color=SERVED, capsize=3, label="estimate, 95% interval")
    truths = [estimate.truth for estimate in estimates]
    axes.plot(numbers, truths, "x", color=FIXED, label="truth")
    axes.set(title="Value of the policy trained on the window", xlabel="training window", xticks=numbers)
    if truths and None not in truths:
        # An interval from few effective decisions may be huge; the plot keeps to where the values are.
        low, high = min(*truths, *values), max(*truths, *values)
        axes.set_ylim(low - 0.5, high + 0.5)
    axes.legend(frameon=False, fontsize=8)


def _freshness_axes(axes: Any, report: "Report") -> None:
    numbers, windows = _numbers(report), report.windows
    for name, color in (("p50", SERVED), ("p99", UNIFORM)):
        seconds = [getattr(window.freshness_seconds, name) for window in windows]
        axes.plot(numbers, [np.nan if value is None else value for value in seconds], "o-", color=color, label=name)
    axes.set(
        title="Reward sent → policy trained on it serves", xlabel="training window", xticks=numbers, ylabel="seconds"
    )
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=8)


def _outcome_table(windows: Sequence["WindowReport"]) -> str:
    header = ["window", "decisions", "rewards", "dropped", "defaulted", "late", "orphan", "duplicates", "dead letters"]
    header += [
        "new movies shown",
        "masked shown",
        "reward",
        "of oracle",
        "regret",
        "trained in",
        "fresh after (median)",
    ]
    rows = [
        [
            _name(window),
            window.decisions,
            window.rewards,
            window.dropped,
            window.defaulted,
            window.late_rewards,
            window.orphan_rewards,
            window.duplicates,
            window.dead_letters,
            window.new_movie_decisions,
            window.masked_movie_decisions,
            f"{window.mean_expected_reward:.3f}",
            f"{_share(window):.1%}" if window.decisions else "",
            f"{window.regret:,.0f}",
            f"{window.train_seconds:.2f} s",
            _seconds(window.freshness_seconds.p50),
        ]
        for window in windows
    ]
    return _table(header, rows)


def _gate_table(windows: Sequence["WindowReport"]) -> str:
    rows = []
    for window in windows:
        judged = window.off_policy
        shares = [
            f"{version} {share.decisions / window.decisions:.0%}" for version, share in window.policy_versions.items()
        ]
        estimate = f"{judged.estimate:.2f} [{judged.low:.2f}, {judged.high:.2f}]" if judged else ""
        truth = f"{judged.truth:.2f}" if judged and judged.truth is not None else ""
        outcome = ("promoted: " if window.promoted else "kept the champion: ") + window.reason
        rows.append([_name(window), ", ".join(shares), window.candidate, estimate, truth, outcome])
    header = ["window", "served by", "policy trained on it", "its value, estimated", "in truth", "the gate"]
    return _table(header, rows, text=(1, 2, 5))


def _name(window: "WindowReport") -> str:
    if window.interrupted:
        return f"after {window.number} (interrupted)"
    return f"{window.number} (uniform)" if window.number == 0 else str(window.number)


def _share(window: "WindowReport") -> float:
    """Of the oracle's reward; 0 where nothing was decided."""
    return window.mean_expected_reward / window.oracle_reward if window.oracle_reward else 0.0


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], text: tuple[int, ...] = ()) -> str:
    def cell(tag: str, column: int, value: Any) -> str:
        return f"<{tag}{' class=text' if column in text else ''}>{html.escape(_shown(value))}</{tag}>"

    head = "".join(cell("th", column, name) for column, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", column, value) for column, value in enumerate(row)) + "</tr>\n" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
