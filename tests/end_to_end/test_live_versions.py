"""Provisional sums in, decisions out: the live trainer and the predictor as real processes."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest

from contracts.event_segments import sealed_segments
from contracts.policies import base_of, split_version
from contracts.records import Decision, event_decoder
from predictor import deciding, live
from predictor import policy as policy_files
from tests.linear_policies import point_at
from tests.live_learning import DIM, WINDOWS, Emitter, sums_of, write_base
from tests.servers import predictor


@contextlib.contextmanager
def live_trainer(folder, store):
    command = [sys.executable, "-m", "trainer.live", "--live", folder, "--policies", store]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(server, count=20):
    body = {
        "instances": [{"observation": row} for row in np.random.default_rng(count).normal(size=(count, DIM)).tolist()]
    }
    return {prediction["policy_version"] for prediction in server.post("/predict", body).body["predictions"]}


def wait_for(server, sequence):
    server.wait_for(lambda health: health["live"]["version"] and health["live"]["sequence"] >= sequence)


@pytest.mark.timeout(120)
def test_what_is_learned_decides_replays_and_gives_way_to_its_base(tmp_path):
    store, folder = tmp_path / "policies", tmp_path / "live"
    write_base(store, "v1", WINDOWS[:2])
    write_base(store, "v2", WINDOWS[:3])
    point_at(store, "v1")
    emitter = Emitter(folder)
    flags = ("--live", str(folder), "--base-share", "0", "--live-age-seconds", "2", "--poll-seconds", "0.02")
    flags += ("--max-live-loss", "1")  # the rewards are random, and the base knows little
    with predictor(store, tmp_path / "events", *flags) as server:
        assert ask(server) == {"v1"}
        with live_trainer(folder, store) as trainer:
            emitter.emit({WINDOWS[2]: sums_of(7)})
            wait_for(server, 1)
            assert ask(server) == {"v1+1"}
            for number, seed in enumerate(range(8, 12), start=2):  # a version for each emission
                emitter.emit({WINDOWS[2]: sums_of(7), WINDOWS[3]: sums_of(seed)})
                wait_for(server, number)
                assert ask(server) == {f"v1+{number}"}
            point_at(store, "v2")
            server.wait_for(lambda health: health["policy_version"] == "v2" and health["live"]["version"])
            assert {base_of(version) for version in ask(server)} == {"v2"}
            trainer.kill()
            trainer.wait()
        server.wait_for(lambda health: health["live"]["error"] is not None)
        assert ask(server) == {"v2"}  # nothing new for two seconds
        with live_trainer(folder, store):
            emitter.emit({WINDOWS[3]: sums_of(8)})
            server.wait_for(lambda health: health["live"]["version"] is not None)
            metrics = server.read("/metrics").decode()
        assert server.stop() == 0
    assert 'policy_version="v2"' in metrics
    assert "+" not in "".join(line for line in metrics.splitlines() if line.startswith("predictor_decisions"))
    assert_each_decision_replays(tmp_path)


def assert_each_decision_replays(folder):
    store = folder / "policies"
    lines = b"".join(segment.read_bytes() for segment in sealed_segments(folder / "events")).splitlines()
    decisions = [event for line in lines if isinstance(event := event_decoder.decode(line), Decision)]
    versions = {decision.policy_version for decision in decisions}
    assert len(versions) >= 5
    for version in versions:
        if split_version(version)[1] is None:
            policy = policy_files.load(store / version)
        else:
            policy, _ = live.load(store, folder / "live", version)
        mine = [decision for decision in decisions if decision.policy_version == version]
        actions, propensities = deciding.replay(policy, mine)
        assert actions == [decision.action for decision in mine]
        assert propensities == [decision.propensity for decision in mine]
