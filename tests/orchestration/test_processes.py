import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contracts.errors import InputError, OperationError
from orchestration.processes import Child, check_port, free_port, wait_until

SLEEPER = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]


def wait_for_pid(log: Path) -> int:
    while not (log.is_file() and log.read_text().strip()):
        time.sleep(0.01)
    return int(log.read_text())


def wait_until_gone(pid: int) -> None:
    while is_running(pid):
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_leaving_the_context_ends_the_process(tmp_path):
    with Child("sleeper", SLEEPER, tmp_path / "log") as child:
        pid = wait_for_pid(tmp_path / "log")
        assert child.exit_code() is None
        assert is_running(pid)
    assert not is_running(pid)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks processes up in /proc")
def test_a_killed_parent_takes_its_child_along(tmp_path):
    script = f"""
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from orchestration.processes import Child
Child("sleeper", {SLEEPER!r}, Path({str(tmp_path / "log")!r}))
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        pid = wait_for_pid(tmp_path / "log")
        os.kill(parent.pid, signal.SIGKILL)
        wait_until_gone(pid)
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks processes up in /proc")
def test_a_killed_guard_leaves_nothing_running(tmp_path):
    with Child("sleeper", SLEEPER, tmp_path / "log") as child:
        pid = wait_for_pid(tmp_path / "log")
        os.kill(os.getpgid(pid), signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        with pytest.raises(OperationError, match="sleeper was ended by SIGKILL"):
            child.check()
    wait_until_gone(pid)


def test_a_process_that_failed_is_reported_with_its_last_line(tmp_path):
    child = Child("broken", [sys.executable, "-c", "raise SystemExit('no such policy')"], tmp_path / "log")
    assert child.wait(30) == 1
    with pytest.raises(OperationError, match=r"broken ended with exit code 1: no such policy"):
        child.check()
    child.stop()


def test_a_process_that_was_killed_is_reported_with_the_signal(tmp_path):
    with Child("sleeper", SLEEPER, tmp_path / "log") as child:
        os.kill(wait_for_pid(tmp_path / "log"), signal.SIGKILL)
        assert child.wait(30) is not None
        with pytest.raises(OperationError, match="sleeper was ended by SIGKILL"):
            child.check()


def test_a_port_in_use_is_refused():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be used: Address already in use"):
            check_port(port)
    check_port(free_port())


def test_waiting_ends_with_what_is_waited_for_its_time_or_a_failed_check():
    calls = iter([False, False, True])
    assert wait_until(lambda: next(calls), 60)
    checked: list[int] = []
    assert not wait_until(lambda: False, 0.0, lambda: checked.append(1))
    assert not wait_until(lambda: False, 0.1, lambda: checked.append(1))
    assert checked

    def broken() -> None:
        raise OperationError("it crashed")

    with pytest.raises(OperationError, match="it crashed"):
        wait_until(lambda: False, 60, broken)
