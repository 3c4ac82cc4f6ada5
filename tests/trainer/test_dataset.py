import re
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from contracts.errors import InputError
from contracts.trajectories import TrajectoryBatch, encode, join
from contracts.windows import MANIFEST_NAME, TrainingWindow, encode_manifest
from tests.windows import consecutive_windows, sha256_of, write_window
from trainer import dataset

START = datetime(2026, 1, 1, tzinfo=UTC)
FIRST, SECOND, THIRD = consecutive_windows(START, 60, 3)


def trajectories(count, num_actions=5, observation_dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, observation_dim)).astype(np.float32),
        action=rng.integers(0, num_actions, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=rng.uniform(0.1, 1, count).astype(np.float32),
        defaulted=rng.random(count) < 0.1,
    )


def read_all(window, split, num_actions=5, batch_bytes=8192):
    return join(list(dataset.read(window, split, num_actions, batch_bytes)))


def test_what_is_written_is_read(tmp_path):
    train, holdback = trajectories(300), trajectories(40, seed=1)
    write_window(tmp_path, FIRST, train, holdback)
    (window,) = dataset.ready_windows(tmp_path)
    assert window.manifest.records("train") == 300 and window.manifest.records("holdback") == 40
    for split, written in (("train", train), ("holdback", holdback)):
        for read, expected in zip(read_all(window, split)[:5], written[:5], strict=True):
            assert read.dtype == expected.dtype
            np.testing.assert_array_equal(read, expected)
    small = [len(batch.action) for batch in dataset.read(window, "train", 5, batch_bytes=50)]
    assert small == [1] * 300


def test_ready_windows_come_by_start_and_a_window_without_manifest_is_not_one(tmp_path):
    for window in (THIRD, FIRST, SECOND):
        write_window(tmp_path, window, trajectories(2))
    (tmp_path / SECOND.folder / MANIFEST_NAME).unlink()
    assert [window.manifest.window for window in dataset.ready_windows(tmp_path)] == [FIRST, THIRD]


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def change_manifest(window, **changes):
    files = [msgspec.structs.replace(file, **changes) for file in window.manifest.files]
    manifest = msgspec.structs.replace(window.manifest, files=files)
    (window.folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))


def rewrite(window, records):
    path = window.folder / "part-train-00000.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    change_manifest(window, sha256=sha256_of(path), bytes=path.stat().st_size, records=len(records))


def record_length(path):
    return int.from_bytes(path.read_bytes()[:8], "little") + 16


def corrupt_second_record(window, path):
    flip_byte(path, record_length(path) + 30)


def cut_off_the_end(window, path):
    path.write_bytes(path.read_bytes()[:-7])


def corrupt_behind_the_checksum(window, path):
    corrupt_second_record(window, path)
    change_manifest(window, sha256=sha256_of(path))


