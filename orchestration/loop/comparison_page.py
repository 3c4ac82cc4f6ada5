"""The page of a comparison: the table, and the groups' curves on one axis, with plots by matplotlib as SVG."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestration.loop import comparison
from orchestration.loop.comparison import Group
from orchestration.loop.report import WindowReport
from orchestration.loop.runs import Run, share_of_oracle
from orchestration.places import replace_file

# Told apart by colour, dash and mark: Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v")
GRID = "#d9e2ec"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; max-width: 1080px; margin: 1.5em auto;
  padding: 0 1em; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { text-align: left; padding: .3em .6em; border-bottom: 1px solid #d9e2ec; vertical-align: top; }
.note { color: #52606d; }
"""


def write(path: Path, runs: Sequence[Run]) -> None:
    """Writes the comparison of `runs` to `path` as one page that refers to nothing outside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, render(runs).encode())


def render(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    import matplotlib as mpl

    groups = comparison.grouped(runs)
    with mpl.rc_context({"svg.hashsalt": "comparison", "svg.fonttype": "none", "axes.edgecolor": GRID}):
        plots = "".join(f"<div>{_svg(plot(groups, title, figure), title)}</div>" for title, figure in CURVES.items())
    header, rows = comparison.table(runs)
    several = any(len(group.runs) > 1 for group in groups)
    note = "Where several runs share their settings: the mean, with a 95% interval over seeds." if several else ""
    lines = zip(header, *rows, strict=True)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in lines
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{len(runs)} runs compared</title><style>{_STYLE}</style></head><body>
<h1>{len(runs)} runs compared</h1>
<p class="note">{note}</p>
<div class="plots">{plots}</div>
<h2>Figures</h2>
<div class="scroll"><table>
{body}
</table></div>
</body></html>
"""


def plot(groups: Sequence[Group], title: str, figure: Callable[[WindowReport], float | None]) -> Any:
    """A matplotlib figure: a curve per group over the windows, with a band where there are several runs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawing = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = drawing.subplots()
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for index, group in enumerate(groups):
        at, mean, reach = comparison.curve(group, figure)
        color = COLORS[index % len(COLORS)]
        style: dict[str, Any] = {"linestyle": DASHES[index % len(DASHES)], "marker": MARKS[index % len(MARKS)]}
        axes.plot(at, mean, color=color, ms=4, label=group.label.replace("$", r"\$"), **style)
        if np.isfinite(reach).any():
            axes.fill_between(at, mean - reach, mean + reach, color=color, alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel="training window")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    drawing.legend(loc="outside lower center", frameon=False, fontsize=9)
    return drawing


CURVES: dict[str, Callable[[WindowReport], float | None]] = {
    "Share of the oracle's reward": lambda window: share_of_oracle([window]),
    "Regret per decision": lambda window: window.regret / window.decisions,
    "Seconds from reward to serving, median": lambda window: window.freshness_seconds.p50,
}


def _svg(drawing: Any, title: str) -> str:
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
