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
report.json, report.html
"""

import shutil
from datetime import datetime
from pathlib import Path

import msgspec

from contracts.errors import InputError
from contracts.policies import Movie
from contracts.windows import TrainingWindow
from orchestration.settings import LoopSettings
from orchestration.steps import GateResult, replace_file

SETTINGS_NAME = "settings.json"


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


class RunFolder:
    """Paths and journal of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events = root / "events"
        self.warehouse = root / "warehouse"
        self.windows = root / "windows"
        self.policies = root / "policies"
        self.truth = root / "truth"
        self.simulated = self.truth / "simulated"
        self.logs = root / "logs"
        self.catalogue = root / "catalogue.json"
        self.report_json = root / "report.json"
        self.report_html = root / "report.html"
        self._settings = root / SETTINGS_NAME
        self._journal = root / "journal.jsonl"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._settings.is_file()

    def create(self, settings: LoopSettings, catalogue: list[Movie]) -> None:
        """Starts a run here, in place of an earlier one. Raises InputError for a folder that holds something else."""
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--out must be a folder, got the file {self.root}")
        if self.exists:
            shutil.rmtree(self.root)
        elif self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"--out {self.root} is not empty and not a run of the loop: name another folder")
        try:
            for folder in (self.root, self.events, self.windows, self.policies, self.simulated, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.root} cannot be created: {error.strerror}") from None
        self.catalogue.write_bytes(msgspec.json.encode(catalogue))
        replace_file(self._settings, msgspec.json.format(msgspec.json.encode(settings), indent=2))

    def settings(self) -> LoopSettings:
        """What the run was started with. Raises InputError when there is none."""
        if not self.exists:
            raise InputError(f"{self.root} holds no run to resume or to report on")
        try:
            return msgspec.json.decode(self._settings.read_bytes(), type=LoopSettings)
        except msgspec.DecodeError as error:
            raise InputError(f"{self._settings}: {error}") from None

    def journal(self) -> list[JournalEntry]:
        """What was done so far. A torn last line is passed over: that window is dealt with again."""
        if not self._journal.is_file():
            return []
        data = self._journal.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        return [msgspec.json.decode(line, type=JournalEntry) for line in lines]

    def append(self, entry: JournalEntry) -> None:
        """Notes that a window was dealt with."""
        with self._journal.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")

    def discard_torn_line(self) -> None:
        """Cuts off what a killed run left of its last line."""
        if self._journal.is_file():
            data = self._journal.read_bytes()
            replace_file(self._journal, data[: data.rfind(b"\n") + 1])
