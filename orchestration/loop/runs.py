"""Runs that have ended, read again from their reports: for notebooks, and to be compared.

    from orchestration.loop import runs
    run = runs.load("runs/latest")
    run.report.totals.lost
    pandas.DataFrame(run.windows())

`orchestration.loop.comparison` compares several of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from contracts.errors import InputError
from orchestration.loop.report import Report, WindowReport
from orchestration.loop.run_folder import RunFolder


class Run(NamedTuple):
    """A run that has ended: its name, and the figures of its report."""

    name: str
    report: Report

    @property
    def served(self) -> list[WindowReport]:
        """The windows in which viewers were served, in order."""
        return [window for window in self.report.windows if window.decisions]

    def windows(self) -> dict[str, list[Any]]:
        """The figures of each served window, by column: plain numbers, one row per window.

        `share_of_oracle` is the expected reward as a share of the best possible one; durations are in seconds.
        """
        served = self.served
        columns: dict[str, list[Any]] = {
            name: [getattr(window, name) for window in served]
            for name in ("number", "decisions", "rewards", "late_rewards", "orphan_rewards", "dead_letters", "promoted")
        }
        columns["reward"] = [window.mean_expected_reward for window in served]
        columns["oracle"] = [window.oracle_reward for window in served]
        columns["share_of_oracle"] = [share_of_oracle([window]) for window in served]
        columns["regret"] = [window.regret for window in served]
        columns["freshness_p50"] = [window.freshness_seconds.p50 for window in served]
        columns["freshness_p99"] = [window.freshness_seconds.p99 for window in served]
        columns["train_seconds"] = [window.train_seconds for window in served]
        return columns


def load(folder: str | Path) -> Run:
    """The run in `folder`, or in the one that a link such as `runs/latest` points to.

    Raises InputError when there is no report, or when it is one of an older version of the report.
    """
    root = Path(folder).resolve()
    path = RunFolder(root).report_json
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError:
        raise InputError(f"{folder}: a run with its report.json expected, got none") from None
    except msgspec.DecodeError as error:
        again = f"python -m orchestration.cli report --out {folder}"
        raise InputError(f"{path}: {error}; write the report again: {again}") from None
    return Run(root.name, report)


def load_all(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in `folders`. Raises InputError as `load` does, and for a run that is named twice."""
    named: dict[Path, str | Path] = {}
    for folder in folders:
        before = named.setdefault(Path(folder).resolve(), folder)
        if before is not folder:
            raise InputError(f"different runs expected, got one twice: {before} and {folder}")
    return [load(folder) for folder in folders]


def share_of_oracle(windows: list[WindowReport]) -> float:
    """The reward of all their decisions as a share of the oracle's; 0 without decisions."""
    best = sum(window.oracle_reward * window.decisions for window in windows)
    return sum(window.mean_expected_reward * window.decisions for window in windows) / best if best else 0.0
