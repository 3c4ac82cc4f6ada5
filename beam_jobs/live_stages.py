"""The transforms of `beam_jobs.learn_live`: parse, watch the record, join by bucket, add up and emit.

State is bytes: chunks of Arrow rows for each bucket, and one encoded `LiveState` for the key at which all comes together.
What arrives between two emissions waits there as encoded items, so an arrival costs no more than its own size.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import pyarrow as pa
from apache_beam.coders import BytesCoder, VarIntCoder
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.typehints import Any as AnyType
from apache_beam.typehints import Tuple
from apache_beam.utils.timestamp import Timestamp

from beam_jobs import live_windows
from beam_jobs.files import publish
from beam_jobs.live_events import Arrivals
from beam_jobs.live_join import Arrived, BucketRows, JoinPlan
from beam_jobs.live_record import Record, RecordAtStart
from beam_jobs.live_windows import LiveSettings, Progress, Recorded, encode_item
from beam_jobs.payloads import DecisionShape, parse
from beam_jobs.reward_join import split_into_buckets
from beam_jobs.tables import record_batch
from contracts import live_emissions, live_sums
from contracts.live_emissions import SUMS_FOLDER, Emission
from contracts.records import utc_microseconds
from contracts.schemas import DECISIONS, REWARDS, STATUSES

JOB = "learn_live"
_JOINED = (DECISIONS, REWARDS, STATUSES)
WATCH_SECONDS = 0.25
log = logging.getLogger(__name__)


class LiveJob(NamedTuple):
    """All that the transforms share."""

    plan: JoinPlan
    shape: DecisionShape
    settings: LiveSettings
    record: Record
    at_start: RecordAtStart
    live: str
    buckets: int

    @property
    def num_actions(self) -> int:
        """K, the number of actions."""
        assert self.shape.num_actions is not None  # the job requires it
        return self.shape.num_actions


class Parsed(NamedTuple):
    """`rows`: (bucket, Arrived). `progress`: (0, Progress)."""

    rows: Any
    progress: Any


class Watched(NamedTuple):
    """`finished`: (bucket, start of the first window without a record). `recorded`: (0, Recorded)."""

    finished: Any
    recorded: Any


class ParseArrivals(beam.PTransform):
    """PCollection[Arrivals] -> Parsed. Every payload is a row or counted as a dead letter."""

    def __init__(self, job: LiveJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, arrivals: Any) -> Any:
        """One pass."""
        outputs = arrivals | beam.ParDo(ParseArrivalsFn(self._job.shape, self._job.buckets)).with_outputs(
            "progress", main="rows"
        )
        return Parsed(_keyed(outputs.rows), _keyed(outputs.progress))


class ParseArrivalsFn(beam.DoFn):
    """Arrivals -> (bucket, Arrived); on `progress`, (0, Progress)."""

    def __init__(self, shape: DecisionShape, buckets: int) -> None:
        self._shape = shape
        self._buckets = buckets
        self._events = Metrics.counter(JOB, "events")
        self._dead_letters = Metrics.counter(JOB, "dead_letters")

    def process(self, arrivals: Arrivals) -> Iterator[Any]:
        """Parses what arrived together, and splits it by bucket."""
        records: dict[str, list[msgspec.Struct]] = {table.name: [] for table in _JOINED}
        dead = 0
        for batch in arrivals.batches:
            events = parse(batch, self._shape)
            for name, some in records.items():
                some += getattr(events, name)
            dead += len(events.dead_letters)
        self._events.inc(sum(map(len, records.values())) + dead)
        self._dead_letters.inc(dead)
        split: dict[int, dict[str, pa.RecordBatch]] = {}
        nothing = {table.name: record_batch(table, []) for table in _JOINED}
        for table in _JOINED:
            if some := records[table.name]:
                rows = pa.Table.from_batches([record_batch(table, some)])
                for bucket, part in split_into_buckets(rows, self._buckets):
                    split.setdefault(bucket, {})[table.name] = part
        for bucket, parts in split.items():
            yield bucket, Arrived(**nothing | parts)
        progress = Progress(dead, arrivals.complete_until, arrivals.events_read, arrivals.caught_up)
        yield beam.pvalue.TaggedOutput("progress", (0, progress))


class WatchRecord(beam.PTransform):
    """PCollection of (0, Progress) -> Watched: notices when the record of the next window is there."""

    def __init__(self, job: LiveJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, progress: Any) -> Any:
        """Watches at one key; the sums of a record are read apart, so that nothing waits for them."""
        watched = progress | "Watch" >> beam.ParDo(WatchRecordFn(self._job)).with_outputs("recorded", main="finished")
        recorded = watched.recorded | "ReadRecord" >> beam.ParDo(ReadRecordFn(self._job.record))
        return Watched(_keyed(watched.finished), _keyed(recorded))


class WatchRecordFn(beam.DoFn):
    """(0, Progress) -> (bucket, first window without a record); on `recorded`, (start, whether the job joined it)."""

    FIRST = ReadModifyWriteStateSpec("first", VarIntCoder())
    LOOKED_AT = ReadModifyWriteStateSpec("looked_at", VarIntCoder())

    def __init__(self, job: LiveJob) -> None:
        self._job = job

    def process(
        self,
        element: tuple[int, Progress],
        first: Any = beam.DoFn.StateParam(FIRST),
        looked_at: Any = beam.DoFn.StateParam(LOOKED_AT),
    ) -> Iterator[Any]:
        """Looks for the manifests of the windows that had none."""
        now = utc_microseconds(datetime.now(UTC))
        if 0 <= now - (looked_at.read() or 0) < round(WATCH_SECONDS * 1e6):
            return
        looked_at.write(now)
        if (begin := first.read()) is None:
            begin = self._job.at_start.first
            first.write(begin)
            for start in self._job.at_start.recent:
                yield beam.pvalue.TaggedOutput("recorded", (start, False))
        start = begin
        begun = list(self._begun(begin, element[1].complete_until))
        newest = max((one for one in begun if self._job.record.is_there(one)), default=None)
        # Windows are exported in order: once the newest was seen, those before it are there, or never will be.
        for one in begun:
            if newest is not None and one <= newest and self._job.record.is_there(one):
                yield beam.pvalue.TaggedOutput("recorded", (one, True))
                start = self._job.plan.after(one)
        while self._given_up(start, element[1].complete_until):
            start = self._job.plan.after(start)
        if start != begin:
            first.write(start)
            for bucket in range(self._job.buckets):
                yield bucket, start

    def _begun(self, start: int, reached: datetime | None) -> Iterator[int]:
        """The window that starts at `start`, and those after it that have begun."""
        yield start
        while reached is not None and (start := self._job.plan.after(start)) <= utc_microseconds(reached):
            yield start

    def _given_up(self, start: int, reached: datetime | None) -> bool:
        waited = timedelta(seconds=self._job.settings.record_wait_seconds)
        return reached is not None and reached >= self._job.plan.closes_at(start) + waited


class ReadRecordFn(beam.DoFn):
    """(start of a window, whether the job joined it) -> (0, Recorded)."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def process(self, element: tuple[int, bool]) -> Iterator[tuple[int, Recorded]]:
        """Reads one window."""
        start, joined = element
        yield 0, Recorded(start, live_sums.encode(self._record.sums(start)), joined)


