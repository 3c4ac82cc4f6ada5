"""Runs everything for a project folder on one machine, and keeps it running: the predictor, the learner, the live page.

A process that ends is started again, after a pause that doubles with each end up to a minute. Each process depends on files
alone: while the learner is away, the predictor goes on serving and the event log keeps the traffic; when it is back, it
continues with the first window that is not finished. The learner ingests, exports, audits (the guard), trains, judges and
promotes. All processes end when this one ends, however it ends.
"""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from contracts.command_line import say
from contracts.errors import InputError, OperationError
from orchestration import policy_store
from orchestration.endpoint import wait_until_served
from orchestration.loop.run_folder import Running
from orchestration.places import append_line
from orchestration.processes import Child, check_port, free_port, wait_until
from orchestration.project import learner
from orchestration.project.folder import Part, Problem, ProjectFolder, ProjectSettings, UpState

START_TIMEOUT_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0  # a process that ran this long starts again with the first pause
MAX_LOG_BYTES = 10 * 2**20
LOGS_KEPT = 3
LOOK_SECONDS = 0.2


class Keeper:
    """One process that is started again when it ends."""

    def __init__(self, name: str, command: list[str], log: Path, told: Callable[[str], None]) -> None:
        self._command = [sys.executable, "-m", *command]
        self._name = name
        self._log = log
        self._told = told
        self._pause = FIRST_PAUSE_SECONDS
        self._restarts = 0
        self._child: Child | None = None
        self._start_at = 0.0
        self._start()

    @property
    def part(self) -> Part:
        """Its state."""
        return Part(name=self._name, running=self._child is not None, since=self._since, restarts=self._restarts)

    def look(self) -> None:
        """Starts the process again if it has ended and its pause is over; keeps its log short."""
        now = time.monotonic()
        if self._child is not None and self._child.exit_code() is not None:
            if now - self._started >= STEADY_SECONDS:
                self._pause = FIRST_PAUSE_SECONDS
            self._told(f"{_ended(self._child)}; it starts again in {self._pause:g} s, see {self._log}")
            self._child.stop()
            self._child, self._since = None, datetime.now(UTC)
            self._start_at, self._pause = now + self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        elif self._child is None and now >= self._start_at:
            self._restarts += 1
            self._start()
        roll(self._log)

    def stop(self) -> None:
        """Ends the process and waits for it."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _start(self) -> None:
        self._child = Child(self._name, self._command, self._log)
        self._started, self._since = time.monotonic(), datetime.now(UTC)


class Supervisor:
    """Everything that runs for one folder."""

    def __init__(self, folder: ProjectFolder) -> None:
        self._folder = folder
        self._keepers: list[Keeper] = []
        self._since = datetime.now(UTC)
        self._address = ""
        self._shown = len(folder.journal())
        self._journal_size = _size(folder.journal_jsonl)
        self._stated: list[Part] = []

    def run(self) -> None:
        """Starts everything, prints where it is, and keeps it running until KeyboardInterrupt. Leaves no process behind.

        Raises InputError for a folder or a port that cannot be used, and when something runs for the folder already.
        """
        settings = self._folder.project()
        champion = policy_store.champion(self._folder.policies)
        if champion is None:
            raise InputError(f"{self._folder.policies}: has no policy that serves; make the project folder with init")
        self._folder.recipe()  # a file that is wrong is named before anything starts
        with self._folder.alone(), ExitStack() as stack:
            stack.callback(self._state)
            stack.callback(self._stop)
            self._start(settings, champion.version)
            while True:
                self._look()
                time.sleep(LOOK_SECONDS)

    def _start(self, settings: ProjectSettings, version: str) -> None:
        folder, serving = self._folder, settings.serving
        for port in (serving.port, serving.page_port):
            if port:
                check_port(port)
        port = serving.port or free_port()  # chosen here, so that it is the same after a restart
        page_port = serving.page_port or free_port()
        self._address = f"http://{serving.host}:{port}"
        folder.page.unlink(missing_ok=True)
        folder.write_running(Running(predictor=self._address))
        root = str(folder.root)
        self._keep("predictor", "predictor.app", "--policy", str(folder.policies), "--events", str(folder.events),
                   "--host", serving.host, "--port", str(port))  # fmt: skip
        self._keep("learner", learner.PROGRAM, "--project", root)
        self._keep("page", "orchestration.page", "--root", root, "--host", serving.page_host, "--port", str(page_port))
        self._state()
        try:
            wait_until_served(self._address, version, START_TIMEOUT_SECONDS, self._look)
        except OperationError as error:
            raise OperationError(f"{error}; see {folder.logs / 'predictor.log'}") from None
        wait_until(lambda: folder.read_page() is not None, START_TIMEOUT_SECONDS, self._look)
        page, grid = folder.read_page(), settings.windows
        say(f"Predictor: {self._address}  (POST /predict, POST /rewards; its requests are described at /docs)")
        say(f"Live page: {page.address if page is not None else f'does not start; see {folder.logs}/page.log'}")
        say(f"Serves:    {version}")
        say(
            f"Learns:    from windows of {grid.window_seconds:g} s, {grid.closing_seconds:g} s after their end; a reward"
            f" counts within {grid.reward_window_seconds:g} s of its decision"
        )
        say(f"Logs:      {folder.logs}   Ctrl-C stops everything; in another terminal: orchestration.cli status {root}")

    def _keep(self, name: str, *command: str) -> None:
        log = self._folder.logs / f"{name}.log"
        self._keepers.append(Keeper(name, list(command), log, self._problem))

    def _look(self) -> None:
        for keeper in self._keepers:
            keeper.look()
        self._state()
        if (size := _size(self._folder.journal_jsonl)) != self._journal_size:
            journal = self._folder.journal()
            for entry in journal[self._shown :]:
                say(learner.line(self._folder, entry))
            self._shown, self._journal_size = len(journal), size

    def _state(self) -> None:
        parts = [keeper.part for keeper in self._keepers]
        if parts != self._stated:
            self._folder.write(UpState(since=self._since, predictor=self._address, parts=parts))
            self._stated = parts

    def _problem(self, fact: str) -> None:
        say(f"! {fact}")
        append_line(self._folder.problems, msgspec.json.encode(Problem(at=datetime.now(UTC), fact=fact)))

    def _stop(self) -> None:
        # The predictor last: until then it answers the app.
        for keeper in reversed(self._keepers):
            keeper.stop()
        self._keepers = []
        self._folder.write_running(Running(predictor=None))


def roll(log: Path) -> None:
    """Moves the content of a log that has grown beyond `MAX_LOG_BYTES` into `<log>.1`, and older ones further back.

    The process appends to the same file, which is emptied in place: what it writes between copying and emptying is lost.
    """
    if not log.is_file() or log.stat().st_size <= MAX_LOG_BYTES:
        return
    for number in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.is_file():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    with log.open("r+b") as file:
        file.truncate()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _ended(child: Child) -> str:
    try:
        child.check()
    except OperationError as error:
        return str(error)
    return f"{child.name} ended"
