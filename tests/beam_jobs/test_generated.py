import json
from pathlib import Path

import pytest

from beam_jobs import generated

FILES = {"a.json": {"x": 1}, "b.json": [2]}


def main(*flags: str) -> int:
    return generated.main("some_module", "Makes files.\n\nMore of it.", FILES, "the code", list(flags))


def test_files_are_written_then_found_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(tmp_path), "--check") == 1
    assert not list(tmp_path.iterdir())
    assert main(str(tmp_path)) == 0
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()} == FILES
    assert main(str(tmp_path), "--check") == 0
    (tmp_path / "b.json").write_text("[3]")
    assert main(str(tmp_path), "--check") == 1
    message = "beam_jobs.some_module: error: {} differ from the code: run without --check"
    assert capsys.readouterr().err.splitlines() == [message.format("a.json, b.json"), message.format("b.json")]
    assert (tmp_path / "b.json").read_text() == "[3]"


def test_wrong_flags_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 2
    assert capsys.readouterr().err.startswith("beam_jobs.some_module: error: ")
