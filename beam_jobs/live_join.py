"""Joins decisions with their rewards as they arrive: the columnar state of one bucket, and how new rows change its sums.

`join_rewards` decides what a window's rows mean, here as in the export. Its result for one `decision_id` depends on the
rows of that id alone. So when rows arrive, the stored rows of their ids are joined twice, without and with the new ones,
and the difference of the two results is what changed. A reward that is replaced by an earlier one, a decision that turns
out to be a repeat, and a default reward that is corrected are therefore taken back exactly.

Rows are kept as chunks of Arrow's stream format, sorted by the 16 bytes of their `decision_id`. Looking up ids is a binary
search in each chunk. Chunks are merged so that their number grows with the logarithm of the rows. Rows that no open window
needs are dropped when chunks are merged; of a decision in a finished window the id and the time stay for the late horizon,
as the export reads them to tell a repeat from a new decision.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from beam_jobs.reward_join import KEY_COLUMNS, holdback_ids, in_holdback, join_rewards, observations
from beam_jobs.tables import arrow_schema
from contracts import live_sums
from contracts.live_encoders import Encoder
from contracts.live_sums import ArmSums
from contracts.records import utc_microseconds
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import TrainingWindow, WindowCounts, WindowSettings

_ID = "id"  # the added column: the decision_id as 16 bytes
_ID_TYPE = pa.binary(16)
MAX_CHUNKS = 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = {"decisions": "decided_at", "rewards": "occurred_at", "statuses": "occurred_at", "earlier": "decided_at"}
# Text of an id, without its hyphens, is 32 hexadecimal digits.
_DIGITS = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])
_VALUES = np.zeros(256, np.uint8)
_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


class JoinPlan(NamedTuple):
    """How rows are joined: the grid of windows, and how decisions become records."""

    origin: datetime  # start of the first window
    window_seconds: float
    settings: WindowSettings
    observation_dim: int
    encoder: Encoder | None = None  # of the policy that learns; None: it learns from observations as they are

    @property
    def width(self) -> int:
        """The length of what the sums are over."""
        return self.observation_dim if self.encoder is None else self.encoder.width

    def encoded(self, observations: np.ndarray) -> np.ndarray:
        """[N, observation_dim] -> [N, width]: what the sums are over."""
        return observations if self.encoder is None else self.encoder.encode(observations)

    def starts(self, moments: np.ndarray) -> np.ndarray:
        """[N] microseconds -> [N] microseconds: the start of the window that holds each."""
        origin, length = utc_microseconds(self.origin), self._length
        return origin + (moments - origin) // length * length

    def window(self, start: int) -> TrainingWindow:
        """The window that starts at that microsecond."""
        return TrainingWindow(moment(start), moment(self.after(start)))

    def after(self, start: int) -> int:
        """The start of the window after the one that starts at that microsecond."""
        return start + self._length

    def closes_at(self, start: int) -> datetime:
        """When that window closes."""
        return self.window(start).closes_at(self.settings.reward_window_seconds, self.settings.settle_seconds)

    @property
    def _length(self) -> int:
        return timedelta(seconds=self.window_seconds) // timedelta(microseconds=1)


class Arrived(NamedTuple):
    """New rows of one bucket, with the contract's columns."""

    decisions: pa.RecordBatch
    rewards: pa.RecordBatch
    statuses: pa.RecordBatch

    @property
    def num_rows(self) -> int:
        """Of all three."""
        return sum(batch.num_rows for batch in self)


class WindowChange(NamedTuple):
    """What new rows changed in one window: differences, which may be negative."""

    start: int  # of the window, in microseconds
    counts: dict[str, int]  # fields of WindowCounts
    sums: ArmSums  # of the decisions that are not held back


def moment(microseconds: int) -> datetime:
    """The time so many microseconds after the epoch."""
    return _EPOCH + timedelta(microseconds=microseconds)


