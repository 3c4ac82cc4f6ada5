"""Joins decisions with their rewards, as batches of rows.

A reward is *in time* when `decided_at <= occurred_at <= decided_at + reward_window`. A decision's reward is made of its
rewards in time by the rule of the settings (`contracts.reward_rules`): with `first` it is the first one; of several at
the same moment, the smallest. The join counts everything else. Another reward in time is *repeated*, whatever the rule, one outside of the reward window is *late*, one without a decision is an *orphan*, and the same row read
again is a *duplicate*. A decision with the id of an earlier one is a duplicate too.

A decision that is cancelled within its reward window, or that is deferred and not activated within it, never happened: it
is no interaction, whatever rewards came for it. A cancellation prevails over an activation. Decisions are counted in the window
in which they were made, and those rewards in the window in which they occurred (`contracts.windows`), so adjacent
windows count every row once.

Rows are grouped by a hash of `decision_id` into buckets. They travel as Arrow RecordBatches, one Beam element per
bucket, because Beam's main cost is its overhead per element.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.tables import arrow_schema, id_text, record_schema
from contracts.id_hashes import ID_BYTES, held_back, lasting, mixed
from contracts.records import FLOAT32_MAX, Interaction, utc_microseconds
from contracts.reward_rules import RewardRule
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import TrainingWindow, WindowCounts, WindowSettings

KEY_COLUMNS = ("decision_id", "decided_at")


class NamedRows(NamedTuple):
    """Rows of one of the join's inputs, by its name: `decisions`, `earlier` or `rewards`."""

    name: str
    rows: pa.RecordBatch


class JoinedBucket(NamedTuple):
    """The interactions of one bucket, ordered by `(decided_at, decision_id)`, and what became of its rows."""

    bucket: int
    interactions: pa.RecordBatch  # columns of Interaction
    counts: WindowCounts


class JoinRewards(beam.PTransform):
    """PCollection of (bucket, NamedRows) -> PCollection[JoinedBucket].

    The inputs are `decisions` (made in the window, all columns), `earlier` (KEY_COLUMNS of decisions made before the
    window, which tell late rewards from orphans), `rewards` and `statuses` (occurred from the start of the window less the
    reward window, to its end plus the reward window, inclusive).
    """

    def __init__(self, window: TrainingWindow, settings: WindowSettings) -> None:
        super().__init__()
        self._window = window
        self._settings = settings

    def expand(self, rows: Any) -> Any:
        """Groups by bucket and joins each."""
        return (
            rows
            | "ByBucket" >> beam.GroupByKey()
            | "JoinBucket" >> beam.ParDo(JoinBucketFn(self._window, self._settings))
        )


class JoinBucketFn(beam.DoFn):
    """(bucket, its NamedRows) -> JoinedBucket."""

    def __init__(self, window: TrainingWindow, settings: WindowSettings) -> None:
        self._window = window
        self._settings = settings

    def process(self, element: tuple[int, Iterable[NamedRows]]) -> Iterator[JoinedBucket]:
        """Joins one bucket."""
        bucket, rows = element
        interactions, counts = join_rewards(**tables_by_name(rows), window=self._window, settings=self._settings)
        yield JoinedBucket(bucket, interactions, counts)


def tables_by_name(rows: Iterable[NamedRows]) -> dict[str, pa.Table]:
    """The inputs of the join, by name; one without rows is empty."""
    schemas = {
        "decisions": arrow_schema(DECISIONS),
        "earlier": arrow_schema(DECISIONS, KEY_COLUMNS),
        "rewards": arrow_schema(REWARDS),
        "statuses": arrow_schema(STATUSES),
    }
    batches: dict[str, list[pa.RecordBatch]] = {name: [] for name in schemas}
    for name, batch in rows:
        batches[name].append(batch)
    return {name: pa.Table.from_batches(batches[name], schema) for name, schema in schemas.items()}


