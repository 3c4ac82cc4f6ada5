"""A predictor as a real process, for tests."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Reply(NamedTuple):
    status: int
    body: Any


class Server:
    """A running predictor; `url` is where it listens."""

    def __init__(self, process: subprocess.Popen, stderr: Path, url: str | None = None) -> None:
        self.process = process
        self._stderr = stderr
        self.url = url or self._announced()

    def operations(self) -> "Server":
        """The same server at its port for operations."""
        port = re.search(r"operations on port (\d+)$", self.stderr(), re.MULTILINE)[1]
        return Server(self.process, self._stderr, f"http://127.0.0.1:{port}")

    def stderr(self) -> str:
        return self._stderr.read_text()

    def get(self, path: str) -> Reply:
        return self._send(urllib.request.Request(self.url + path))

    def wait_for(self, condition: Callable[[Any], bool], seconds: float = 60.0) -> None:
        """Waits until the body of /health fulfils `condition`."""
        deadline = time.monotonic() + seconds
        while not condition(health := self.get("/health").body):
            assert time.monotonic() < deadline, f"did not happen in time: {health}"
            time.sleep(0.02)

    def read(self, path: str) -> bytes:
        """The body of the answer of `path`, undecoded."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read()

    def post(self, path: str, body: Any) -> Reply:
        """Sends `body`: bytes unchanged, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._send(urllib.request.Request(self.url + path, data, {"content-type": "application/json"}))

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.terminate()
        return self.process.wait(30)

    def _announced(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if match := re.search(r"^serving \S+ on (http://[^\s,]+)", self.stderr(), re.MULTILINE):
                return match[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the predictor did not start: {self.stderr()}")

    def _send(self, request: urllib.request.Request) -> Reply:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Reply(response.status, json.loads(response.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, json.loads(error.read()))


@contextlib.contextmanager
def predictor(
    policy: Path | str, events: Path, *flags: str, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """`python -m predictor.app` on a free port, until the block ends."""
    stderr = events.parent / f"{events.name}.stderr"
    command = [sys.executable, "-m", "predictor.app", "--policy", policy, "--events", events, "--port", "0", *flags]
    variables = os.environ | (environment or {})
    with (
        stderr.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=variables) as process,
    ):
        try:
            yield Server(process, stderr)
        finally:
            process.kill()
