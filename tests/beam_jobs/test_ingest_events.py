import fcntl
import hashlib
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_jobs import ingest_events, warehouse
from beam_jobs.ingest_events import CheckAccountedFn, ingest, read_lines
from beam_jobs.payloads import (
    EVENTS_PER_BATCH,
    MAX_EVENT_BYTES,
    DecisionShape,
    IngestCounts,
)
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.errors import InputError
from contracts.records import Decision, RewardEvent, encoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, Table

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)


def decision_id(number: int) -> str:
    return f"019b76da-a800-7000-8000-{number:012x}"


def decision(number: int) -> bytes:
    return encoder.encode(
        Decision(
            decision_id=decision_id(number),
            decided_at=START + timedelta(seconds=number),
            policy_version="v1",
            observation=[0.5, -0.25],
            action=1,
            propensity=0.5,
        )
    )


def reward(number: int, value: float = 1.0) -> bytes:
    return encoder.encode(
        RewardEvent(decision_id=decision_id(number), occurred_at=START + timedelta(seconds=number + 1), reward=value)
    )


def segment(events: Path, *lines: bytes, number: int = 0, end: bytes = b"\n") -> Path:
    events.mkdir(exist_ok=True)
    path = events / f"20260101T00000{number}.000000Z-test.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    return path


def rows(folder: Path, table: Table) -> list[dict[str, object]]:
    return warehouse.read_all(folder, table, START - timedelta(days=1), END).to_pylist()


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "warehouse"


BAD_PAYLOADS = [
    (b"", "DecodeError", "truncated"),
    (b"   ", "DecodeError", "truncated"),
    (b"hello", "DecodeError", "malformed"),
    (b"\xff\xfe", "DecodeError", "malformed"),
    (decision(0)[:-20], "DecodeError", "truncated"),
    (b"[1, 2]", "ValidationError", "Expected `object`, got `array`"),
    (b'{"kind":"click"}', "ValidationError", "kind: Invalid value 'click'"),
    (reward(0).replace(b"1.0", b"NaN"), "DecodeError", "malformed"),
    (decision(0).replace(b":0.5}", b":1.5}"), "ValidationError", r"propensity: .* got 1\.5 \(decision_id="),
    (decision(0).replace(b'"v1"', b'"\xff"'), "UnicodeDecodeError", "utf-8"),
    (b'{"kind":"reward","x":' + b"[" * 100_000, "RecursionError", "recursion"),
    (b"[" * 100_000, "ValidationError", "Expected `object`, got `array`"),
    (
        reward(0).replace(b"2026-01-01T00:00:01Z", b"9999-12-31T23:00:00-05:00"),
        "OverflowError",
        "date value out of range",
    ),
]


def test_every_line_is_accounted_for(events: Path, folder: Path) -> None:
    good = [decision(0), reward(0), decision(1), decision(1)]
    path = segment(events, *good, *(payload for payload, _, _ in BAD_PAYLOADS))
    counts = ingest(events, EmbeddedWarehouse(folder))
    assert counts == IngestCounts(events=4 + len(BAD_PAYLOADS), decisions=3, rewards=1, dead_letters=len(BAD_PAYLOADS))
    assert {row["decision_id"] for row in rows(folder, DECISIONS)} == {decision_id(0), decision_id(1)}
    assert warehouse.read(folder, DECISIONS, START, END).duplicates == 1
    [stored] = rows(folder, REWARDS)
    assert (stored["decision_id"], stored["reward"]) == (decision_id(0), 1.0)
    letters = {row["source"]: row for row in rows(folder, DEAD_LETTERS)}
    for line, (payload, error_type, message) in enumerate(BAD_PAYLOADS, start=5):
        letter = letters[f"{path.name}:{line}"]
        assert letter["payload"] == payload
        assert letter["error_type"] == error_type
        assert re.search(message, str(letter["error_message"])), letter["error_message"]
        assert "\n" not in str(letter["error_message"])
        assert (letter["stage"], letter["failed_at"]) == ("parse", START)


def test_a_torn_last_line_is_a_dead_letter_and_a_line_without_end_is_not(events: Path, folder: Path) -> None:
    segment(events, decision(0), reward(0), end=b"")
    segment(events, decision(1), reward(1)[:30], number=1, end=b"")
    assert ingest(events, EmbeddedWarehouse(folder)) == IngestCounts(events=4, decisions=2, rewards=1, dead_letters=1)


