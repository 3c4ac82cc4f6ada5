"""The folder of one run of the loop: its paths, and the journal of finished training windows.

settings.json   the settings of the run
catalogue.json  the item of each action
events/         the event log
warehouse/      decisions, rewards, dead letters
audit/          what the audit of each window found
guard.json      whether the loop is held, and guard.jsonl, every change of that
probation.json  the evidence about the version on probation, and probation.jsonl, every look at it
windows/        training windows
policies/       the policy store
truth/          what the viewers did, written by themselves
journal.jsonl   one line per finished training window
logs/           output of the child processes
running.json    where the predictor is while the loop runs, and what rewards are compared with
page.json       address and key of the live page, while it runs
ingest.json     the progress of the streaming job, with the emulators
report.json, report.html
running.lock    locked while a run is active

Runs are kept: each has a folder of its own, named after its time and settings, and `latest` beside them is a link to the
last one.
"""

import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from contracts import items
from contracts.errors import InputError
from contracts.items import Item
from contracts.windows import TrainingWindow
from orchestration import probation
from orchestration.gate import GateResult
from orchestration.loop.settings import LoopSettings
from orchestration.places import Places, append_line, replace_file, whole_lines
from orchestration.watch import Look

T = TypeVar("T")

SETTINGS_NAME = "settings.json"
LOCK_NAME = "running.lock"
LATEST_NAME = "latest"  # a link to the last run, beside the runs


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One finished training window: the candidate trained on it, the gate's result, and when it began to serve."""

    number: int  # 0 is the bootstrap
    window: TrainingWindow
    interrupted: bool  # cut short by the end of an earlier run
    candidate: str
    gate: GateResult
    true_value: float | None  # of the candidate, on the decisions on which the gate judged it
    ingest_seconds: float  # waiting for the watermark, and ingesting
    held_by: str = ""  # what held the watermark, if the window waited longer than usual
    overdue: bool = False  # it waited longer than the limit
    export_seconds: float
    audit_seconds: float = 0.0
    train_seconds: float
    gate_seconds: float
    serving_at: datetime | None  # when the policy trained on it served; None if it was not promoted
    look: Look | None = None  # at the version on probation, after the window's decisions; None if there was none


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """`running.json`: what only the process that started the parts knows.

    Rewards are expected ones per decision, when serving begins; None where the viewers are not simulated.
    """

    predictor: str | None = None  # its address while it is up
    oracle: float | None = None
    best_fixed: float | None = None
    uniform: float | None = None


class LivePage(msgspec.Struct, frozen=True, kw_only=True):
    """`page.json`: where the live page is served, and the key that changes something on it."""

    url: str
    key: str

    @property
    def address(self) -> str:
        """With the key, which stays in the browser on the loopback address, and elsewhere opens the page."""
        loopback = self.url.startswith(("http://127.", "http://localhost", "http://[::1]"))
        return f"{self.url}#key={self.key}" if loopback else f"{self.url}?key={self.key}"


