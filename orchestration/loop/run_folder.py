"""The folder of one run of the loop: where everything is, and the journal of what was done.

settings.json   what the run was started with
catalogue.json  what each action stands for
events/         the event log
warehouse/      decisions, rewards, dead letters
windows/        training windows
policies/       the policy store
truth/          what really happened, as the viewers know it
journal.jsonl   one line for each training window that was dealt with
logs/           output of the child processes
ingest.json     how far the streaming job is, on the emulators
report.json, report.html
running.lock    held while a run goes on
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from contracts.errors import InputError
from contracts.policies import Movie
from contracts.windows import TrainingWindow
from orchestration.gate import GateResult
from orchestration.loop.settings import LoopSettings
from orchestration.places import Places, append_line, replace_file, whole_lines

SETTINGS_NAME = "settings.json"
LOCK_NAME = "running.lock"


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One training window: which candidate came of it, what the gate said, and when its policy served."""

    number: int  # 0 is the bootstrap
    window: TrainingWindow
    interrupted: bool  # cut short by the end of an earlier run
    candidate: str
    gate: GateResult
    true_value: float | None  # of the candidate on the decisions that the gate saw
    ingest_seconds: float
    export_seconds: float
    train_seconds: float
    gate_seconds: float
    serving_at: datetime | None  # when the policy trained on it was serving; None if it was not promoted


class RunFolder(Places):
    """Paths and journal of a run: the places of every root, and the loop's own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.truth = root / "truth"
        self.simulated = self.truth / "simulated"
        self.logs = root / "logs"
        self.ingest_status = root / "ingest.json"
        self.report_json = root / "report.json"
        self.report_html = root / "report.html"
        self._settings = root / SETTINGS_NAME
        self._journal = root / "journal.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the folder to one run, which may start here (in place of an earlier one) or go on.

        Raises InputError when another run goes on here, or when the folder cannot be made or holds something else.
        """
        try:
            if self.root.exists() and not self.root.is_dir():
                raise InputError(f"--out must be a folder, got the file {self.root}")
            self._refuse_other_things()
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / LOCK_NAME).open("ab")
        except OSError as error:
            raise InputError(f"--out {self.root} cannot be created: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                raise InputError(f"--out {self.root} is in use by another run: name another folder") from None
            yield

    def create(self, settings: LoopSettings, catalogue: list[Movie]) -> None:
        """Starts a run here, in place of an earlier one. The caller holds the lock."""
        for path in (path for path in self.root.iterdir() if path.name != LOCK_NAME):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for folder in (self.events, self.windows, self.policies, self.simulated, self.logs):
            folder.mkdir(parents=True)
        self.catalogue.write_bytes(msgspec.json.encode(catalogue))
        self.write_settings(settings)

    def write_settings(self, settings: LoopSettings) -> None:
        """Notes what the run was started with, or is resumed with."""
        replace_file(self._settings, msgspec.json.format(msgspec.json.encode(settings), indent=2))

    def settings(self) -> LoopSettings:
        """What the run was started with. Raises InputError when there is none."""
        try:
            return msgspec.json.decode(self._settings.read_bytes(), type=LoopSettings)
        except OSError:
            raise InputError(f"{self.root} holds no run to resume or to report on") from None
        except msgspec.DecodeError as error:
            raise InputError(f"{self._settings}: {error}") from None

    def _refuse_other_things(self) -> None:
        """Raises InputError unless all that is in the folder is a run's: it may be about to be removed."""
        if not self.root.is_dir():
            return
        names = {path.name for path in self.root.iterdir()}
        # Not runs/: those are a pipeline's, and would be lost.
        ours = {path.name for path in vars(self).values() if path not in (self.root, self.runs)} | {LOCK_NAME}
        names -= {f".{name}" for name in ours}  # half-written, of a run that was killed
        if names and (names - ours or not names & {SETTINGS_NAME, LOCK_NAME}):
            raise InputError(f"--out {self.root} is not empty and not a run of the loop: name another folder")
        if SETTINGS_NAME in names:
            self.settings()

    def journal(self) -> list[JournalEntry]:
        """The windows that are finished, in order. A last line that was cut short is ignored: its window is not finished.

        Raises InputError that names a line which is not an entry.
        """
        entries = []
        for number, line in enumerate(whole_lines(self._journal), start=1):
            try:
                entries.append(msgspec.json.decode(line, type=JournalEntry))
            except msgspec.DecodeError as error:
                raise InputError(f"{self._journal}, line {number}: {error}") from None
        return entries

    def append(self, entry: JournalEntry) -> None:
        """Records that a window is finished."""
        append_line(self._journal, msgspec.json.encode(entry))
