import os
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from contracts import live_versions
from contracts.errors import InputError
from contracts.live_versions import Control, LiveVersion
from contracts.policy_arrays import ArmChanges

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def changes(arms=(0, 3), covariance_arms=(3,), width=2):
    random = np.random.default_rng(0)
    return ArmChanges(
        np.array(arms, np.int32),
        random.normal(size=(len(arms), width)).astype(np.float32),
        np.full(len(arms), 7, np.float32),
        np.array(covariance_arms, np.int32),
        np.ones((len(covariance_arms), width * (width + 1) // 2), np.float32),
    )


def version(sequence=12, kind="delta", changed=None, num_actions=4):
    return LiveVersion(
        kind=kind,
        base="lin_ucb-1",
        sequence=sequence,
        published_at=NOW,
        complete_until=NOW,
        sums_digest="ab",
        interactions=3,
        num_actions=num_actions,
        width=2,
        changes=changes() if changed is None else changed,
    )


def test_what_is_encoded_is_decoded():
    given = version()
    data = live_versions.encode(given)
    assert data == live_versions.encode(given)
    found = live_versions.decode(data, "here")
    assert found.version == "lin_ucb-1+12"
    assert msgspec.structs.replace(found, changes=None) == msgspec.structs.replace(given, changes=None)
    for one, other in zip(found.changes, given.changes, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (changes(arms=(3, 0)), "arms must ascend from 0 and be below 4"),
        (changes(arms=(0, 4)), "arms must ascend from 0 and be below 4"),
        (changes(covariance_arms=(1, 1)), "covariance_arms must ascend"),
        (changes()._replace(theta=np.array([[np.nan, 1], [1, 1]], np.float32)), "theta must be finite numbers"),
        (changes()._replace(num_samples=np.ones(3, np.float32)), "not a live version"),
        (changes()._replace(covariance=np.ones((1, 4), np.float32)), "not a live version"),
    ],
)
def test_wrong_arrays_are_refused(wrong, message):
    with pytest.raises(InputError, match=rf"^here: {message}"):
        live_versions.decode(live_versions.encode(version(changed=wrong)), "here")


def test_other_files_are_refused():
    with pytest.raises(InputError, match=r"^here: not a live version"):
        live_versions.decode(live_versions.encode(version())[:-3], "here")
    newer = msgspec.structs.replace(version(), schema_version=2)
    with pytest.raises(InputError, match=r"^here: schema_version 2 is newer than this code's 1"):
        live_versions.decode(live_versions.encode(newer), "here")
    with pytest.raises(InputError, match=r"^here: not a control file"):
        live_versions.decode_control(b"{", "here")


def test_names_of_files():
    assert live_versions.file_name(12, "delta") == "000000000012.delta"
    names = ["000000000012.delta", "000000000012.snapshot", "000000000002.delta", ".000000000013.delta", "13.delta"]
    assert live_versions.listed(names) == [(2, "delta"), (12, "delta"), (12, "snapshot")]


def test_files_that_no_later_version_needs_are_removed(tmp_path):
    for sequence, kind in [(1, "snapshot"), (2, "delta"), (3, "delta"), (3, "snapshot"), (4, "delta"), (5, "delta")]:
        live_versions.publish(tmp_path, version(sequence, kind))
        at = (NOW + timedelta(seconds=sequence)).timestamp()
        os.utime(tmp_path / live_versions.file_name(sequence, kind), (at, at))
    assert live_versions.remove_before(tmp_path, NOW + timedelta(seconds=2.5)) == 0  # 2 needs the snapshot of 1
    assert live_versions.remove_before(tmp_path, NOW + timedelta(seconds=4.5)) == 2
    left = live_versions.listed([path.name for path in tmp_path.iterdir()])
    assert left == [(3, "delta"), (3, "snapshot"), (4, "delta"), (5, "delta")]
    assert live_versions.read(tmp_path / "000000000004.delta").version == "lin_ucb-1+4"


def test_a_control_file_is_read_as_written():
    control = Control(held=True, reason="rewards flipped", changed_at=NOW, refused=[NOW])
    assert live_versions.decode_control(msgspec.json.encode(control), "here") == control


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(InputError, match=r"000000000001.delta: cannot be read: No such file"):
        live_versions.read(tmp_path / "000000000001.delta")
