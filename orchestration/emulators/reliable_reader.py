"""A faster Pub/Sub reader for Beam's local runner that acknowledges a message only after its rows are stored.

Beam's local runner pulls at most 10 messages at a time, and acknowledges them before it processes them: messages in
hand are lost when the job dies. `ReliableReader` replaces one private method of the pinned Beam version. A test
compares that method's digest, so an update of Beam that changes it is noticed.
"""

import os
import threading
import time
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam

from beam_jobs.ingest_events import StreamOutputs
from beam_jobs.payloads import IngestCounts, PayloadBatch
from contracts.watermarks import BEGINNING, Watermark

# One bundle holds at most this many messages.
MESSAGES_PER_READ = 5_000
# Pub/Sub's limit for one pull, and a fair size for one acknowledgement.
MESSAGES_PER_CALL = 1_000
# A pull with fewer messages than this ends the read: waiting for a trickle would delay the bundle.
TRICKLE_MESSAGES = 100
# A pull returns at once. This is far more than it takes, so that a process that was stopped for a while and goes on
# still takes the answer.
PULL_TIMEOUT_SECONDS = 120.0
IDLE_SECONDS = 0.05  # between two pulls of an empty subscription
# Of the subscription: a message that was delivered and not acknowledged is delivered again after it.
ACK_DEADLINE_SECONDS = 60


class ReliableReader:
    """Replaces how Beam's local runner reads Pub/Sub, as a context manager; at most one per process at a time.

    It pulls until the subscription is empty or a bundle is full, and acknowledges a message when every row that was
    made of it is stored. Messages that were read but not stored when the process ends are delivered again after the
    subscription's acknowledgement deadline.
    """

    _current: "ReliableReader | None" = None

    def __init__(self, messages_per_read: int = MESSAGES_PER_READ, acknowledge_read: bool = False) -> None:
        """With `acknowledge_read` a message is acknowledged as it is read, for a job that stores no rows."""
        self._messages_per_read = messages_per_read
        self._acknowledge_read = acknowledge_read
        self._lock = threading.Lock()
        self._ack_ids: dict[str, str] = {}  # message id -> ack id of its latest delivery
        self._published_at: dict[str, datetime] = {}  # of the messages in hand
        self._drained_at = BEGINNING  # every message published before it was read
        self._uncertain_until = 0.0  # monotonic; until then messages may be delivered to a pull without an answer
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
        received, drained_at = self._pull()
        if self._acknowledge_read:
            self._acknowledge([one.ack_id for one in received])
        else:
            with self._lock:
                self._ack_ids |= {one.message.message_id: one.ack_id for one in received}
                self._published_at |= {one.message.message_id: _utc(one.message.publish_time) for one in received}
                self._drained_at = max(self._drained_at, drained_at)
        if not received:
            time.sleep(IDLE_SECONDS)
        elements = []
        for one in received:
            message = PubsubMessage._from_message(one.message)
            text = message.attributes.get(timestamp_attribute) if timestamp_attribute else None
            moment = Timestamp.from_rfc3339(text) if text else Timestamp.from_utc_datetime(one.message.publish_time)
            elements.append((moment, message))
        return elements

    def watermark(self) -> Watermark:
        """Every message that Pub/Sub took before its `complete_until` is stored."""
        with self._lock:
            now = datetime.now(UTC)
            in_hand, drained_at = len(self._published_at), self._drained_at
            oldest = min(self._published_at.values(), default=drained_at)
        if oldest < drained_at:
            return Watermark(
                complete_until=oldest, at=now, held_by=f"{in_hand} messages that the job has not stored yet"
            )
        unread = f"messages that the job has not read since {drained_at:%H:%M:%S}"
        return Watermark(complete_until=drained_at, at=now, held_by=unread)

    def _pull(self) -> tuple[list[Any], datetime]:
        """Messages, and the moment before which none is left: the beginning of a pull that found less than it could take.

        The emulator gives a pull all that it has, up to `TRICKLE_MESSAGES`. A pull without an answer may have been given
        messages, which come again after the acknowledgement deadline.
        """
        import grpc
        from google.pubsub_v1.types import PullRequest

        received: list[Any] = []
        # The client warns of `return_immediately`; the call below it does not.
        request = PullRequest(subscription=self._subscription, max_messages=MESSAGES_PER_CALL, return_immediately=True)
        while len(received) < self._messages_per_read:
            begin = datetime.now(UTC)
            try:
                answer = self._client.transport.pull(request, timeout=PULL_TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                    raise
                self._uncertain_until = time.monotonic() + ACK_DEADLINE_SECONDS
                break
            received += answer.received_messages
            if len(answer.received_messages) < TRICKLE_MESSAGES:
                return received, BEGINNING if time.monotonic() < self._uncertain_until else begin
        return received, BEGINNING

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
            for message in messages:
                self._published_at.pop(message, None)
            self.stored += len(messages)
        self._acknowledge(ack_ids)

    def _acknowledge(self, ack_ids: list[str]) -> None:
        for begin in range(0, len(ack_ids), MESSAGES_PER_CALL):
            self._client.acknowledge(
                subscription=self._subscription, ack_ids=ack_ids[begin : begin + MESSAGES_PER_CALL]
            )


def _utc(moment: Any) -> datetime:
    """Pub/Sub's time, which has nanoseconds, as an ordinary one."""
    return datetime.fromtimestamp(moment.timestamp(), UTC)


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
        _reader()._count(name, -counts.stored)
