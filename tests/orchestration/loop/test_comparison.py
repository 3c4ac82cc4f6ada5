"""Runs beside each other: groups, means over seeds with their intervals, and the table."""

import math

import numpy as np
import pytest

from orchestration.loop import comparison
from orchestration.loop.runs import Run, share_of_oracle
from orchestration.loop.settings import LoopSettings
from tests.orchestration.loop.reports import report, window


def run(name: str, rewards: list[float], **settings) -> Run:
    windows = [window(number, mean_expected_reward=value) for number, value in enumerate(rewards, start=1)]
    return Run(name, report(windows, LoopSettings(out=name, **settings)))


def test_runs_that_differ_by_seed_folder_and_port_alone_are_one_group():
    runs = [run("a", [1.0], seed=0), run("b", [2.0], seed=1, port=8080), run("c", [3.0], alpha=0.7)]
    groups = comparison.grouped(runs)
    assert [(group.label, [one.name for one in group.runs]) for group in groups] == [
        ("alpha=0.2", ["a", "b"]),
        ("alpha=0.7", ["c"]),
    ]
    assert comparison.differing_settings(runs) == ["alpha"]


def test_runs_with_the_same_settings_are_called_by_name():
    (group,) = comparison.grouped([run("a", [1.0]), run("b", [1.0], seed=3)])
    assert group.label == "a"


def test_a_mean_over_seeds_has_students_interval():
    mean = comparison.mean_over([1.0, 2.0, 3.0])
    assert mean.value == 2.0
    assert mean.reach == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-5)  # two degrees of freedom
    assert comparison.mean_over([1.0]) == (1.0, None)
    assert mean.text(".1f") == "2.0 ± 2.5"


def test_the_interval_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [
        abs((mean := comparison.mean_over(rng.normal(5.0, 1.0, 4).tolist())).value - 5.0) <= mean.reach
        for _ in range(4000)
    ]
    assert 0.935 < np.mean(held) < 0.965


def test_the_table_has_a_row_per_group_and_every_figure():
    header, rows = comparison.table([run("a", [1.5, 3.0]), run("b", [1.5, 1.5], seed=1), run("c", [3.0], drift=0.1)])
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert (first["runs"], first["drift"], first["seeds"]) == ("a, b", "0.0", "0, 1")
    assert first["share of oracle"].startswith("62.5% ± ")
    assert (second["windows"], second["share of oracle, last window"]) == ("1", "100.0%")
    lines = comparison.in_columns(header, rows)
    assert len(lines) == len(header)
    assert lines[0].split() == ["runs", "a,", "b", "c"]


def test_a_run_without_windows_is_unknown_not_zero():
    header, rows = comparison.table([run("a", []), run("b", [1.0], seed=1)])
    (figures,) = (dict(zip(header, row, strict=True)) for row in rows)
    assert figures["reward per decision"] == "1.000"
    _, [alone] = comparison.table([run("a", [])])
    assert dict(zip(header, alone, strict=True))["reward per decision"] == "unknown"


def test_a_curve_covers_the_windows_that_all_runs_of_the_group_served():
    group = comparison.Group("", [run("a", [1.5, 3.0, 3.0]), run("b", [3.0, 3.0])])
    at, mean, reach = comparison.curve(group, lambda one: share_of_oracle([one]))
    assert at.tolist() == [1, 2]
    assert mean.tolist() == pytest.approx([0.75, 1.0])
    assert reach[0] > 0 and reach[1] == 0
    _, _, alone = comparison.curve(comparison.Group("", group.runs[:1]), lambda one: share_of_oracle([one]))
    assert np.isnan(alone).all()


def test_a_figure_that_one_run_does_not_know_has_no_mean():
    group = comparison.Group("", [run("a", [1.5]), run("b", [3.0])])
    _, mean, _ = comparison.curve(group, lambda one: None if one.mean_expected_reward < 2 else 1.0)
    assert np.isnan(mean).all()
