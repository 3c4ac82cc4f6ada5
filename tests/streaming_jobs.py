"""Queues on the Pub/Sub emulator, and `ingest_events` run as a streaming job from one."""

import time
from collections.abc import Callable
from typing import NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import ingest_events
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.warehouses import Warehouse
from orchestration.emulators.reliable_reader import ReliableReader

PROJECT = "local-test"


class Queue(NamedTuple):
    """A topic and its subscription."""

    topic: str
    subscription: str


def publish(topic: str, payloads: list[bytes]) -> None:
    from google.cloud import pubsub_v1

    settings = pubsub_v1.types.BatchSettings(max_messages=500, max_latency=0.05)
    with pubsub_v1.PublisherClient(batch_settings=settings) as publisher:
        for sent in [publisher.publish(topic, payload) for payload in payloads]:
            sent.result(timeout=60)


def wait_until(done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not done in time"
        time.sleep(0.1)


def run_until(queue: Queue, destination: Warehouse, done: Callable[[ReliableReader], bool]) -> None:
    """Runs the streaming job on the local runner until `done`."""
    with ReliableReader() as reader:
        options = PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"])
        pipeline = beam.Pipeline(options=options)
        outputs = ingest_events.build_streaming_pipeline(pipeline, queue.subscription, destination.sink(streaming=True))
        reader.acknowledge_stored(outputs)
        result = pipeline.run()
        try:
            wait_until(lambda: done(reader))
        finally:
            result.cancel()
