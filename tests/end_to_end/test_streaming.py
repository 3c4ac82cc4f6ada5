"""What time does to the streaming job, with the watermark moved on purpose (TestStream), up to the exported window."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.window import TimestampedValue

from beam_jobs import warehouse
from beam_jobs.closing import closed_windows
from beam_jobs.export_trajectories import export
from beam_jobs.ingest_events import StoreEvents
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import IngestCounts, ParseEvents, add_counts
from beam_jobs.pubsub import BatchMessages, dead_letter_messages
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.records import Decision, RewardEvent, encoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, STATUSES, TABLES
from contracts.windows import TrainingWindow, WindowSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=10))
SETTINGS = WindowSettings(reward_window_seconds=2, settle_seconds=1, default_reward=-1.0, holdback_share=0)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def decision_id(number: int) -> str:
    return f"019b76da-a800-7000-8000-{number:012x}"


def decision(number: int, seconds: float) -> tuple[float, bytes]:
    event = Decision(
        decision_id=decision_id(number),
        decided_at=at(seconds),
        policy_version="v1",
        observation=[float(number)],
        action=0,
        propensity=1.0,
    )
    return seconds, encoder.encode(event)


def reward(number: int, seconds: float, value: float = 1.0) -> tuple[float, bytes]:
    return seconds, encoder.encode(RewardEvent(decision_id=decision_id(number), occurred_at=at(seconds), reward=value))


COLLECTED: list[tuple[str, IngestCounts]] = []


def collect(element: tuple[str, IngestCounts]) -> None:
    """Keeps what goes by, in this process."""
    COLLECTED.append(element)


def stream(folder: Path, steps: Sequence[float | list[tuple[float, bytes]]]) -> IngestCounts:
    """Runs the job's transforms over a stream: a list is a bundle of (event time, payload), a number moves the watermark."""
    warehouse.create(folder)
    source = test_stream.TestStream()
    number = 0
    for step in steps:
        if isinstance(step, list):
            messages = []
            for seconds, payload in step:
                message = PubsubMessage(payload, {}, message_id=str(number), publish_time=at(100))
                messages.append(TimestampedValue(message, at(seconds).timestamp()))
                number += 1
            source.add_elements(messages)
        else:
            source.advance_watermark_to(at(step).timestamp())
    source.advance_watermark_to_infinity()
    COLLECTED.clear()
    options = PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"])
    with beam.Pipeline(options=options) as pipeline:
        parsed = pipeline | source | BatchMessages() | ParseEvents()
        parsed | StoreEvents(EmbeddedWarehouse(folder).sink(streaming=True)) | beam.Map(collect)
    return add_counts(counts for _, counts in COLLECTED)


def exported(folder: Path, windows: Path) -> tuple[list[tuple[float, float, bool]], dict[str, int]]:
    """(number, reward, defaulted) of each record of the window, and the counts that are not 0."""
    import tensorflow as tf

    from contracts import trajectories

    manifest = export(EmbeddedWarehouse(folder), windows, WINDOW, SETTINGS)
    records = [
        record.numpy()
        for file in manifest.files
        for record in tf.data.TFRecordDataset(str(windows / WINDOW.folder / file.name))
    ]
    found: list[tuple[float, float, bool]] = []
    if records:
        batch = trajectories.decode(records, 1)
        found = list(
            zip(batch.observation[:, 0].tolist(), batch.reward.tolist(), batch.defaulted.tolist(), strict=True)
        )
    counts = manifest.counts
    # No case has a reward in time that occurs in another window than its decision.
    assert counts.rewards_in_time == counts.rewards + counts.repeated_rewards
    names = [name for name in counts.__struct_fields__ if name != "rewards_in_time"]
    return found, {name: getattr(manifest.counts, name) for name in names if getattr(manifest.counts, name)}


