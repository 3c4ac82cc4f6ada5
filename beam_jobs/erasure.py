"""Removes one user's events from an event log, the embedded warehouse and the training windows on this machine.

A training window has no user ids. What a user contributed to it is found by exporting the user's rows alone, with the
window's settings: the join, the split and the encoding depend on one decision at a time, so the same bytes are in the
window's files. A record of which the window has other bytes (its reward came after the export) is counted and left.
"""

import hashlib
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Set
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs import warehouse
from beam_jobs.export_trajectories import export
from beam_jobs.files import publish
from beam_jobs.payloads import IngestCounts
from beam_jobs.tables import arrow_schema
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.event_segments import sealed_segments, stem
from contracts.records import Decision, Event, RewardEvent, StatusEvent, event_decoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, STATUSES, TABLES, Table
from contracts.windows import (
    MANIFEST_NAME,
    Manifest,
    Split,
    WindowCounts,
    WindowFile,
    encode_manifest,
)

BARE_ID_LENGTH = 8  # shorter user ids are looked for in the field `user_id` alone: as bare text they are everywhere


class UserRows(NamedTuple):
    """One user's rows of the tables."""

    decisions: pa.Table
    rewards: pa.Table
    statuses: pa.Table

    @property
    def decision_ids(self) -> set[str]:
        """The ids of the user's decisions."""
        return set(self.decisions.column("decision_id").to_pylist())


class WindowShare(NamedTuple):
    """What a user contributed to one window."""

    manifest: Manifest  # of the user's rows alone
    records: dict[str, list[bytes]]  # by the file of the window that holds them
    missing: int  # records that the window does not hold in this form


class Traces:
    """Tells bytes and rows that name a user or one of the user's decisions from others."""

    def __init__(self, user: str, decision_ids: Set[str]) -> None:
        self.user = user
        self.decision_ids = decision_ids
        field = rb'"user_id"\s*:\s*' + re.escape(msgspec.json.encode(user))
        bare = [re.escape(user.encode())] if len(user.encode()) >= BARE_ID_LENGTH else []
        self._pattern = re.compile(b"|".join([field, *bare]))

    def in_bytes(self, data: bytes) -> bool:
        """Whether `data` names the user or a decision."""
        return bool(self._pattern.search(data)) or any(one.encode() in data for one in self.decision_ids)

    def in_event(self, line: bytes) -> bool:
        """Whether an event of the log is the user's; one that cannot be read is searched as bytes."""
        try:
            event = event_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self.in_bytes(line)
        if isinstance(event, Decision) and event.user_id == self.user:
            return True
        return event.decision_id in self.decision_ids

    def in_rows(self, rows: pa.Table) -> list[bool]:
        """For each row of a table, whether it is the user's."""
        found = pa.array([False] * rows.num_rows)
        if "user_id" in rows.column_names:
            found = pc.or_(found, pc.fill_null(pc.equal(rows.column("user_id"), self.user), False))
        if "decision_id" in rows.column_names:
            found = pc.or_(
                found, pc.is_in(rows.column("decision_id"), pa.array(sorted(self.decision_ids), pa.string()))
            )
        if "payload" in rows.column_names:
            named = [self.in_bytes(payload) for payload in rows.column("payload").to_pylist()]
            found = pc.or_(found, pa.array(named, pa.bool_()))
        listed: list[bool] = found.to_pylist()
        return listed


def rows_of(folder: Path, user: str) -> UserRows:
    """The user's decisions, their rewards and statuses in the embedded warehouse. Raises InputError: `folder` holds no tables."""
    warehouse.check(folder)
    decisions = _matching(folder, DECISIONS, Traces(user, set()))
    ids = set(decisions.column("decision_id").to_pylist())
    traces = Traces(user, ids)
    return UserRows(decisions, _matching(folder, REWARDS, traces), _matching(folder, STATUSES, traces))


def decisions_in_log(events: Path, user: str) -> set[str]:
    """The ids of the user's decisions in the sealed segments of the log."""
    found = set()
    for segment in sealed_segments(events):
        for line in segment.read_bytes().splitlines():
            if user.encode() in line:
                try:
                    event = event_decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                if isinstance(event, Decision) and event.user_id == user:
                    found.add(event.decision_id)
    return found


