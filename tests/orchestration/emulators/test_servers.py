"""Installing and starting emulators: what is missing, what does not start, and what runs already."""

import sys
import threading
from pathlib import Path

import msgspec
import pytest

from beam_jobs.payloads import DecisionShape
from contracts.errors import InputError, OperationError
from orchestration.emulators import servers
from orchestration.emulators.redirect import BigQueryEndpoint
from orchestration.emulators.servers import Addresses

GONE = Addresses(pubsub="127.0.0.1:1", bigquery_rest="http://127.0.0.1:1", bigquery_grpc="127.0.0.1:2")


def program(path: Path, script: str) -> Path:
    """An executable that runs `script` as a shell would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_missing_programs_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"run `python -m orchestration\.emulators install`"),
        servers.bigquery_emulator(tmp_path, tmp_path),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="part of gcloud, which is not on PATH: install the Google Cloud CLI"):
        servers.pubsub_program()
    program(tmp_path / "sdk" / "bin" / "gcloud", "true")
    monkeypatch.setenv("PATH", str(tmp_path / "sdk" / "bin"))
    with pytest.raises(InputError, match=r"is not at .*/cloud-pubsub-emulator: install the Google Cloud CLI"):
        servers.pubsub_program()
    program(tmp_path / "sdk" / "platform" / "pubsub-emulator" / "bin" / "cloud-pubsub-emulator", "true")
    with pytest.raises(InputError, match="needs Java"):
        servers.pubsub_program()


def test_an_installation_that_fails_is_a_failed_operation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", "echo first; echo no network >&2; exit 1")))
    with pytest.raises(OperationError, match=r"environment .*/new cannot be created: no network"):
        servers.install(tmp_path / "new")
    assert not (tmp_path / "new" / ".installed").exists()


def test_an_installed_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".installed").write_text(servers.REQUIREMENTS.read_text())
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", "exit 1")))
    servers.install(tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no port is free; exit 3", "BigQuery emulator ended with exit code 3: no port is free"),
        ("exit 0", r"BigQuery emulator ended before it answered: see .*/bigquery\.log"),
        ("sleep 30", r"BigQuery emulator did not answer within 0\.5 s: see .*/bigquery\.log"),
    ],
)
def test_an_emulator_that_does_not_start_is_a_failed_operation(
    script: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".installed").touch()
    program(tmp_path / "bin" / "bqemulator", script)
    monkeypatch.setattr(servers, "START_TIMEOUT_SECONDS", 0.5 if "sleep" in script else 30.0)
    with pytest.raises(OperationError, match=message), servers.bigquery_emulator(tmp_path / "logs", tmp_path):
        pass


def test_the_addresses_of_a_root(tmp_path: Path, bigquery_endpoint: BigQueryEndpoint, pubsub_host: str) -> None:
    file = tmp_path / servers.ADDRESSES_NAME
    with pytest.raises(InputError, match=f"no emulators are up for root {tmp_path}: run `python -m"):
        servers.running(tmp_path)
    file.write_text("{")
    with pytest.raises(InputError, match=rf"{file}: Input data was truncated"):
        servers.running(tmp_path)
    file.write_bytes(msgspec.json.encode(GONE))
    with pytest.raises(OperationError, match=rf"in {file} no longer answer: run `python -m"):
        servers.running(tmp_path)
    rest, grpc = bigquery_endpoint
    up = Addresses(pubsub=pubsub_host, bigquery_rest=rest, bigquery_grpc=grpc)
    file.write_bytes(msgspec.json.encode(up))
    assert servers.running(tmp_path) == up
    assert up.bigquery == bigquery_endpoint
    with pytest.raises(InputError, match=f"--root: emulators already run for {tmp_path}: see {file}"):
        servers.up(tmp_path, DecisionShape(), threading.Event())


def test_a_root_that_cannot_be_created_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--root: .*/file/root cannot be created: Not a directory"):
        servers.up(tmp_path / "file" / "root", DecisionShape(), threading.Event())
