"""A faster Pub/Sub reader for Beam's local runner that acknowledges a message only after its rows are stored.

Beam's local runner pulls at most 10 messages at a time, and acknowledges them before it processes them: messages in
hand are lost when the job dies. `ReliableReader` replaces one private method of the pinned Beam version. A test
compares that method's digest, so an update of Beam that changes it is noticed.
"""

import os
import threading
from typing import Any

import apache_beam as beam

from beam_jobs.ingest_events import StreamOutputs
from beam_jobs.payloads import IngestCounts, PayloadBatch

# One bundle holds at most this many messages.
MESSAGES_PER_READ = 5_000
# Pub/Sub's limit for one pull, and a fair size for one acknowledgement.
MESSAGES_PER_CALL = 1_000
# A pull with fewer messages than this ends the read: waiting for a trickle would delay the bundle.
TRICKLE_MESSAGES = 100
# How long the emulator waits for the first message of a pull.
PULL_TIMEOUT_SECONDS = 0.2


class ReliableReader:
    """Replaces how Beam's local runner reads Pub/Sub, as a context manager; at most one per process at a time.

    It pulls until the subscription is empty or a bundle is full, and acknowledges a message when every row that was
    made of it is stored. Messages that were read but not stored when the process ends are delivered again after the
    subscription's acknowledgement deadline.
    """

    _current: "ReliableReader | None" = None

    def __init__(self, messages_per_read: int = MESSAGES_PER_READ) -> None:
        self._messages_per_read = messages_per_read
        self._lock = threading.Lock()
        self._ack_ids: dict[str, str] = {}  # message id -> ack id of its latest delivery
        self._messages: dict[str, list[str]] = {}  # batch -> its message ids
        self._missing: dict[str, int] = {}  # batch -> how many of its messages are not stored yet
        self._client: Any = None
        self._subscription = ""
        self.stored = 0

    def __enter__(self) -> "ReliableReader":
        from apache_beam.runners.direct.transform_evaluator import _PubSubReadEvaluator

        reader = self
        self._original = _PubSubReadEvaluator._read_from_pubsub

        def read(evaluator: Any, timestamp_attribute: str | None) -> list[Any]:
            return reader._read(evaluator, timestamp_attribute)

        _PubSubReadEvaluator._read_from_pubsub = read
        ReliableReader._current = self
        return self

    def __exit__(self, *_: object) -> None:
        from apache_beam.runners.direct.transform_evaluator import _PubSubReadEvaluator

        _PubSubReadEvaluator._read_from_pubsub = self._original
        ReliableReader._current = None
        if self._client:
            self._client.close()

    def acknowledge_stored(self, outputs: StreamOutputs) -> None:
        """Adds the transforms to the streaming job that acknowledge messages once they are stored."""
        outputs.batches | "Remember" >> beam.ParDo(RememberFn())
        outputs.stored | "Acknowledge" >> beam.ParDo(AcknowledgeFn())

    def _read(self, evaluator: Any, timestamp_attribute: str | None) -> list[Any]:
        from apache_beam.io.gcp.pubsub import PubsubMessage
        from apache_beam.utils.timestamp import Timestamp

        if self._client is None:
            self._client, self._subscription = _subscriber(), evaluator._sub_name
        received = self._pull()
        with self._lock:
            self._ack_ids |= {one.message.message_id: one.ack_id for one in received}
        elements = []
        for one in received:
            message = PubsubMessage._from_message(one.message)
            text = message.attributes.get(timestamp_attribute) if timestamp_attribute else None
            moment = Timestamp.from_rfc3339(text) if text else Timestamp.from_utc_datetime(one.message.publish_time)
            elements.append((moment, message))
        return elements

    def _pull(self) -> list[Any]:
        from google.api_core import exceptions

        received: list[Any] = []
        while len(received) < self._messages_per_read:
            try:
                answer = self._client.pull(
                    subscription=self._subscription,
                    max_messages=MESSAGES_PER_CALL,
                    timeout=PULL_TIMEOUT_SECONDS,
                    retry=None,
                )
            except (exceptions.DeadlineExceeded, exceptions.ServiceUnavailable):
                break
            received += answer.received_messages
            if len(answer.received_messages) < TRICKLE_MESSAGES:
                break
        return received

    def _remember(self, batch: PayloadBatch) -> None:
        with self._lock:
            self._messages[batch.name] = list(batch.sources)
        self._count(batch.name, len(batch.sources))

    def _count(self, name: str, change: int) -> None:
        with self._lock:
            left = self._missing[name] = self._missing.get(name, 0) + change
            if left or name not in self._messages:
                return
            del self._missing[name]
            messages = self._messages.pop(name)
            ack_ids = [self._ack_ids.pop(message) for message in messages if message in self._ack_ids]
            self.stored += len(messages)
        for begin in range(0, len(ack_ids), MESSAGES_PER_CALL):
            self._client.acknowledge(
                subscription=self._subscription, ack_ids=ack_ids[begin : begin + MESSAGES_PER_CALL]
            )


def _subscriber() -> Any:
    """A subscriber client without the limit of 4 MB per pull, which the default client sets for an emulator."""
    import grpc
    from google.cloud import pubsub_v1
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

    host = os.environ["PUBSUB_EMULATOR_HOST"]
    unlimited = [("grpc.max_receive_message_length", -1)]
    return pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(host, unlimited)))


def _reader() -> ReliableReader:
    assert ReliableReader._current is not None, "acknowledging outside of a ReliableReader"
    return ReliableReader._current


class RememberFn(beam.DoFn):
    """Notes which messages a batch holds."""

    def process(self, batch: PayloadBatch) -> None:
        """Notes one batch."""
        _reader()._remember(batch)


class AcknowledgeFn(beam.DoFn):
    """Acknowledges the messages of a batch when all of them are stored."""

    def process(self, element: tuple[str, IngestCounts]) -> None:
        """Subtracts what was stored from what is missing of a batch; `element` is its name and what was stored."""
        name, counts = element
        _reader()._count(name, -(counts.decisions + counts.rewards + counts.dead_letters))
