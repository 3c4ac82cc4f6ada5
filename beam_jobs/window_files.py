"""The only writer of the window format of `contracts.windows`: TFRecord files of bounded size, then the manifest.

A manifest counts every decision of its window. All records of a window have observations of one length; decisions with
another length are set aside and counted.
"""

import hashlib
import itertools
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import google_crc32c
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

from beam_jobs.files import clear, publish
from beam_jobs.reward_join import JoinedBucket, holdback_ids, in_holdback, observations
from contracts.id_hashes import ID_BYTES
from contracts.offers import Offers
from contracts.policies import base_of
from contracts.windows import (
    MANIFEST_NAME,
    Manifest,
    Split,
    TrainingWindow,
    WindowCounts,
    WindowFile,
    WindowSettings,
    encode_manifest,
)

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

METRICS = "export_trajectories"  # the job, as its monitoring has it
_CHECKSUM_BYTES = 4


class WrittenBucket(NamedTuple):
    """What one bucket adds to the manifest."""

    files: list[WindowFile]
    counts: WindowCounts
    policy_versions: dict[str, int]


class WindowShape(NamedTuple):
    """How the records of one window are laid out.

    observation_dim: length of every observation; None for a window without decisions.
    num_buckets: parts of the join, each of which writes its own files.
    max_records_per_file: at least 1.
    """

    observation_dim: int | None
    num_buckets: int
    max_records_per_file: int


class WindowOrigin(NamedTuple):
    """What a manifest says of other exports.

    revises: the manifest of the revision that this one replaces; None for the first export.
    late_rows: rows that came after the export of an earlier window, by its folder.
    """

    revises: Manifest | None = None
    late_rows: dict[str, int] = {}  # noqa: RUF012, it is not changed


FIRST_EXPORT = WindowOrigin()


class WriteWindow(beam.PTransform):
    """PCollection[JoinedBucket] -> PCollection[Manifest]: the one manifest of the window, once it is written."""

    def __init__(
        self,
        folder: str,
        window: TrainingWindow,
        settings: WindowSettings,
        shape: WindowShape,
        origin: WindowOrigin = FIRST_EXPORT,
    ) -> None:
        super().__init__()
        self._origin = origin
        self._folder = folder
        self._window = window
        self._settings = settings
        self._shape = shape

    def expand(self, buckets: Any) -> Any:
        """Files of each bucket, then the manifest of all."""
        written = (
            buckets
            | "SetAside" >> beam.Map(set_aside, self._shape.observation_dim)
            | "WriteBucket"
            >> beam.ParDo(WriteBucketFn(self._folder, self._settings.holdback_share, self._shape.max_records_per_file))
        )
        # A side input is complete before it is read, and a window without buckets has a manifest too.
        return (
            buckets.pipeline
            | "Once" >> beam.Impulse()
            | "WriteManifest"
            >> beam.Map(
                lambda _, all_written, *rest: write_manifest(add_up(all_written), *rest),
                beam.pvalue.AsList(written),
                self._folder,
                self._window,
                self._settings,
                self._shape.observation_dim,
                self._origin,
            )
        )


def set_aside(bucket: JoinedBucket, observation_dim: int | None) -> JoinedBucket:
    """The bucket without interactions whose observations have another length, which its counts have as `set_aside`."""
    rows = bucket.interactions
    keep = pc.list_value_length(rows.column("observation")).to_numpy(zero_copy_only=False) == observation_dim
    if keep.all():
        return bucket
    defaulted = int((rows.column("defaulted").to_numpy(zero_copy_only=False) & ~keep).sum())
    aside = int((~keep).sum())
    counts = msgspec.structs.replace(
        bucket.counts,
        rewards=bucket.counts.rewards - (aside - defaulted),
        defaulted=bucket.counts.defaulted - defaulted,
        set_aside=aside,
    )
    return JoinedBucket(bucket.bucket, rows.filter(pa.array(keep)), counts)


