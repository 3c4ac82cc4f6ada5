"""`cli audit` and `cli guard` as a person runs them."""

import json
from pathlib import Path

import msgspec
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench.simulated_loop import Sabotages, SimulatedLoop
from orchestration import cli, policy_store

BAD = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop of three good windows and one with halved propensities."""
    root: Path = tmp_path_factory.mktemp("root")
    viewers = MovieLens.build(load_ratings("sample"), num_actions=5, rank=3, reward_noise=0.5, seed=0)
    loop = SimulatedLoop(root, viewers, seed=1, decisions=400)
    for _ in range(BAD):
        loop.window()
    versions = policy_store.versions(root / "policies")
    assert loop.window(Sabotages(BAD, versions, 5).by_name["propensities halved"]).held
    return root


def test_the_table_names_what_is_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--root", str(root)]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if line[0] != " "] == ["✓", "✓", "✓", "✗", "1"]
    assert any("contradiction: replayed propensity: 400 of 400 replayed decisions differ" in line for line in lines)
    assert lines[-1] == "1 window(s) refused"


def test_json_lines_are_the_audits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--root", str(root), "--json"]) == 5
    audits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [audit["accepted"] for audit in audits] == [True] * BAD + [False]


def test_a_warehouse_is_audited_without_a_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--warehouse", str(root / "warehouse"), "--policies", str(root / "policies"), "--window-seconds", "5"]
    assert cli.main(["audit", *flags, "--start", "2026-01-01T00:00:00Z", "--end", "2026-01-01T00:00:20Z"]) == 5
    assert cli.main(["audit", *flags, "--start", "2026-01-01T00:00:00Z", "--end", "2026-01-01T00:00:15Z"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no window refused"


def test_the_guard_is_shown_and_released(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["guard", "status", "--root", str(root)]) == 5
    out = capsys.readouterr().out
    assert out.startswith("held since ") and "refused: window that starts at 2026-01-01T00:00:15" in out
    assert cli.main(["guard", "release", "--root", str(root), "--reason", "repaired"]) == 0
    assert "not held since" in capsys.readouterr().out
    assert cli.main(["guard", "release", "--root", str(root), "--reason", "again"]) == 2
    accept = ["audit", "--root", str(root), "--accept", "2026-01-01T00:00:15Z", "--reason", "known"]
    assert cli.main(accept) == 0
    assert cli.main(["audit", "--root", str(root)]) == 0


def test_a_window_is_dated(root: Path) -> None:
    from orchestration.audit import window_audits
    from orchestration.audit.commands import _lines

    kept = window_audits.read_all(root / "audit")[-1]
    [finding] = [one for one in kept.findings if one.check == "replayed propensity"]
    slow = msgspec.structs.replace(kept, findings=[msgspec.structs.replace(finding, began=2)])
    lines = list(_lines(slow, ["window=1", "window=2", "window=3"]))
    assert lines[1].endswith(", began in window=1")


def test_the_loop_is_held_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["guard", "hold", "--root", str(tmp_path)]) == 2
    assert "--reason: needed to hold" in capsys.readouterr().err
    assert cli.main(["guard", "hold", "--root", str(tmp_path), "--reason", "a look"]) == 5
    assert "a look" in capsys.readouterr().out
