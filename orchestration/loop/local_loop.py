"""The closed loop on one machine, with real processes: a predictor serves, viewers ask it, and this process ingests,
exports, trains, evaluates and rolls out, window by window, while the traffic continues.

    generate → train → serve → (simulate → ingest → export → train → evaluate → roll out) for each training window

A window covers a stretch of wall-clock time. The loop processes it when it closes: after its end, the reward window, and
the time that events take to settle in the log. On a slow machine several windows may have closed since the last update;
then one update learns from all of them.
"""

import shutil
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from beam_jobs import generate_movielens
from beam_jobs.closing import Waited, sleep_until, wait_until_complete
from beam_jobs.movielens import MovieLens
from beam_jobs.payloads import DecisionShape
from contracts.command_line import say, show_status
from contracts.errors import InputError, OperationError
from contracts.event_segments import sealed_segments
from contracts.windows import TrainingWindow
from orchestration import policy_store
from orchestration.endpoint import wait_until_served
from orchestration.learning import Learned, Learning, Recipe, timed
from orchestration.loop import live, live_page, report, report_page
from orchestration.loop.audience import load_movielens, new_movies
from orchestration.loop.backends import Backend, EmbeddedBackend, open_backend
from orchestration.loop.progress import Progress
from orchestration.loop.run_folder import JournalEntry, RunFolder, point_latest
from orchestration.loop.settings import WATCHING, LoopSettings, changed
from orchestration.loop.truth import SessionStart, TruthReader
from orchestration.processes import Child, check_port, free_port, wait_until
from orchestration.watch import Look
from predictor import policy
from trainer import agents, dataset

START_TIMEOUT_SECONDS = 60.0


def run(settings: LoopSettings, resume: bool = False, latest: bool = False) -> Path:
    """Runs the loop and returns the path of its report.

    With `resume`, the run in `settings.out` continues: it first trains on the decisions that the interrupted run left,
    then serves the remaining windows. With `latest`, the link to the last run is made if there is none yet; where there
    is one, it is moved in any case.

    Raises InputError for settings that cannot be used, and OperationError when a process fails or does not answer.
    """
    agents.complete(settings.algorithm, settings.hyperparameters())
    if not settings.exploration:
        settings = msgspec.structs.replace(settings, exploration=agents.EXPLORATION[settings.algorithm])
    settings.exploration_settings()
    live.check(settings)
    folder = RunFolder(Path(settings.out))
    if resume:
        started_with = folder.settings()
        for backend in (started_with.backend, settings.backend):
            if backend != "local":
                raise InputError(f"--resume: needs --backend local; the events in the {backend} are gone")
        if differences := changed(started_with, settings, ignore=("out", "port", "windows", *WATCHING)):
            raise InputError(f"--resume: the run continues with its own settings; changed: {'; '.join(differences)}")
    if settings.port:
        check_port(settings.port)
    say(f"Ratings: {settings.ratings}")
    begin = time.monotonic()
    movielens = load_movielens(settings)
    loading_seconds = time.monotonic() - begin
    reference = movielens.reference
    say(
        f"{movielens.num_users:,} viewers, {movielens.num_actions} movies. Expected reward per decision: oracle "
        f"{reference.oracle:.3f}, best fixed movie {reference.best_fixed_action:.3f}, uniform {reference.uniform:.3f}"
    )
    with folder.locked():
        if folder.journal() and resume:
            folder.write_settings(settings)  # the number of windows may differ
        else:
            folder.create(settings, movielens.catalogue)
        point_latest(folder.root, always=latest)
        try:
            LocalLoop(settings, folder, movielens, loading_seconds).run()
        finally:
            show_status("")
        report_page.write(folder, movielens)
    return folder.report_html


