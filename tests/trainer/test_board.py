from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from contracts.items import Item
from contracts.policies import CARD_NAME, CHECKPOINT_NAME
from contracts.trajectories import TrajectoryBatch
from tests.windows import consecutive_windows, write_window
from trainer import board, checkpoint, task

NUM_ACTIONS, DIM = 4, 3
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 2)


def trajectories(count, seed):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, DIM)).astype(np.float32)
    return TrajectoryBatch(
        observation=observation,
        action=rng.integers(0, NUM_ACTIONS - 1, count).astype(np.int32),  # the last is never taken
        reward=(observation[:, 0] + 0.1 * rng.normal(size=count)).astype(np.float32),
        propensity=np.full(count, 1 / (NUM_ACTIONS - 1), np.float32),
        defaulted=np.zeros(count, bool),
    )


@pytest.fixture
def arguments(tmp_path):
    for index, window in enumerate(WINDOWS):
        write_window(tmp_path / "windows", window, trajectories(300, index), trajectories(200, 10 + index))
    catalogue = tmp_path / "catalogue.json"
    catalogue.write_bytes(msgspec.json.encode([Item(action=k, item_id=str(k)) for k in range(NUM_ACTIONS)]))
    paths = {"windows": tmp_path / "windows", "policies": tmp_path / "policies", "catalogue": catalogue}
    return [f"--{name}={path}" for name, path in paths.items()] + ["--num-actions", str(NUM_ACTIONS)]


def points(folder):
    """Every scalar in the logs: (name, step) -> value."""
    found = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_a_job_keeps_to_the_contract_and_can_be_restarted(arguments, tmp_path, monkeypatch, capsys):
    folders = {
        "AIP_MODEL_DIR": tmp_path / "model",
        "AIP_CHECKPOINT_DIR": tmp_path / "checkpoint",
        "AIP_TENSORBOARD_LOG_DIR": tmp_path / "logs",
    }
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(folder))
    for _ in range(2):  # the second is the restart
        assert task.main(arguments) == 0
    version, again = capsys.readouterr().out.split()
    assert version == again
    policy = tmp_path / "policies" / version
    for path in policy.rglob("*"):
        if path.is_file():
            assert (folders["AIP_MODEL_DIR"] / path.relative_to(policy)).read_bytes() == path.read_bytes()
    assert (folders["AIP_MODEL_DIR"] / CARD_NAME).is_file()
    statistics = policy / CHECKPOINT_NAME / checkpoint.STATISTICS_NAME
    assert (folders["AIP_CHECKPOINT_DIR"] / checkpoint.STATISTICS_NAME).read_bytes() == statistics.read_bytes()

    found = points(folders["AIP_TENSORBOARD_LOG_DIR"])
    assert {step for _, step in found} == {2}  # windows trained on
    held_back = trajectories(200, 11)
    assert found["data/reward", 2] == pytest.approx(held_back.reward.mean(), rel=1e-5)
    assert found["arms/coverage", 2] == 0.75
    assert found["arms/effective_number", 2] == pytest.approx(3, abs=0.05)
    assert found["model/loss", 2] == pytest.approx(0.01, rel=0.5)  # the noise
    assert found["model/calibration_error", 2] < 0.05
    assert found["estimate/low", 2] < found["estimate/snips", 2] < found["estimate/high", 2]


def test_calibration_error_is_the_distance_of_predicted_from_observed():
    predicted = np.linspace(0, 1, 100)
    assert board.calibration_error(predicted, predicted) == 0
    assert board.calibration_error(predicted, predicted + 0.3) == pytest.approx(0.3)
    assert board.calibration_error(predicted, np.full(100, predicted.mean())) == pytest.approx(0.25, abs=0.02)
    assert board.calibration_error(np.ones(1), np.zeros(1)) == 1


def test_a_folder_for_the_logs_that_cannot_be_is_refused_before_anything_is_trained(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    for given in ("file", "file/logs"):
        assert task.main([*arguments, f"--tensorboard={tmp_path / given}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"trainer.task: error: --tensorboard: cannot make the folder {tmp_path / given}: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "policies").exists()
