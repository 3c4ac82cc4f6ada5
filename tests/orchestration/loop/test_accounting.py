"""A table of tampering: what is done to a log on its way to the training, and the figure that must say so."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from beam_jobs.movielens import MovieLens
from orchestration.loop import accounting
from orchestration.loop.accounting import Happened, Stored, Totals
from tests.orchestration.loop import runs
from tests.orchestration.loop.runs import DECISIONS


@pytest.fixture(scope="module")
def movielens() -> MovieLens:
    return runs.viewers()


def decisions(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if b'"kind":"decision"' in line]


def rewards(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if b'"kind":"reward"' in line]


def swapped(lines: list[bytes]) -> list[bytes]:
    """The rewards of the first two decisions change places."""
    first, second, *rest = [msgspec.json.decode(line) for line in rewards(lines)]
    first["reward"], second["reward"] = second["reward"], first["reward"]
    return decisions(lines) + [msgspec.json.encode(reward) for reward in (first, second, *rest)]


def totals(root: Path, movielens: MovieLens, tamper: runs.Tamper = lambda lines: lines) -> Totals:
    folder, card = runs.make(root, movielens, tamper)
    happened = Happened.read(folder, movielens)
    stored = Stored.read(folder, movielens, happened.sessions)
    return accounting.totals(folder, happened, stored, card, movielens)


def test_an_honest_run_adds_up(tmp_path: Path, movielens: MovieLens) -> None:
    found = totals(tmp_path, movielens)
    assert found.decisions_served == found.decisions_stored == found.rewards_sent == found.rewards_stored == DECISIONS
    assert found.interactions_exported == found.interactions_trained + found.interactions_held_back == DECISIONS
    assert (found.lost, found.duplicated, found.misattributed_rewards, found.dead_letters) == (0, 0, 0, 0)
    assert accounting.problems(found) == []


@pytest.mark.parametrize(
    ("tamper", "figures"),
    [
        (
            lambda lines: decisions(lines)[3:] + rewards(lines),
            {"lost": 3, "lost_decisions": 3, "lost_rewards": 0, "faults_found.orphan_rewards": 3},
        ),
        (
            lambda lines: decisions(lines) + rewards(lines)[4:],
            {"lost": 4, "lost_decisions": 0, "lost_rewards": 4, "interactions_exported": DECISIONS - 4},
        ),
        (
            lambda lines: lines + decisions(lines)[:5] + rewards(lines)[:2],
            {"lost": 0, "duplicated": 0, "faults_found.duplicate_decisions": 5, "faults_found.duplicate_rewards": 2},
        ),
        (swapped, {"lost": 4, "lost_rewards": 2, "lost_between_tables_and_windows": 2, "misattributed_rewards": 2}),
        (
            lambda lines: [*lines, b"{", b"not JSON"],
            {"lost": 0, "dead_letters": 2, "events_read": 2 * DECISIONS + 2, "faults_found.malformed": 2},
        ),
    ],
    ids=["decisions lost", "rewards lost", "events twice", "rewards swapped", "malformed"],
)
def test_tampering_shows_in_its_figure(
    tmp_path: Path, movielens: MovieLens, tamper: runs.Tamper, figures: dict[str, int]
) -> None:
    found = totals(tmp_path, movielens, tamper)
    for name, value in figures.items():
        field, _, key = name.partition(".")
        figure = getattr(found, field)
        assert (figure[key] if key else figure) == value, name
    said = accounting.problems(found)
    assert bool(said) == bool(figures["lost"])
    assert all(line.split()[0].isdecimal() for line in said)


def test_training_that_leaves_out_or_repeats_a_part(tmp_path: Path, movielens: MovieLens) -> None:
    folder, card = runs.make(tmp_path, movielens)
    happened = Happened.read(folder, movielens)
    stored = Stored.read(folder, movielens, happened.sessions)
    [part] = card.trained_on

    def counted(*parts: object) -> Totals:
        changed = msgspec.structs.replace(card, trained_on=list(parts))
        return accounting.totals(folder, happened, stored, changed, movielens)

    twice = counted(part, part)
    assert twice.duplicated == twice.interactions_trained // 2 == part.records
    holdback_alone = counted(msgspec.structs.replace(part, split="holdback", records=DECISIONS - part.records))
    assert holdback_alone.lost == holdback_alone.lost_between_windows_and_training == part.records


def test_records_are_counted_as_often_as_they_happened() -> None:
    known = b"known"
    found = Counter({(known, 0, 1.0): 3, (known, 1, 2.0): 1, (b"other", 0, 1.0): 9})
    happened = Counter({(known, 0, 1.0): 2})
    assert accounting._too_often(found, happened, {known}) == (1, 1)
