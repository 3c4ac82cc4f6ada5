"""Rows that come after their window was exported: how many there are, and the newest revision of each window.

A revision of a window is a folder of its own, `window=<start>.r<revision>` (`contracts.windows`). Each holds all records
of the window, so that readers need only the newest, and an earlier one never changes.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems

from beam_jobs.files import read
from beam_jobs.tables import arrow_schema
from beam_jobs.warehouses import Warehouse
from contracts.records import utc_microseconds
from contracts.schemas import DECISIONS, REWARDS, STATUSES, Table
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, decode_manifest, window_start


def newest(windows: str, window: TrainingWindow) -> Manifest | None:
    """The manifest of the newest revision of `window` below `windows`; None if it was not exported."""
    found = None
    for manifest in _manifests(windows, f"{window.folder}*"):
        if found is None or manifest.revision > found.revision:
            found = manifest
    return found


def exported_between(windows: str, begin: datetime, end: datetime) -> list[Manifest]:
    """The newest revision of each exported window that starts at `begin` or later and ends by `end`, by start."""
    found: dict[datetime, Manifest] = {}
    for manifest in _manifests(windows, "window=*", begin):
        known = found.get(manifest.window.start)
        if manifest.window.end <= end and (known is None or known.revision < manifest.revision):
            found[manifest.window.start] = manifest
    return [found[start] for start in sorted(found)]


def late_rows(source: Warehouse, manifests: Sequence[Manifest]) -> dict[TrainingWindow, int]:
    """How many rows of each window came after the export that its manifest is of.

    A row belongs to the window of its decision: the decision itself, or a reward, an activation or a
    cancellation in time for it. A row that is stored
    again is not another row. Windows without such rows are left out, and those that were exported before their
    `rewards_in_time` were counted.
    """
    counted = [manifest for manifest in manifests if manifest.counts.rewards_in_time is not None]
    if not counted:
        return {}
    horizon = max(timedelta(seconds=manifest.settings.late_horizon_seconds) for manifest in counted)
    reward_window = max(timedelta(seconds=manifest.reward_window_seconds) for manifest in counted)
    begin, end = counted[0].window.start - horizon, counted[-1].window.end
    decisions = _keys(source, DECISIONS, begin, end).group_by("decision_id").aggregate([("decided_at", "min")])
    answers_end = end + reward_window + timedelta(microseconds=1)
    decided = _microseconds(decisions["decided_at_min"])
    of_answers, waited = [], []
    for table in (REWARDS, STATUSES):
        rows = _keys(source, table, counted[0].window.start, answers_end).group_by(list(table.key)).aggregate([])
        answered = rows.join(decisions, "decision_id", join_type="inner")
        of_answers.append(_microseconds(answered["decided_at_min"]))
        waited.append(_microseconds(answered["occurred_at"]) - of_answers[-1])
    decided_by_answer, waits = np.concatenate(of_answers), np.concatenate(waited)
    late = {}
    for manifest in counted:
        in_time = (waits >= 0) & (waits <= round(manifest.reward_window_seconds * 1e6))
        more = _inside(decided, manifest.window) - manifest.counts.decisions
        more += _inside(decided_by_answer[in_time], manifest.window)
        more -= (manifest.counts.rewards_in_time or 0) + manifest.counts.statuses_in_time
        if more > 0:
            late[manifest.window] = more
    return late


def _manifests(windows: str, pattern: str, begin: datetime | None = None) -> list[Manifest]:
    [matched] = FileSystems.match([FileSystems.join(windows, pattern, MANIFEST_NAME)])
    found = []
    for path in sorted(one.path for one in matched.metadata_list):
        start = window_start(PurePosixPath(path).parent.name)
        if start is not None and (begin is None or start >= begin) and (data := read(path)) is not None:
            found.append(decode_manifest(data, path))
    return found


def _keys(source: Warehouse, table: Table, begin: datetime, end: datetime) -> pa.Table:
    """The key and the time of the rows in `[begin, end)`."""
    names = tuple(dict.fromkeys((*table.key, table.partitioned_by)))
    batches = [batch for part in source.parts(table, begin, end, names) for batch in part.read()]
    return pa.Table.from_batches(batches, arrow_schema(table, names))


def _microseconds(moments: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(moments, pa.int64()).to_numpy()


def _inside(moments: np.ndarray, window: TrainingWindow) -> int:
    start, end = utc_microseconds(window.start), utc_microseconds(window.end)
    return int(((moments >= start) & (moments < end)).sum())
