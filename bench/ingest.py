"""`ingest_batch`, `ingest_streaming`, `ingest_streaming_embedded`: events a second, end to end; `ingest_memory`.

Batch: a backlog in the event log into the embedded warehouse; reference: the same one record at a time, with Beam's
`ReadFromText` and `WriteToParquet`.

Streaming: from Google's Pub/Sub emulator, into the BigQuery emulator or into the embedded warehouse; reference: the same
job with Beam's own local reader, as it comes.

Memory: of a process that runs the streaming job alone, under steady load: `python -m bench.ingest MINUTES`.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import bigquery, ingest_events, warehouse
from beam_jobs.generate_movielens import GeneratorSettings, ShardEncoder, generate, simulate_shard
from beam_jobs.movielens import MovieLens
from beam_jobs.options import LOCAL_RUNNER, LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import IngestCounts
from beam_jobs.places import Dataset
from beam_jobs.ratings import load_ratings
from beam_jobs.tables import arrow_schema
from beam_jobs.warehouses import BigQueryWarehouse, EmbeddedWarehouse, Warehouse
from bench.measure import Result, compare, megabytes, seconds
from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError
from contracts.records import Decision, event_decoder
from contracts.schemas import DECISIONS, REWARDS
from orchestration.emulators import servers
from orchestration.emulators.redirect import redirect
from orchestration.emulators.reliable_reader import ReliableReader

START = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = "local-bench"
BATCH_DECISIONS, BATCH_REFERENCE_DECISIONS = 100_000, 5_000
STREAM_EVENTS, STREAM_REFERENCE_EVENTS = 15_000, 1_500
TIMEOUT_SECONDS = 120
LOAD_MINUTES, LOAD_EVENTS_PER_SECOND = 10.0, 500


def _viewers() -> MovieLens:
    return MovieLens.build(load_ratings("sample"), num_actions=100, rank=20, reward_noise=0.5, seed=0)


def parse_line(line: str) -> Iterator[Any]:
    """One event, on the output of its kind."""
    event = event_decoder.decode(line)
    yield beam.pvalue.TaggedOutput(
        "decisions" if isinstance(event, Decision) else "rewards", msgspec.structs.asdict(event)
    )


def ingest_record_by_record(events: Path, folder: Path) -> None:
    """The reference of `ingest_batch`."""
    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        parsed = (
            pipeline
            | beam.io.ReadFromText(str(events / "*.jsonl"))
            | beam.FlatMap(parse_line).with_outputs("decisions", "rewards")
        )
        for table in (DECISIONS, REWARDS):
            parsed[table.name] | f"Write_{table.name}" >> beam.io.WriteToParquet(
                str(folder / table.name / "part"), arrow_schema(table), num_shards=1
            )


def batch() -> Result:
    """A backlog of files."""
    viewers = _viewers()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for decisions in (BATCH_DECISIONS, BATCH_REFERENCE_DECISIONS):
            generate(viewers, GeneratorSettings(num_decisions=decisions, start=START), root / f"events-{decisions}")
        numbers = itertools.count()

        def by_record() -> float:
            work = lambda: ingest_record_by_record(  # noqa: E731
                root / f"events-{BATCH_REFERENCE_DECISIONS}", root / f"reference-{next(numbers)}"
            )
            return BATCH_REFERENCE_DECISIONS * 1.95 / seconds(work)  # 5% of the decisions have no reward

        def by_segment() -> float:
            began = time.perf_counter()
            counts = ingest_events.ingest(
                root / f"events-{BATCH_DECISIONS}", EmbeddedWarehouse(root / f"ours-{next(numbers)}")
            )
            return counts.events / (time.perf_counter() - began)

        return compare(by_record, by_segment, "events/s")


_stored = 0
_lock = threading.Lock()


def count_stored(element: tuple[str, IngestCounts]) -> None:
    """Adds up what is in the tables, in this process."""
    global _stored
    counts = element[1]
    with _lock:
        _stored += counts.decisions + counts.rewards + counts.dead_letters


def _stream(payloads: list[bytes], destination: Any, number: int, reliable: bool) -> float:
    """Publishes, then runs the job until all of it is stored: events a second."""
    from google.cloud import pubsub_v1

    global _stored
    topic, subscription = (
        f"projects/{PROJECT}/topics/events-{number}",
        f"projects/{PROJECT}/subscriptions/events-{number}",
    )
    settings = pubsub_v1.types.BatchSettings(max_messages=500)
    with pubsub_v1.PublisherClient(batch_settings=settings) as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic, ack_deadline_seconds=60)
        for sent in [publisher.publish(topic, payload) for payload in payloads]:
            sent.result()
        _stored = 0
        with contextlib.ExitStack() as stack:
            pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
            reader = stack.enter_context(ReliableReader()) if reliable else None
            outputs = ingest_events.build_streaming_pipeline(pipeline, subscription, destination.sink(streaming=True))
            if reader:
                reader.acknowledge_stored(outputs)
            outputs.stored | "CountStored" >> beam.Map(count_stored)
            began = time.perf_counter()
            result = pipeline.run()
            while _stored < len(payloads) and time.perf_counter() - began < TIMEOUT_SECONDS:
                time.sleep(0.01)
            took = time.perf_counter() - began
            assert _stored >= len(payloads), f"{_stored} of {len(payloads)} stored in {TIMEOUT_SECONDS} s"
            publisher.publish(topic, b"{}").result()  # the reference's pull ends with a message
            result.cancel()
        return len(payloads) / took


def _compare_streams(destinations: Iterator[Any]) -> Result:
    viewers = _viewers()
    settings = GeneratorSettings(num_decisions=STREAM_EVENTS, start=START, decisions_per_shard=STREAM_EVENTS)
    chunks = ShardEncoder(viewers).lines(simulate_shard(viewers, settings, 0))
    payloads = [line for chunk in chunks for line in chunk.splitlines()][:STREAM_EVENTS]
    numbers = itertools.count()
    return compare(
        lambda: _stream(payloads[:STREAM_REFERENCE_EVENTS], next(destinations), next(numbers), reliable=False),
        lambda: _stream(payloads, next(destinations), next(numbers), reliable=True),
        "events/s",
    )


def streaming_embedded() -> Result:
    """From Pub/Sub's emulator into the embedded warehouse."""
    with tempfile.TemporaryDirectory() as name, servers.pubsub_emulator(Path(name)) as host:

        def folders() -> Iterator[Warehouse]:
            for number in itertools.count():
                warehouse.create(Path(name) / f"warehouse-{number}")
                yield EmbeddedWarehouse(Path(name) / f"warehouse-{number}")

        with redirect(pubsub=host):
            return _compare_streams(folders())


