from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from beam_jobs.payloads import DecisionShape
from contracts import live_versions
from contracts.errors import InputError, OperationError
from contracts.live_versions import CONTROL_NAME, VERSIONS_NAME, LiveVersion
from contracts.policies import LINEAR_NAME
from contracts.policy_arrays import ArmChanges
from contracts.windows import TrainingWindow
from orchestration import live_control
from orchestration.audit import guard
from orchestration.loop import live
from orchestration.loop.backends import EmbeddedBackend
from orchestration.loop.live import ServedVersions
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from tests.linear_policies import point_at, write_policy
from tests.live_learning import WINDOWS, Emitter, sums_of
from tests.servers import predictor

LIVE = LoopSettings(learning="live")
FLIPPED = np.random.default_rng(9).normal(size=(5, 3)).astype(np.float32)
ONES = np.ones(5, np.float32)
NOW = datetime(2026, 11, 28, tzinfo=UTC)
EARLIER = WINDOWS[0]  # than any hold
LATER = TrainingWindow(datetime(2100, 1, 1, tzinfo=UTC), datetime(2100, 1, 2, tzinfo=UTC))
NOTHING = ArmChanges(
    *(
        np.zeros((0, *shape), kind)
        for shape, kind in (((), np.int32), ((2,), np.float32), ((), np.float32), ((), np.int32), ((3,), np.float32))
    )
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": "neural_boltzmann"},
            "^--learning: live needs --algorithm greedy, lin_ts, lin_ucb, neural_linucb, got neural_boltz",
        ),
    ],
)
def test_settings_that_cannot_learn_live(changes, message):
    live.check(msgspec.structs.replace(LoopSettings(), **changes))
    live.check(LIVE)
    with pytest.raises(InputError, match=message):
        live.check(msgspec.structs.replace(LIVE, **changes))


def test_by_windows_nothing_is_started(tmp_path):
    folder = RunFolder(tmp_path)
    backend = EmbeddedBackend(folder, DecisionShape(3, 6))
    with ExitStack() as children:
        assert live.start(folder, LoopSettings(), backend, DecisionShape(3, 6), NOW, children) == []
    assert live.grid(LoopSettings()) is None
    assert live.predictor_flags(folder, LoopSettings()) == []
    assert live.predictor_flags(folder, LIVE) == ["--live", str(tmp_path / "live")]


def test_viewers_wait_for_the_grid_unless_windows_are_long():
    begin = live.grid(LIVE)
    assert begin is not None and begin.microsecond == 0
    assert live.grid(msgspec.structs.replace(LIVE, window_seconds=61.0)) is None


def test_the_loop_waits_for_the_first_sums(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "START_TIMEOUT_SECONDS", 0.1)
    folder = RunFolder(tmp_path)
    emitter = Emitter(folder.live)
    emitter.emit({})  # of an earlier run
    with pytest.raises(OperationError, match="no provisional sums came within"):
        live.wait_until_learning(folder, LIVE, lambda: None)
    monkeypatch.setattr(live, "START_TIMEOUT_SECONDS", 10.0)
    live.wait_until_learning(folder, LIVE, lambda: emitter.emit({WINDOWS[2]: sums_of(7)}))


def test_on_the_emulators_it_waits_until_the_job_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "START_TIMEOUT_SECONDS", 0.1)
    folder, settings = RunFolder(tmp_path), msgspec.structs.replace(LIVE, backend="emulators")
    with pytest.raises(OperationError, match="no provisional sums came within"):
        live.wait_until_learning(folder, settings, lambda: None)
    folder.logs.mkdir(exist_ok=True)
    (folder.logs / "learn_live.log").write_text("learning live from 2026-11-28T12:00:00+00:00 on\n")
    live.wait_until_learning(folder, settings, lambda: None)


def publish(folder, sequence, complete_until, kind="delta", width=2, changes=NOTHING):
    (folder / VERSIONS_NAME).mkdir(parents=True, exist_ok=True)
    version = LiveVersion(
        kind=kind,
        base="v1",
        sequence=sequence,
        published_at=datetime.now(UTC),
        complete_until=complete_until,
        sums_digest="",
        interactions=0,
        num_actions=5,
        width=width,
        changes=changes,
    )
    live_versions.publish(folder / VERSIONS_NAME, version)


