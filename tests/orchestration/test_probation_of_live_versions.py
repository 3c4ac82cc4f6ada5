"""Probation of a version over which live versions serve."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from contracts import live_versions, policies
from contracts.live_versions import VERSIONS_NAME, LiveVersion
from contracts.policy_arrays import ArmChanges
from tests.orchestration.test_probation import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.serve(0)
    shop.serve(1)
    shop.enter(shop.add("second", 1, times=0.5), 1)
    return shop


def serve_live(shop: Shop, number: int, times: float) -> Path:
    """A window in whose second half a live version over `second` decides. Returns the file of that version."""
    folder = shop.places.policies / shop.add("second+7", 1, times=times)
    shop.serve(number, then="second+7")
    arrays = np.load(folder / policies.LINEAR_NAME)
    every = np.arange(len(arrays["theta"]), dtype=np.int32)
    upper = np.triu_indices(arrays["theta"].shape[1])
    version = LiveVersion(
        kind="snapshot",
        base="second",
        sequence=7,
        published_at=datetime.now(UTC),
        complete_until=None,
        sums_digest="",
        interactions=0,
        num_actions=len(every),
        width=arrays["theta"].shape[1],
        changes=ArmChanges(
            every, arrays["theta"], arrays["num_samples"], every, arrays["covariance"][:, *upper].astype(np.float32)
        ),
    )
    shutil.rmtree(folder)
    versions = shop.places.live / VERSIONS_NAME
    versions.mkdir(parents=True)
    live_versions.publish(versions, version)
    return versions / live_versions.file_name(7, "snapshot")


def test_its_decisions_count_and_a_bad_one_rolls_its_base_back(shop: Shop) -> None:
    serve_live(shop, 2, times=-1.0)
    look = shop.step(2)
    assert look is not None
    assert look.decisions > 1400
    assert (look.outcome, look.version, shop.pointer.version) == ("rolled back", "second", "first")


def test_if_its_files_are_gone_the_decisions_of_its_time_are_left_out(shop: Shop) -> None:
    serve_live(shop, 2, times=-1.0).unlink()
    look = shop.step(2)
    assert look is not None
    assert 600 < look.decisions < 800  # those of the first half
    assert look.outcome != "rolled back"
