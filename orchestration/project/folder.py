"""A project folder: what its owner writes, and what its processes write.

project.toml    how it serves and learns (`ProjectSettings`); the owner's
catalogue.json  the items (`contracts.items`); the owner's
features.json   the feature spec of the context (`contracts.features`); the owner's
policies/       the policy store, with the first policy
events/, warehouse/, windows/, audit/, guard.json, probation.json, journal.jsonl: as below any root
learner.json    how far the learner has come
up.json         the processes that run for the folder, and problems.jsonl, every one that ended unasked
logs/           output of the processes
"""

import fcntl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from contracts import features, items
from contracts.errors import InputError
from contracts.features import FeatureSpec
from contracts.items import Item
from contracts.policies import Exploration
from contracts.records import Timestamp
from contracts.windows import TrainingWindow
from orchestration.audit.settings import GuardSettings
from orchestration.loop.run_folder import LOCK_NAME, RunFolder
from orchestration.pipelines.plan import WindowGrid
from orchestration.places import replace_file, whole_lines
from orchestration.watch import Caution

if TYPE_CHECKING:  # Beam: only who learns needs it
    from orchestration.learning import Recipe

SETTINGS_NAME = "project.toml"

T = TypeVar("T")
Port = Annotated[int, Meta(ge=0, le=65535, description="0: a free one, chosen at each start")]


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the predictor and the live page listen."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 0
    page_host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    page_port: Port = 0


class LearningSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is trained."""

    algorithm: Annotated[str, Meta(min_length=1)] = "lin_ucb"
    hyperparameters: dict[str, float | int | str | bool] = {}


class ProjectSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of `project.toml`, a table per part."""

    serving: Serving = Serving()
    windows: WindowGrid = WindowGrid()
    learning: LearningSettings = LearningSettings()
    exploration: Exploration = Exploration()
    probation: Caution = Caution()
    guard: GuardSettings = GuardSettings()


class LearnerState(msgspec.Struct, frozen=True, kw_only=True):
    """`learner.json`: how far the learner has come, written about once a second."""

    at: Timestamp
    complete_until: Timestamp  # every event before it is in the tables
    held_by: str  # what keeps it from being later
    waits_for: Timestamp  # the moment at which the next window closes
    overdue: bool  # it waits longer than it may


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the folder."""

    name: str
    running: bool
    since: Timestamp
    restarts: int


class UpState(msgspec.Struct, frozen=True, kw_only=True):
    """`up.json`: what runs for the folder. It is true while the folder is locked."""

    since: Timestamp
    predictor: str  # its address
    parts: list[Part]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `problems.jsonl`."""

    at: Timestamp
    fact: str


class ProjectFolder(RunFolder):
    """The paths and files of a project."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.project_toml = root / SETTINGS_NAME
        self.learner = root / "learner.json"
        self.up = root / "up.json"
        self.problems = root / "problems.jsonl"

    def project(self) -> ProjectSettings:
        """The settings. Raises InputError `<file>: <table>.<field>: <fact>`, also when this is no project folder."""
        path = self.project_toml
        try:
            return decode_settings(path.read_text(), str(path))
        except FileNotFoundError:
            raise InputError(
                f"{self.root}: has no {SETTINGS_NAME}; make a project folder with the command init"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}") from None

    def items(self) -> list[Item]:
        """The catalogue."""
        return items.read(self.catalogue)

    def spec(self) -> FeatureSpec:
        """The feature spec."""
        return features.read_spec(self.features)

    def recipe(self) -> "Recipe":
        """How records become policies, by the files as they are now. Raises InputError for one that is wrong."""
        from orchestration.learning import Recipe

        settings = self.project()
        return Recipe(
            windows=settings.windows.record_settings,
            algorithm=settings.learning.algorithm,
            hyperparameters=settings.learning.hyperparameters,
            exploration=settings.exploration,
            catalogue=self.items(),
            features=self.spec(),
            guard=settings.guard,
            caution=settings.probation,
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Reserves the folder for one caller. Raises InputError while another has it."""
        with (self.root / LOCK_NAME).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, even if it is killed
            except BlockingIOError:
                raise InputError(f"{self.root}: is up already; see the command status") from None
            yield

    def is_up(self) -> bool:
        """Whether processes run for the folder."""
        try:
            with self.alone():
                return False
        except InputError:
            return True

    def write(self, state: LearnerState | UpState) -> None:
        """Replaces the file of that state."""
        replace_file(self.learner if isinstance(state, LearnerState) else self.up, msgspec.json.encode(state))

    def read_learner(self) -> LearnerState | None:
        """How far the learner has come; None before it began."""
        return _read_if_there(self.learner, LearnerState)

    def read_up(self) -> UpState | None:
        """What runs, or ran last; None before anything did."""
        return _read_if_there(self.up, UpState)

    def last_problem(self) -> Problem | None:
        """The newest line of `problems.jsonl`; None if there is none."""
        lines = whole_lines(self.problems)
        return msgspec.json.decode(lines[-1], type=Problem) if lines else None

    def last_window(self) -> TrainingWindow | None:
        """The newest window that is finished."""
        journal = self.journal()
        return journal[-1].window if journal else None


def decode_settings(text: str, where: str) -> ProjectSettings:
    """The settings in the text of a `project.toml`. Raises InputError that begins with `where`."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        return msgspec.convert(data, ProjectSettings)
    except msgspec.ValidationError as error:
        fact, _, path = str(error).partition(" - at ")
        field = path.strip("`").removeprefix("$.")
        value: Any = data
        for part in field.split(".") if field else []:
            value = value.get(part) if isinstance(value, dict) else None
        got = f", got {value!r:.80}" if value is not None and not isinstance(value, dict) else ""
        raise InputError(f"{where}: {f'{field}: ' if field else ''}{fact}{got}") from None


def _read_if_there(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None
