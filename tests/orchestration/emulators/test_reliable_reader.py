"""A message is acknowledged when its rows are stored, and not before, on the Pub/Sub emulator."""

import hashlib
import inspect
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.transform_evaluator import _PubSubReadEvaluator

from beam_jobs import ingest_events, warehouse
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.schemas import DEAD_LETTERS, TABLES
from contracts.watermarks import Watermark
from orchestration.emulators.reliable_reader import ReliableReader
from tests.simulated import events
from tests.streaming_jobs import Queue, publish, run_until

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_nothing_is_acknowledged_before_it_is_stored(queue: Queue, tmp_path: Path) -> None:
    """A job that dies with messages in hand: the next one gets them all."""
    payloads = events(300)
    publish(queue.topic, payloads)
    warehouse.create(tmp_path)
    with ReliableReader(messages_per_read=200) as reader:
        options = PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"])
        pipeline = beam.Pipeline(options=options)
        outputs = ingest_events.build_streaming_pipeline(
            pipeline, queue.subscription, EmbeddedWarehouse(tmp_path).sink(streaming=True)
        )
        reader.acknowledge_stored(outputs)
        shutil.rmtree(tmp_path / "rewards")
        (tmp_path / "rewards").write_text("in the way: rewards cannot be written")
        with pytest.raises(RuntimeError, match="StoreEvents/Write_rewards"):
            pipeline.run().wait_until_finish()
        assert reader._ack_ids, "nothing in hand"
        assert reader.stored < len(payloads)
    from google.cloud import pubsub_v1

    # What the dead job held comes again after the subscription's deadline; here it is given up at once.
    with pubsub_v1.SubscriberClient() as subscriber:
        subscriber.modify_ack_deadline(
            subscription=queue.subscription, ack_ids=list(reader._ack_ids.values()), ack_deadline_seconds=0
        )
    (tmp_path / "rewards").unlink()
    warehouse.create(tmp_path)
    left = len(payloads) - reader.stored
    run_until(queue, EmbeddedWarehouse(tmp_path), lambda reader: reader.stored >= left)
    end = START + timedelta(days=1)
    found = {table.name: warehouse.read(tmp_path, table, START, end).rows.num_rows for table in TABLES}
    assert found == {"decisions": 300, "rewards": len(payloads) - 300, "statuses": 0, "dead_letters": 0}


def test_the_watermark_passes_a_message_when_it_is_stored_and_an_idle_subscription(
    queue: Queue, tmp_path: Path
) -> None:
    warehouse.create(tmp_path)
    begin = datetime.now(UTC)
    seen: list[Watermark] = []

    def stored(reader: ReliableReader) -> bool:
        seen.append(reader.watermark())
        if reader.stored == 0 and not published and seen[-1].complete_until > begin:
            published.append(datetime.now(UTC))  # the subscription was seen to be empty
            publish(queue.topic, events(300))
        return bool(reader.stored) and seen[-1].complete_until > published[0] + timedelta(seconds=1)

    published: list[datetime] = []
    run_until(queue, EmbeddedWarehouse(tmp_path), stored)
    assert seen[0].complete_until <= begin
    assert "the job has not read" in seen[0].held_by
    decisions = warehouse.read(tmp_path, TABLES[0], START, START + timedelta(days=1)).rows
    assert decisions.num_rows == 300  # all of them, once it has passed their publication
    assert [mark.complete_until for mark in seen] == sorted(mark.complete_until for mark in seen)


def test_large_messages_side_by_side(queue: Queue, tmp_path: Path) -> None:
    payloads = [b"?" * 4_000_000, b"!" * 4_000_000, *events(10)]
    publish(queue.topic, payloads)
    warehouse.create(tmp_path)
    run_until(queue, EmbeddedWarehouse(tmp_path), lambda reader: reader.stored >= len(payloads))
    letters = warehouse.read_all(
        tmp_path, DEAD_LETTERS, datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
    )
    assert sorted(payload[:1] for payload in letters["payload"].to_pylist()) == [b"!", b"?"]


def test_beam_still_is_what_the_reader_replaces() -> None:
    """`ReliableReader` replaces this method. When an update of Beam changes it: compare the two, then update the digest."""
    source = inspect.getsource(_PubSubReadEvaluator._read_from_pubsub)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == "88f18895e47e8a7f"
    assert "self._read_from_pubsub(self.source.timestamp_attribute)" in inspect.getsource(_PubSubReadEvaluator)