BROKEN = {
    "missing file": (lambda window, path: path.unlink(), "no such file, but the manifest lists it"),
    "a folder": (lambda window, path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
    "corrupt record": (corrupt_second_record, r"corrupted record at byte \d+"),
    "cut off": (cut_off_the_end, r"manifest says \d+ bytes, found \d+: truncated record at byte \d+"),
    "checksum of the corrupt file": (corrupt_behind_the_checksum, r"corrupted record at byte \d+"),
    "count": (lambda window, path: change_manifest(window, records=11), "manifest says 11 records, found 10"),
    "another message": (
        lambda window, path: rewrite(window, [b"\xff\xff not an example"]),
        "a record from 0 on is not a trajectory of dimension 3$",
    ),
    "another dimension": (
        lambda window, path: rewrite(window, list(encode(trajectories(10, observation_dim=4)))),
        "a record from 0 on is not a trajectory of dimension 3: Key: observation.*4 but output shape: .3.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_window_that_is_not_what_the_manifest_says_is_refused(tmp_path, case):
    breaks, message = BROKEN[case]
    window = write_window(tmp_path, FIRST, trajectories(10))
    path = window.folder / "part-train-00000.tfrecord"
    breaks(window, path)
    (window,) = dataset.ready_windows(tmp_path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}") as error:
        list(dataset.read(window, "train", 5))
    assert "\n" not in str(error.value)


def test_the_offset_named_is_that_of_the_record(tmp_path):
    window = write_window(tmp_path, FIRST, trajectories(10))
    path = window.folder / "part-train-00000.tfrecord"
    length = record_length(path)
    corrupt_second_record(window, path)
    # A record is its length (8 bytes) with a checksum (4), then its data with another: the second's data is corrupt.
    with pytest.raises(InputError, match=rf"corrupted record at byte {length + 12}$"):
        list(dataset.read(window, "train", 5))


def with_value(batch, name, row, value):
    values = getattr(batch, name).copy()
    values[row] = value
    return batch._replace(**{name: values})


VALUES = {
    "reward": (np.nan, r"reward must be finite, got nan \(record 7\)"),
    "action": (5, r"action must be in \[0, 5\), got 5 \(record 7\)"),
    "propensity": (0.0, r"propensity must be in \(0, 1\], got 0.0 \(record 7\)"),
    "observation": (np.inf, r"observation must be finite, got \[.*inf.*\] \(record 7\)"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_cannot_be_trained_on_are_refused(tmp_path, name):
    value, message = VALUES[name]
    window = write_window(tmp_path, FIRST, with_value(trajectories(10), name, 7, value))
    with pytest.raises(InputError, match=message):
        list(dataset.read(window, "train", 5, batch_bytes=500))


def test_windows_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match="windows: no such folder"):
        dataset.ready_windows(tmp_path / "nowhere")
    write_window(tmp_path, FIRST, trajectories(2))
    overlapping = TrainingWindow(FIRST.start + (FIRST.end - FIRST.start) / 2, SECOND.end)
    write_window(tmp_path, overlapping, trajectories(2))
    with pytest.raises(InputError, match="overlaps window=20260101T000000"):
        dataset.ready_windows(tmp_path)
    (tmp_path / overlapping.folder).rename(tmp_path / THIRD.folder)
    with pytest.raises(InputError, match="not of this folder"):
        dataset.ready_windows(tmp_path)
    (tmp_path / THIRD.folder / MANIFEST_NAME).write_text('{"window": 3}')
    with pytest.raises(InputError, match=r"not a window manifest: .*"):
        dataset.ready_windows(tmp_path)
    (tmp_path / THIRD.folder / MANIFEST_NAME).unlink()
    (tmp_path / THIRD.folder / MANIFEST_NAME).mkdir()
    with pytest.raises(InputError, match=r"manifest.json: cannot be read: Is a directory"):
        dataset.ready_windows(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "part-train-00000.tfrecord",
            "lists part-train-00000.tfrecord twice: its interactions would be trained on twice",
        ),
        ("../elsewhere", "lists '../elsewhere', which is not the name of a file in this folder"),
    ],
)
def test_a_manifest_lists_each_file_of_its_folder_once(tmp_path, name, message):
    window = write_window(tmp_path, FIRST, trajectories(10))
    files = [*window.manifest.files, msgspec.structs.replace(window.manifest.files[0], name=name)]
    manifest = msgspec.structs.replace(window.manifest, files=files)
    (window.folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    with pytest.raises(InputError, match=message):
        dataset.ready_windows(tmp_path)


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path):
    window = write_window(tmp_path, FIRST, trajectories(10))
    (window.folder / "part-train-00001.tfrecord").write_bytes(b"half of an export")
    assert len(read_all(*dataset.ready_windows(tmp_path), "train").action) == 10


def test_the_record_named_is_the_one_among_records_of_several_lengths(tmp_path):
    batch = trajectories(40, num_actions=1000)  # actions of one byte and of two
    window = write_window(tmp_path, FIRST, with_value(batch, "reward", 29, np.inf))
    assert len({len(record) for record in encode(batch)}) == 2
    with pytest.raises(InputError, match=r"reward must be finite, got inf \(record 29\)"):
        list(dataset.read(window, "train", 1000))


def test_decisions_of_one_slate_are_one_cluster():
    batch = trajectories(6)
    assert dataset.clusters(batch, 10).tolist() == [10, 11, 12, 13, 14, 15]
    slates = [b"018f0000-0000-7000-8000-0123456789ab", b"018f0000-0000-7000-8000-0123456789ac"]
    batch = batch._replace(slate_id=np.array([slates[0], b"", slates[1], slates[0], slates[1], b""]))
    found = dataset.clusters(batch, 10).tolist()
    assert found[0] == found[3] != found[2] == found[4]
    assert (found[1], found[5]) == (11, 15) and len(set(found)) == 4
    many = np.array([f"018f0000-0000-7000-8000-{number:012x}".encode() for number in range(50_000)])
    numbers = dataset.clusters(trajectories(50_000)._replace(slate_id=many))
    assert len(np.unique(numbers)) == 50_000
    assert np.bincount(numbers % 1000, minlength=1000).min() > 10


def test_a_last_record_that_is_shorter_than_all_before_is_read(tmp_path):
    batch = trajectories(3)._replace(action=np.array([300, 300, 1], np.int32))
    window = write_window(tmp_path, FIRST, batch)
    assert sorted(read_all(window, "train", num_actions=301).action.tolist()) == [1, 300, 300]
