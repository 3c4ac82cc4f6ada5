"""The record as live learning sees it: which windows have been exported, and the sums of what was exported."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from apache_beam.io.filesystems import FileSystems

from beam_jobs.files import read
from beam_jobs.live_join import JoinPlan
from contracts import live_sums
from contracts.errors import InputError
from contracts.live_sums import ArmSums
from contracts.records import utc_microseconds
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, decode_manifest

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

RECORDS_PER_BATCH = 10_000
log = logging.getLogger(__name__)


class RecordAtStart(NamedTuple):
    """What is recorded when the job starts."""

    first: int  # start of the first window without a record, in microseconds
    recent: list[int]  # starts of the windows before it that are still to be emitted


class Record:
    """The exported windows below a folder or bucket, of one grid."""

    def __init__(self, windows: str, plan: JoinPlan, num_actions: int) -> None:
        self._windows = windows
        self._plan = plan
        self._num_actions = num_actions

    def is_there(self, start: int) -> bool:
        """Whether the window that starts at that microsecond has a manifest."""
        return FileSystems.exists(self._path(start, MANIFEST_NAME))

    def at_start(self, now: datetime, recorded_seconds: float) -> RecordAtStart:
        """The first window that is not recorded, and the recorded ones that closed in the last `recorded_seconds`."""
        start = utc_microseconds(self._plan.origin)
        recent: list[int] = []
        recorded = {path.split("/")[-2] for path in self._manifests()}
        while self._plan.window(start).folder in recorded:
            if self._plan.closes_at(start) > now - timedelta(seconds=recorded_seconds):
                recent.append(start)
            start = self._plan.after(start)
        return RecordAtStart(start, recent)

    def prepare(self) -> None:
        """Imports TensorFlow, with which records are decoded."""
        import contracts.trajectories  # noqa: F401

    def sums(self, start: int) -> ArmSums:
        """The sums of what the window's `train` files hold.

        Raises InputError when it has observations of another length, or was exported with other settings.
        """
        manifest = self._manifest(self._plan.window(start))
        sums = live_sums.empty(self._plan.width)
        for batch in self._batches(manifest):
            batch = batch._replace(observation=self._plan.encoded(batch.observation))
            sums = live_sums.add(sums, live_sums.of_batch(batch, self._num_actions))
        return sums

    def check_newest(self) -> None:
        """Raises InputError when the newest window of the grid was exported with other settings, or on another grid."""
        paths = self._manifests()
        if paths and (data := read(paths[-1])) is not None:
            manifest = decode_manifest(data, paths[-1])
            if manifest.window.end > self._plan.origin:
                start = int(self._plan.starts(np.array(utc_microseconds(manifest.window.start))))
                if self._plan.window(start) != manifest.window:
                    raise InputError(
                        f"--start, --window-seconds: must give the windows that are exported, such as"
                        f" [{manifest.window.start.isoformat()}, {manifest.window.end.isoformat()}),"
                        f" got {self._plan.window(start)}"
                    )
                self._check(manifest, paths[-1])

    def _manifests(self) -> list[str]:
        """The paths of all manifests, oldest window first."""
        [matched] = FileSystems.match([FileSystems.join(self._windows, f"window=*/{MANIFEST_NAME}")])
        return sorted(found.path for found in matched.metadata_list)

    def _manifest(self, window: TrainingWindow) -> Manifest:
        path = FileSystems.join(self._windows, window.folder, MANIFEST_NAME)
        data = read(path)
        if data is None:
            raise InputError(f"{path}: is missing")
        manifest = decode_manifest(data, path)
        if manifest.window != window:
            raise InputError(f"{path}: --window-seconds: the window ends at {manifest.window.end.isoformat()}")
        self._check(manifest, path)
        return manifest

    def _check(self, manifest: Manifest, path: str) -> None:
        wanted = {"observation_dim": self._plan.observation_dim} if manifest.files else {}
        settings = self._plan.settings
        wanted |= {name: getattr(settings, name) for name in settings.__struct_fields__ if name != "settle_seconds"}
        for name, value in wanted.items():
            if (found := getattr(manifest, name)) not in (value, None):
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag}: must be {found}, as in {path}, got {value}")

    def _batches(self, manifest: Manifest) -> "Iterator[TrajectoryBatch]":
        import tensorflow as tf

        from contracts.trajectories import decode

        folder = FileSystems.join(self._windows, manifest.window.folder)
        files = [FileSystems.join(folder, file.name) for file in manifest.files if file.split == "train"]
        if files:
            for serialized in tf.data.TFRecordDataset(files).batch(RECORDS_PER_BATCH):
                yield decode(serialized, manifest.observation_dim)

    def _path(self, start: int, name: str) -> str:
        return FileSystems.join(self._windows, self._plan.window(start).folder, name)
