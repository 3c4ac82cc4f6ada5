"""How a benchmark measures: the reference way and ours by turns in one run, and the ratio of each pair."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict


class Result(TypedDict):
    """One line of `results.json`. `reference` and `ours` are medians in `unit`; `ratio` is how many times better ours is."""

    reference: float
    ours: float
    unit: str
    ratio: float
    ratio_min: float
    ratio_max: float
    runs: int


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def megabytes(which: Literal["VmRSS", "VmHWM"]) -> float:
    """This process's memory in 10^6 bytes: resident now, or at its peak.

    Not from `getrusage`: there a process begins with the peak of the one that started it.
    """
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:")]
    return int(line.split()[1]) * 1024 / 1e6


def compare(
    reference: Callable[[], float], ours: Callable[[], float], unit: str, runs: int = 3, lower_is_better: bool = False
) -> Result:
    """Runs both by turns. Each call returns one measurement in `unit`."""
    pairs = [(reference(), ours()) for _ in range(runs)]
    ratios = sorted(theirs / mine if lower_is_better else mine / theirs for theirs, mine in pairs)
    return Result(
        reference=sorted(theirs for theirs, _ in pairs)[runs // 2],
        ours=sorted(mine for _, mine in pairs)[runs // 2],
        unit=unit,
        ratio=ratios[runs // 2],
        ratio_min=ratios[0],
        ratio_max=ratios[-1],
        runs=runs,
    )