class WriteBucketFn(beam.DoFn):
    """JoinedBucket -> WrittenBucket: its trajectories as TFRecord files in `folder`."""

    def __init__(self, folder: str, holdback_share: float, max_records_per_file: int) -> None:
        self._folder = folder
        self._holdback_share = holdback_share
        self._max_records_per_file = max_records_per_file
        self._counters = {name: Metrics.counter(METRICS, name) for name in WindowCounts.__struct_fields__}

    def process(self, bucket: JoinedBucket) -> Iterator[WrittenBucket]:
        """Writes one bucket."""
        for name, counter in self._counters.items():
            counter.inc(getattr(bucket.counts, name))
        rows = bucket.interactions
        held_back = in_holdback(holdback_ids(rows), self._holdback_share)
        splits: tuple[tuple[Split, np.ndarray], ...] = (("train", ~held_back), ("holdback", held_back))
        batch = trajectories(rows)
        yield WrittenBucket(
            files=[
                write_file(self._folder, f"part-{split}-{bucket.bucket:05d}{suffix}.tfrecord", split, batch.take(part))
                for split, chosen in splits
                for suffix, part in self._parts(np.flatnonzero(chosen))
            ],
            counts=bucket.counts,
            policy_versions=_decisions_by_base(rows.column("policy_version")),
        )

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Pieces that fit into a file; the first one has no suffix."""
        for number, begin in enumerate(range(0, len(rows), self._max_records_per_file)):
            yield f"-{number}" if number else "", rows[begin : begin + self._max_records_per_file]


def _decisions_by_base(versions: pa.Array) -> dict[str, int]:
    found: Counter[str] = Counter()
    for counted in versions.value_counts().to_pylist():
        found[base_of(counted["values"])] += counted["counts"]
    return dict(found)


def trajectories(rows: pa.RecordBatch) -> "TrajectoryBatch":
    """Interactions (columns of `Interaction`) as arrays. Raises ValueError when their observations differ in length."""
    from contracts.trajectories import TrajectoryBatch

    lists, slate_ids = rows.column("candidates"), rows.column("slate_id")
    candidates = slate_id = place = None
    if len(values := lists.flatten()):
        lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
        candidates = Offers(values.to_numpy().astype(np.int32), lengths)
    if slate_ids.null_count < len(slate_ids):
        slate_id = np.array(pc.fill_null(slate_ids, "").to_pylist(), f"S{ID_BYTES}")
        place = pc.fill_null(rows.column("place"), 0).to_numpy().astype(np.int32)
    return TrajectoryBatch(
        observation=observations(rows),
        action=rows.column("action").to_numpy().astype(np.int32),
        reward=rows.column("reward").to_numpy().astype(np.float32),
        propensity=rows.column("propensity").to_numpy().astype(np.float32),
        defaulted=rows.column("defaulted").to_numpy(zero_copy_only=False),
        candidates=candidates,
        slate_id=slate_id,
        place=place,
    )


def write_file(folder: str, name: str, split: Split, batch: "TrajectoryBatch") -> WindowFile:
    """Writes one file, and returns its line of the manifest. Raises OperationError when the file cannot be written."""
    from contracts.trajectories import encode

    data = tfrecords(list(encode(batch)))
    publish(FileSystems.join(folder, name), [data])
    return WindowFile(
        name=name, split=split, records=len(batch.action), bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


def tfrecords(records: Sequence[bytes]) -> bytes:
    """The records as one TFRecord file: around each its length and the masked CRC-32C of that, and of the record.

    TensorFlow's writer writes the same bytes, but takes several times as long: it is called once per record.
    """
    checksums = _masked_checksums(records)
    lengths = sorted(set(map(len, records)))
    sizes = [struct.pack("<Q", length) for length in lengths]
    heads = [size + checksum.tobytes() for size, checksum in zip(sizes, _masked_checksums(sizes), strict=True)]
    if len(lengths) == 1:  # as one array, in half of the time
        head, [length] = np.frombuffer(heads[0], np.uint8), lengths
        block = np.empty((len(records), len(head) + length + _CHECKSUM_BYTES), np.uint8)
        block[:, : len(head)] = head
        block[:, len(head) : -_CHECKSUM_BYTES] = np.frombuffer(b"".join(records), np.uint8).reshape(
            len(records), length
        )
        block[:, -_CHECKSUM_BYTES:] = checksums.view(np.uint8).reshape(-1, _CHECKSUM_BYTES)
        return block.tobytes()
    head_of, tails = dict(zip(lengths, heads, strict=True)), checksums.tobytes()
    ends = [tails[begin : begin + _CHECKSUM_BYTES] for begin in range(0, len(tails), _CHECKSUM_BYTES)]
    parts = zip(map(head_of.__getitem__, map(len, records)), records, ends, strict=True)
    return b"".join(itertools.chain.from_iterable(parts))


def _masked_checksums(parts: Sequence[bytes]) -> np.ndarray:
    """[N] uint32: the CRC-32C of each part, masked as tensorflow/core/lib/hash/crc32c.h does: rotated, plus a constant."""
    checksums = np.fromiter(map(google_crc32c.value, parts), np.uint32, len(parts))
    rotated = (checksums >> np.uint32(15)) | (checksums << np.uint32(17))
    return np.asarray((rotated + np.uint32(0xA282EAD8)).astype("<u4"))


def add_up(buckets: Iterable[WrittenBucket]) -> WrittenBucket:
    """All of `buckets` as one."""
    files: list[WindowFile] = []
    counts = dict.fromkeys(WindowCounts.__struct_fields__, 0)
    policy_versions: Counter[str] = Counter()
    for bucket in buckets:
        files += bucket.files
        for name in counts:
            counts[name] += getattr(bucket.counts, name)
        policy_versions.update(bucket.policy_versions)
    return WrittenBucket(files, WindowCounts(**counts), dict(policy_versions))


def write_manifest(
    written: WrittenBucket,
    folder: str,
    window: TrainingWindow,
    settings: WindowSettings,
    observation_dim: int | None,
    origin: WindowOrigin = FIRST_EXPORT,
) -> Manifest:
    """Writes the manifest of all that was written, and returns it.

    A revision that equals the one before it is not kept: its files are removed, and the manifest of the one before it is
    returned.
    """
    manifest = Manifest(
        window=window,
        **msgspec.structs.asdict(settings),
        observation_dim=(observation_dim or 0) if written.files else 0,
        files=sorted(written.files, key=lambda file: file.name),
        counts=written.counts,
        policy_versions=dict(sorted(written.policy_versions.items())),
        late_rows=origin.late_rows,
    )
    if (before := origin.revises) is not None:
        manifest = msgspec.structs.replace(
            manifest, revision=before.revision + 1, revises=before.folder, late_rows=before.late_rows
        )
        if msgspec.structs.replace(manifest, revision=before.revision, revises=before.revises) == before:
            clear(folder)
            return before
    publish(FileSystems.join(folder, MANIFEST_NAME), [encode_manifest(manifest)])
    return manifest
