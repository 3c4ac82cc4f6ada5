import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from beam_jobs.reward_join import JoinedBucket
from beam_jobs.tables import record_schema
from beam_jobs.window_files import WriteBucketFn, add_up, set_aside, tfrecords, trajectories, write_file, write_manifest
from contracts.errors import OperationError
from contracts.records import Interaction
from contracts.windows import MANIFEST_NAME, TrainingWindow, WindowCounts, WindowSettings, decode_manifest
from trainer import dataset

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=10))
SETTINGS = WindowSettings(reward_window_seconds=2)


def bucket(lengths: list[int], dropped: int = 0, number: int = 0) -> JoinedBucket:
    """Interactions whose observations have these lengths; every second one took the default reward."""
    rows = [
        {
            "decision_id": f"019b76da-a800-7000-8000-{number:04x}{place:08x}",
            "decided_at": START + timedelta(seconds=place / 10),
            "policy_version": f"v{place % 2}",
            "observation": [float(place)] * length,
            "candidates": [],
            "action": place,
            "propensity": 0.5,
            "reward": 1.0,
            "defaulted": place % 2 == 1,
        }
        for place, length in enumerate(lengths)
    ]
    zero = dict.fromkeys(WindowCounts.__struct_fields__, 0)
    counts = zero | {
        "decisions": len(lengths) + dropped,
        "rewards": (len(lengths) + 1) // 2,
        "defaulted": len(lengths) // 2,
        "dropped": dropped,
    }
    return JoinedBucket(number, pa.RecordBatch.from_pylist(rows, record_schema(Interaction)), WindowCounts(**counts))


@pytest.mark.parametrize(
    ("lengths", "kept", "rewards", "defaulted", "aside"),
    [
        ([3, 3, 3], 3, 2, 1, 0),
        ([3, 3, 1, 1], 3, 1, 1, 2),
        ([3, 1, 3], 3, 2, 0, 1),
        ([1, 1], 3, 0, 0, 2),
        ([], None, 0, 0, 0),
    ],
)
def test_decisions_of_another_length_are_set_aside(
    lengths: list[int], kept: int | None, rewards: int, defaulted: int, aside: int
) -> None:
    left = set_aside(bucket(lengths, dropped=4), kept)
    counts = left.counts
    assert (counts.rewards, counts.defaulted, counts.dropped, counts.set_aside) == (rewards, defaulted, 4, aside)
    assert counts.decisions == len(lengths) + 4
    assert left.interactions.num_rows == rewards + defaulted


def test_files_are_bounded_and_the_manifest_lists_them(tmp_path: Path) -> None:
    folder = tmp_path / WINDOW.folder
    folder.mkdir()
    write = WriteBucketFn(str(folder), holdback_share=0.3, max_records_per_file=4)
    written = add_up([one for number in range(2) for one in write.process(bucket([2] * 12, number=number))])
    manifest = write_manifest(written, str(folder), WINDOW, SETTINGS, 2)
    assert decode_manifest((folder / MANIFEST_NAME).read_bytes(), "manifest") == manifest
    assert manifest.records("train", "holdback") == manifest.counts.decisions == 24
    assert 0 < manifest.records("holdback") < 24
    assert manifest.policy_versions == {"v0": 12, "v1": 12}
    assert all(file.records <= 4 for file in manifest.files)
    for file in manifest.files:
        data = (folder / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
    # The trainer reads what was written.
    [ready] = dataset.ready_windows(tmp_path)
    read = [batch for split in dataset.SPLITS for batch in dataset.read(ready, split, num_actions=12)]
    assert sorted(np.concatenate([batch.action for batch in read]).tolist()) == sorted([*range(12)] * 2)
    assert all((batch.observation == batch.action[:, None]).all() for batch in read)
    assert all((batch.defaulted == (batch.action % 2 == 1)).all() for batch in read)


def test_a_window_without_records_has_no_length(tmp_path: Path) -> None:
    manifest = write_manifest(add_up([]), str(tmp_path), WINDOW, SETTINGS, 7)
    assert (manifest.observation_dim, manifest.files, manifest.counts.decisions) == (0, [], 0)


def test_a_file_that_cannot_be_written_is_an_operation_that_failed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperationError, match="cannot be written"):
        write_file(str(tmp_path / "file"), "part-train-00000.tfrecord", "train", trajectories(bucket([1]).interactions))


def test_offers_and_slates_become_arrays() -> None:
    rows = bucket([1, 1, 1]).interactions.to_pylist()
    slate = rows[1]["decision_id"]
    rows[1] |= {"candidates": [2, 1], "slate_id": slate, "place": 0}
    rows[2] |= {"candidates": [2], "slate_id": slate, "place": 1}
    batch = trajectories(pa.RecordBatch.from_pylist(rows, record_schema(Interaction)))
    assert batch.offers.tolist() == [[], [2, 1], [2]]
    assert batch.slate_id is not None and batch.slate_id.tolist() == [b"", slate.encode(), slate.encode()]
    assert batch.place is not None and batch.place.tolist() == [0, 0, 1]
    alone = trajectories(bucket([1, 1]).interactions)
    assert alone.candidates is None and alone.slate_id is None and alone.place is None


@pytest.mark.parametrize("sizes", [(0, 1, 300, 70_000, 300), (190, 190, 190), (0, 0), (7,)])
def test_files_are_what_tensorflow_writes(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    records = [random.bytes(size) for size in sizes]
    path = tmp_path / "records"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert tfrecords(records) == path.read_bytes()
    assert tfrecords([]) == b""
