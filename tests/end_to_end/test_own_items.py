"""The pages' commands, word for word: from nothing to a policy that has learned."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestration.processes import wait_until
from orchestration.project.folder import ProjectFolder

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-items.md").read_text()
WAIT = 300.0


def commands() -> list[str]:
    """The lines of the page's first two blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks[:2] for line in block.splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which the page's commands find the environment and the project's code."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run(command: str, place: Path) -> str:
    done = subprocess.run(shlex.split(command), cwd=place, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def up(command: str, place: Path) -> Iterator[None]:
    """Runs `command` until it has said where everything is, and stops it at the end, as Ctrl-C does."""
    log = place / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(shlex.split(command), cwd=place, stdout=output, stderr=output)
    try:
        assert wait_until(lambda: "Logs:" in log.read_text(), WAIT), log.read_text()
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def share(said: str) -> float:
    """What an app says about what was learned, as a share of the best."""
    found = re.search(r"policies later: ([\d.]+)% of", said)
    assert found, said
    return float(found[1]) / 100


def test_five_commands_from_nothing_to_a_policy_that_has_learned(place):
    install, init, start, app, status = commands()
    assert install == "make install"  # this test runs in what it made
    run(init, place)
    with up(start, place):
        reached = share(run(app, place))
        told = run(status, place)
    assert "serves      lin_ucb-" in told, told
    assert reached > 0.95
    folder = ProjectFolder(place / "news")
    assert folder.last_problem() is None
    assert all(entry.look is None or entry.look.outcome != "rolled back" for entry in folder.journal())


def test_prices_are_learned_within_the_rule(place):
    run(".venv/bin/python -m orchestration.cli init shop --example prices", place)
    with up(".venv/bin/python -m orchestration.cli up shop", place):
        reached = share(run(".venv/bin/python -m examples.prices.app shop 3", place))
    folder = ProjectFolder(place / "shop")
    assert folder.last_problem() is None
    assert reached > 0.9  # uniform choices reach 83%
    assert folder.journal()