@pytest.mark.parametrize(
    ("case", "steps", "records", "counts"),
    [
        (
            "in order",
            [[decision(1, 0)], 0.5, [reward(1, 1)], 5],
            [(1, 1, False)],
            {"decisions": 1, "rewards": 1},
        ),
        (
            "behind the watermark: not dropped, for the event's own time counts",
            [8, [decision(1, 0)], 9, [reward(1, 1)]],
            [(1, 1, False)],
            {"decisions": 1, "rewards": 1},
        ),
        (
            "out of order: the reward comes first",
            [[reward(1, 1)], 3, [decision(1, 0)]],
            [(1, 1, False)],
            {"decisions": 1, "rewards": 1},
        ),
        (
            "duplicate: both delivered again, in another bundle and in the same one",
            [[decision(1, 0), decision(1, 0)], 1, [reward(1, 1)], 4, [reward(1, 1), decision(1, 0)]],
            [(1, 1, False)],
            {"decisions": 1, "rewards": 1, "duplicate_decisions": 2, "duplicate_rewards": 1},
        ),
        (
            "missing: the reward never comes",
            [[decision(1, 0), decision(2, 0.5)], 1, [reward(2, 1)], 20],
            [(1, -1, True), (2, 1, False)],
            {"decisions": 2, "rewards": 1, "defaulted": 1},
        ),
        (
            "late: it occurs after its reward window",
            [[decision(1, 0)], 5, [reward(1, 5)], 20],
            [(1, -1, True)],
            {"decisions": 1, "defaulted": 1, "late_rewards": 1},
        ),
        ("orphan: no such decision", [[reward(7, 1)], 20], [], {"orphan_rewards": 1}),
        (
            "idle: nothing for an hour, then the rest",
            [[decision(1, 0)], 1, 3600, [reward(1, 1)], 7200],
            [(1, 1, False)],
            {"decisions": 1, "rewards": 1},
        ),
        ("nothing at all", [5, 10, 20], [], {}),
    ],
)
def test_what_time_does(
    tmp_path: Path,
    case: str,
    steps: list[Any],
    records: list[tuple[float, float, bool]],
    counts: dict[str, int],
) -> None:
    stored = stream(tmp_path / "warehouse", steps)
    sent = sum(len(step) for step in steps if isinstance(step, list))
    assert stored.decisions + stored.rewards + stored.dead_letters == sent, case
    assert exported(tmp_path / "warehouse", tmp_path / "windows") == (records, counts), case


def test_what_cannot_be_read_does_not_stop_the_stream(tmp_path: Path) -> None:
    counts = stream(tmp_path, [[decision(1, 0), (1.0, b"?"), reward(1, 1)], 5, [(2.0, b"")], [decision(2, 3)]])
    assert counts == IngestCounts(decisions=2, rewards=1, dead_letters=2)
    letters = warehouse.read_all(tmp_path, DEAD_LETTERS, at(0), at(1000))
    assert sorted(row["source"] for row in letters.to_pylist()) == ["1", "3"]  # the messages' ids
    assert set(letters.column("failed_at").to_pylist()) == {at(100)}  # when they were published
    [message] = dead_letter_messages_of(letters, b"?")
    assert (message.data, message.attributes["stage"]) == (b"?", "parse")


def test_an_attribute_of_a_dead_letter_fits_into_a_message(tmp_path: Path) -> None:
    """Pub/Sub refuses a message with an attribute of more than 1,024 bytes: the job would try it again for ever."""
    hostile = '{"kind":"' + "é☃" * 100_000 + '"}'
    stream(tmp_path, [[(1.0, hostile.encode())]])
    letters = warehouse.read_all(tmp_path, DEAD_LETTERS, at(0), at(1000))
    [message] = dead_letter_messages_of(letters, hostile.encode())
    assert all(0 < len(value.encode()) <= 1024 for value in message.attributes.values())
    assert message.attributes["error_message"].startswith("kind: Invalid value 'é☃")


def dead_letter_messages_of(letters: Any, payload: bytes) -> list[PubsubMessage]:
    from beam_jobs.tables import TableRows

    [batch] = letters.combine_chunks().to_batches()
    return [message for message in dead_letter_messages(TableRows("x", batch)) if message.data == payload]


def test_a_redelivered_bundle_has_the_same_files(tmp_path: Path) -> None:
    bundle = [decision(1, 0), decision(2, 1), reward(1, 1)]
    stream(tmp_path, [bundle])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    stream(tmp_path, [bundle])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    found = {table.name: warehouse.read_all(tmp_path, table, at(0), at(9)).num_rows for table in TABLES}
    assert found == {DECISIONS.name: 2, REWARDS.name: 1, STATUSES.name: 0, DEAD_LETTERS.name: 0}


def test_follow_gives_each_window_once_it_has_closed(tmp_path: Path) -> None:
    folder = tmp_path / "warehouse"
    stream(folder, [[decision(1, 0), reward(1, 1), decision(2, 11), decision(3, 29)]])
    clock = at(5)
    waited_for: list[datetime] = []

    def wait(moment: datetime) -> None:
        nonlocal clock
        waited_for.append(moment)
        clock = max(clock, moment)

    closed = closed_windows(WINDOW, SETTINGS, wait, until=at(35))
    manifests = (export(EmbeddedWarehouse(folder), tmp_path / "windows", window, SETTINGS) for window in closed)
    done = [(manifest.window.start, clock, manifest.counts.decisions) for manifest in manifests]
    assert done == [(at(0), at(13), 1), (at(10), at(23), 1), (at(20), at(33), 1)]
    assert waited_for == [at(13), at(23), at(33)]
    # Started anew later, it gives the same windows.
    again = closed_windows(WINDOW, SETTINGS, wait, until=at(35))
    assert [window.start for window in again] == [at(0), at(10), at(20)]