def join_rewards(
    decisions: pa.Table,
    earlier: pa.Table,
    rewards: pa.Table,
    statuses: pa.Table,
    window: TrainingWindow,
    settings: WindowSettings,
) -> tuple[pa.RecordBatch, WindowCounts]:
    """The join of one bucket, which does not depend on the order of its rows.

    Returns the interactions (columns of `Interaction`) ordered by `(decided_at, decision_id)`, and what became of every
    row. The module's docstring defines the terms.
    """
    start, end = (utc_microseconds(moment) for moment in (window.start, window.end))
    decided = _microseconds(decisions["decided_at"])
    occurred, value = _microseconds(rewards["occurred_at"]), rewards["reward"].to_numpy()
    codes, num_ids = _encode_ids(decisions, earlier, rewards, statuses)
    decision_code, earlier_code, reward_code, status_code = codes
    kept = _earliest(decisions, decision_code, decided)
    used = np.zeros(num_ids, bool)
    used[earlier_code] = True
    kept = kept[~used[decision_code[kept]]]  # its id was not used before the window
    made = _Made.of(num_ids, (earlier_code, _microseconds(earlier["decided_at"])), (decision_code, decided), kept)
    reward_window = round(settings.reward_window_seconds * 1e6)
    order = np.lexsort((value, occurred, reward_code))
    reward_code, occurred, value = reward_code[order], occurred[order], value[order]
    again = np.zeros(len(order), bool)
    again[1:] = (np.diff(reward_code) == 0) & (np.diff(occurred) == 0) & (value[1:] == value[:-1])
    has_decision = made.known[reward_code]
    in_time = made.in_time(reward_code, occurred, reward_window) & ~again
    candidates = np.flatnonzero(in_time)
    first = np.zeros(len(order), bool)
    first[candidates[np.diff(reward_code[candidates], prepend=-1) != 0]] = True
    answers = _combined(settings.reward_rule, reward_code[candidates], occurred[candidates], value[candidates])
    place = answers.rows(num_ids)[decision_code[kept]]
    rewarded = place >= 0
    fates = _fates(decisions, kept, decision_code, (statuses, status_code), made, reward_window)
    here = (occurred >= start) & (occurred < end)
    missing, dropping = int((~rewarded & ~fates.void).sum()), settings.missing_reward == "drop"
    counts = WindowCounts(
        decisions=len(kept),
        rewards=int((rewarded & ~fates.void).sum()),
        defaulted=0 if dropping else missing,
        dropped=missing if dropping else 0,
        repeated_rewards=int((here & in_time & ~first).sum()),
        late_rewards=int((here & has_decision & ~in_time & ~again).sum()),
        orphan_rewards=int((here & ~has_decision & ~again).sum()),
        duplicate_decisions=decisions.num_rows - len(kept),
        duplicate_rewards=int((here & again).sum()),
        rewards_in_time=int(np.isin(reward_code[in_time], decision_code[kept]).sum()),
        not_activated=int(fates.not_activated.sum()),
        cancelled=int(fates.cancelled.sum()),
        void_rewards=int((rewarded & fates.void).sum()),
        statuses_in_time=fates.statuses_in_time,
        ignored_statuses=int(((fates.ignored_at >= start) & (fates.ignored_at < end)).sum()),
    )
    wanted = ~fates.void & (rewarded | (not dropping))
    order = np.flatnonzero(wanted)[_in_order(decisions["decision_id"], decided, kept[wanted])]
    joined = _rewards_of(answers, place[order], settings.default_reward)
    return _interactions(decisions, kept[order], joined), counts


class _Made(NamedTuple):
    """Which codes have a decision, and when the first one was made: [num_ids] bool, and int64 in microseconds."""

    known: np.ndarray
    decided: np.ndarray

    @classmethod
    def of(
        cls,
        num_ids: int,
        earlier: tuple[np.ndarray, np.ndarray],
        decisions: tuple[np.ndarray, np.ndarray],
        kept: np.ndarray,
    ) -> "_Made":
        """Of the codes and times of the earlier decisions, and of those of the window, of which the rows `kept` count."""
        known, decided = np.zeros(num_ids, bool), np.full(num_ids, np.iinfo(np.int64).max)
        np.minimum.at(decided, *earlier)
        decided[decisions[0][kept]] = decisions[1][kept]
        for code, _ in (earlier, decisions):
            known[code] = True
        return cls(known, decided)

    def in_time(self, code: np.ndarray, occurred: np.ndarray, reward_window: int) -> np.ndarray:
        """[M] bool: which of the events have a decision, and occurred within its reward window."""
        known = self.known[code]
        # Events of unknown decisions get a meaningless wait here, which `known` masks.
        waited = occurred - np.where(known, self.decided[code], occurred)
        return known & (waited >= 0) & (waited <= reward_window)


