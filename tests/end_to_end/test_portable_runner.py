"""The batch jobs on Apache Beam's Prism with a separate worker pool: every file is the local runner's, byte for byte.

Prism comes with Beam's Go SDK: `go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0`, with $(go env GOPATH)/bin
in PATH.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOBS = (
    ["generate_movielens", "--ratings=sample", "--num-decisions=300", "--num-actions=20", "--rank=5"],
    ["ingest_events"],
    ["export_trajectories", "--end=2026-01-01T00:00:05Z", "--reward-window-seconds=2", "--settle-seconds=1"],
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")


@pytest.fixture
def prism_flags(tmp_path: Path) -> Iterator[list[str]]:
    """The flags of a job that runs on Prism; its workers are processes of a pool, started apart from both."""
    prism = shutil.which("prism")
    if prism is None:
        pytest.skip("prism is not in PATH: go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0")
    job, web, pool = free_port(), free_port(), free_port()
    # The pool starts a bare `python`, which must be this one.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    commands = (
        [prism, f"--job_port={job}", f"--web_port={web}"],
        [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"],
    )
    with (tmp_path / "runner.log").open("wb") as log:
        processes = [subprocess.Popen(one, env=environment, cwd=tmp_path, stdout=log, stderr=log) for one in commands]
    try:
        wait_for(job)
        wait_for(pool)
        yield [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{job}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{pool}",
        ]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def derive(folder: Path, flags: list[str]) -> dict[str, bytes]:
    """Runs the three jobs one after the other, and returns every file that they wrote, by its path."""
    places = {
        "generate_movielens": [f"--events={folder}/events", "--start=2026-01-01T00:00:00Z"],
        "ingest_events": [f"--events={folder}/events", f"--warehouse={folder}/warehouse"],
        "export_trajectories": [
            f"--warehouse={folder}/warehouse",
            f"--windows={folder}/windows",
            "--start=2026-01-01T00:00:00Z",
        ],
    }
    folder.mkdir()
    for name, *own in JOBS:
        command = [sys.executable, "-m", f"beam_jobs.{name}", *own, *places[name], *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(900)
def test_every_file_is_the_local_runner_s(tmp_path, prism_flags):
    local, portable = derive(tmp_path / "local", []), derive(tmp_path / "portable", prism_flags)
    assert any(name.endswith(".tfrecord") for name in local) and any(name.endswith(".parquet") for name in local)
    assert local.keys() == portable.keys()
    assert [name for name, data in local.items() if portable[name] != data] == []
