"""The watch over live versions with the real processes: a predictor that follows live versions, and the watch."""

import contextlib
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from contracts import live_versions, policies
from contracts.live_versions import VERSIONS_NAME, LiveVersion
from contracts.policies import CARD_NAME, LINEAR_NAME, TrainedWindow
from contracts.policy_arrays import ArmChanges
from contracts.windows import TrainingWindow
from orchestration import live_control
from predictor import policy as serving
from predictor.client import Client
from predictor.messages import Instance, SentReward
from tests.linear_policies import point_at, write_policy
from tests.servers import predictor

TRUE = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)  # what the arms are worth
NARROW = np.tile(1e-4 * np.eye(3, dtype=np.float32), (5, 1, 1))
ONES = np.ones(5, np.float32)
HELD_WITHIN_SECONDS = 2.0


def write(store, version, theta):
    write_policy(store / version)
    np.savez(store / version / LINEAR_NAME, theta=theta, covariance=NARROW, num_samples=ONES)


def publish(live, sequence, theta, kind):
    every = np.arange(5, dtype=np.int32)
    version = LiveVersion(
        kind=kind,
        base="v2",
        sequence=sequence,
        published_at=datetime.now(UTC),
        complete_until=None,
        sums_digest="",
        interactions=0,
        num_actions=5,
        width=3,
        changes=ArmChanges(every, theta, ONES, every, NARROW[:, *np.triu_indices(3)]),
    )
    live_versions.publish(live / VERSIONS_NAME, version)


class Viewers:
    """Ask for decisions, and pay what the arms are worth, or the opposite."""

    def __init__(self, client):
        self.client, self.rng, self.sign, self.sent = client, np.random.default_rng(0), 1.0, 0

    def come(self, count):
        """Returns the versions that decided."""
        observation = self.rng.normal(size=(count, 3)).round(4)
        made = self.client.predict([Instance(observation=row) for row in observation.tolist()])
        worth = (observation * TRUE[[one.action for one in made]]).sum(axis=1) + self.rng.normal(0, 0.3, count)
        self.client.rewards(
            [SentReward(one.decision_id, self.sign * value) for one, value in zip(made, worth.tolist(), strict=True)]
        )
        self.sent += count
        return {one.policy_version for one in made}

    def until(self, condition, seconds=60.0):
        """Viewers until `condition` of the versions that decided."""
        deadline = time.monotonic() + seconds
        while not condition(versions := self.come(20)):
            assert time.monotonic() < deadline, f"did not happen in time: {versions}"
            time.sleep(0.05)


@contextlib.contextmanager
def watching(folder):
    command = [sys.executable, "-m", "orchestration.live_watch", "--events", folder / "events"]
    command += ["--live", folder / "live", "--policies", folder / "policies", "--missing-reward", "drop"]
    log = folder / "watch.log"
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            deadline = time.monotonic() + 60
            while "watches" not in log.read_text():
                assert time.monotonic() < deadline and process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["a version that learned the opposite", "rewards that say the opposite"])
def test_an_alarm_takes_live_versions_away_until_a_person_releases(tmp_path, fault):
    store, live = tmp_path / "policies", tmp_path / "live"
    (live / VERSIONS_NAME).mkdir(parents=True)
    write(store, "v1", TRUE)
    write(store, "v2", TRUE + np.float32(0.01))
    point_at(store, "v2", mode="probation", anchor="v1", anchor_share=0.1)
    # Nothing is refused before it serves, and a version serves for long.
    flags = ("--live", str(live), "--max-live-loss", "1", "--live-age-seconds", "600")
    with predictor(store, tmp_path / "events", *flags) as server, Client(server.url) as client:
        viewers = Viewers(client)
        viewers.come(1000)
        window = TrainingWindow(datetime.now(UTC) - timedelta(seconds=60), datetime.now(UTC))
        card = msgspec.structs.replace(
            serving.read_card(store / "v2"), trained_on=[TrainedWindow(window=window, split="train", records=1)]
        )
        (store / "v2" / CARD_NAME).write_bytes(policies.encode_json(card))
        time.sleep(1.0)  # its segment is written
        with watching(tmp_path) as process:
            publish(live, 1, TRUE + np.float32(0.01), "snapshot")
            viewers.until(lambda versions: "v2+1" in versions)
            for _ in range(10):
                viewers.come(20)
                time.sleep(0.1)
            assert not live_control.read(live).held
            if fault.startswith("a version"):
                publish(live, 2, -TRUE, "delta")
                viewers.until(lambda versions: "v2+2" in versions)
            else:
                viewers.sign = -1.0
            viewers.until(lambda _: live_control.read(live).held)
            held_at = live_control.read(live).changed_at
            left = {"v1"} if fault.startswith("a version") else {"v1", "v2"}
            viewers.until(lambda versions: versions <= left)
            assert (datetime.now(UTC) - held_at).total_seconds() < HELD_WITHIN_SECONDS
            viewers.sign = 1.0
            release = [sys.executable, "-m", "orchestration.live_watch", "--live", live, "--release", "mended"]
            subprocess.run(release, check=True)
            publish(live, 3, TRUE, "snapshot")
            viewers.until(lambda versions: "v2+3" in versions)
            process.terminate()
            assert process.wait(30) == 0
        assert server.stop() == 0
    assert "HELD live learning" in (tmp_path / "watch.log").read_text()
