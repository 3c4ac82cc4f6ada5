"""The figures of the report, of a run made without the loop's processes."""

import shutil
from pathlib import Path

import pytest

from beam_jobs.movielens import MovieLens
from contracts.errors import InputError
from orchestration.loop import report
from orchestration.loop.run_folder import RunFolder
from tests.orchestration.loop import runs
from tests.orchestration.loop.runs import DECISIONS


@pytest.fixture(scope="module")
def movielens() -> MovieLens:
    return runs.viewers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, movielens: MovieLens) -> RunFolder:
    folder, _ = runs.make(tmp_path_factory.mktemp("run"), movielens)
    return folder


def test_the_figures_are_those_of_the_run(folder: RunFolder, movielens: MovieLens) -> None:
    found = report.build(folder, movielens)
    window = found.bootstrap
    assert (window.number, window.decisions, window.rewards, window.dropped) == (0, DECISIONS, DECISIONS, 0)
    assert list(window.policy_versions) == [window.policy_version] == ["uniform"]
    assert (window.ingest_seconds, window.export_seconds, window.train_seconds, window.gate_seconds) == (1, 2, 3, 4)
    assert window.promoted and window.off_policy is None and window.gain is None
    assert window.uniform_reward == pytest.approx(movielens.reference.uniform, abs=0.5)
    assert window.uniform_reward < window.best_fixed_reward <= window.oracle_reward
    assert window.regret == pytest.approx((window.oracle_reward - window.mean_expected_reward) * DECISIONS)
    assert found.windows == [] and found.totals.lost == 0
    assert found.reference.oracle == movielens.reference.oracle


def test_a_window_that_is_gone_is_named(folder: RunFolder, tmp_path: Path) -> None:
    [entry] = folder.journal()
    assert list(report.noted_manifests(folder, [entry])) == [entry.window.start]
    shutil.copytree(folder.root, tmp_path / "copy")
    (tmp_path / "copy" / "windows" / entry.window.folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"window=.*: no manifest"):
        report.noted_manifests(RunFolder(tmp_path / "copy"), [entry])
