"""Runs that have ended, read again."""

import pytest

from contracts.errors import InputError
from orchestration.loop import runs
from orchestration.loop.run_folder import point_latest
from orchestration.loop.settings import LoopSettings
from tests.orchestration.loop.reports import kept, window


def test_the_last_run_is_read_through_its_link_and_keeps_its_own_name(tmp_path):
    folder = kept(tmp_path / "20260101T000000Z-lin_ucb-100-seed0", [window(1), window(2)], LoopSettings())
    point_latest(folder, always=True)
    run = runs.load(tmp_path / "latest")
    assert run.name == "20260101T000000Z-lin_ucb-100-seed0"
    assert [one.number for one in run.served] == [1, 2]


def test_windows_are_columns_of_plain_numbers_and_leave_out_those_without_decisions(tmp_path):
    windows = [window(1, mean_expected_reward=1.5), window(2, decisions=0, oracle_reward=0.0), window(3)]
    columns = runs.load(kept(tmp_path / "run", windows, LoopSettings())).windows()
    assert columns["number"] == [1, 3]
    assert columns["share_of_oracle"] == [pytest.approx(0.5), pytest.approx(2.8 / 3.0)]
    assert {len(column) for column in columns.values()} == {2}


def test_the_share_of_several_windows_weighs_decisions():
    windows = [window(1, decisions=300, mean_expected_reward=1.5), window(2, decisions=100, mean_expected_reward=3.0)]
    assert runs.share_of_oracle(windows) == pytest.approx((300 * 1.5 + 100 * 3.0) / (400 * 3.0))
    assert runs.share_of_oracle([]) == 0.0


def test_a_folder_without_a_report_and_an_older_report_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none: a run with its report\.json expected"):
        runs.load(tmp_path / "none")
    folder = kept(tmp_path / "old", [], LoopSettings())
    (folder / "report.json").write_bytes(b'{"settings": {}}')
    with pytest.raises(InputError, match=r"orchestration.cli report --out .*old"):
        runs.load(folder)


def test_a_run_that_is_named_twice_is_refused(tmp_path):
    folder = kept(tmp_path / "run", [window(1)], LoopSettings())
    point_latest(folder, always=True)
    assert [run.name for run in runs.load_all([folder])] == ["run"]
    with pytest.raises(InputError, match="got one twice"):
        runs.load_all([folder, tmp_path / "latest"])
