"""The page as a real process, for tests."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestration.loop.run_folder import LivePage, RunFolder

KEY = "the-key"


@contextlib.contextmanager
def page(root: Path, *flags: str) -> Iterator[LivePage]:
    """`python -m orchestration.page` on a free port, until the block ends; it must end well."""
    command = [sys.executable, "-m", "orchestration.page", "--root", str(root), *flags]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=os.environ | {"PAGE_KEY": KEY}
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while (found := RunFolder(root).read_page()) is None:
                assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
                time.sleep(0.05)
            yield found
            process.terminate()
            assert process.wait(30) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, decoded body (text where it is not JSON) and headers of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        text = answer.read().decode()
        found = json.loads(text) if "json" in (answer.headers["content-type"] or "") else text
        return answer.status, found, answer.headers


def wait_for_state(url: str) -> Any:
    """The first document."""
    deadline = time.monotonic() + 60
    while not (found := ask(f"{url}api/state")[1]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
