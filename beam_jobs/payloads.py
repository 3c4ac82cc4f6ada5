"""Received events, parsed into rows of decisions, rewards, statuses and dead letters. Every source and sink shares this step."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.metrics import Metrics

from beam_jobs.options import whole
from beam_jobs.tables import TableRows, record_batch
from contracts.records import (
    UNREADABLE,
    DeadLetter,
    Decision,
    Event,
    RewardEvent,
    StatusEvent,
    describe_error,
    event_decoder,
)
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, STATUSES, TABLES, Table

JOB = "ingest_events"
# Longer than any event, and short enough for a dead letter in BigQuery: base 64, in a row of at most 10 MB.
MAX_EVENT_BYTES = 5 * 2**20
KEPT_OF_TOO_LARGE_BYTES = 2**16
EVENTS_PER_BATCH = 10_000
BYTES_PER_BATCH = 8 * 2**20


class IngestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of events: `events = decisions + rewards + statuses + dead_letters`."""

    events: int = 0
    decisions: int = 0
    rewards: int = 0
    statuses: int = 0
    dead_letters: int = 0

    @property
    def stored(self) -> int:
        """The events that are in a table."""
        return self.decisions + self.rewards + self.statuses + self.dead_letters

    def __add__(self, other: "IngestCounts") -> "IngestCounts":
        return IngestCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class ShapeError(msgspec.ValidationError):
    """The event is a decision, but does not have the required shape."""


class DecisionShape(NamedTuple):
    """The shape that a decision must have to be trained on, beyond its contract. None: any."""

    observation_dim: int | None = None
    num_actions: int | None = None

    def check(self, decision: Decision) -> None:
        """Raises ShapeError that names the field, what it must be, and what it is."""
        length = len(decision.observation)
        if self.observation_dim is not None and length != self.observation_dim:
            raise ShapeError(f"observation: must have {self.observation_dim} numbers, got {length}")
        if self.num_actions is not None and decision.action >= self.num_actions:
            raise ShapeError(f"action: must be below {self.num_actions}, got {decision.action}")

    def flags(self) -> list[str]:
        """The flags of this shape, which `add_shape_flags` declares."""
        given = {"--observation-dim": self.observation_dim, "--num-actions": self.num_actions}
        return [f"{name}={value}" for name, value in given.items() if value is not None]


ANY_SHAPE = DecisionShape()


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a DecisionShape, for `shape_from`."""
    for name, text in (
        ("observation-dim", "length of an observation; a decision with another length becomes a dead letter"),
        ("num-actions", "number of actions; a decision with an action outside 0 to N-1 becomes a dead letter"),
    ):
        parser.add_argument(f"--{name}", type=whole(1), metavar=name.split("-")[-1].upper(), help=text)


def shape_from(arguments: Any) -> DecisionShape:
    """The shape that parsed flags give."""
    return DecisionShape(arguments.observation_dim, arguments.num_actions)


class PayloadBatch(NamedTuple):
    """Events as received, not parsed yet."""

    name: str  # the same whenever the same events are read again
    payloads: list[bytes]
    sources: list[str]  # the position of each event in its source
    received_at: list[datetime]  # when the source received each event


class ParsedEvents(NamedTuple):
    """A PCollection of TableRows per table."""

    decisions: Any
    rewards: Any
    statuses: Any
    dead_letters: Any


class EventLists(NamedTuple):
    """The events of one batch by kind; every payload is one of them."""

    decisions: list[Decision]
    rewards: list[RewardEvent]
    statuses: list[StatusEvent]
    dead_letters: list[DeadLetter]


def parse(batch: PayloadBatch, shape: DecisionShape = ANY_SHAPE) -> EventLists:
    """Decodes, validates and sorts the events of one batch."""
    events = EventLists([], [], [], [])
    for payload, source, received_at in zip(batch.payloads, batch.sources, batch.received_at, strict=True):
        try:
            event = _decode(payload, shape)
        except (*UNREADABLE, OverflowError) as error:
            events.dead_letters.append(_dead_letter(error, payload, source, received_at))
            continue
        match event:
            case Decision():
                events.decisions.append(event)
            case RewardEvent():
                events.rewards.append(event)
            case StatusEvent():
                events.statuses.append(event)
    return events


class ParseEventsFn(beam.DoFn):
    """PayloadBatch -> TableRows of each table, on the output with the table's name."""

    def __init__(self, shape: DecisionShape = ANY_SHAPE) -> None:
        self._shape = shape
        self._counters = {table.name: Metrics.counter(JOB, table.name) for table in TABLES}
        self._events = Metrics.counter(JOB, "events")

    def process(self, batch: PayloadBatch) -> Iterator[Any]:
        """Parses one batch."""
        events = parse(batch, self._shape)
        self._events.inc(len(batch.payloads))
        by_table: tuple[tuple[Table, Sequence[msgspec.Struct]], ...] = (
            (DECISIONS, events.decisions),
            (REWARDS, events.rewards),
            (STATUSES, events.statuses),
            (DEAD_LETTERS, events.dead_letters),
        )
        for table, records in by_table:
            if records:
                self._counters[table.name].inc(len(records))
                rows = TableRows(batch.name, record_batch(table, records))
                yield beam.pvalue.TaggedOutput(table.name, rows)


def readable(payload: bytes, shape: DecisionShape = ANY_SHAPE) -> bool:
    """Whether the current code accepts `payload` as an event of that shape."""
    try:
        _decode(payload, shape)
    except (*UNREADABLE, OverflowError):
        return False
    return True


def _decode(payload: bytes, shape: DecisionShape) -> Event:
    if len(payload) > MAX_EVENT_BYTES:
        raise OverflowError(
            f"event is longer than {MAX_EVENT_BYTES} bytes; the payload kept is its first {KEPT_OF_TOO_LARGE_BYTES}"
        )
    event = event_decoder.decode(payload)
    if isinstance(event, Decision):
        shape.check(event)
        moment = event.decided_at
    else:
        moment = event.occurred_at
    if not 1 < moment.year < 9999:
        moment.astimezone(UTC)  # raises OverflowError when the time lies outside the years 1 to 9999 in UTC
    return event


def _dead_letter(error: Exception, payload: bytes, source: str, failed_at: datetime) -> DeadLetter:
    too_large = len(payload) > MAX_EVENT_BYTES
    return DeadLetter(
        payload=payload[:KEPT_OF_TOO_LARGE_BYTES] if too_large else payload,
        error_type=type(error).__name__,
        error_message=str(error) if isinstance(error, OverflowError) else describe_error(error, payload),
        stage="parse",
        failed_at=failed_at,
        source=source,
    )


class ParseEvents(beam.PTransform):
    """PCollection[PayloadBatch] -> ParsedEvents. Every payload becomes one row in one of them, and is counted."""

    def __init__(self, shape: DecisionShape = ANY_SHAPE) -> None:
        super().__init__()
        self._shape = shape

    def expand(self, batches: beam.PCollection[PayloadBatch]) -> Any:
        """One pass over each batch."""
        outputs = batches | "Parse" >> beam.ParDo(ParseEventsFn(self._shape)).with_outputs(*ParsedEvents._fields)
        return ParsedEvents(*(outputs[name] for name in ParsedEvents._fields))


def add_counts(counts: Iterable[IngestCounts]) -> IngestCounts:
    """The sum of `counts`."""
    return sum(counts, IngestCounts())