def test_decisions_that_no_policy_in_training_could_learn_from_are_dead_letters(events: Path, folder: Path) -> None:
    """A window keeps observations of one length, and its trainer actions of one catalogue."""
    longer = decision(1).replace(b"[0.5,-0.25]", b"[0.5,-0.25,0.0]")
    beyond = decision(2).replace(b'"action":1', b'"action":3')
    segment(events, decision(0), longer, beyond, reward(1))
    assert ingest(events, EmbeddedWarehouse(folder), DecisionShape(2, 3)) == IngestCounts(
        events=4, decisions=1, rewards=1, dead_letters=2
    )
    messages = sorted(str(row["error_message"]) for row in rows(folder, DEAD_LETTERS))
    assert messages == [
        f"action: must be below 3, got 3 (decision_id={decision_id(2)})",
        f"observation: must have 2 numbers, got 3 (decision_id={decision_id(1)})",
    ]
    assert sorted(row["payload"] for row in rows(folder, DEAD_LETTERS)) == sorted([longer, beyond])  # type: ignore[type-var]


def test_only_new_segments_are_read(events: Path, folder: Path) -> None:
    segment(events, decision(0))
    assert ingest(events, EmbeddedWarehouse(folder)).events == 1
    before = digests(folder)
    assert ingest(events, EmbeddedWarehouse(folder)) == IngestCounts()
    assert digests(folder) == before
    segment(events, decision(1), number=1)
    assert ingest(events, EmbeddedWarehouse(folder)).events == 1
    assert before.items() <= digests(folder).items()
    assert len(rows(folder, DECISIONS)) == 2


def test_reading_a_segment_again_changes_nothing(events: Path, folder: Path) -> None:
    segment(events, decision(0), reward(0), b"?")
    ingest(events, EmbeddedWarehouse(folder))
    before = digests(folder)
    for note in (folder / "ingested").iterdir():
        note.unlink()
    assert ingest(events, EmbeddedWarehouse(folder)).events == 3
    assert digests(folder) == before


def test_empty_segments_are_noted(events: Path, folder: Path) -> None:
    segment(events, end=b"")
    assert ingest(events, EmbeddedWarehouse(folder)) == IngestCounts()
    assert [note.name for note in (folder / "ingested").iterdir()] == ["20260101T000000.000000Z-test.json"]


def test_segments_being_written_are_left_alone_until_their_writer_is_gone(events: Path, folder: Path) -> None:
    path = segment(events, decision(0)).rename(events / "20260101T000000.000000Z-test.jsonl.open")
    with path.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert ingest(events, EmbeddedWarehouse(folder)).events == 0
    assert ingest(events, EmbeddedWarehouse(folder)).decisions == 1


def test_other_files_are_not_events(events: Path, folder: Path) -> None:
    segment(events, decision(0))
    (events / "notes.jsonl").write_bytes(b"hello\n")
    (events / "20260101T000000.000000Z-x.jsonl.unfinished").write_bytes(b"hello\n")
    assert ingest(events, EmbeddedWarehouse(folder)).events == 1


def test_many_batches_and_a_line_too_large_to_be_an_event(events: Path, folder: Path) -> None:
    huge = b"[" + b"1," * (MAX_EVENT_BYTES + 100) + b"1]"
    path = segment(events, *(reward(number % 1000) for number in range(EVENTS_PER_BATCH)), huge, decision(7))
    counts = ingest(events, EmbeddedWarehouse(folder))
    assert counts == IngestCounts(events=EVENTS_PER_BATCH + 2, decisions=1, rewards=EVENTS_PER_BATCH, dead_letters=1)
    [letter] = rows(folder, DEAD_LETTERS)
    assert letter["source"] == f"{path.name}:{EVENTS_PER_BATCH + 1}"
    assert letter["payload"] == huge[:65_536]
    assert f"longer than {MAX_EVENT_BYTES} bytes" in str(letter["error_message"])


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\n", [b"a"]),
        (b"a", [b"a"]),
        (b"\n\na\n\n", [b"", b"", b"a", b""]),
        (b"a\r\nb", [b"a\r", b"b"]),
    ],
)
def test_lines(data: bytes, lines: list[bytes]) -> None:
    assert [line for batch in read_lines(io.BytesIO(data)) for line in batch] == lines