class BucketRows:
    """The rows of one bucket that open windows may still need."""

    def __init__(self, chunks: dict[str, list[bytes]] | None = None) -> None:
        """Of the chunks that `chunks` returned; none at first."""
        self._chunks = {name: [_Chunk(data) for data in (chunks or {}).get(name, [])] for name in _TIME}

    def chunks(self, name: str) -> list[bytes]:
        """The chunks of `decisions`, `rewards`, `statuses` or `earlier`, for the runner's state."""
        return [chunk.data for chunk in self._chunks[name]]

    def add(self, arrived: Arrived, plan: JoinPlan, first: int) -> list[WindowChange]:
        """Stores new rows, and returns what they change in the windows that start at `first` (microseconds) or later.

        Rows have the contract's columns. Those that no such window needs are dropped.
        """
        new = {name: _with_ids(batch) for name, batch in arrived._asdict().items()}
        wanted = np.unique(np.concatenate([_ids(rows) for rows in new.values()]))
        stored = {name: self._find(name, wanted) for name in _TIME}
        before = _joined(stored, plan, first)
        after = _joined({name: [*stored[name], *([new[name]] if name in new else [])] for name in _TIME}, plan, first)
        for name, rows in new.items():
            if rows.num_rows:
                self._chunks[name].append(_Chunk.of([rows]))
        if any(len(chunks) > MAX_CHUNKS for chunks in self._chunks.values()):
            self.compact(plan, first)
        return _difference(before, after, plan)

    def compact(self, plan: JoinPlan, first: int) -> None:
        """Drops the rows that no window from `first` on needs, and merges chunks."""
        horizon = first - round(plan.settings.late_horizon_seconds * 1e6)
        waited = first - round(plan.settings.reward_window_seconds * 1e6)
        kept: dict[str, list[_Chunk]] = {"earlier": []}
        for name, oldest in (
            ("decisions", first),
            ("rewards", waited),
            ("statuses", waited),
            ("earlier", horizon),
        ):
            chunks = self._chunks[name] + (kept["earlier"] if name == "earlier" else [])
            kept[name] = []
            for chunk in chunks:
                old = _microseconds(chunk.rows, _TIME[name]) < oldest
                if name == "decisions" and old.any():
                    finished = chunk.rows.filter(pa.array(old)).select([*KEY_COLUMNS, _ID])
                    kept["earlier"].append(_Chunk.of([finished]))
                kept[name].append(chunk if not old.any() else _Chunk.of([chunk.rows.filter(pa.array(~old))]))
        self._chunks = {name: _merged([chunk for chunk in chunks if len(chunk.ids)]) for name, chunks in kept.items()}

    def _find(self, name: str, wanted: np.ndarray) -> list[pa.RecordBatch]:
        found = (chunk.find(wanted) for chunk in self._chunks[name])
        return [rows for rows in found if rows is not None]


