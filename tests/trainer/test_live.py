import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts import live_sums, live_versions, policies, policy_arrays
from contracts.errors import InputError
from contracts.live_encoders import Encoder
from contracts.live_versions import CONTROL_NAME, VERSIONS_NAME, Control
from contracts.policy_arrays import PolicyArrays
from predictor import live as live_serving
from tests.linear_policies import point_at
from tests.live_learning import DIM, NUM_ACTIONS, WINDOWS, Emitter, interactions, sums_of, write_base
from trainer import agents, checkpoint, linear, live
from trainer.linear import SufficientStatistics
from trainer.live import LiveSettings, LiveTrainer


@pytest.fixture
def store(tmp_path):
    write_base(tmp_path / "policies", "v1", WINDOWS[:2])
    write_base(tmp_path / "policies", "v2", WINDOWS[:3])
    point_at(tmp_path / "policies", "v1")
    return tmp_path / "policies"


@pytest.fixture
def emitter(tmp_path):
    return Emitter(tmp_path / "live")


@pytest.fixture
def trainer(store, emitter, tmp_path):
    with live.locked(tmp_path / "live"):
        yield LiveTrainer(tmp_path / "live", store, LiveSettings(snapshot_seconds=10))


def files(tmp_path):
    return live_versions.listed([path.name for path in (tmp_path / "live" / VERSIONS_NAME).iterdir()])


def arrays_of(tmp_path, base, upto):
    """The arrays of the newest version, from its snapshot and the deltas after it."""
    card = policies.decode_card((tmp_path / "policies" / base / policies.CARD_NAME).read_bytes(), base)
    arrays = policy_arrays.read(tmp_path / "policies" / base, card)
    start = max(number for number, kind in files(tmp_path) if kind == "snapshot" and number <= upto)
    for name in [live_versions.file_name(start, "snapshot")] + [
        live_versions.file_name(number, "delta") for number in range(start + 1, upto + 1)
    ]:
        version = live_versions.read(tmp_path / "live" / VERSIONS_NAME / name)
        assert version.base == base
        arrays = arrays.changed(version.changes)
    return arrays


def test_each_emission_becomes_a_version(trainer, emitter, tmp_path):
    assert trainer.step() is None
    whole = sums_of(7)
    emitter.emit({WINDOWS[2]: live_sums.select(whole, np.array([0]))})
    assert trainer.step().version == "v1+1"
    emitter.emit({WINDOWS[2]: live_sums.select(whole, np.array([3, 4]))}, snapshot=False)
    version = trainer.step()
    assert (version.version, version.changes.arms.tolist()) == ("v1+2", [3, 4])
    assert version.interactions == whole.counts[[0, 3, 4]].sum()
    assert files(tmp_path) == [(1, "snapshot"), (2, "delta")]
    emitter.emit({}, snapshot=False)
    assert trainer.step() is None  # nothing changed
    assert files(tmp_path) == [(1, "snapshot"), (2, "delta")]


def test_a_new_champion_is_the_base_with_the_windows_that_it_was_not_trained_on(trainer, emitter, store, tmp_path):
    emitter.emit({WINDOWS[2]: sums_of(7), WINDOWS[3]: sums_of(8)})
    trainer.step()
    point_at(store, "v2")
    version = trainer.step()
    assert version.version == "v2+2"
    assert version.interactions == sums_of(8).counts.sum()
    assert version.sums_digest == live.digest({WINDOWS[3]: sums_of(8)})
    write_base(tmp_path / "other", "v2", WINDOWS[:3])
    emitter.emit({WINDOWS[3]: sums_of(8)})
    trainer.step()
    alone = arrays_of(tmp_path, "v2", 2)
    card = policies.decode_card((store / "v2" / policies.CARD_NAME).read_bytes(), "v2")
    base = policy_arrays.read(store / "v2", card)
    assert (alone.num_samples == base.num_samples + sums_of(8).counts).all()


def test_a_base_that_cannot_be_read_leaves_the_one_before(trainer, emitter, store, capsys):
    emitter.emit({WINDOWS[2]: sums_of(7)})
    point_at(store, "v9")
    assert trainer.step().version == "v1+1"
    assert "v1 stays the base: --policies:" in capsys.readouterr().err
    trainer.step()
    assert capsys.readouterr().err == ""  # said once


