"""The folder of a run: who may use it, and its journal."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.errors import InputError
from orchestration.loop.run_folder import RunFolder, latest_folder, new_folder, point_latest
from orchestration.loop.settings import LoopSettings
from tests.orchestration.loop import runs


def test_a_run_keeps_others_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with (
        folder.locked(),
        pytest.raises(InputError, match="in use by another run"),
        RunFolder(tmp_path / "run").locked(),
    ):
        pass
    with folder.locked():
        folder.create(LoopSettings(num_actions=2), [])
    assert folder.settings() == LoopSettings(num_actions=2)


def test_other_things_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and not a run of the loop"), RunFolder(tmp_path).locked():
        pass
    assert (tmp_path / "thesis.tex").is_file()
    with pytest.raises(InputError, match="holds no run"):
        RunFolder(tmp_path).settings()


def test_the_journal_ignores_a_torn_line_and_names_a_wrong_one(tmp_path: Path) -> None:
    folder, _ = runs.make(tmp_path / "run", runs.viewers())
    [entry] = folder.journal()
    journal = folder.root / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:20])
    assert folder.journal() == [entry]
    folder.append(entry)
    assert folder.journal() == [entry, entry]
    journal.write_bytes(b"{}\n")
    with pytest.raises(InputError, match=r"journal\.jsonl, line 1: "):
        folder.journal()


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_run_gets_a_folder_named_after_its_time_and_settings(tmp_path):
    settings = LoopSettings(out=str(tmp_path / "latest"), algorithm="lin_ts", num_actions=50, seed=7)
    first = new_folder(settings, NOON)
    assert first == tmp_path / "20260101T120000Z-lin_ts-50-seed7"
    first.mkdir()
    assert new_folder(settings, NOON).name == "20260101T120000Z-lin_ts-50-seed7-2"


def test_a_folder_that_was_named_is_taken_as_it_is(tmp_path):
    assert new_folder(LoopSettings(out=str(tmp_path / "mine")), NOON) == tmp_path / "mine"


def test_the_link_moves_to_the_last_run_and_a_resumed_run_stays_where_it_is(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    point_latest(first, always=False)
    assert not (tmp_path / "latest").is_symlink()  # a run in a folder of its own makes no link
    point_latest(first, always=True)
    resumed = latest_folder(str(tmp_path / "latest"))
    point_latest(second, always=False)  # there is a link by now
    assert resumed == first
    assert latest_folder(str(tmp_path / "latest")) == second
    assert latest_folder(str(first)) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]


def test_what_is_not_a_link_is_left_alone(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(InputError, match="must be a link to the last run"):
        point_latest(tmp_path / "run", always=True)
