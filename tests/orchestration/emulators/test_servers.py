"""The streaming job against Google's Pub/Sub emulator and a BigQuery emulator."""

import hashlib
import inspect
import itertools
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.transform_evaluator import _PubSubReadEvaluator
from google.api_core import exceptions

from beam_jobs import bigquery, export_trajectories, ingest_events, warehouse
from beam_jobs.bigquery import Dataset
from beam_jobs.export_trajectories import export
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import IngestCounts
from contracts.errors import InputError, OperationError
from contracts.event_segments import segment_name
from contracts.records import RewardEvent, event_decoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, TABLES
from contracts.windows import TrainingWindow, WindowSettings
from orchestration.emulators import servers
from orchestration.processes import Child
from tests.simulated import events, rows

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))
SETTINGS = WindowSettings(reward_window_seconds=2)
PROJECT = "local-test"
_names = itertools.count()


class Queue(NamedTuple):
    """A topic and its subscription."""

    topic: str
    subscription: str


@pytest.fixture
def queue(pubsub_host: str) -> Iterator[Queue]:
    from google.cloud import pubsub_v1

    name = f"events-{next(_names)}"
    made = Queue(f"projects/{PROJECT}/topics/{name}", f"projects/{PROJECT}/subscriptions/{name}")
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=made.topic)
        subscriber.create_subscription(name=made.subscription, topic=made.topic, ack_deadline_seconds=30)
        yield made
        subscriber.delete_subscription(subscription=made.subscription)
        publisher.delete_topic(topic=made.topic)


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


def stream(queue: Queue, destination: Dataset | Path, done: Callable[[servers.ReliableReader], bool]) -> None:
    """Runs the streaming job on the local runner until `done`."""
    with servers.ReliableReader() as reader:
        options = PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"])
        pipeline = beam.Pipeline(options=options)
        outputs = ingest_events.build_streaming_pipeline(pipeline, queue.subscription, destination)
        reader.acknowledge_stored(outputs)
        result = pipeline.run()
        try:
            wait_until(lambda: done(reader))
        finally:
            result.cancel()


class Faults(NamedTuple):
    """What was sent."""

    payloads: list[bytes]
    decisions: int
    rewards: int
    duplicates: int
    malformed: int
    late: int