def streaming_bigquery() -> Result:
    """From Pub/Sub's emulator into BigQuery's."""
    servers.install()
    with (
        tempfile.TemporaryDirectory() as name,
        servers.pubsub_emulator(Path(name)) as host,
        servers.bigquery_emulator(Path(name)) as endpoint,
        redirect(host, endpoint),
    ):

        def datasets() -> Iterator[Warehouse]:
            for number in itertools.count():
                client = bigquery.client(PROJECT)
                client.create_dataset(f"d{number}")
                client.close()
                destination = BigQueryWarehouse(Dataset(PROJECT, f"d{number}"))
                destination.create()
                yield destination

        return _compare_streams(datasets())


def memory(minutes: float = LOAD_MINUTES) -> dict[str, Any]:
    """What the streaming job holds after a tenth of the time and at its end, at 500 events a second, into Parquet."""
    command = [sys.executable, "-m", "bench.ingest", str(minutes)]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    measured: dict[str, Any] = json.loads(child.stdout)
    return measured


def _steady_load(minutes: float) -> dict[str, Any]:
    """Runs in a process of its own. `megabytes` has what it held after each tenth."""
    from google.cloud import pubsub_v1

    settings = GeneratorSettings(num_decisions=5_000, start=START, decisions_per_shard=5_000)
    chunks = ShardEncoder(_viewers()).lines(simulate_shard(_viewers(), settings, 0))
    payloads = itertools.cycle([line for chunk in chunks for line in chunk.splitlines()])
    topic, subscription = f"projects/{PROJECT}/topics/load", f"projects/{PROJECT}/subscriptions/load"
    held: list[float] = []
    published = 0
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        host = stack.enter_context(servers.pubsub_emulator(Path(name)))
        stack.enter_context(redirect(pubsub=host))
        publisher = stack.enter_context(
            pubsub_v1.PublisherClient(batch_settings=pubsub_v1.types.BatchSettings(max_messages=500))
        )
        subscriber = stack.enter_context(pubsub_v1.SubscriberClient())
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic, ack_deadline_seconds=60)
        reader = stack.enter_context(ReliableReader())
        warehouse.create(Path(name) / "warehouse")
        pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
        outputs = ingest_events.build_streaming_pipeline(
            pipeline, subscription, EmbeddedWarehouse(Path(name) / "warehouse").sink(streaming=True)
        )
        reader.acknowledge_stored(outputs)
        result = pipeline.run()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < minutes * 60:
            if passed >= minutes * 6 * (len(held) + 1):
                held.append(round(megabytes("VmRSS"), 1))
            due = int(passed * LOAD_EVENTS_PER_SECOND) - published
            for sent in [publisher.publish(topic, payload) for payload in itertools.islice(payloads, due)]:
                sent.result()
            published += due
            time.sleep(0.2)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while reader.stored < published and time.monotonic() < deadline:
            time.sleep(0.1)
        assert reader.stored >= published, f"{reader.stored} of {published} stored"
        held.append(round(megabytes("VmRSS"), 1))
        result.cancel()
    ratio = held[0] / held[-1]
    return {
        **Result(reference=held[0], ours=held[-1], unit="MB", ratio=ratio, ratio_min=ratio, ratio_max=ratio, runs=1),
        "megabytes": held,
        "minutes": minutes,
        "events": published,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the memory of this process under steady load, and prints the result as JSON; returns the exit code."""
    return run_main("bench.ingest", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog="python -m bench.ingest", description="memory of the streaming job under steady load")
    parser.add_argument("minutes", type=float, help="how long to publish 500 events per second")
    minutes = parser.parse_args(argv).minutes
    if not minutes > 0:
        raise InputError(f"minutes: above 0, got {minutes}")
    print(json.dumps(_steady_load(minutes)))


if __name__ == "__main__":
    sys.exit(main())
