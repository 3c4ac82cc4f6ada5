"""Training windows written from arrays, without events and a warehouse: for tests and benchmarks of what reads them."""

import hashlib
import itertools
from datetime import datetime, timedelta
from pathlib import Path

import tensorflow as tf

from contracts.trajectories import TrajectoryBatch, encode
from contracts.windows import MANIFEST_NAME, Manifest, Split, TrainingWindow, WindowCounts, WindowFile, encode_manifest
from trainer.dataset import ReadyWindow


def write_window(
    windows: Path, window: TrainingWindow, train: TrajectoryBatch, holdback: TrajectoryBatch | None = None
) -> ReadyWindow:
    """Writes a window from arrays: one file per split, and a reward for every decision. Replaces one of the same start."""
    folder = windows / window.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    splits: list[tuple[Split, TrajectoryBatch | None]] = [("train", train), ("holdback", holdback)]
    files = []
    for split, batch in splits:
        if batch is None or not len(batch.action):
            continue
        path = folder / f"part-{split}-00000.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in encode(batch):
                writer.write(record)
        files.append(
            WindowFile(
                name=path.name,
                split=split,
                records=len(batch.action),
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    records = sum(file.records for file in files)
    manifest = Manifest(
        window=window,
        reward_window_seconds=0.0,
        settle_seconds=0.0,
        missing_reward="drop",
        default_reward=0.0,
        holdback_share=0.0 if holdback is None or not records else len(holdback.action) / records,
        observation_dim=train.observation.shape[1] if records else 0,
        files=files,
        counts=WindowCounts(
            decisions=records,
            rewards=records,
            defaulted=0,
            dropped=0,
            repeated_rewards=0,
            late_rewards=0,
            orphan_rewards=0,
            duplicate_decisions=0,
            duplicate_rewards=0,
        ),
        policy_versions={},
    )
    temporary = folder / f".{MANIFEST_NAME}"
    temporary.write_bytes(encode_manifest(manifest))
    temporary.rename(folder / MANIFEST_NAME)
    return ReadyWindow(folder, manifest)


def consecutive_windows(start: datetime, seconds: float, count: int) -> list[TrainingWindow]:
    """`count` windows of `seconds` each, one after the other."""
    edges = [start + timedelta(seconds=seconds * index) for index in range(count + 1)]
    return [TrainingWindow(*edge) for edge in itertools.pairwise(edges)]


def sha256_of(path: Path) -> str:
    """The checksum of a file, as manifests hold it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