def with_faults(count: int, seed: int) -> Faults:
    """1% of the events come twice, 1% more are malformed, 2% of the rewards come 10 seconds later."""
    rng = random.Random(seed)
    originals, late = [], 0
    for line in events(count):
        event = event_decoder.decode(line)
        if isinstance(event, RewardEvent) and rng.random() < 0.02:
            late += 1
            line = msgspec.json.encode(
                msgspec.structs.replace(event, occurred_at=event.occurred_at + timedelta(seconds=10))
            )
        originals.append(line)
    rewards = len(originals) - count
    again = rng.sample(originals, len(originals) // 100)
    malformed = [line[: rng.randrange(1, len(line))] for line in rng.sample(originals, len(originals) // 100)]
    payloads = originals + again + malformed
    rng.shuffle(payloads)
    return Faults(payloads, count, rewards, len(again), len(malformed), late)


def test_fifty_thousand_events_are_all_accounted_for(queue: Queue, dataset: Dataset, tmp_path: Path) -> None:
    sent = with_faults(25_200, seed=1)
    assert len(sent.payloads) >= 50_000
    publish(queue.topic, sent.payloads)
    stream(queue, dataset, lambda reader: reader.stored >= len(sent.payloads))
    stored = {table.name: rows(dataset, table) for table in TABLES}
    keys = {table.name: {tuple(row[name] for name in table.key) for row in stored[table.name]} for table in TABLES}
    # What a read sees once, and how often it was there more than once.
    assert len(keys["decisions"]) == sent.decisions
    assert len(keys["rewards"]) == sent.rewards
    assert len(keys["dead_letters"]) == len(stored["dead_letters"]) == sent.malformed
    duplicates = sum(len(stored[name]) - len(keys[name]) for name in ("decisions", "rewards"))
    assert duplicates == sent.duplicates
    assert sent.decisions + sent.rewards + duplicates + sent.malformed == len(sent.payloads)
    letters = sorted(row["payload"] for row in stored["dead_letters"])
    bad = sorted(payload for payload in sent.payloads if not readable(payload))
    assert letters == bad
    # The export tells the late ones apart, over all windows in which rewards occurred.
    manifest = export(dataset, tmp_path / "windows", WINDOW, SETTINGS, max_records_per_file=4_000)
    after = export(dataset, tmp_path / "windows", TrainingWindow(WINDOW.end, START + timedelta(seconds=30)), SETTINGS)
    assert manifest.counts.decisions == sent.decisions
    assert manifest.counts.rewards == sent.rewards - sent.late
    assert manifest.counts.late_rewards + after.counts.late_rewards == sent.late
    in_both = (manifest.counts, after.counts)
    assert sum(counts.duplicate_decisions + counts.duplicate_rewards for counts in in_both) == sent.duplicates
    assert sum(counts.orphan_rewards + counts.repeated_rewards for counts in in_both) == 0
    # The same events through the embedded backend: the same bytes.
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / f"{segment_name(START, 'test')}.jsonl").write_bytes(b"\n".join(sent.payloads) + b"\n")
    counts = ingest_events.ingest(folder, tmp_path / "warehouse")
    assert counts.dead_letters == sent.malformed
    export(tmp_path / "warehouse", tmp_path / "embedded", WINDOW, SETTINGS, max_records_per_file=4_000)
    assert digests(tmp_path / "windows" / WINDOW.folder) == digests(tmp_path / "embedded" / WINDOW.folder)


def readable(payload: bytes) -> bool:
    try:
        event_decoder.decode(payload)
    except msgspec.DecodeError:
        return False
    return True


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_nothing_is_acknowledged_before_it_is_stored(queue: Queue, tmp_path: Path) -> None:
    """A job that dies with messages in hand: the next one gets them all."""
    payloads = events(300)
    publish(queue.topic, payloads)
    warehouse.create(tmp_path)
    with servers.ReliableReader(messages_a_read=200) as reader:
        options = PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"])
        pipeline = beam.Pipeline(options=options)
        outputs = ingest_events.build_streaming_pipeline(pipeline, queue.subscription, tmp_path)
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
    stream(queue, tmp_path, lambda reader: reader.stored >= left)
    end = START + timedelta(days=1)
    found = {table.name: warehouse.read(tmp_path, table, START, end).rows.num_rows for table in TABLES}
    assert found == {"decisions": 300, "rewards": len(payloads) - 300, "dead_letters": 0}


def test_large_messages_side_by_side(queue: Queue, tmp_path: Path) -> None:
    payloads = [b"?" * 4_000_000, b"!" * 4_000_000, *events(10)]
    publish(queue.topic, payloads)
    warehouse.create(tmp_path)
    stream(queue, tmp_path, lambda reader: reader.stored >= len(payloads))
    letters = warehouse.read_all(
        tmp_path, DEAD_LETTERS, datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
    )
    assert sorted(payload[:1] for payload in letters["payload"].to_pylist()) == [b"!", b"?"]


def test_a_job_that_fails_ends_and_says_so(
    queue: Queue, dataset: Dataset, pubsub_host: str, bigquery_endpoint: servers.BigQueryEndpoint, tmp_path: Path
) -> None:
    """Whoever started it sees that; otherwise it would wait for events that nobody stores any more."""
    command = [sys.executable, "-m", "orchestration.emulators.ingest", "--events", f"pubsub:{queue.subscription}"]
    command += ["--warehouse", f"bigquery:{dataset.project}.{dataset.name}", "--status", str(tmp_path / "status")]
    command += ["--pubsub", pubsub_host, "--bigquery-rest", bigquery_endpoint.rest]
    command += ["--bigquery-grpc", bigquery_endpoint.grpc]
    with Child("ingest", command, tmp_path / "log") as child:
        wait_until(lambda: (tmp_path / "status").is_file())
        client = bigquery.client(PROJECT)
        client.delete_table(dataset.table(REWARDS))
        client.close()
        publish(queue.topic, events(10))
        wait_until(lambda: child.exit_code() is not None)
        with pytest.raises(OperationError, match=r"ingest ended with exit code 1: .*StoreEvents/Write_rewards"):
            child.check()


def test_the_job_as_it_runs_in_production_on_the_local_runner(queue: Queue, dataset: Dataset) -> None:
    """Beam's own reader, messages one by one, event times from an attribute."""
    from google.cloud import pubsub_v1

    payloads = [*events(10), b"?"]
    with pubsub_v1.PublisherClient() as publisher:
        for payload in payloads:
            publisher.publish(queue.topic, payload, event_time="2026-01-01T00:00:00Z").result()
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
    ingest_events.build_streaming_pipeline(
        pipeline, queue.subscription, dataset, timestamp_attribute="event_time", dead_letter_topic=queue.topic
    )
    result = pipeline.run()
    try:
        # The dead letter is published to the same topic, and so comes again and again.
        wait_until(lambda: len(rows(dataset, DEAD_LETTERS)) >= 2)
    finally:
        publish(queue.topic, [b"!"])  # lets the reader's pull end
        result.cancel()
    assert len({row["decision_id"] for row in rows(dataset, DECISIONS)}) == 10
    assert len(rows(dataset, DECISIONS)) + len(rows(dataset, REWARDS)) == len(payloads) - 1
    assert {row["payload"] for row in rows(dataset, DEAD_LETTERS)} <= {b"?", b"!"}


def test_wrong_destinations_and_sources_are_one_line(
    queue: Queue, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from google.cloud import bigquery as api

    client = bigquery.client(PROJECT)
    client.create_dataset("odd")
    fields = [
        field if field.name != "propensity" else api.SchemaField("propensity", "STRING")
        for field in bigquery.schema(DECISIONS)
    ]
    client.create_table(api.Table(f"{PROJECT}.odd.decisions", schema=fields))
    client.close()
    events_flag = f"pubsub:{queue.subscription}"
    for flags, message in [
        (
            ["--events", "pubsub:projects/local-test/subscriptions/nothing", "--warehouse", "bigquery:local-test.x"],
            "--events: there is no subscription projects/local-test/subscriptions/nothing",
        ),
        (
            ["--events", "pubsub:nothing", "--warehouse", "w"],
            "--events: pubsub:projects/PROJECT/subscriptions/NAME expected",
        ),
        (
            ["--events", events_flag, "--warehouse", "bigquery:local-test.nothing"],
            "there is no data set local-test.nothing",
        ),
        (
            ["--events", events_flag, "--warehouse", "bigquery:local-test.odd"],
            "local-test.odd.decisions: column 'propensity' must be FLOAT64 REQUIRED, got STRING NULLABLE",
        ),
        (
            ["--events", events_flag, "--warehouse", "w", "--dead-letter-topic", "projects/local-test/topics/nothing"],
            "--dead-letter-topic: there is no topic",
        ),
        (
            ["--events", events_flag, "--warehouse", "bigquery:local-test.x", "--write-method", "file_loads"],
            "--write-method: file_loads is for batch",
        ),
        (["--events", ".", "--warehouse", "w", "--write-method", "file_loads"], "--write-method: is for --warehouse"),
    ]:
        assert ingest_events.main(flags) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("ingest_events: error: ")
        assert message in line
    window = ["--start", "2026-01-01T00:00:00Z", "--end", "2026-01-02T00:00:00Z", "--windows", str(tmp_path)]
    assert export_trajectories.main(["--warehouse", "bigquery:local-test.nothing", *window]) == 2
    assert "there is no table local-test.nothing.decisions" in capsys.readouterr().err


class ForbiddingClient:
    """As BigQuery answers somebody without rights; the emulator knows none."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise exceptions.Forbidden("Access Denied: User does not have bigquery.tables.create permission")

        return refuse


def test_no_permission_is_one_line(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bigquery, "client", lambda project: ForbiddingClient())
    flags = ["--events", f"pubsub:{queue.subscription}", "--warehouse", "bigquery:local-test.d"]
    assert ingest_events.main(flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("ingest_events: error: --warehouse: no permission for data set local-test.d: Access Denied")


def test_beam_still_is_what_the_reader_replaces() -> None:
    """`ReliableReader` stands in for this method: whoever updates Beam compares the two, then updates the digest."""
    source = inspect.getsource(_PubSubReadEvaluator._read_from_pubsub)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == "88f18895e47e8a7f"
    assert "self._read_from_pubsub(self.source.timestamp_attribute)" in inspect.getsource(_PubSubReadEvaluator)


def test_missing_programs_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"run `python -m orchestration\.emulators install`"),
        servers.bigquery_emulator(tmp_path, tmp_path),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="part of gcloud, which is not on PATH: install the Google Cloud CLI"):
        servers.pubsub_program()


def test_counts_add_up_in_any_order() -> None:
    assert IngestCounts(events=1) + IngestCounts(decisions=1) == IngestCounts(events=1, decisions=1)