class JoinLive(beam.PTransform):
    """(rows, finished) by bucket -> PCollection of (0, Joined)."""

    def __init__(self, job: LiveJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, inputs: Any) -> Any:
        """Joins in keyed state."""
        changes = (
            inputs
            | "Together" >> beam.Flatten()
            | "JoinBucket" >> beam.ParDo(JoinLiveFn(self._job.plan, self._job.at_start.first))
        )
        return _keyed(changes)


class JoinLiveFn(beam.DoFn):
    """(bucket, Arrived or the start of the first window without a record) -> (0, Joined)."""

    DECISIONS = BagStateSpec("decisions", BytesCoder())
    REWARDS = BagStateSpec("rewards", BytesCoder())
    STATUSES = BagStateSpec("statuses", BytesCoder())
    EARLIER = BagStateSpec("earlier", BytesCoder())
    FIRST = ReadModifyWriteStateSpec("first", VarIntCoder())

    def __init__(self, plan: JoinPlan, first: int) -> None:
        self._plan = plan
        self._first = first

    def process(
        self,
        element: tuple[int, Any],
        decisions: Any = beam.DoFn.StateParam(DECISIONS),
        rewards: Any = beam.DoFn.StateParam(REWARDS),
        statuses: Any = beam.DoFn.StateParam(STATUSES),
        earlier: Any = beam.DoFn.StateParam(EARLIER),
        first: Any = beam.DoFn.StateParam(FIRST),
    ) -> Iterator[tuple[int, live_windows.Joined]]:
        """Adds rows, or drops those of windows that are finished."""
        states = {"decisions": decisions, "rewards": rewards, "statuses": statuses, "earlier": earlier}
        chunks = {name: list(state.read()) for name, state in states.items()}
        bucket = BucketRows(chunks)
        begin = first.read() or self._first
        arrived = element[1]
        if isinstance(arrived, Arrived):
            changes = bucket.add(arrived, self._plan, begin)
            yield 0, live_windows.joined(arrived.num_rows, changes)
        else:
            first.write(max(begin, arrived))
            bucket.compact(self._plan, max(begin, arrived))
        for name, state in states.items():
            _store(state, chunks[name], bucket.chunks(name))


