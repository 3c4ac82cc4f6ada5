"""The shop whose items come and go, at a small size."""

import json
from pathlib import Path

import pytest

from bench import churn


def test_a_small_shop_lives_with_churn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "churn.json"
    flags = ["--items", "40", "--churn", "0.1", "--windows", "16", "--decisions", "300"]
    churn.main([*flags, "--reuse-after-windows", "3", "--out", str(out)])
    [run] = json.loads(out.read_text())["runs"]
    with_churn, without = run["summary"]["with churn"], run["summary"]["without churn"]
    assert with_churn["decisions_for_retired_items"] == with_churn["windows_held"] == 0
    assert with_churn["actions_when_settled"] == with_churn["actions_at_the_end"] == 40 + 3 * 4
    assert with_churn["share_of_oracle"] > 0.7 > 2 * with_churn["uniform"]
    assert without["actions_at_the_end"] == 40 and without["share_of_new_items"] == 0
    for window in run["windows"]["with churn"]:
        # 0.02 for each of at most five new items is below the budget of all; 4 standard deviations of 300 decisions.
        assert window["new_share"] <= window["budget"] + 4 * (window["budget"] / 300) ** 0.5
    assert "seed 0, with churn" in capsys.readouterr().out


def test_the_context_changes_while_the_shop_serves() -> None:
    """From 16 numbers to 18 and then 17: each window is exported and trained on, and the policies follow a window later."""
    world = churn.World(num_items=20, churn=0.0, context=((0, 16), (4, 18), (8, 17)))
    rows = churn.run(world, seed=0, windows=12, decisions=800)
    assert [row.observation_dim for row in rows] == [16] * 4 + [18] * 4 + [17] * 4
    assert [row.policy_dim for row in rows] == [16] * 4 + [18] * 4 + [17] * 4
    assert all(row.promoted and not row.held for row in rows)
    for number in (6, 10):  # two windows after a change; 16 numbers are known all along
        assert rows[number].share_of_oracle > rows[3].share_of_oracle - 0.02