class _Fates(NamedTuple):
    """What activations and cancellations made of decisions: [N] bool each, for the decisions that are kept."""

    not_activated: np.ndarray
    cancelled: np.ndarray
    statuses_in_time: int
    ignored_at: np.ndarray  # when statuses without effect occurred, in microseconds

    @property
    def void(self) -> np.ndarray:
        """The decisions that never happened."""
        return self.not_activated | self.cancelled


def _fates(
    decisions: pa.Table,
    kept: np.ndarray,
    decision_code: np.ndarray,
    statuses: tuple[pa.Table, np.ndarray],
    made: _Made,
    reward_window: int,
) -> _Fates:
    """The fates of the rows `kept`. `statuses`: the table, and the code of each row; repeated rows count once."""
    table, code = statuses
    cancels = pc.equal(table["status"], "cancelled").to_numpy()
    code, occurred, cancels = np.unique(np.stack((code, _microseconds(table["occurred_at"]), cancels)), axis=1)
    in_time = made.in_time(code, occurred, reward_window)
    activated, cancelled = np.zeros(len(made.known), bool), np.zeros(len(made.known), bool)
    activated[code[in_time & (cancels == 0)]] = True
    cancelled[code[in_time & (cancels == 1)]] = True
    of_kept = decision_code[kept]
    deferred = pc.fill_null(decisions["deferred"], False).to_numpy()[kept]
    return _Fates(
        not_activated=deferred & ~activated[of_kept] & ~cancelled[of_kept],
        cancelled=cancelled[of_kept],
        statuses_in_time=int(np.isin(code[in_time], of_kept).sum()),
        ignored_at=occurred[~in_time],
    )


def _rewards_of(answers: "_Answers", place: np.ndarray, default: float) -> dict[str, pa.Array]:
    """The columns of `Interaction` that a decision does not have; `place`: [N] row of the answers, -1 for none."""
    rewarded = place >= 0
    return {
        "reward": pa.array(np.where(rewarded, _take(answers.value, place), default)),
        "rewarded_at": pa.array(_take(answers.occurred, place), mask=~rewarded).cast(pa.timestamp("us", tz="UTC")),
        "defaulted": pa.array(~rewarded),
    }


class _Answers(NamedTuple):
    """The reward of each decision that has one: [N] its code, ascending, the time and the value."""

    code: np.ndarray
    occurred: np.ndarray
    value: np.ndarray

    def rows(self, num_codes: int) -> np.ndarray:
        """[num_codes] the row of each code, -1 for one without a reward."""
        rows = np.full(num_codes, -1)
        rows[self.code] = np.arange(len(self.code))
        return rows


def _combined(rule: RewardRule, code: np.ndarray, occurred: np.ndarray, value: np.ndarray) -> _Answers:
    """The rewards in time, [M] sorted by code, time and value, as one of each code.

    What becomes of a code depends on its own rows alone, to the last bit: the sums are added in the rows' order.
    """
    begins = np.flatnonzero(np.diff(code, prepend=-1) != 0)
    match rule:
        case "first":
            chosen = begins
        case "last":
            chosen = np.append(begins[1:], len(code))[: len(begins)] - 1
        case "max":
            best = np.lexsort((occurred, -value, code))
            chosen = best[begins]
        case "sum":
            last = np.append(begins[1:], len(code))[: len(begins)] - 1
            group = np.cumsum(np.diff(code, prepend=-1) != 0) - 1
            sums = np.bincount(group, weights=value, minlength=len(begins))
            return _Answers(code[begins], occurred[last], np.clip(sums, -FLOAT32_MAX, FLOAT32_MAX))
        case _:
            raise ValueError(f"an unknown rule: {rule!r}")
    return _Answers(code[chosen], occurred[chosen], value[chosen])


def _encode_ids(*tables: pa.Table) -> tuple[list[np.ndarray], int]:
    """One integer per distinct `decision_id`, the same in all tables: [N] int per table, and how many there are."""
    ids = [table["decision_id"].combine_chunks() for table in tables]
    encoded = pa.concat_arrays(ids).dictionary_encode()
    return np.split(encoded.indices.to_numpy(), np.cumsum([len(part) for part in ids[:-1]])), len(encoded.dictionary)


