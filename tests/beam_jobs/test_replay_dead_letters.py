import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_jobs import replay_dead_letters, warehouse
from beam_jobs.ingest_events import ingest
from beam_jobs.payloads import DecisionShape
from beam_jobs.replay_dead_letters import ReplayCounts, replay
from beam_jobs.tables import record_batch
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.records import DeadLetter, Decision, RewardEvent, encoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)


def decision_id(number: int) -> str:
    return f"019b76da-a800-7000-8000-{number:012x}"


def decision(number: int) -> bytes:
    event = Decision(
        decision_id=decision_id(number),
        decided_at=START,
        policy_version="v1",
        observation=[0.5],
        action=1,
        propensity=0.5,
    )
    return encoder.encode(event)


def letter(payload: bytes, number: int, failed_at: datetime = START) -> DeadLetter:
    """As an older code wrote it, which could not read what the current code can."""
    return DeadLetter(
        payload=payload,
        error_type="ValidationError",
        error_message="unknown",
        stage="parse",
        failed_at=failed_at,
        source=f"s:{number}",
    )


def store(folder: Path, name: str, *letters: DeadLetter) -> None:
    warehouse.create(folder)
    warehouse.write(folder, DEAD_LETTERS, name, record_batch(DEAD_LETTERS, letters))


def sources(folder: Path) -> list[str]:
    return sorted(warehouse.read_all(folder, DEAD_LETTERS, START, END).column("source").to_pylist())


REWARD = encoder.encode(RewardEvent(decision_id=decision_id(1), occurred_at=START, reward=1.0))


def test_what_can_be_read_now_moves_and_the_rest_stays(tmp_path: Path) -> None:
    store(tmp_path, "a", letter(decision(1), 1), letter(b"?", 2), letter(REWARD, 3))
    store(tmp_path, "b", letter(decision(2), 4))
    store(tmp_path, "c", letter(b"!", 5))
    untouched = warehouse.files(tmp_path, DEAD_LETTERS, START, END)[2]
    before = Path(untouched).read_bytes()
    assert replay(EmbeddedWarehouse(tmp_path), START, END) == ReplayCounts(letters=5, replayed=3, remaining=2)
    assert sources(tmp_path) == ["s:2", "s:5"]
    assert Path(untouched).read_bytes() == before
    decisions = warehouse.read(tmp_path, DECISIONS, START, END).rows.column("decision_id").to_pylist()
    assert decisions == [decision_id(1), decision_id(2)]
    assert warehouse.read(tmp_path, REWARDS, START, END).rows.column("reward").to_pylist() == [1.0]
    assert replay(EmbeddedWarehouse(tmp_path), START, END) == ReplayCounts(letters=2, replayed=0, remaining=2)


def test_what_a_later_code_reads_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two letters of one file, of one moment: each is stored by the code that can first read it."""
    store(tmp_path, "a", letter(decision(1), 1), letter(decision(2), 2))
    with monkeypatch.context() as earlier_code:
        earlier_code.setattr(replay_dead_letters, "readable", lambda payload, shape: payload == decision(1))
        assert replay(EmbeddedWarehouse(tmp_path), START, END) == ReplayCounts(letters=2, replayed=1, remaining=1)
    assert replay(EmbeddedWarehouse(tmp_path), START, END) == ReplayCounts(letters=1, replayed=1, remaining=0)
    decisions = warehouse.read(tmp_path, DECISIONS, START, END).rows.column("decision_id").to_pylist()
    assert decisions == [decision_id(1), decision_id(2)]


def test_replays_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits, and then finds what the first one left: it does not look for what was there before."""
    store(tmp_path, "a", letter(decision(1), 1))
    [path] = warehouse.files(tmp_path, DEAD_LETTERS, START, END)
    locked = warehouse.locked

    @contextmanager
    def locked_by_another_first(folder: Path) -> Iterator[None]:
        Path(path).unlink()  # as the first one does, before it lets go
        with locked(folder):
            yield

    monkeypatch.setattr(warehouse, "locked", locked_by_another_first)
    assert replay(EmbeddedWarehouse(tmp_path), START, END) == ReplayCounts()


