"""What decided under a version."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import InputError
from orchestration import policy_store
from orchestration.audit.deciders import load_decider
from tests.linear_policies import write_policy
from tests.live_learning import WINDOWS, Emitter, sums_of, write_base
from trainer import live
from trainer.live import LiveSettings, LiveTrainer


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


def test_a_live_version_is_made_again_from_its_files(tmp_path: Path) -> None:
    store, folder = tmp_path / "policies", tmp_path / "live"
    write_base(store, "v1", WINDOWS[:2])
    policy_store.roll_out(store, "v1", "first", datetime(2026, 1, 1, tzinfo=UTC))
    Emitter(folder).emit({WINDOWS[2]: sums_of(7)})
    with live.locked(folder):
        assert LiveTrainer(folder, store, LiveSettings()).step() is not None
    found, base = load_decider(store, "v1+1", folder), load_decider(store, "v1", folder)
    assert found is not None and base is not None
    assert found.policy.card.version == "v1+1"
    assert np.array_equal(found.num_samples, base.num_samples + sums_of(7).counts)
    assert load_decider(store, "v1+1") is None
    assert load_decider(store, "v1+2", folder) is None
