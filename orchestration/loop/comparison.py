"""Runs beside each other: which settings differ, and what came of them.

Runs with the same settings but for the seed form a group. Of a group every figure is the mean over its runs, with a 95%
interval from Student's t distribution where there are several: how far another set of seeds might be from it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from scipy.special import stdtrit

from orchestration.loop.report import WindowReport
from orchestration.loop.runs import Run, share_of_oracle
from orchestration.loop.settings import WATCHING

CONFIDENCE = 0.95
# Settings that say where a run is and which chance it had, not what it tries.
INCIDENTAL = ("seed", "out", "port", *WATCHING)


class Group(NamedTuple):
    """Runs with the same settings but for the seed."""

    label: str
    runs: list[Run]


class Mean(NamedTuple):
    """A mean over runs and half of the width of its interval; None for a single run."""

    value: float
    reach: float | None

    def text(self, form: str) -> str:
        """The mean in a format such as `.3f`, with ± where there is an interval."""
        reach = "" if self.reach is None else f" ± {self.reach:{form}}"
        return f"{self.value:{form}}{reach}"


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by settings, in the order given. A label names the settings that differ, or the run where none does."""
    differing = differing_settings(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_tried(run), []).append(run)
    return [
        Group(", ".join(f"{name}={getattr(some[0].report.settings, name)}" for name in differing) or some[0].name, some)
        for some in groups.values()
    ]


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """The names of the settings that are not the same in all runs, but for seed, folder and port."""
    return [
        name
        for name in runs[0].report.settings.__struct_fields__
        if name not in INCIDENTAL and len({str(getattr(run.report.settings, name)) for run in runs}) > 1
    ]


def mean_over(values: Sequence[float]) -> Mean:
    """The mean of one value per run, and Student's interval for it.

    Args:
      values: [N], at least one.
    """
    count = len(values)
    if count == 1:
        return Mean(float(values[0]), None)
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Mean(float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / count**0.5)


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison: one row per group."""
    differing = differing_settings(runs)
    header = ["runs", *differing, "seeds", *(name for name, _, _ in _FIGURES)]
    rows = []
    for group in grouped(runs):
        settings = group.runs[0].report.settings
        row = [", ".join(run.name for run in group.runs)]
        row += [str(getattr(settings, name)) for name in differing]
        row.append(", ".join(str(run.report.settings.seed) for run in group.runs))
        for _, form, figure in _FIGURES:
            known = [value for run in group.runs if (value := figure(run)) is not None]
            row.append(mean_over(known).text(form) if known else "unknown")
        rows.append(row)
    return header, rows


def curve(group: Group, figure: Callable[[WindowReport], float | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A figure window by window: number of the window, mean over the group's runs, half of the interval's width.

    [W] each, float64, over the windows that all runs of the group served; the last is NaN for a single run, and the mean
    where a run has no value.
    """
    by_number = [
        {window.number: figure(window) for window in run.served if not window.interrupted} for run in group.runs
    ]
    numbers = sorted(set.intersection(*(set(values) for values in by_number)))
    means, reaches = [], []
    for number in numbers:
        values = [values[number] for values in by_number]
        known = [value for value in values if value is not None]
        mean = mean_over(known) if len(known) == len(values) else Mean(float("nan"), None)
        means.append(mean.value)
        reaches.append(float("nan") if mean.reach is None else mean.reach)
    return np.array(numbers, float), np.array(means), np.array(reaches)


def in_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The table as lines of text: a figure per line and a column per group, as groups are few and figures many."""
    columns = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]


def _tried(run: Run) -> str:
    settings = msgspec.to_builtins(run.report.settings)
    return str({name: value for name, value in settings.items() if name not in INCIDENTAL})


def _decisions(run: Run) -> float:
    return float(run.report.totals.decisions_served)


def _faulty(run: Run) -> float:
    totals = run.report.totals
    return float(totals.lost + totals.duplicated + totals.misattributed_rewards)


def _reward(run: Run) -> float | None:
    decisions = sum(window.decisions for window in run.served)
    if not decisions:
        return None
    return sum(window.mean_expected_reward * window.decisions for window in run.served) / decisions


def _processing(run: Run) -> float | None:
    """Seconds spent on a window by ingestion, export, training and gate."""
    windows = run.report.windows
    spent = sum(one.ingest_seconds + one.export_seconds + one.train_seconds + one.gate_seconds for one in windows)
    return spent / len(windows) if windows else None


_FIGURES: tuple[tuple[str, str, Callable[[Run], Any]], ...] = (
    ("windows", ".0f", lambda run: float(len(run.served))),
    ("reward per decision", ".3f", _reward),
    ("share of oracle", ".1%", lambda run: share_of_oracle(run.served) if run.served else None),
    ("share of oracle, last window", ".1%", lambda run: share_of_oracle(run.served[-1:]) if run.served else None),
    ("regret", ",.0f", lambda run: sum(window.regret for window in run.served)),
    ("decisions", ",.0f", _decisions),
    ("lost, duplicated, misattributed", ",.0f", _faulty),
    ("policies promoted", ".1f", lambda run: float(sum(window.promoted for window in run.report.windows))),
    ("fresh after, median s", ".1f", lambda run: run.report.freshness_seconds.p50),
    ("fresh after, 99% s", ".1f", lambda run: run.report.freshness_seconds.p99),
    ("processing per window, s", ".2f", _processing),
)
