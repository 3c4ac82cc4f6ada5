"""`ingest_events` against the Pub/Sub and BigQuery emulators: every event is accounted for, errors are one line."""

import hashlib
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core import exceptions

from beam_jobs import bigquery, export_trajectories, ingest_events
from beam_jobs.export_trajectories import export
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.places import Dataset
from beam_jobs.warehouses import BigQueryWarehouse, EmbeddedWarehouse
from contracts.event_segments import segment_name
from contracts.records import RewardEvent, event_decoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, TABLES
from contracts.windows import TrainingWindow, WindowSettings
from tests.simulated import events, rows
from tests.streaming_jobs import PROJECT, Queue, publish, run_until, wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))
SETTINGS = WindowSettings(reward_window_seconds=2)


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
    run_until(queue, BigQueryWarehouse(dataset), lambda reader: reader.stored >= len(sent.payloads))
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
    manifest = export(BigQueryWarehouse(dataset), tmp_path / "windows", WINDOW, SETTINGS, max_records_per_file=4_000)
    after = export(
        BigQueryWarehouse(dataset),
        tmp_path / "windows",
        TrainingWindow(WINDOW.end, START + timedelta(seconds=30)),
        SETTINGS,
    )
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
    counts = ingest_events.ingest(folder, EmbeddedWarehouse(tmp_path / "warehouse"))
    assert counts.dead_letters == sent.malformed
    export(
        EmbeddedWarehouse(tmp_path / "warehouse"), tmp_path / "embedded", WINDOW, SETTINGS, max_records_per_file=4_000
    )
    assert digests(tmp_path / "windows" / WINDOW.folder) == digests(tmp_path / "embedded" / WINDOW.folder)


def readable(payload: bytes) -> bool:
    try:
        event_decoder.decode(payload)
    except msgspec.DecodeError:
        return False
    return True


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_job_as_it_runs_in_production_on_the_local_runner(queue: Queue, dataset: Dataset) -> None:
    """Beam's own reader, messages one by one, event times from an attribute."""
    from google.cloud import pubsub_v1

    payloads = [*events(10), b"?"]
    with pubsub_v1.PublisherClient() as publisher:
        for payload in payloads:
            publisher.publish(queue.topic, payload, event_time="2026-01-01T00:00:00Z").result()
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
    ingest_events.build_streaming_pipeline(
        pipeline,
        queue.subscription,
        BigQueryWarehouse(dataset).sink(streaming=True),
        timestamp_attribute="event_time",
        dead_letter_topic=queue.topic,
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
            "--events: subscription projects/local-test/subscriptions/nothing does not exist",
        ),
        (
            ["--events", "pubsub:nothing", "--warehouse", "w"],
            "--events: pubsub:projects/PROJECT/subscriptions/NAME expected",
        ),
        (
            ["--events", events_flag, "--warehouse", "bigquery:local-test.nothing"],
            "dataset local-test.nothing does not exist",
        ),
        (
            ["--events", events_flag, "--warehouse", "bigquery:local-test.odd"],
            "local-test.odd.decisions: column 'propensity' must be FLOAT64 REQUIRED, got STRING NULLABLE",
        ),
        (
            ["--events", events_flag, "--warehouse", "w", "--dead-letter-topic", "projects/local-test/topics/nothing"],
            "--dead-letter-topic: topic projects/local-test/topics/nothing does not exist",
        ),
        (
            ["--events", events_flag, "--warehouse", "bigquery:local-test.x", "--write-method", "file_loads"],
            "--write-method: file_loads requires a batch job",
        ),
        (["--events", ".", "--warehouse", "w", "--write-method", "file_loads"], "--write-method: requires --warehouse"),
    ]:
        assert ingest_events.main(flags) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("beam_jobs.ingest_events: error: ")
        assert message in line
    window = ["--start", "2026-01-01T00:00:00Z", "--end", "2026-01-02T00:00:00Z", "--windows", str(tmp_path)]
    assert export_trajectories.main(["--warehouse", "bigquery:local-test.nothing", *window]) == 2
    assert "table local-test.nothing.decisions does not exist" in capsys.readouterr().err


class ForbiddingClient:
    """Answers as BigQuery does without permission; the emulator has no permissions."""

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
    assert line.startswith(
        "beam_jobs.ingest_events: error: --warehouse: no permission for dataset local-test.d: Access Denied"
    )