def test_started_again_it_goes_on_with_the_same_coefficients(trainer, emitter, store, tmp_path):
    emitter.emit({WINDOWS[2]: sums_of(7)})
    first = trainer.step()
    again = LiveTrainer(tmp_path / "live", store, LiveSettings())
    second = again.step()
    assert (first.version, second.version) == ("v1+1", "v1+2")
    assert first.sums_digest == second.sums_digest
    for one, other in zip(arrays_of(tmp_path, "v1", 1)[1:], arrays_of(tmp_path, "v1", 2)[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_held_it_publishes_nothing_and_released_it_leaves_refused_windows_out(trainer, emitter, tmp_path):
    control = tmp_path / "live" / CONTROL_NAME
    emitter.emit({WINDOWS[2]: sums_of(7)})
    trainer.step()
    now = datetime.now(UTC)
    control.write_bytes(msgspec.json.encode(Control(held=True, reason="flipped", changed_at=now)))
    emitter.emit({WINDOWS[2]: sums_of(7), WINDOWS[3]: sums_of(8)})
    assert trainer.step() is None
    control.write_bytes(msgspec.json.encode(Control(changed_at=now, refused=[WINDOWS[2].start])))
    version = trainer.step()
    assert (version.sequence, version.interactions) == (2, sums_of(8).counts.sum())
    assert files(tmp_path) == [(1, "snapshot"), (2, "snapshot")]


@pytest.mark.parametrize(("keep_live", "kept"), [("no", False), ("yes", True)])
def test_files_of_old_versions_are_removed_unless_they_are_kept(emitter, store, tmp_path, keep_live, kept):
    settings = LiveSettings(keep_seconds=1e-3, snapshot_seconds=1e-3, keep_live=keep_live)
    with live.locked(tmp_path / "live"):
        trainer = LiveTrainer(tmp_path / "live", store, settings)
        for number in range(1, 4):
            emitter.emit({WINDOWS[2]: sums_of(number)})
            trainer.step()
            time.sleep(0.01)
    numbers = {number for number, _ in files(tmp_path)}
    assert (1 in numbers) is kept and 3 in numbers


def test_sums_of_another_shape_are_refused(trainer, emitter):
    emitter.emit({}, observation_dim=DIM + 1)
    with pytest.raises(InputError, match=r"sums: observation_dim 3 and encoder none as in v1, got 4 and none$"):
        trainer.step()


def test_the_last_layer_of_a_network_learns_over_its_frozen_encoder(store, emitter, tmp_path):
    random = np.random.default_rng(5)
    layers = [(random.normal(size=(DIM, 4)).astype(np.float32), np.zeros(4, np.float32))]
    encoder = Encoder(layers)
    folder = store / "v1"
    card = policies.decode_card((folder / policies.CARD_NAME).read_bytes(), "v1")
    settings = agents.complete("neural_linucb", {})
    card = msgspec.structs.replace(card, algorithm="neural_linucb", hyperparameters=settings)
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    observation, action, reward = interactions(200, 1)
    statistics = SufficientStatistics.zeros(NUM_ACTIONS, 4)
    statistics.add(encoder.encode(observation), action, reward)
    checkpoint.write(folder, statistics)
    theta, covariance = linear.disjoint(statistics, settings["tikhonov"])
    (folder / policies.LINEAR_NAME).unlink()
    base = PolicyArrays(
        layers, theta.astype(np.float32), np.zeros(NUM_ACTIONS, np.float32), covariance.astype(np.float32), statistics.n
    )
    policy_arrays.write(folder, base)
    more = interactions(60, 2)
    with live.locked(tmp_path / "live"):
        trainer = LiveTrainer(tmp_path / "live", store, LiveSettings())
        sums = live_sums.of_interactions(encoder.encode(more[0]), *more[1:])
        emitter.emit({WINDOWS[2]: sums}, observation_dim=4, encoder=encoder.digest)
        assert trainer.step().width == 4
        emitter.emit({WINDOWS[2]: sums}, observation_dim=4, encoder="another")
        with pytest.raises(InputError, match=r"sums: observation_dim 4 and encoder .* as in v1, got 4 and another$"):
            trainer.step()
    statistics.add(encoder.encode(more[0]), *more[1:])
    wanted = linear.disjoint(statistics, settings["tikhonov"]).theta
    policy, _ = live_serving.load(store, tmp_path / "live", "v1+1")
    seen = interactions(20, 3)[0]
    np.testing.assert_allclose(policy.scores(seen)[0], encoder.encode(seen) @ wanted.T, atol=1e-4)


def test_what_keeps_it_from_starting(store, tmp_path):
    with live.locked(tmp_path / "live"):
        with pytest.raises(InputError, match=r"^--live: a folder that no other process publishes in"):
            live.locked(tmp_path / "live").__enter__()
        with pytest.raises(InputError, match=r"^--policies: a store with a champion, got .*none: No such file"):
            LiveTrainer(tmp_path / "live", tmp_path / "none", LiveSettings())
        card = policies.decode_card((store / "v1" / policies.CARD_NAME).read_bytes(), "v1")
        network = msgspec.structs.replace(card, algorithm="neural_boltzmann")
        (store / "v1" / policies.CARD_NAME).write_bytes(policies.encode_json(network))
        with pytest.raises(
            InputError, match=r"^algorithm: one of greedy, lin_ts, lin_ucb, neural_linucb to learn live, got neural"
        ):
            LiveTrainer(tmp_path / "live", store, LiveSettings())


def test_the_process_publishes_until_it_is_stopped(store, emitter, tmp_path):
    command = [sys.executable, "-m", "trainer.live", "--live", tmp_path / "live", "--policies", store]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            emitter.emit({WINDOWS[2]: sums_of(7)})
            deadline = time.monotonic() + 60
            while not (tmp_path / "live" / VERSIONS_NAME).is_dir() or not files(tmp_path):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "trainer.live: learns live over v1, from number 1\n")
    refused = subprocess.run([*command[:-1], tmp_path], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