class RunFolder(Places):
    """The paths and the journal of a run."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.truth = root / "truth"
        self.simulated = self.truth / "simulated"
        self.logs = root / "logs"
        self.ingest_status = root / "ingest.json"
        self.report_json = root / "report.json"
        self.report_html = root / "report.html"
        self.settings_json = root / SETTINGS_NAME
        self.journal_jsonl = root / "journal.jsonl"
        self.running = root / "running.json"
        self.page = root / "page.json"
        self.guard = root / "guard.json"
        self.guard_history = root / "guard.jsonl"
        self.probation = root / probation.STATE_NAME
        self.probation_history = root / probation.HISTORY_NAME

    def check_usable(self) -> None:
        """Raises InputError when no run can be written here: changes nothing, and takes no time."""
        try:
            if self.root.exists() and not self.root.is_dir():
                raise InputError(f"--out: must be a folder, got the file {self.root}")
            self._refuse_other_things()
            there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        except OSError as error:
            raise InputError(f"--out: cannot read {self.root}: {error.strerror}") from None
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise InputError(f"--out: must be a folder that can be written, got {self.root}: {there} cannot")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Reserves the folder for one run, which starts here (in place of an earlier run) or goes on.

        Raises InputError when another run is active here, or when the folder cannot be made or holds something else.
        """
        self.check_usable()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / LOCK_NAME).open("ab")
        except OSError as error:
            raise InputError(f"--out: cannot create {self.root}: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
            except BlockingIOError:
                raise InputError(f"--out: {self.root} is in use by another run; name another folder") from None
            yield

    def create(self, settings: LoopSettings, catalogue: list[Item]) -> None:
        """Starts a run here, in place of an earlier one. The caller holds the lock."""
        for path in (path for path in self.root.iterdir() if path.name != LOCK_NAME):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for folder in (self.events, self.windows, self.policies, self.simulated, self.logs):
            folder.mkdir(parents=True)
        self.catalogue.write_bytes(items.encode(catalogue))
        self.write_settings(settings)

    def write_settings(self, settings: LoopSettings) -> None:
        """Records the settings with which the run was started or resumed."""
        replace_file(self.settings_json, msgspec.json.format(msgspec.json.encode(settings), indent=2))

    def settings(self) -> LoopSettings:
        """The settings with which the run was started or resumed. Raises InputError when there is no run."""
        try:
            return msgspec.json.decode(self.settings_json.read_bytes(), type=LoopSettings)
        except OSError:
            raise InputError(f"{self.root} holds no run to resume or to report on") from None
        except msgspec.DecodeError as error:
            raise InputError(f"{self.settings_json}: {error}") from None

    def write_running(self, running: Running) -> None:
        """Says what only the running loop knows."""
        replace_file(self.running, msgspec.json.encode(running))

    def read_running(self) -> Running | None:
        """What the loop said last; None below a root where none ran. Raises InputError for a file that is something else."""
        return _read_if_there(self.running, Running)

    def write_page(self, page: LivePage) -> None:
        """Says where the live page is, to this user alone."""
        hidden = self.page.with_name(f".{self.page.name}")
        with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(page))
        hidden.replace(self.page)

    def read_page(self) -> LivePage | None:
        """Where the live page is; None when none runs. Raises InputError for a file that is something else."""
        return _read_if_there(self.page, LivePage)

    def _refuse_other_things(self) -> None:
        """Raises InputError unless everything in the folder belongs to a run, because a new run removes it."""
        if not self.root.is_dir():
            return
        names = {path.name for path in self.root.iterdir()}
        # A folder with runs/ belongs to a pipeline.
        ours = {path.name for path in vars(self).values() if path not in (self.root, self.runs)} | {LOCK_NAME}
        names -= {f".{name}" for name in ours}  # written half by a run that was killed
        if names and (names - ours or not names & {SETTINGS_NAME, LOCK_NAME}):
            raise InputError(f"--out: {self.root} is not empty and not a run of the loop; name another folder")
        if SETTINGS_NAME in names:
            self.settings()

    def journal(self) -> list[JournalEntry]:
        """The windows that are finished, in order. A last line that was cut short is ignored: its window is not finished.

        Raises InputError that names a line which is not an entry.
        """
        entries = []
        for number, line in enumerate(whole_lines(self.journal_jsonl), start=1):
            try:
                entries.append(msgspec.json.decode(line, type=JournalEntry))
            except msgspec.DecodeError as error:
                raise InputError(f"{self.journal_jsonl}, line {number}: {error}") from None
        return entries

    def append(self, entry: JournalEntry) -> None:
        """Records that a window is finished."""
        append_line(self.journal_jsonl, msgspec.json.encode(entry))


def _read_if_there(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None


def new_folder(settings: LoopSettings, now: datetime) -> Path:
    """The folder in which a run starts: `settings.out`, unless that is the link `latest`: then a new one beside it.

    Its name is made of the time and of what distinguishes most runs: `20261128T093000Z-lin_ucb-100-seed0`.
    """
    path = Path(settings.out)
    if path.name != LATEST_NAME:
        return path
    name = f"{now:%Y%m%dT%H%M%SZ}-{settings.algorithm}-{settings.num_actions}-seed{settings.seed}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path.with_name(one) for one in names if not path.with_name(one).exists())


def latest_folder(out: str) -> Path:
    """The folder that `out` names: where it points to if it is a link, as later runs move the link."""
    path = Path(out)
    return path.parent / path.readlink() if path.is_symlink() else path


def point_latest(folder: Path, always: bool) -> None:
    """Lets the link `latest` beside `folder` point to it: `always`, or only where there is such a link already.

    Raises InputError when something that is not a link has this name.
    """
    link = folder.parent / LATEST_NAME
    if not (always or link.is_symlink()):
        return
    if link.exists() and not link.is_symlink():
        raise InputError(f"--out: {link} must be a link to the last run, got something else of this name")
    hidden = link.with_name(f".{link.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    hidden.symlink_to(folder.name)
    hidden.replace(link)
