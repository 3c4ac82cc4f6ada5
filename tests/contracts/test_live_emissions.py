from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from contracts import live_emissions, live_sums
from contracts.errors import InputError
from contracts.live_emissions import Emission, LiveCounts, Reader, State, WindowSums
from contracts.live_sums import ArmSums
from contracts.windows import TrainingWindow

START = datetime(2026, 1, 1, tzinfo=UTC)
D = 2


def window(number: int) -> TrainingWindow:
    return TrainingWindow(START + timedelta(seconds=5 * number), START + timedelta(seconds=5 * number + 5))


def sums(arms: dict[int, int]) -> ArmSums:
    """So many interactions with each arm."""
    action = np.array([arm for arm, count in arms.items() for _ in range(count)], np.int32)
    return live_sums.of_interactions(np.ones((len(action), D), np.float32), action, np.ones(len(action), np.float32))


def emission(
    sequence: int, windows: dict[int, ArmSums], snapshot: bool = False, state: State = "open", dim: int = D
) -> Emission:
    return Emission(
        sequence=sequence,
        snapshot=snapshot,
        emitted_at=START + timedelta(seconds=sequence),
        complete_until=None,
        observation_dim=dim,
        num_actions=9,
        events=sequence,
        dead_letters=0,
        healed=0,
        windows=[
            WindowSums(window=window(number), state=state, counts=LiveCounts(), columns=live_sums.encode(one))
            for number, one in windows.items()
        ],
    )


def write(folder: Path, *emissions: Emission) -> None:
    folder.mkdir(exist_ok=True)
    for one in emissions:
        (folder / live_emissions.file_name(one.sequence)).write_bytes(live_emissions.encode(one))


def counts(reader: Reader) -> dict[int, dict[int, int]]:
    """Interactions by window and arm, as the reader holds them."""
    return {
        round((one.start - START).total_seconds() / 5): dict(
            zip(found.arms.tolist(), found.counts.tolist(), strict=True)
        )
        for one, found in reader.windows.items()
    }


def read(reader: Reader) -> list[int]:
    return [one.sequence for one in reader.read()]


def test_an_emission_is_the_same_bytes_and_comes_back() -> None:
    one = emission(7, {0: sums({1: 2, 4: 1})}, snapshot=True, state="recorded")
    assert live_emissions.encode(one) == live_emissions.encode(emission(7, {0: sums({4: 1, 1: 2})}, True, "recorded"))
    assert live_emissions.decode(live_emissions.encode(one), "x") == one


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "not an emission of provisional sums"),
        (b"\x81", "not an emission"),
        (live_emissions.encode(emission(1, {0: sums({1: 2})}, dim=3)), "observation_dim 3"),
        (
            live_emissions.encode(msgspec.structs.replace(emission(1, {}), schema_version=2)),
            "schema_version 2 is newer than this code's 1",
        ),
    ],
)
def test_what_is_not_an_emission_is_refused(data: bytes, fact: str) -> None:
    with pytest.raises(InputError, match=f"^here: .*{fact}"):
        live_emissions.decode(data, "here")


def test_names_sort_as_their_sequence_numbers() -> None:
    assert live_emissions.file_name(42) == "000000000042.msgpack"
    assert live_emissions.sequence_of("000000000042.msgpack") == 42
    assert live_emissions.sequence_of("000000000042.msgpack.unfinished") is None
    assert live_emissions.sequence_of("42.msgpack") is None


def test_a_reader_replaces_the_arms_that_changed(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "sums")
    assert read(reader) == []
    write(tmp_path / "sums", emission(1, {0: sums({1: 2, 2: 1})}, snapshot=True))
    assert read(reader) == [1]
    write(tmp_path / "sums", emission(2, {0: sums({1: 5}), 1: sums({7: 1})}), emission(3, {0: sums({}), 1: sums({})}))
    assert read(reader) == [2, 3]
    assert counts(reader) == {0: {1: 5, 2: 1}, 1: {7: 1}}
    write(tmp_path / "sums", emission(4, {1: live_sums.select(live_sums.empty(D), np.array([7]))}))
    assert read(reader) == [4]
    assert counts(reader) == {1: {}}
    assert read(reader) == []


def test_a_reader_that_starts_late_begins_with_the_newest_snapshot(tmp_path: Path) -> None:
    write(
        tmp_path / "sums",
        emission(1, {0: sums({1: 1})}, snapshot=True),
        emission(2, {0: sums({1: 2})}),
        emission(3, {0: sums({1: 2, 2: 2})}, snapshot=True),
        emission(4, {0: sums({2: 3})}),
    )
    reader = Reader(tmp_path / "sums")
    assert read(reader) == [3, 4]
    assert counts(reader) == {0: {1: 2, 2: 3}}


def test_after_a_gap_a_reader_waits_for_a_snapshot(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "sums")
    write(tmp_path / "sums", emission(1, {0: sums({1: 1})}, snapshot=True))
    assert read(reader) == [1]
    write(tmp_path / "sums", emission(3, {0: sums({2: 3})}))
    assert read(reader) == []
    assert counts(reader) == {0: {1: 1}}
    write(tmp_path / "sums", emission(4, {0: sums({1: 2, 2: 3})}, snapshot=True))
    assert read(reader) == [4]
    assert counts(reader) == {0: {1: 2, 2: 3}}


def test_a_snapshot_replaces_all_that_a_reader_holds(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "sums")
    write(tmp_path / "sums", emission(1, {0: sums({1: 1, 3: 4})}, snapshot=True))
    read(reader)
    write(tmp_path / "sums", emission(2, {0: sums({1: 1})}, snapshot=True))
    read(reader)
    assert counts(reader) == {0: {1: 1}}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "sums", emission(1, {}, snapshot=True))
    (tmp_path / "sums" / live_emissions.file_name(2)).write_bytes(b"half")
    with pytest.raises(InputError, match=r"000000000002\.msgpack: not an emission"):
        list(Reader(tmp_path / "sums").read())
