"""Child processes that cannot outlive their parent, and waiting for what they do.

A child is started through a guard, `python -m orchestration.processes COMMAND…`. The guard's standard input is a pipe
from the parent. The pipe closes when the parent stops the child, and also when the parent is killed. The guard then
sends the command SIGTERM, and SIGKILL if the command has not ended in time. This works wherever pipes do.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from contracts.errors import InputError, OperationError
from contracts.native_messages import native_messages_withheld as native_messages_withheld
from contracts.native_messages import standard_error_in as standard_error_in

STOP_TIMEOUT_SECONDS = 15.0
POLL_SECONDS = 0.02


class Child:
    """A guarded process whose output goes to `log`. A context manager: leaving it stops the process."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # A new session: ctrl-C in the terminal reaches only the parent, which stops its children in order.
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "orchestration.processes", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """The exit code of the guard; None while the process runs."""
        return self._guard.poll()

    def check(self) -> None:
        """Raises OperationError when the process has failed: with the last line of its log, or the signal that ended it."""
        code = self.exit_code()
        if code and not 0 < code <= 128:
            # A signal ended the guard itself (below 0) or the command (above 128, as a shell reports it).
            raise OperationError(f"{self.name} was ended by {_signal_name(-code if code < 0 else code - 128)}")
        if code:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise OperationError(f"{self.name} ended with exit code {code}: {lines[-1] if lines else 'no output'}")

    def wait(self, timeout_seconds: float) -> int | None:
        """The exit code, or None if it still runs after the time-out."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._guard.wait(timeout_seconds)
        return None

    def stop(self) -> int:
        """Asks the process to end (SIGTERM), waits for it, and returns its exit code."""
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        code = self.wait(STOP_TIMEOUT_SECONDS + 5)
        if code is None or code < 0:
            # The guard hangs or was killed and can no longer stop the command, which is in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            code = self._guard.wait()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def wait_until(done: Callable[[], bool], timeout_seconds: float, check: Callable[[], None] = lambda: None) -> bool:
    """Whether `done()` became true in time.

    Args:
      done: called until it returns True.
      timeout_seconds: how long to go on calling it; it is called at least once.
      check: called between two calls of `done`; raises an exception when waiting longer is pointless.
    """
    deadline = time.monotonic() + timeout_seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        check()
        time.sleep(POLL_SECONDS)
    return True


def free_port() -> int:
    """A TCP port on the loopback address that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def check_port(port: int) -> None:
    """Raises InputError when `port` on the loopback address is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used: {error.strerror}") from None


def _guard(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def stop_when_parent_is_gone() -> None:
        while os.read(0, 1024):
            pass
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    # The guard ends when its child does, and not earlier.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=stop_when_parent_is_gone, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
