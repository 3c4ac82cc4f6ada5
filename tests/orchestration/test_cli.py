from datetime import UTC, datetime

import pytest

from contracts import policies
from contracts.policies import Exploration, PolicyCard
from orchestration import cli, policy_store


@pytest.fixture
def store(tmp_path):
    """Two policies (their cards; nothing here loads more), the second one champion."""
    for day, version in ((1, "v1"), (2, "v2")):
        card = PolicyCard(
            version=version,
            parent=None,
            algorithm="lin_ucb",
            hyperparameters={},
            observation_dim=1,
            num_actions=2,
            catalogue=[],
            trained_on=[],
            exploration=Exploration(),
        )
        (tmp_path / version).mkdir()
        (tmp_path / version / policies.CARD_NAME).write_bytes(policies.encode_json(card))
        policy_store.roll_out(tmp_path, version, f"reason {day}", datetime(2026, 1, day, tzinfo=UTC))
    return tmp_path


def test_status_shows_what_serves_and_what_served(store, capsys):
    assert cli.main(["status", "--policies", str(store)]) == 0
    assert capsys.readouterr().out == ("  2026-01-01 00:00:00 v1  reason 1\n→ 2026-01-02 00:00:00 v2  reason 2\n")


def test_rollback_goes_back_in_one_step_and_is_remembered(store, capsys):
    assert cli.main(["rollback", "--policies", str(store), "--reason", "reward fell"]) == 0
    assert capsys.readouterr().out == "v1 is the champion\n"
    assert [past.reason for past in policy_store.history(store)] == ["reason 1", "reason 2", "reward fell"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--policies", "{}/none"],
        ["rollback", "--policies", "{}/none", "--reason", "x"],
        ["report", "--out", "{}"],
        ["loop", "--resume", "--out", "{}"],
        ["loop", "--windows"],
        ["loop", "--window", "3"],
        ["loop", "--missing-reward", "maybe"],
        ["loup"],
        [],
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, arguments):
    assert cli.main([argument.format(tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("orchestration.cli: error: ")
    assert error.count("\n") == 1