def _in_order(ids: pa.ChunkedArray, decided: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The places in `rows` in the order of `(decided_at, decision_id)`."""
    moments = decided[rows]
    order = np.argsort(moments, kind="stable")
    if (np.diff(moments[order]) == 0).any():
        keys = pa.table({"decided_at": moments, "decision_id": ids.take(pa.array(rows))})
        order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]).to_numpy()
    return order


def _interactions(decisions: pa.Table, rows: np.ndarray, joined: dict[str, pa.Array]) -> pa.RecordBatch:
    """Those `rows` of `decisions` with the columns `joined`."""
    decisions = decisions.combine_chunks()
    if len(rows) != decisions.num_rows or (np.diff(rows) != 1).any():  # taking rows costs more than anything else here
        decisions = decisions.take(pa.array(rows)).combine_chunks()
    schema = record_schema(Interaction)
    columns = [joined[name] if name in joined else decisions[name] for name in schema.names]
    batches = pa.table(columns, schema=schema).combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema)


def _microseconds(moments: pa.ChunkedArray) -> np.ndarray:
    return moments.cast(pa.int64()).to_numpy()


def _take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return values[places] if len(values) else np.zeros(len(places), values.dtype)


def _earliest(decisions: pa.Table, code: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """The earliest row of each code; of different rows with one moment, the same row in whatever order they come."""
    if len(code) and np.bincount(code).max() == 1:
        return np.arange(len(code))
    order = np.lexsort((decided, code))
    begins = np.ones(len(order), bool)
    begins[1:] = np.diff(code[order]) != 0
    kept = order[begins]
    group = np.cumsum(begins) - 1
    for place in np.flatnonzero(~begins & (decided[order] == decided[kept][group])):
        row = order[place]
        if _text(decisions, row) < _text(decisions, kept[group[place]]):
            kept[group[place]] = row
    return kept


def _text(rows: pa.Table, row: int) -> str:
    return repr(rows.slice(row, 1).to_pylist())


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[N] ids -> [N] uint64, evenly spread and the same for ever: what is held back depends on it."""
    text = id_text(ids).tobytes()
    parts = [text[begin : begin + ID_BYTES] for begin in range(0, len(text), ID_BYTES)]
    return lasting(parts)


def split_into_buckets(rows: pa.Table, num_buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(bucket, its rows), by a hash of `decision_id`."""
    if num_buckets > 1:
        buckets = mixed(id_text(rows["decision_id"])) % np.uint64(num_buckets)
    else:
        buckets = np.zeros(rows.num_rows, np.uint64)
    for bucket in np.unique(buckets).tolist():
        inside = (
            rows if num_buckets == 1 else rows.take(pa.array(np.flatnonzero(buckets == bucket)))
        )  # filter() takes longer
        for batch in inside.combine_chunks().to_batches():
            yield int(bucket), batch


def holdback_ids(rows: pa.RecordBatch | pa.Table) -> pa.Array | pa.ChunkedArray:
    """[N] the ids that decide what is held back: of the slate, so that it stays whole, or else of the decision."""
    return pc.coalesce(rows["slate_id"], rows["decision_id"])


def in_holdback(ids: pa.Array | pa.ChunkedArray, share: float) -> np.ndarray:
    """[N] ids -> [N] bool: whether each is in the share that is held back, independent of its bucket."""
    return held_back(hash_ids(ids), share)


def observations(rows: pa.RecordBatch) -> np.ndarray:
    """The observations of interactions, [N, D] float32. Raises ValueError that names a decision of another length."""
    column = rows.column("observation")
    lengths = pc.list_value_length(column).to_numpy()
    if len(lengths) and (lengths != lengths[0]).any():
        odd = int(np.flatnonzero(lengths != lengths[0])[0])
        raise ValueError(
            f"observations must have the same length, got {lengths[0]} and {lengths[odd]}"
            f" (decision_id={rows.column('decision_id')[odd]})"
        )
    return column.flatten().to_numpy().astype(np.float32).reshape(len(lengths), lengths[0] if len(lengths) else 0)