class _Chunk:
    """Rows sorted by id, and the bytes that they are stored as."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            self.rows: pa.RecordBatch = reader.read_next_batch()
        self.ids = _ids(self.rows)

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch]) -> "_Chunk":
        rows = pa.Table.from_batches(batches).combine_chunks().to_batches()
        whole = rows[0] if rows else batches[0]
        order = np.argsort(_ids(whole), kind="stable")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_batch(whole.take(pa.array(order)))
        return cls(sink.getvalue().to_pybytes())

    def find(self, wanted: np.ndarray) -> pa.RecordBatch | None:
        """The rows with one of the ids, which ascend."""
        begins, ends = (np.searchsorted(self.ids, wanted, side) for side in ("left", "right"))
        sizes = ends - begins
        if not sizes.any():
            return None
        first = np.repeat(begins - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes)
        return self.rows.take(pa.array(first + np.arange(sizes.sum())))


def _merged(chunks: list[_Chunk]) -> list[_Chunk]:
    """The chunks, largest first, each more than twice as large as the next: smaller ones are merged."""
    merged: list[_Chunk] = []
    for chunk in sorted(chunks, key=lambda one: len(one.ids), reverse=True):
        merged.append(chunk)
        while len(merged) > 1 and len(merged[-2].ids) <= 2 * len(merged[-1].ids):
            merged[-2:] = [_Chunk.of([merged[-2].rows, merged[-1].rows])]
    return merged


def _with_ids(rows: pa.RecordBatch) -> pa.RecordBatch:
    ids = pa.FixedSizeBinaryArray.from_buffers(
        _ID_TYPE, rows.num_rows, [None, pa.py_buffer(_id_bytes(rows.column("decision_id")))]
    )
    return rows.append_column(_ID, ids)


def _id_bytes(ids: pa.Array) -> bytes:
    """The 16 bytes of each id, one after the other. A `decision_id` has 36 characters (contracts.records)."""
    if not len(ids):
        return b""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)
    begin = int(offsets[ids.offset])
    text = np.frombuffer(ids.buffers()[2], np.uint8)[begin : begin + 36 * len(ids)].reshape(-1, 36)
    digits = _VALUES[text[:, _DIGITS]]
    return (digits[:, ::2] << 4 | digits[:, 1::2]).tobytes()


def _ids(rows: pa.RecordBatch) -> np.ndarray:
    """[N] the ids as 16 bytes each."""
    column = rows.column(_ID)
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return data[16 * column.offset : 16 * (column.offset + len(column))].view("S16")


def _microseconds(rows: pa.RecordBatch | pa.Table, name: str) -> np.ndarray:
    return rows.column(name).cast(pa.int64()).to_numpy()


class _Joined(NamedTuple):
    interactions: pa.RecordBatch
    counts: WindowCounts


def _joined(rows: dict[str, list[pa.RecordBatch]], plan: JoinPlan, first: int) -> dict[int, _Joined]:
    """The join of each window from `first` on that has any of the rows, by its start."""
    decisions = pa.Table.from_batches([_plain(one, DECISIONS) for one in rows["decisions"]], arrow_schema(DECISIONS))
    rewards = pa.Table.from_batches([_plain(one, REWARDS) for one in rows["rewards"]], arrow_schema(REWARDS))
    statuses = pa.Table.from_batches([_plain(one, STATUSES) for one in rows["statuses"]], arrow_schema(STATUSES))
    keys = arrow_schema(DECISIONS, KEY_COLUMNS)
    earlier = pa.Table.from_batches([one.select(KEY_COLUMNS) for one in rows["earlier"]], keys)
    earlier = pa.concat_tables([earlier, decisions.select(KEY_COLUMNS)])
    decided, occurred = _microseconds(decisions, "decided_at"), _microseconds(rewards, "occurred_at")
    known, noted = _microseconds(earlier, "decided_at"), _microseconds(statuses, "occurred_at")
    starts = np.unique(plan.starts(np.concatenate((decided, occurred, noted))))
    horizon = round(plan.settings.late_horizon_seconds * 1e6)
    reward_window = round(plan.settings.reward_window_seconds * 1e6)
    joined = {}
    for start in starts[starts >= first].tolist():
        window = plan.window(start)
        end = utc_microseconds(window.end)
        interactions, counts = join_rewards(
            _between(decisions, decided, start, end),
            _between(earlier, known, start - horizon, start),
            _between(rewards, occurred, start - reward_window, end + reward_window + 1),
            _between(statuses, noted, start - reward_window, end + reward_window + 1),
            window,
            plan.settings,
        )
        joined[start] = _Joined(interactions, counts)
    return joined


def _plain(rows: pa.RecordBatch, table: Any) -> pa.RecordBatch:
    return rows.select(arrow_schema(table).names)


def _between(rows: pa.Table, moments: np.ndarray, low: int, high: int) -> pa.Table:
    inside = (moments >= low) & (moments < high)
    return rows if inside.all() else rows.filter(pa.array(inside))


def _difference(before: dict[int, _Joined], after: dict[int, _Joined], plan: JoinPlan) -> list[WindowChange]:
    changes = []
    for start in sorted(before.keys() | after.keys()):
        sides = [side[start] for side in (before, after) if start in side]
        counts = dict.fromkeys(WindowCounts.__struct_fields__, 0)
        sums = live_sums.empty(plan.width)
        for joined in sides:
            sign = -1 if start in before and joined is before[start] else 1
            for name, value in msgspec.structs.asdict(joined.counts).items():
                counts[name] += sign * value
            combine = live_sums.add if sign > 0 else live_sums.subtract
            sums = combine(sums, train_sums(joined.interactions, plan))
        if any(counts.values()) or len(sums.arms):
            changes.append(WindowChange(start, counts, sums))
    return changes


def train_sums(interactions: pa.RecordBatch, plan: JoinPlan) -> ArmSums:
    """The sums of the interactions that are not held back."""
    held_back = in_holdback(holdback_ids(interactions), plan.settings.holdback_share)
    rows = interactions.filter(pa.array(~held_back))
    if not rows.num_rows:
        return live_sums.empty(plan.width)
    return live_sums.of_interactions(
        plan.encoded(observations(rows)), rows.column("action").to_numpy(), rows.column("reward").to_numpy()
    )


def all_changes(changes: Iterable[WindowChange], observation_dim: int) -> dict[int, WindowChange]:
    """The changes of each window as one, by its start."""
    added: dict[int, WindowChange] = {}
    for change in changes:
        if change.start in added:
            last = added[change.start]
            counts = {name: last.counts[name] + value for name, value in change.counts.items()}
            change = WindowChange(change.start, counts, live_sums.add(last.sums, change.sums))
        added[change.start] = change
    return added