@pytest.mark.parametrize("excess", [-1, 0, 1, 2, MAX_EVENT_BYTES, MAX_EVENT_BYTES + 1, MAX_EVENT_BYTES + 2])
def test_lines_around_the_limit(excess: int) -> None:
    long = b"x" * (MAX_EVENT_BYTES + excess)
    for end, after in ((b"\n", [b"y", b"z"]), (b"", [])):
        data = b"w\n" + long + end + b"\n".join(after)
        [*lines] = [line for batch in read_lines(io.BytesIO(data)) for line in batch]
        assert [line[:1] for line in lines] == [b"w", b"x", *after]
        assert len(lines[1]) == min(len(long), MAX_EVENT_BYTES + 1)


def test_counts_that_do_not_add_up_are_not_noted(folder: Path) -> None:
    warehouse.create(folder)
    with pytest.raises(RuntimeError, match="segment s: not every event is accounted for"):
        list(CheckAccountedFn(EmbeddedWarehouse(folder)).process(("s", IngestCounts(events=3, decisions=1, rewards=1))))
    assert not list((folder / "ingested").iterdir())


def test_command_line(events: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment(events, decision(0), b"?")
    assert ingest_events.main(["--events", str(events), "--warehouse", str(folder)]) == 0
    assert capsys.readouterr().out == "2 events: 1 decisions, 0 rewards, 1 dead letters\n"
    segment(events, decision(0), decision(1).replace(b"[0.5,", b"[0.5,0.5,"), number=1)
    flags = ["--events", str(events), "--warehouse", str(folder), "--observation-dim", "2", "--num-actions", "2"]
    assert ingest_events.main(flags) == 0
    assert capsys.readouterr().out == "2 events: 1 decisions, 0 rewards, 1 dead letters\n"


def test_files_that_are_not_segments_are_mentioned(
    events: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment(events, decision(0))
    for name in ("99999999T999999.000000Z-no-such-moment.jsonl", "notes.jsonl"):
        (events / name).write_bytes(decision(1) + b"\n")
    assert ingest_events.main(["--events", str(events), "--warehouse", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == "1 events: 1 decisions, 0 rewards, 0 dead letters\n"
    assert err == (
        "2 files without a segment's name were ignored, the first is 99999999T999999.000000Z-no-such-moment.jsonl\n"
    )


@pytest.fixture
def a_file(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "file").touch()
    return str(tmp_path / "file")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--events", "nowhere", "--warehouse", "w"], "--events: a folder expected, got 'nowhere'"),
        (["--events", ".", "--warehouse", "FILE"], "--warehouse: .* cannot be created: Not a directory"),
        (["--events", "."], "the following arguments are required: --warehouse"),
        (["--events", ".", "--warehouse", "w", "extra"], "unrecognized argument: extra"),
        (["--events", ".", "--warehouse", "gs://bucket/w"], "--warehouse: a folder of this machine or bigquery:"),
        (["--events", ".", "--warehouse", "w", "--runner=DataflowRunner"], "--warehouse: Dataflow cannot use a folder"),
        (
            ["--events", ".", "--warehouse", "bigquery:my-project.d", "--runner=DataflowRunner"],
            "--events: Dataflow cannot use a folder of this machine, got '.'",
        ),
        (["--events", ".", "--warehouse", "w", "--num-actions=0"], "--num-actions: a whole number from 1 expected"),
        (["--events", ".", "--warehouse", "w", "--expiry-days", "3"], "--expiry-days: requires --warehouse bigquery:"),
        (
            ["--events", "pubsub:projects/my-project/subscriptions/sub", "--warehouse", "w", "--runner=DataflowRunner"],
            "--warehouse: Dataflow cannot use a folder of this machine, got 'w'",
        ),
    ],
)
def test_wrong_input_is_one_line(
    a_file: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ingest_events.main([a_file if flag == "FILE" else flag for flag in flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"beam_jobs.ingest_events: error: .*{message}.*", line)


def test_no_event_log_leaves_no_warehouse(folder: Path) -> None:
    with pytest.raises(InputError):
        ingest(folder / "nowhere", EmbeddedWarehouse(folder))
    assert not folder.exists()


def test_counts_add_up() -> None:
    assert IngestCounts(events=1) + IngestCounts(decisions=1) == IngestCounts(events=1, decisions=1)
