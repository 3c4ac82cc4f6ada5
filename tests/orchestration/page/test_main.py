"""The program: its mistakes are one line."""

import socket

import pytest

from orchestration.page import __main__ as program
from tests.orchestration.page.roots import make


def test_a_root_that_is_not_there_is_one_line(tmp_path, capsys):
    assert program.main(["--root", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--port", "70000"], ["--host", ""], ["--host", "no.such.host.invalid"]])
def test_an_address_that_cannot_be_used_is_one_line(tmp_path, capsys, flags):
    assert program.main(["--root", str(make(tmp_path / "run").root), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("orchestration.page: error: --") and error.count("\n") == 1


def test_a_port_that_is_taken_is_one_line_and_leaves_no_address(tmp_path, capsys):
    folder = make(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert program.main(["--root", str(folder.root), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
    assert folder.read_page() is None


def test_a_run_with_broken_settings_is_one_line(tmp_path, capsys):
    folder = make(tmp_path / "run")
    folder.settings_json.write_text("{")
    assert program.main(["--root", str(folder.root)]) == 2
    assert "settings.json" in capsys.readouterr().err