class LocalLoop:
    """One run of the loop in `folder`."""

    def __init__(self, settings: LoopSettings, folder: RunFolder, movielens: MovieLens, loading_seconds: float) -> None:
        self._settings = settings
        # The viewers load the same ratings again, which takes minutes for 25 million.
        self._viewers_timeout_seconds = START_TIMEOUT_SECONDS + 5 * loading_seconds
        self._folder = folder
        self._movielens = movielens
        self._window_settings = settings.window_settings()
        self._children: list[Child] = []
        self._shape = DecisionShape(movielens.observation_dim, movielens.num_actions)
        self._backend: Backend = EmbeddedBackend(folder, self._shape)
        self._progress = Progress(folder, movielens, settings)
        self._live_guard = live.LiveGuard(folder, settings)

    def run(self) -> None:
        """Trains the first policy if there is none yet, then serves the remaining windows."""
        journal = self._folder.journal()
        if journal:
            self._check_what_is_there(journal)
        with (
            live_page.shown(self._folder, self._settings, self._movielens.reference),
            open_backend(self._settings.backend, self._folder, self._shape) as self._backend,
        ):
            if not journal:
                self._bootstrap()
            with ExitStack() as children:
                endpoint = self._start_predictor(children)
                if journal:
                    self._catch_up(journal, endpoint)
                served = sum(not entry.interrupted and entry.number > 0 for entry in journal)
                if served < self._settings.windows:
                    self._serve(endpoint, children, first=served + 1, session=len(journal))
                self._children.clear()
            self._backend.finish()

    def _check_what_is_there(self, journal: list[JournalEntry]) -> None:
        """Raises InputError when a part of the resumed run is missing, before anything is served."""
        report.noted_manifests(self._folder, journal)
        champion = policy_store.champion(self._folder.policies)
        if champion is None:
            raise InputError(
                f"{self._folder.policies} has no champion to go on with; start the run again without --resume"
            )
        policy.load(self._folder.policies / champion.version)

    def _bootstrap(self) -> None:
        """Trains the first policy from simulated decisions of the uniform policy, in a window that has closed already."""
        length = timedelta(seconds=self._settings.window_seconds)
        now = datetime.now(UTC).replace(microsecond=0)
        wait = timedelta(seconds=self._window_settings.closing_seconds)
        window = TrainingWindow(now - wait - length, now - wait)
        say(f"Bootstrap: {self._settings.bootstrap_decisions} decisions of the uniform policy")
        # The copy in the truth remains when the backend has carried the log away.
        generate_movielens.generate(
            self._movielens.masking(new_movies(self._settings, self._movielens)),
            generate_movielens.GeneratorSettings(
                num_decisions=self._settings.bootstrap_decisions,
                start=window.start,
                window_seconds=self._settings.window_seconds,
                no_reward_probability=self._settings.no_reward_probability,
                seed=self._settings.seed,
            ),
            self._folder.simulated,
        )
        for segment in sealed_segments(self._folder.simulated):
            shutil.copy(segment, self._folder.events)
        self._backend.deliver()
        self._update([(0, window)], interrupted=False, endpoint=None)
        if policy_store.champion(self._folder.policies) is None:
            refused = self._folder.journal()[-1].gate.reason
            raise InputError(f"the first policy may not serve, {refused}; see --bootstrap-decisions, --num-actions")

    def _start_predictor(self, children: ExitStack) -> str:
        port = self._settings.port or free_port()
        endpoint = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "predictor.app", "--policy", str(self._folder.policies)]
        command += ["--events", str(self._folder.events), "--port", str(port)]
        command += [*self._backend.predictor_flags, *live.predictor_flags(self._folder, self._settings)]
        self._children.append(children.enter_context(Child("predictor", command, self._folder.logs / "predictor.log")))
        champion = policy_store.champion(self._folder.policies)
        assert champion is not None  # the bootstrap made one, or raised an error
        wait_until_served(endpoint, champion.version, START_TIMEOUT_SECONDS, self._check_children)
        say(f"Predictor: {endpoint} serves {champion.version}")
        live_page.tell(self._folder, self._movielens.reference, endpoint)
        self._live_guard.watch(endpoint)
        return endpoint

    def _catch_up(self, journal: list[JournalEntry], endpoint: str) -> None:
        """Processes the windows and decisions that the earlier run left after its last finished window."""
        done = {entry.window.start for entry in journal}
        windows = [ready.manifest.window for ready in dataset.ready_windows(self._folder.windows)]
        begin, end = max(window.end for window in windows), datetime.now(UTC).replace(microsecond=0)
        left = [window for window in windows if window.start not in done]
        self._wait_until_complete(datetime.now(UTC))
        if (decisions := self._progress.decisions_between(begin, end)) > 0:
            say(f"Resuming: {decisions} decisions of the interrupted run")
            left.append(TrainingWindow(begin, end))
        if left:
            self._update([(journal[-1].number, window) for window in left], interrupted=True, endpoint=endpoint)

    def _serve(self, endpoint: str, children: ExitStack, first: int, session: int) -> None:
        count = self._settings.windows - first + 1
        if (grid := live.grid(self._settings)) is not None:
            self._children += live.start(self._folder, self._settings, self._backend, self._shape, grid, children)
            live.wait_until_learning(self._folder, self._settings, self._check_children)
        launched = time.time()
        viewers = Child(
            "simulator",
            [
                *(sys.executable, "-m", "orchestration.loop.simulator"),
                *("--endpoint", endpoint, "--events", str(self._folder.events), "--session", str(session)),
                *("--truth", str(self._folder.truth / f"viewers-{session:04d}.jsonl"), "--first-window", str(first)),
                *(("--grid", grid.isoformat()) if grid is not None else ()),
                *msgspec.structs.replace(self._settings, windows=count).flags(),
            ],
            self._folder.logs / "simulator.log",
        )
        self._children.append(children.enter_context(viewers))
        say(
            f"Serving {count} windows of {self._settings.window_seconds:g} s, "
            f"{self._settings.decisions_per_window} decisions each"
        )
        start = self._first_window_starts(launched)
        if grid is None:
            self._children += live.start(self._folder, self._settings, self._backend, self._shape, start, children)
        length = timedelta(seconds=self._settings.window_seconds)
        windows = [(first + i, TrainingWindow(start + i * length, start + (i + 1) * length)) for i in range(count)]
        while windows:
            waited = self._wait_until_complete(self._closes_at(windows[0][1]))
            closed = [item for item in windows if self._closes_at(item[1]) <= waited.mark.complete_until]
            windows = windows[len(closed) :]
            self._update(closed, interrupted=False, endpoint=endpoint, waited=waited)
        while viewers.exit_code() is None:  # the viewers send the last late rewards
            sleep_until(datetime.now(UTC) + timedelta(seconds=0.2), self._check_children)
        viewers.check()
        if revised := self._take_in_late_rows(datetime.now(UTC)):
            self._audit(revised, False, endpoint)
            self._learn(endpoint)

    def _first_window_starts(self, launched: float) -> datetime:
        """The start of the first window, which the viewers' process, launched at that moment, writes when it is ready."""
        truth = TruthReader(self._folder.truth)
        starts: list[float] = []

        def begun() -> bool:
            sessions = [entry.start for entry in truth.read() if isinstance(entry, SessionStart)]
            starts.extend(start for start in sessions if start >= launched)
            return bool(starts)

        if not wait_until(begun, self._viewers_timeout_seconds, self._check_children):
            raise OperationError(f"no viewers came within {self._viewers_timeout_seconds:.0f} s")
        return datetime.fromtimestamp(starts[0], UTC)

    def _wait_until_complete(self, moment: datetime) -> Waited:
        """Returns once every event logged before `moment` is in the tables; until then it says why it waits."""
        return wait_until_complete(
            lambda: self._backend.advance(moment), moment, self._settings.wait_settings(), say, self._check_children
        )

    def _update(
        self,
        closed: list[tuple[int, TrainingWindow]],
        interrupted: bool,
        endpoint: str | None,
        waited: Waited | None = None,
    ) -> None:
        """Processes windows: export, audit, watch, train, evaluate, and roll out if promoted.

        The loop has `waited` for the windows to close; without it, it waits here.
        """
        waited = waited or self._wait_until_complete(self._closes_at(closed[-1][1]))
        with timed() as export_seconds:
            revised = self._take_in_late_rows(closed[0][1].start)
            self._learning.export([window for _, window in closed])
        with timed() as audit_seconds:
            self._audit(revised | dict.fromkeys([window for _, window in closed], 0), interrupted, endpoint)
        looks = self._watch([window for _, window in closed], endpoint)
        learned = self._learn(endpoint)
        for index, (number, window) in enumerate(closed):
            entry = JournalEntry(
                number=number,
                window=window,
                interrupted=interrupted,
                candidate=learned.update.candidate,
                gate=learned.update.gate,
                true_value=learned.true_value,
                ingest_seconds=waited.seconds,
                # The others closed while the loop waited for the first, or before.
                held_by=waited.held_by if index == 0 else "",
                overdue=waited.overdue and index == 0,
                export_seconds=export_seconds[0],
                audit_seconds=audit_seconds[0],
                train_seconds=learned.update.train_seconds,
                gate_seconds=learned.update.gate_seconds,
                serving_at=learned.serving_at,
                look=looks[index],
            )
            self._folder.append(entry)
            say(self._progress.line(entry))

    def _take_in_late_rows(self, until: datetime) -> dict[TrainingWindow, int]:
        """Exports windows that ended by `until` again if rows of them came since. Returns them, with their revisions."""
        revised = self._learning.revise(until)
        for manifest in revised:
            say(
                f"LATE {manifest.window.folder}: rows came after it was exported: {report.came_late(self._folder, manifest)}; revised"
            )
        return {manifest.window: manifest.revision for manifest in revised}

    def _audit(self, windows: dict[TrainingWindow, int], interrupted: bool, endpoint: str | None) -> None:
        """Audits revisions of windows before training; prints those that are refused, and waits until a roll-back serves."""
        before = policy_store.champion(self._folder.policies)
        audits = self._learning.audit(windows, interrupted)
        for refused in (one for one in audits if not one.accepted):
            say(f"REFUSED {refused.name}: {refused.reason}")
        self._live_guard.after_audit([audit.window for audit in audits if audit.accepted])
        after = policy_store.champion(self._folder.policies)
        if after is not None and after != before:
            say(f"Rolled back to {after.version}, which was trained on no refused window")
            self._wait_until_served(endpoint, after.version)

    def _watch(self, windows: list[TrainingWindow], endpoint: str | None) -> list[Look | None]:
        """A look at the version on probation after each accepted window. Waits until a roll-back serves."""
        looks = self._learning.watch(windows)
        for look in looks:
            if look is not None:
                say(f"{look.outcome.upper()} {look.version}: {look.reason}")
                if look.outcome == "rolled back":
                    self._wait_until_served(endpoint, look.anchor)
        return looks

    def _learn(self, endpoint: str | None) -> "_Learned":
        """Trains, judges and rolls out the champion's next update, unless the guard holds the loop."""
        learned = self._learning.learn()
        serving_at = None
        if learned.gate.promoted:
            self._wait_until_served(endpoint, learned.candidate)
            serving_at = datetime.now(UTC)
        true_value = self._progress.true_value(learned.card) if learned.card is not None else None
        return _Learned(learned, true_value, serving_at)

    @property
    def _learning(self) -> Learning:
        settings = self._settings
        recipe = Recipe(
            windows=self._window_settings,
            algorithm=settings.algorithm,
            hyperparameters=settings.hyperparameters(),
            exploration=settings.exploration_settings(),
            catalogue=self._movielens.catalogue,
            guard=settings.guard_settings(),
            caution=settings.caution(),
        )
        return Learning(self._folder, self._backend.source, recipe)

    def _wait_until_served(self, endpoint: str | None, version: str) -> None:
        if endpoint is not None:
            wait_until_served(endpoint, version, check=self._check_children)

    def _closes_at(self, window: TrainingWindow) -> datetime:
        return window.end + timedelta(seconds=self._window_settings.closing_seconds)

    def _check_children(self) -> None:
        for child in self._children:
            child.check()
        self._progress.show()
        self._live_guard.look()


class _Learned(NamedTuple):
    """The result of an update."""

    update: Learned
    true_value: float | None
    serving_at: datetime | None
