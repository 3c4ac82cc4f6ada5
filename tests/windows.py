"""Training windows written from arrays, without events and a warehouse: for tests and benchmarks of what reads them."""

import hashlib
import itertools
from datetime import datetime, timedelta
from pathlib import Path

from beam_jobs.window_files import WrittenBucket, write_file, write_manifest
from contracts.trajectories import TrajectoryBatch
from contracts.windows import MANIFEST_NAME, Split, TrainingWindow, WindowCounts, WindowSettings
from trainer.dataset import ReadyWindow


def write_window(
    windows: Path, window: TrainingWindow, train: TrajectoryBatch, holdback: TrajectoryBatch | None = None
) -> ReadyWindow:
    """Writes a window from arrays: one file per split, and a reward for every decision. Replaces one of the same start."""
    folder = windows / window.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    splits: list[tuple[Split, TrajectoryBatch | None]] = [("train", train), ("holdback", holdback)]
    files = [
        write_file(str(folder), f"part-{split}-00000.tfrecord", split, batch)
        for split, batch in splits
        if batch is not None and len(batch.action)
    ]
    records = sum(file.records for file in files)
    counts = dict.fromkeys(WindowCounts.__struct_fields__, 0) | {"decisions": records, "rewards": records}
    held_back = sum(file.records for file in files if file.split == "holdback")
    settings = WindowSettings(missing_reward="drop", holdback_share=held_back / records if records else 0.0)
    written = WrittenBucket(files, WindowCounts(**counts), policy_versions={})
    manifest = write_manifest(written, str(folder), window, settings, train.observation.shape[1])
    return ReadyWindow(folder, manifest)


def consecutive_windows(start: datetime, seconds: float, count: int) -> list[TrainingWindow]:
    """`count` windows of `seconds` each, one after the other."""
    edges = [start + timedelta(seconds=seconds * index) for index in range(count + 1)]
    return [TrainingWindow(*edge) for edge in itertools.pairwise(edges)]


def sha256_of(path: Path) -> str:
    """The checksum of a file, as manifests hold it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
