"""Batches of events from a Pub/Sub subscription.

Decisions, rewards and statuses travel on one topic. A message's data is the event's JSON form. Its attributes are `kind`
("decision", "reward" or "status", by which other subscriptions can filter) and `event_time` (RFC 3339).
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import apache_beam as beam
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from google.cloud import pubsub_v1

from beam_jobs.payloads import BYTES_PER_BATCH, EVENTS_PER_BATCH, PayloadBatch
from beam_jobs.places import SUBSCRIPTION_PREFIX, explained
from beam_jobs.tables import TableRows
from contracts.errors import InputError

TIMEOUT_SECONDS = 30.0
MAX_ATTRIBUTE_BYTES = 1024
_PROJECT = r"projects/[a-z][-a-z0-9:.]{4,61}[a-z0-9]"
_NAME = r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}"
SUBSCRIPTION = rf"{_PROJECT}/subscriptions/{_NAME}"
TOPIC = rf"{_PROJECT}/topics/{_NAME}"


def parse_subscription(text: str, flag: str = "--events") -> str:
    """`pubsub:projects/P/subscriptions/S` -> `projects/P/subscriptions/S`. Raises InputError."""
    name = text.removeprefix(SUBSCRIPTION_PREFIX)
    if not re.fullmatch(SUBSCRIPTION, name):
        raise InputError(f"{flag}: pubsub:projects/PROJECT/subscriptions/NAME expected, got {text!r}")
    return name


def check_subscription(name: str) -> None:
    """Raises InputError when the subscription does not exist or may not be read; OperationError without an answer."""
    with explained("--events", f"subscription {name}"), pubsub_v1.SubscriberClient() as subscriber:
        subscriber.get_subscription(subscription=name, timeout=TIMEOUT_SECONDS)


def check_topic(name: str) -> None:
    """Raises InputError when `--dead-letter-topic` is not a topic that exists."""
    if not re.fullmatch(TOPIC, name):
        raise InputError(f"--dead-letter-topic: projects/PROJECT/topics/NAME expected, got {name!r}")
    with explained("--dead-letter-topic", f"topic {name}"), pubsub_v1.PublisherClient() as publisher:
        publisher.get_topic(topic=name, timeout=TIMEOUT_SECONDS)


class ReadEvents(beam.PTransform):
    """Reads a subscription: PBegin -> PCollection[PayloadBatch]."""

    def __init__(self, subscription: str, timestamp_attribute: str | None) -> None:
        super().__init__()
        self._subscription = subscription
        self._timestamp_attribute = timestamp_attribute

    def expand(self, pipeline: Any) -> Any:
        """Messages, then batches of them."""
        return (
            pipeline
            | "Read"
            >> ReadFromPubSub(
                subscription=self._subscription, with_attributes=True, timestamp_attribute=self._timestamp_attribute
            )
            | "BatchMessages" >> BatchMessages()
        )


class BatchMessages(beam.PTransform):
    """PCollection[PubsubMessage] -> PCollection[PayloadBatch]: the messages of one bundle, so that none waits for others."""

    def expand(self, messages: Any) -> Any:
        """One DoFn, without shuffling."""
        return messages | beam.ParDo(BatchMessagesFn())


class BatchMessagesFn(beam.DoFn):
    """Gathers the messages of a bundle."""

    def start_bundle(self) -> None:
        """Starts an empty batch."""
        self._clear()

    def _clear(self) -> None:
        self._payloads: list[bytes] = []
        self._sources: list[str] = []
        self._received_at: list[datetime] = []
        self._size = 0
        self._earliest = Timestamp.of(2**40)

    def process(self, message: PubsubMessage, moment: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        """Adds a message; yields the batch when it is full."""
        published = message.publish_time or moment.to_utc_datetime(has_tz=True)
        self._payloads.append(message.data)
        self._sources.append(message.message_id or blake2b(message.data, digest_size=8).hexdigest())
        self._received_at.append(datetime.fromtimestamp(published.timestamp(), UTC))
        self._size += len(message.data)
        self._earliest = min(self._earliest, moment)
        if len(self._payloads) >= EVENTS_PER_BATCH or self._size >= BYTES_PER_BATCH:
            yield self._batch()
            self._clear()

    def finish_bundle(self) -> Iterator[Any]:
        """Yields the rest, with the earliest of its timestamps, so that the watermark cannot pass a message in the batch."""
        if self._payloads:
            yield GlobalWindows.windowed_value(self._batch(), timestamp=self._earliest)
            self._clear()

    def _batch(self) -> PayloadBatch:
        # The same messages have the same name in every worker.
        name = blake2b("\n".join(self._sources).encode(), digest_size=16).hexdigest()
        return PayloadBatch(f"pubsub-{name}", self._payloads, self._sources, self._received_at)


def dead_letter_messages(element: TableRows) -> Iterator[PubsubMessage]:
    """Dead letters as messages: the payload as received, the rest as attributes."""
    for row in element.rows.to_pylist():
        attributes = {
            "error_type": row["error_type"],
            "error_message": row["error_message"],
            "stage": row["stage"],
            "failed_at": row["failed_at"].isoformat(),
            "source": row["source"] or "",
        }
        yield PubsubMessage(row["payload"], {name: _fitting(text) for name, text in attributes.items()})


def _fitting(text: str) -> str:
    """The beginning of `text` that fits into an attribute: Pub/Sub refuses a message with a longer one."""
    return text.encode()[:MAX_ATTRIBUTE_BYTES].decode(errors="ignore")