def test_a_reward_is_fresh_with_the_first_version_that_has_read_the_log_up_to_it(tmp_path):
    begin = NOW.timestamp()
    for sequence, seconds in ((1, 1.0), (2, 2.0), (3, 3.0)):
        publish(tmp_path, sequence, NOW + timedelta(seconds=seconds))
    publish(tmp_path, 4, None)  # its watermark is not known
    names = np.array(["v1", "v1+1", "v1+1", "v1+3", "v1+4", "v1+9"], object)
    decided = ((begin + np.array([0.5, 1.7, 1.4, 3.5, 4.0, 9.0])) * 1e6).astype(np.int64)
    served = ServedVersions(tmp_path, names, decided)
    # In version 1, which first decided at 1.4; too late for it, and version 2 never decided; too late for all.
    lags = served.lags(begin + np.array([0.5, 0.95, 2.0, 2.95]), 0.1)
    np.testing.assert_allclose(lags, [0.9, 2.55, 1.5, np.nan], atol=1e-3)
    assert np.isnan(ServedVersions(tmp_path / "none", names, decided).lags(np.array([begin]), 0.1)).all()


@pytest.fixture
def run_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.live / VERSIONS_NAME).mkdir(parents=True)
    folder.policies.mkdir()
    return folder


def control_of(folder):
    path = folder.live / CONTROL_NAME
    return live_versions.decode_control(path.read_bytes(), "control")


def test_a_version_that_the_predictor_refuses_holds_live_learning_until_a_window_is_accepted(run_folder, monkeypatch):
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.0)
    store = run_folder.policies
    write_policy(store / "v1", seed=1)
    sure = np.tile(1e-6 * np.eye(3, dtype=np.float32), (5, 1, 1))
    np.savez(store / "v1" / LINEAR_NAME, theta=-FLIPPED, covariance=sure, num_samples=ONES)
    point_at(store, "v1")
    with predictor(store, run_folder.events, "--live", str(run_folder.live), "--max-live-loss", "0.001") as server:
        watch = live.LiveGuard(run_folder, LIVE)
        watch.watch(server.url)
        watch.look()
        assert not (run_folder.live / CONTROL_NAME).exists()
        body = {"instances": [{"observation": row} for row in np.random.default_rng(1).normal(size=(20, 3)).tolist()]}
        server.post("/predict", body)
        every = np.arange(5, dtype=np.int32)
        narrow = np.tile(np.array([1e-6, 0, 0, 1e-6, 0, 1e-6], np.float32), (5, 1))
        publish(
            run_folder.live, 1, NOW, width=3, changes=ArmChanges(every, FLIPPED, ONES, every, narrow), kind="snapshot"
        )
        server.wait_for(lambda health: (health["live"]["error"] or "").startswith("refused"))
        watch.look()
        assert control_of(run_folder).held and control_of(run_folder).reason.startswith("refused: v1 expects a loss")
        server.wait_for(lambda health: (health["live"]["error"] or "").startswith("held: refused"))
        watch.after_audit([])
        assert control_of(run_folder).held
        watch.after_audit([EARLIER])  # it ended before the version was refused
        assert control_of(run_folder).held
        watch.after_audit([EARLIER, LATER])
        assert not control_of(run_folder).held
        server.wait_for(lambda health: (health["live"]["error"] or "").startswith("no version since the release"))
        assert live_control.holds(run_folder.live) == 1
    watch.look()  # nothing answers any more


def test_live_learning_is_held_with_the_loop_and_released_without_the_refused_windows(run_folder):
    watch = live.LiveGuard(run_folder, LIVE)
    watch.after_audit([LATER])
    assert not (run_folder.live / CONTROL_NAME).exists()  # there is nothing to say
    guard.hold(run_folder, "by hand", NOW)
    watch.after_audit([LATER])
    assert (control_of(run_folder).held, control_of(run_folder).reason) == (True, "by hand")
    guard.release(run_folder, "looked at", NOW)
    watch.after_audit([LATER])
    assert not control_of(run_folder).held
    assert live_control.holds(run_folder.live) == 1
