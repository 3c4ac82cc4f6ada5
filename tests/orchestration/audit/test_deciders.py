"""What decided under a version."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import InputError
from orchestration import policy_store
from orchestration.audit.deciders import load_decider
from tests.linear_policies import write_policy


def test_a_version_knows_its_arms_if_it_ever_was_the_champion(tmp_path: Path) -> None:
    write_policy(tmp_path / "v")
    assert load_decider(tmp_path, "gone") is None
    found = load_decider(tmp_path, "v")
    assert found is not None and np.all(found.num_samples == 7)
    write_policy(tmp_path / "champion")
    policy_store.roll_out(tmp_path, "champion", "first", datetime(2026, 1, 1, tzinfo=UTC))
    on_trial = load_decider(tmp_path, "v")
    assert on_trial is not None and not on_trial.num_samples.any()
    (tmp_path / "v" / "linear.npz").unlink()
    with pytest.raises(InputError, match=r"linear\.npz"):
        load_decider(tmp_path, "v")
