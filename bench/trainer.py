"""Training throughput: windows on disk to a trained policy, against TF-Agents' eager loop and against bare numpy."""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before TensorFlow is imported.
from bench.measure import Result, compare, megabytes, seconds
from contracts.items import Item
from contracts.policies import Exploration
from contracts.trajectories import TrajectoryBatch
from tests.linear_agents import linear_agent
from tests.windows import consecutive_windows, write_window
from trainer import agents, dataset, networks, neural, training
from trainer.dataset import ReadyWindow
from trainer.linear import SufficientStatistics, disjoint

DIM = 20
TIKHONOV = 0.1
UNIT = "trajectories/s"


def trainer_10k() -> Result:
    """10,000 trajectories, 20 actions, the artifact saved; the reference's rate is measured on 400 and saves nothing."""
    batch = _trajectories(10_000, 20)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), batch)
        settings = training.Settings(
            windows=Path(folder),
            policies=Path(folder) / "warm-up",
            num_actions=20,
            catalogue=[Item(action=k, item_id=str(k)) for k in range(20)],
            hyperparameters={"tikhonov": TIKHONOV},
        )
        training.train(settings)  # TensorFlow's own first-time work, as the reference's agent has had it
        stores = iter(Path(folder) / f"policies-{run}" for run in range(100))

        def ours() -> float:
            import msgspec

            mine = msgspec.structs.replace(settings, policies=next(stores))
            return 10_000 / seconds(lambda: training.train(mine))

        def reference() -> float:
            agent = linear_agent(SufficientStatistics.zeros(20, DIM), TIKHONOV, alpha=0.5)
            return _eager_rate(agent, batch, 400)

        return compare(reference, ours, UNIT)


def trainer_200k() -> Result:
    """200,000 trajectories, 20 actions: TFRecords to coefficients, without saving."""
    return _against_numpy(200_000, 20)


def trainer_1682_actions() -> dict[str, Any]:
    """The same at 1,682 actions, in a separate process that also reports its peak memory."""
    child = subprocess.run([sys.executable, "-m", "bench.trainer"], check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def trainer_neural() -> Result:
    """neural_epsilon_greedy, 20 actions: passes over a window from TFRecords, the held-out loss after each included."""
    batch = _trajectories(50_000, 20)
    hyperparameters = agents.complete("neural_epsilon_greedy", {"epochs": 2, "patience": 2})
    with tempfile.TemporaryDirectory() as folder:
        window = _write(Path(folder), batch)

        def network() -> networks.Network:
            return networks.build("neural_epsilon_greedy", DIM, 20, hyperparameters, Exploration())

        def reference() -> float:
            return _eager_rate(network().agent, batch, 400)

        def ours() -> float:
            mine = network()
            losses: list[float] = []
            took = seconds(
                lambda: losses.extend(neural.fit(mine, [lambda: dataset.read(window, "train", 20)], hyperparameters))
            )
            return 50_000 * (len(losses) - 1) / took

        ours()  # TensorFlow's own first-time work
        return compare(reference, ours, UNIT)


def trainer_retrain() -> dict[str, Any]:
    """A window of 2,000, 100 actions, after 100 others: trained afresh on all of them, and from the parent's checkpoint.

    `seconds_after` has what ours takes after 1, 10 and 100 windows.
    """
    import msgspec

    windows = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 102)
    with tempfile.TemporaryDirectory() as folder:
        settings = training.Settings(
            windows=Path(folder) / "windows",
            policies=Path(folder) / "warm-up",
            num_actions=100,
            catalogue=[Item(action=k, item_id=str(k)) for k in range(100)],
        )
        for window in windows:
            write_window(settings.windows, window, _trajectories(2_000, 100))
        training.train(msgspec.structs.replace(settings, only=[windows[0].start]))
        stores = iter(Path(folder) / f"policies-{run}" for run in range(100))

        def retrain(history: int, from_parent: bool) -> float:
            mine = msgspec.structs.replace(settings, policies=next(stores))
            if from_parent:
                parent = training.train(msgspec.structs.replace(mine, until=windows[history - 1].end))
                mine = msgspec.structs.replace(mine, parent=parent.version)
            mine = msgspec.structs.replace(mine, until=windows[history].end)
            return seconds(lambda: training.train(mine))

        after = {str(history): round(min(retrain(history, True) for _ in range(3)), 4) for history in (1, 10, 100)}
        result = compare(lambda: retrain(100, False), lambda: retrain(100, True), "seconds", lower_is_better=True)
        return {**result, "seconds_after": after}


def _against_numpy(count: int, num_actions: int) -> Result:
    batch = _trajectories(count, num_actions)
    with tempfile.TemporaryDirectory() as folder:
        window = _write(Path(folder), batch)
        _from_files(window, num_actions)  # TensorFlow's import

        def reference() -> float:
            return count / seconds(lambda: _bare_numpy(batch, num_actions))

        def ours() -> float:
            return count / seconds(lambda: _from_files(window, num_actions))

        np.testing.assert_allclose(_from_files(window, num_actions), _bare_numpy(batch, num_actions), rtol=1e-9)
        return compare(reference, ours, UNIT, runs=5)


def _from_files(window: ReadyWindow, num_actions: int) -> np.ndarray:
    statistics = SufficientStatistics.zeros(num_actions, DIM)
    for batch in dataset.read(window, "train", num_actions):
        statistics.add(batch.observation, batch.action, batch.reward)
    return disjoint(statistics, TIKHONOV).theta


def _bare_numpy(batch: TrajectoryBatch, num_actions: int) -> np.ndarray:
    a, b = np.zeros((num_actions, DIM, DIM)), np.zeros((num_actions, DIM))
    observation, reward = batch.observation.astype(np.float64), batch.reward.astype(np.float64)
    for k in range(num_actions):
        mine = batch.action == k
        rows = observation[mine]
        a[k] = rows.T @ rows
        b[k] = rows.T @ reward[mine]
    theta: np.ndarray = np.linalg.solve(a + TIKHONOV * np.eye(DIM), b[:, :, np.newaxis])[:, :, 0]
    return theta


def _eager_rate(agent: Any, batch: TrajectoryBatch, count: int) -> float:
    """TF-Agents' agent.train as its tutorials call it: eagerly, on records of 8 trajectories."""
    import tensorflow as tf
    from tf_agents.trajectories import StepType, Trajectory

    def train(rows: slice) -> None:
        action = batch.action[rows, np.newaxis]
        agent.train(
            Trajectory(
                step_type=tf.fill(action.shape, StepType.FIRST),
                observation=tf.constant(batch.observation[rows, np.newaxis]),
                action=tf.constant(action),
                policy_info=agent.policy.info_spec,
                next_step_type=tf.fill(action.shape, StepType.LAST),
                reward=tf.constant(batch.reward[rows, np.newaxis]),
                discount=tf.zeros(action.shape),
            )
        )

    train(slice(0, 8))
    return count / seconds(lambda: [train(slice(first, first + 8)) for first in range(0, count, 8)])


def _trajectories(count: int, num_actions: int) -> TrajectoryBatch:
    rng = np.random.default_rng(0)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, DIM)).astype(np.float32),
        action=rng.integers(0, num_actions, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=np.full(count, 1 / num_actions, np.float32),
        defaulted=np.zeros(count, bool),
    )


def _write(folder: Path, batch: TrajectoryBatch) -> ReadyWindow:
    (window,) = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 1)
    return write_window(folder, window, batch)


if __name__ == "__main__":
    measured = _against_numpy(200_000, 1682)
    print(json.dumps({**measured, "peak_megabytes": round(megabytes("VmHWM"))}))