def share_of(folder: Path, manifest: Manifest, rows: UserRows) -> WindowShare:
    """What the user's rows contributed to the window in `folder`. Changes nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        warehouse.create(root / "warehouse")
        for table, some in ((DECISIONS, rows.decisions), (REWARDS, rows.rewards), (STATUSES, rows.statuses)):
            for batch in some.combine_chunks().to_batches():
                warehouse.write(root / "warehouse", table, "user", batch)
        source = EmbeddedWarehouse(root / "warehouse")
        dim = manifest.observation_dim or None
        alone = export(source, root / "windows", manifest.window, manifest.settings, observation_dim=dim)
        wanted: dict[Split, Counter[bytes]] = {"train": Counter(), "holdback": Counter()}
        for file in alone.files:
            wanted[file.split].update(_records(root / "windows" / alone.folder / file.name))
    found: dict[str, list[bytes]] = {}
    for file in manifest.files:
        for record in _records(folder / file.name):
            if wanted[file.split][record] > 0:
                wanted[file.split][record] -= 1
                found.setdefault(file.name, []).append(record)
    return WindowShare(alone, found, sum(some.total() for some in wanted.values()))


def remove_from_window(folder: Path, manifest: Manifest, share: WindowShare) -> Manifest:
    """Takes a user's share out of the window's files, then out of its manifest, and returns that."""
    files = []
    for file in manifest.files:
        gone = Counter(share.records.get(file.name, []))
        kept = []
        for record in _records(folder / file.name):
            if gone[record] > 0:
                gone[record] -= 1
            else:
                kept.append(record)
        if kept:
            files.append(_write_records(folder, file, kept))
    counts: dict[str, Any] = {
        name: None if before is None else max(0, before - (getattr(share.manifest.counts, name) or 0))
        for name, before in msgspec.structs.asdict(manifest.counts).items()
    }
    versions = Counter(manifest.policy_versions)
    versions.subtract(share.manifest.policy_versions)
    after = msgspec.structs.replace(
        manifest,
        files=files,
        observation_dim=manifest.observation_dim if files else 0,
        counts=WindowCounts(**counts),
        policy_versions={name: count for name, count in versions.items() if count > 0},
    )
    publish(str(folder / MANIFEST_NAME), [encode_manifest(after)])
    for file in manifest.files:
        if file.name not in {one.name for one in files}:
            (folder / file.name).unlink()
    return after


def remove_from_log(events: Path, folder: Path, traces: Traces) -> int:
    """Rewrites the sealed segments that hold the user's events, and the notes of what was ingested of them.

    Returns the number of events removed.
    """
    removed = 0
    for segment in sealed_segments(events):
        lines = segment.read_bytes().splitlines(keepends=True)
        gone = [line for line in lines if traces.in_event(line)]
        if gone:
            publish(str(segment), [line for line in lines if not traces.in_event(line)])
            _correct_note(folder / warehouse.INGESTED_NAME / f"{stem(segment.name)}.json", gone)
            removed += len(gone)
    return removed


def _correct_note(note: Path, gone: list[bytes]) -> None:
    if not note.is_file():
        return
    counts = msgspec.structs.asdict(msgspec.json.decode(note.read_bytes(), type=IngestCounts))
    for line in gone:
        try:
            name = _table_of(event_decoder.decode(line)).name
        except (msgspec.DecodeError, UnicodeDecodeError):
            name = DEAD_LETTERS.name
        for one in (name, "events"):
            counts[one] = max(0, counts[one] - 1)
    publish(str(note), [msgspec.json.encode(IngestCounts(**counts)) + b"\n"])


def _table_of(event: Event) -> Table:
    match event:
        case Decision():
            return DECISIONS
        case RewardEvent():
            return REWARDS
        case StatusEvent():
            return STATUSES


def remove_from_tables(folder: Path, traces: Traces) -> dict[str, int]:
    """Rewrites the files of the tables without the user's rows, decisions last. Returns the rows removed by table."""
    removed = {}
    with warehouse.locked(folder):
        for table in (DEAD_LETTERS, REWARDS, STATUSES, DECISIONS):
            removed[table.name] = 0
            for path in _table_files(folder, table):
                rows = pq.read_table(path, partitioning=None)
                gone = traces.in_rows(rows)
                removed[table.name] += sum(gone)
                if all(gone):
                    path.unlink()
                elif any(gone):
                    warehouse.write_file(path, table, rows.filter(pa.array([not one for one in gone])))
    return removed


def holders(root: Path, traces: Traces) -> Iterator[Path]:
    """The files below `root` that still name the user or one of the user's decisions, compressed ones included."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and any(traces.in_bytes(data) for data in _contents(path)):
            yield path


def _contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file; of Parquet and zip files, what they hold."""
    if path.suffix == ".parquet":
        for row in pq.read_table(path, partitioning=None).to_pylist():
            texts = {name: value for name, value in row.items() if isinstance(value, str | bytes)}
            yield b"".join(_named(name, value) for name, value in texts.items())
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    else:
        yield path.read_bytes()


def _named(name: str, value: Any) -> bytes:
    return value if isinstance(value, bytes) else msgspec.json.encode({name: value})


def _table_files(folder: Path, table: Table) -> list[Path]:
    return sorted((folder / table.name).glob("day=*/*.parquet"))


def _matching(folder: Path, table: Table, traces: Traces) -> pa.Table:
    assert table in TABLES
    found = []
    for path in _table_files(folder, table):
        rows = pq.read_table(path, partitioning=None)
        mine = traces.in_rows(rows)
        if any(mine):
            found.append(rows.filter(pa.array(mine)).cast(arrow_schema(table)))
    return pa.concat_tables(found) if found else arrow_schema(table).empty_table()


def _records(path: Path) -> list[bytes]:
    import tensorflow as tf

    return [record.numpy() for record in tf.data.TFRecordDataset(str(path))]


def _write_records(folder: Path, file: WindowFile, records: list[bytes]) -> WindowFile:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / file.name
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
        data = path.read_bytes()
    publish(str(folder / file.name), [data])
    return msgspec.structs.replace(file, records=len(records), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def touches(manifest: Manifest, rows: UserRows) -> bool:
    """Whether a window can hold something of these rows: a decision made, or a reward or status that occurred, in its time."""

    def inside(moments: list[datetime]) -> bool:
        return any(manifest.window.start <= moment < manifest.window.end for moment in moments)

    moments = (rows.decisions["decided_at"], rows.rewards["occurred_at"], rows.statuses["occurred_at"])
    return any(inside(some.to_pylist()) for some in moments)