def test_only_the_range_is_replayed(tmp_path: Path) -> None:
    later = START + timedelta(hours=2)
    store(tmp_path, "a", letter(decision(1), 1), letter(decision(2), 2, later))
    counts = replay(EmbeddedWarehouse(tmp_path), START, START + timedelta(hours=1))
    assert counts == ReplayCounts(letters=1, replayed=1, remaining=0)
    assert sources(tmp_path) == ["s:2"]


def test_a_replay_that_was_killed_is_run_again(tmp_path: Path) -> None:
    store(tmp_path, "a", letter(decision(1), 1), letter(b"?", 2))
    [path] = warehouse.files(tmp_path, DEAD_LETTERS, START, END)
    before = Path(path).read_bytes()
    replay(EmbeddedWarehouse(tmp_path), START, END)
    Path(path).write_bytes(before)  # killed after storing, before removing
    assert replay(EmbeddedWarehouse(tmp_path), START, END).replayed == 1
    read = warehouse.read_all(tmp_path, DECISIONS, START, END)
    assert read.num_rows == 1  # the same name, the same file
    assert sources(tmp_path) == ["s:2"]


def test_dead_letters_of_a_real_ingestion_stay_what_they_are(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    (events / "20260101T000000.000000Z-x.jsonl").write_bytes(decision(1) + b"\n?\n\xff\n")
    ingest(events, EmbeddedWarehouse(tmp_path / "w"))
    before = warehouse.read_all(tmp_path / "w", DEAD_LETTERS, START, END)
    assert replay(EmbeddedWarehouse(tmp_path / "w"), START, END) == ReplayCounts(letters=2, replayed=0, remaining=2)
    assert warehouse.read_all(tmp_path / "w", DEAD_LETTERS, START, END).equals(before)


def test_what_does_not_fit_stays_until_it_does(tmp_path: Path) -> None:
    store(tmp_path, "a", letter(decision(1), 1))
    assert replay(EmbeddedWarehouse(tmp_path), START, END, DecisionShape(observation_dim=2)) == ReplayCounts(
        letters=1, remaining=1
    )
    assert replay(EmbeddedWarehouse(tmp_path), START, END, DecisionShape(1, 1)) == ReplayCounts(letters=1, remaining=1)
    assert replay(EmbeddedWarehouse(tmp_path), START, END, DecisionShape(1, 2)) == ReplayCounts(letters=1, replayed=1)


def test_what_did_not_fit_stays_unless_somebody_says_what_does(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    (events / "20260101T000000.000000Z-x.jsonl").write_bytes(decision(1) + b"\n")
    ingest(events, EmbeddedWarehouse(tmp_path / "w"), DecisionShape(observation_dim=2))
    assert replay(EmbeddedWarehouse(tmp_path / "w"), START, END) == ReplayCounts(letters=1, remaining=1)
    assert replay(EmbeddedWarehouse(tmp_path / "w"), START, END, DecisionShape(num_actions=2)) == ReplayCounts(
        letters=1, replayed=1
    )


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "a", letter(decision(1), 1), letter(b"?", 2))
    flags = ["--warehouse", str(tmp_path), "--start", START.isoformat(), "--end", END.isoformat()]
    assert replay_dead_letters.main(flags) == 0
    assert capsys.readouterr().out == "2 dead letters: 1 replayed, 1 still cannot be read\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warehouse", "nowhere", "--end", "2026-01-02T00:00:00Z"], "nowhere is not a warehouse"),
        (["--warehouse", "w", "--end", "2025-01-02T00:00:00Z"], "--end must be after --start"),
        (["--warehouse", "bigquery:x", "--end", "2026-01-02T00:00:00Z"], "bigquery:PROJECT.DATASET expected"),
        (
            ["--warehouse", "w", "--end", "2026-01-02T00:00:00Z", "--runner=DataflowRunner"],
            "--warehouse: Dataflow cannot use a folder of this machine, got 'w'",
        ),
    ],
)
def test_wrong_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_dead_letters.main(["--start", "2026-01-01T00:00:00Z", *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("beam_jobs.replay_dead_letters: error: ")
    assert re.search(message, line)
