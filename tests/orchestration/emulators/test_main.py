"""`python -m orchestration.emulators`: exit codes and the line on stderr."""

import pytest

from contracts.errors import OperationError
from orchestration.emulators import __main__ as emulators
from orchestration.emulators import servers


def test_install_also_checks_what_it_cannot_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = []
    monkeypatch.setattr(servers, "install", lambda: installed.append(True))
    monkeypatch.setenv("PATH", "")
    assert emulators.main(["install"]) == 2
    assert installed
    assert capsys.readouterr().err.startswith(
        "orchestration.emulators: error: the Pub/Sub emulator is part of gcloud, which is not on PATH"
    )


def test_a_failed_operation_has_another_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OperationError("no network")

    monkeypatch.setattr(servers, "install", fail)
    assert emulators.main(["install"]) == 3
    assert capsys.readouterr().err == "orchestration.emulators: failed: no network\n"


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert emulators.main([]) == 2
    assert "the following arguments are required: command" in capsys.readouterr().err
