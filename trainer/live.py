"""Learns from windows that are still open, and publishes what it learned as live versions of the champion.

    python -m trainer.live --live runs/latest/live --policies runs/latest/policies

It adds the provisional sums in `<live>/sums/` (`beam_jobs.learn_live` writes them about once per second) to the sufficient
statistics of the champion, the base, solves the arms that changed, and publishes a live version `<base>+<sequence>` in
`<live>/versions/` for each emission that changed anything. The predictors follow that folder. When another policy becomes
the champion, the process begins again from it, with the sums of the windows that it was not trained on.

It starts at once from a policy store and a folder of sums, and keeps no state of its own: killed and started again it
publishes the same coefficients under the next number. One process at a time may publish in a folder.

Live learning needs a linear algorithm (lin_ucb, lin_ts, greedy), with any arm features, or neural_linucb, whose last layer
learns over its frozen network. The other networks learn by window.

`<live>/control.json` is the guard's: while it holds live learning, nothing is published, and the evidence of windows that
it refuses is left out.
"""

import fcntl
import hashlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from contracts import live_emissions, live_encoders, live_sums, live_versions, policies, policy_arrays
from contracts.command_line import FlagParser, add_flags, from_flags, run_main
from contracts.errors import InputError
from contracts.live_emissions import Emission
from contracts.live_sums import ArmSums
from contracts.live_versions import CONTROL_NAME, VERSIONS_NAME, Control, Kind, LiveVersion
from contracts.policies import PolicyCard
from contracts.windows import YEAR_SECONDS, TrainingWindow
from trainer import agents, artifact, checkpoint
from trainer.live_solver import LiveSolver
from trainer.mounts import mounted

LOCK_NAME = ".lock"


class LiveSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How often live versions are looked for and kept; each field is a flag. The bounds are declared here alone."""

    poll_seconds: Annotated[float, Meta(gt=0, le=10, description="look for new sums and a new champion this often")] = (
        0.02
    )
    snapshot_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=10,
            description="how often a version is also written whole, for readers that missed one; with arm features, the"
            " covariance of every arm is then brought up to date",
        ),
    ] = 5.0
    keep_seconds: Annotated[
        float,
        Meta(gt=0, le=YEAR_SECONDS, description="how long the files of live versions are kept, for replay and audit"),
    ] = 3600.0
    keep_live: Annotated[
        Literal["no", "yes"],
        Meta(description="yes: the files of live versions are never removed, so that every decision can be replayed"),
    ] = "no"


class LiveTrainer:
    """Follows the champion and the provisional sums, and publishes live versions."""

    def __init__(self, live: Path, store: Path, settings: LiveSettings) -> None:
        """Raises InputError if the store has no champion, or if its algorithm cannot learn live."""
        self._live = live
        self._versions = live / VERSIONS_NAME
        self._store = store
        self._settings = settings
        self._reader = live_emissions.Reader(live / live_emissions.SUMS_FOLDER)
        self._windows: dict[TrainingWindow, ArmSums] = {}
        self._emission: Emission | None = None
        self._pointer = b""
        self._control = Control(changed_at=datetime.fromtimestamp(0, UTC))
        self._control_text = b""
        self._refused_base = ""  # what keeps the champion from being a base, once it has been said
        written = live_versions.listed([path.name for path in self._versions.iterdir()])
        self._sequence = written[-1][0] if written else 0
        self._next_snapshot = 0.0  # by the monotonic clock; the first version over a base is a snapshot
        self._follow_control()
        self._begin(self._champion())

    @property
    def base(self) -> str:
        """The version of the base."""
        return self._card.version

    def step(self) -> LiveVersion | None:
        """Takes what is new, and returns the version that was published, if one was.

        Raises InputError for sums of another shape than the base.
        """
        news = self._follow_champion()
        news |= self._follow_control()
        for emission in self._reader.read():
            self._take(emission)
            news = True
        if not news or self._emission is None or self._control.held:
            return None
        return self._publish()

    def _champion(self) -> str:
        path = self._store / policies.CHAMPION_NAME
        try:
            self._pointer = path.read_bytes()
        except OSError as error:
            raise InputError(f"--policies: a store with a champion, got {self._store}: {error.strerror}") from None
        return policies.decode_champion(self._pointer, str(path)).version

    def _follow_champion(self) -> bool:
        """Begins again if another policy is the champion. One that cannot be a base leaves the current base in place."""
        before = self._pointer
        try:
            version = self._champion()
            if self._pointer == before or version == self.base:
                return False
            self._begin(version)
        except InputError as error:
            if self._refused_base != str(error):
                _say(f"{self.base} stays the base: {error}")
            self._refused_base = str(error)
            self._pointer = b""  # it is tried again
            return False
        return True

    def _begin(self, version: str) -> None:
        card = artifact.read_card(self._store, version)
        if card is None:
            raise InputError(f"--policies: {self._store} has no policy {version}, which its champion.json names")
        if card.algorithm not in agents.LIVE_ALGORITHMS:
            allowed = ", ".join(agents.LIVE_ALGORITHMS)
            raise InputError(f"algorithm: one of {allowed} to learn live, got {card.algorithm}, which learns by window")
        folder = self._store / version
        arrays = policy_arrays.read(folder, card)
        solver = LiveSolver(card, checkpoint.read(folder), arrays)
        self._card: PolicyCard = card
        self._width, self._encoder = arrays.theta.shape[1], live_encoders.digest(arrays.layers)
        self._solver = solver
        self._changed = np.zeros(card.num_actions, bool)
        self._counted: set[TrainingWindow] = set()  # the windows in the solver's sums
        self._next_snapshot = 0.0
        self._refused_base = ""
        newest = max((trained.window.start for trained in card.trained_on), default=None)
        self._windows |= self._reader.windows  # after a roll-back, those that the base before was trained on
        # The base was trained on every window before its newest, or the guard refused it.
        for window in [window for window in self._windows if newest is not None and window.start <= newest]:
            del self._windows[window]
        for sums in self._windows.values():
            self._mark(sums.arms)
        _say(f"learns live over {version}, from number {self._sequence + 1}")

    def _follow_control(self) -> bool:
        path = self._live / CONTROL_NAME
        text = path.read_bytes() if path.is_file() else b""
        if text == self._control_text:
            return False
        self._control, self._control_text = live_versions.decode_control(text, str(path)), text
        self._next_snapshot = 0.0
        _say(f"held: {self._control.reason}" if self._control.held else "released")
        return True

    def _take(self, emission: Emission) -> None:
        if (emission.observation_dim, emission.encoder) != (self._width, self._encoder):
            raise InputError(
                f"{self._live / live_emissions.SUMS_FOLDER}: observation_dim {self._width} and encoder"
                f" {self._encoder or 'none'} as in {self.base}, got {emission.observation_dim} and"
                f" {emission.encoder or 'none'}"
            )
        nothing = live_sums.empty(emission.observation_dim)
        newest = max((trained.window.start for trained in self._card.trained_on), default=None)
        for part in emission.windows:
            if newest is not None and part.window.start <= newest:
                continue
            sums = self._reader.windows[part.window]
            if emission.snapshot:
                self._mark(live_sums.differing(sums, self._windows.get(part.window, nothing)))
            else:
                self._mark(part.sums(emission.observation_dim).arms)
            self._windows[part.window] = sums
        self._emission = emission

    def _mark(self, arms: np.ndarray) -> None:
        self._changed[arms[arms < len(self._changed)]] = True

    def _publish(self) -> LiveVersion | None:
        """Solves and publishes, unless nothing has changed since the last version and no snapshot is due."""
        counted = {window: sums for window, sums in self._windows.items() if window.start not in self._control.refused}
        for window in counted.keys() ^ self._counted:
            self._mark(self._windows[window].arms)
        self._solver.solve(counted, np.flatnonzero(self._changed))
        self._changed[:] = False
        self._counted = set(counted)
        whole = time.monotonic() >= self._next_snapshot
        if whole:
            self._solver.solve_all()
        changes = self._solver.since_published()
        if not (whole or len(changes.arms) or len(changes.covariance_arms)):
            return None
        is_first = self._next_snapshot == 0.0
        self._sequence += 1
        now = datetime.now(UTC)
        delta = self._version("delta", changes, counted, now)
        if whole:
            live_versions.publish(self._versions, self._version("snapshot", self._solver.since_base(), counted, now))
            if self._settings.keep_live == "no":
                live_versions.remove_before(self._versions, now - timedelta(seconds=self._settings.keep_seconds))
            self._next_snapshot = time.monotonic() + self._settings.snapshot_seconds
        if not is_first:  # there is no version before it over this base, or it was withdrawn
            live_versions.publish(self._versions, delta)
        self._solver.publish()
        return delta

    def _version(
        self, kind: Kind, changes: policy_arrays.ArmChanges, counted: dict[TrainingWindow, ArmSums], now: datetime
    ) -> LiveVersion:
        assert self._emission is not None
        return LiveVersion(
            kind=kind,
            base=self.base,
            sequence=self._sequence,
            published_at=now,
            complete_until=self._emission.complete_until,
            sums_digest=digest(counted),
            interactions=sum(int(sums.counts.sum()) for sums in counted.values()),
            num_actions=self._card.num_actions,
            width=self._width,
            changes=changes,
        )


def digest(windows: dict[TrainingWindow, ArmSums]) -> str:
    """A hash of the provisional sums by window: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for window in sorted(windows):
        found.update(window.folder.encode())
        for column in live_sums.encode(windows[window]):
            found.update(column)
    return found.hexdigest()


@contextmanager
def locked(live: Path) -> Iterator[None]:
    """Makes `<live>/versions/` and reserves it for this process. Raises InputError if another one publishes there."""
    versions = live / VERSIONS_NAME
    try:
        versions.mkdir(parents=True, exist_ok=True)
        lock = (versions / LOCK_NAME).open("ab")
    except OSError as error:
        raise InputError(f"--live: a folder that can be written to, got {live}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
        except BlockingIOError:
            raise InputError(f"--live: a folder that no other process publishes in, got {live}") from None
        yield


def build_parser() -> FlagParser:
    """The flags."""
    parser = FlagParser(documentation=__doc__, prog="python -m trainer.live")
    parser.add_argument("--live", type=mounted, required=True, help="folder of live learning: sums/ in, versions/ out")
    parser.add_argument("--policies", type=mounted, required=True, help="policy store, whose champion is the base")
    add_flags(parser, LiveSettings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Learns until SIGTERM or SIGINT, and returns the exit code."""
    return run_main("trainer.live", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    settings = from_flags(arguments, LiveSettings)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    with locked(arguments.live):
        trainer = LiveTrainer(arguments.live, arguments.policies, settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        while not stopped:
            trainer.step()
            time.sleep(settings.poll_seconds)


def _say(text: str) -> None:
    sys.stderr.write(f"trainer.live: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