def _store(state: Any, before: list[bytes], after: list[bytes]) -> None:
    """Writes what changed: most often a chunk was added."""
    added = len(before)
    if len(after) < added or any(one is not other for one, other in zip(before, after, strict=False)):
        state.clear()
        added = 0
    for data in after[added:]:
        state.add(data)


class EmitSums(beam.PTransform):
    """(changes, progress, recorded), each (0, an item of `live_windows`) -> PCollection[Emission], written to files."""

    def __init__(self, job: LiveJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, inputs: Any) -> Any:
        """All comes together at one key."""
        return inputs | "Together" >> beam.Flatten() | "Emit" >> beam.ParDo(EmitSumsFn(self._job))


class EmitSumsFn(beam.DoFn):
    """(0, item) -> Emission at each tick.

    What arrives makes the job tick when it is time. The timer is for a source that has become quiet: Beam's local runner
    may fire a timer several times, so a tick that comes too early does nothing.
    """

    WAITING = BagStateSpec("waiting", BytesCoder())
    SUMS = ReadModifyWriteStateSpec("sums", BytesCoder())
    DUE = ReadModifyWriteStateSpec("due", VarIntCoder())  # microseconds
    TIMER = TimerSpec("tick", TimeDomain.REAL_TIME)

    def __init__(self, job: LiveJob) -> None:
        self._job = job
        self._emissions = Metrics.counter(JOB, "emissions")
        self._healed = Metrics.gauge(JOB, "healed_windows")

    def process(
        self,
        element: tuple[int, live_windows.Item],
        waiting: Any = beam.DoFn.StateParam(WAITING),
        sums: Any = beam.DoFn.StateParam(SUMS),
        due: Any = beam.DoFn.StateParam(DUE),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> Iterator[Emission]:
        """Keeps the item until the next tick."""
        waiting.add(encode_item(element[1]))
        yield from self._tick(waiting, sums, due, timer)

    @on_timer(TIMER)
    def tick(
        self,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        sums: Any = beam.DoFn.StateParam(SUMS),
        due: Any = beam.DoFn.StateParam(DUE),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> Iterator[Emission]:
        """Takes in what waits when nothing more arrives."""
        yield from self._tick(waiting, sums, due, timer)

    def _tick(self, waiting: Any, sums: Any, due: Any, timer: Any) -> Iterator[Emission]:
        """Once per `emit_seconds`: takes in what waits, and writes an emission when the job has caught up."""
        settings, plan = self._job.settings, self._job.plan
        now = utc_microseconds(datetime.now(UTC))
        every = round(settings.emit_seconds * 1e6)
        if 0 < (due.read() or 0) - now <= every:  # a clock that was set back must not stop the emissions
            return
        due.write(now + every - now % every)  # on a grid of seconds, so that ticks do not drift
        timer.set(Timestamp(micros=now + 2 * every))
        state = live_windows.decode_state(sums.read())
        items = list(waiting.read())
        waiting.clear()
        live_windows.fold(state, items, plan, settings)
        if state.ready:
            if starting := state.sequence == 0:
                state.sequence = newest_sequence(self._job.live)
            snapshot = starting or state.since_snapshot + 1 >= settings.snapshot_every
            emission = live_windows.emission(state, plan, self._job.num_actions, datetime.now(UTC), snapshot=snapshot)
            write(self._job.live, emission)
            if snapshot:
                remove_old(self._job.live, emission.sequence - settings.kept_emissions)
            self._emissions.inc()
            self._healed.set(state.healed)
            yield emission
        sums.write(live_windows.encode_state(state))


def write(live: str, emission: Emission) -> None:
    """Writes the file of an emission. Raises OperationError when it cannot."""
    path = FileSystems.join(live, SUMS_FOLDER, live_emissions.file_name(emission.sequence))
    publish(path, [live_emissions.encode(emission)])


def newest_sequence(live: str) -> int:
    """The sequence number of the newest emission that is there; 0 for none."""
    return max(_files(live).values(), default=0)


def remove_old(live: str, before: int) -> None:
    """Removes the emissions with a smaller sequence number."""
    if old := [path for path, sequence in _files(live).items() if sequence < before]:
        FileSystems.delete(old)


def _files(live: str) -> dict[str, int]:
    """The emissions' files, and their sequence numbers."""
    [matched] = FileSystems.match([FileSystems.join(live, SUMS_FOLDER, f"*{live_emissions.SUFFIX}")])
    paths = [found.path for found in matched.metadata_list]
    numbers = {path: live_emissions.sequence_of(path.rpartition("/")[2]) for path in paths}
    return {path: number for path, number in numbers.items() if number is not None}


def _keyed(collection: Any) -> Any:
    """The collection, with the type of its elements: the coder of a key must be deterministic."""
    collection.element_type = Tuple[int, AnyType]
    return collection
