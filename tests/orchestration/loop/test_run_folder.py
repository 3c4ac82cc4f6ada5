"""The folder of a run: who may use it, and its journal."""

from pathlib import Path

import pytest

from contracts.errors import InputError
from orchestration.loop.run_folder import RunFolder
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
