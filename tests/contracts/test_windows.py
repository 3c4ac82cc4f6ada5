from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from contracts.errors import InputError
from contracts.windows import Manifest, TrainingWindow, WindowCounts, WindowFile, decode_manifest, encode_manifest

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))
MANIFEST = Manifest(
    window=WINDOW,
    reward_window_seconds=2.0,
    settle_seconds=1.0,
    missing_reward="default",
    default_reward=0.0,
    holdback_share=0.1,
    observation_dim=2,
    files=[
        WindowFile(name="part-train-00000.tfrecord", split="train", records=9, bytes=90, sha256="aa"),
        WindowFile(name="part-holdback-00000.tfrecord", split="holdback", records=1, bytes=10, sha256="bb"),
    ],
    counts=WindowCounts(
        decisions=10,
        rewards=8,
        defaulted=2,
        dropped=0,
        repeated_rewards=0,
        late_rewards=1,
        orphan_rewards=0,
        duplicate_decisions=0,
        duplicate_rewards=0,
    ),
    policy_versions={"uniform": 10},
)


def test_a_window_closes_after_its_rewards_and_a_moment_to_settle():
    assert WINDOW.closes_at(2, 1) == START + timedelta(seconds=8)
    assert WINDOW.folder == "window=20260101T000000.000000Z"


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_window_of_no_length_is_refused(seconds):
    with pytest.raises(ValueError, match="must end after its start"):
        TrainingWindow(START, START + timedelta(seconds=seconds))


def test_a_manifest_survives_the_way_through_json_with_the_same_bytes():
    data = encode_manifest(MANIFEST)
    assert decode_manifest(data, "m") == MANIFEST
    assert encode_manifest(decode_manifest(data, "m")) == data
    assert (MANIFEST.records("train"), MANIFEST.records("train", "holdback")) == (9, 10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "w/manifest.json: not a window manifest"),
        (encode_manifest(MANIFEST)[:-20], "w/manifest.json: not a window manifest"),
        (encode_manifest(MANIFEST).replace(b'"records": 9', b'"records": -9'), r"records"),
        (encode_manifest(MANIFEST).replace(b"00:00:05", b"00:00:00"), "must end after its start"),
        (encode_manifest(msgspec.structs.replace(MANIFEST, schema_version=99)), "schema_version 99 is newer than"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        decode_manifest(data, "w/manifest.json")
    assert "\n" not in str(caught.value)
