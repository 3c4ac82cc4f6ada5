import json
import multiprocessing
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts.errors import InputError, OperationError
from contracts.items import Item
from contracts.trajectories import TrajectoryBatch
from tests.windows import consecutive_windows, write_window
from trainer import agents, tune
from trainer.search_space import search_space

NUM_ACTIONS, DIM = 12, 4
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 3)
FEATURES = np.random.default_rng(0).normal(size=(NUM_ACTIONS, 2))
SHAPE = np.random.default_rng(1).normal(size=(DIM, 2))


def trajectories(count, seed):
    """Few decisions on many actions, whose rewards follow from their features: sharing helps, little ridge harms."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, DIM)).astype(np.float32)
    action = rng.integers(0, NUM_ACTIONS, count).astype(np.int32)
    expected = np.einsum("nd,df,nf->n", observation, SHAPE, FEATURES[action])
    return TrajectoryBatch(
        observation=observation,
        action=action,
        reward=(expected + 2 * rng.normal(size=count)).astype(np.float32),
        propensity=np.full(count, 1 / NUM_ACTIONS, np.float32),
        defaulted=np.zeros(count, bool),
    )


@pytest.fixture
def told(tmp_path):
    for index, window in enumerate(WINDOWS[:2]):
        write_window(tmp_path / "windows", window, trajectories(150, index))
    write_window(tmp_path / "windows", WINDOWS[2], trajectories(3000, 2))
    return tune.Search(
        windows=tmp_path / "windows",
        study=tmp_path / "study",
        num_actions=NUM_ACTIONS,
        catalogue=[Item(action=k, item_id=str(k), features=FEATURES[k].tolist()) for k in range(NUM_ACTIONS)],
        trials=8,
    )


def trials(told):
    return tune._study(told, 0).get_trials(deepcopy=False)


def test_it_finds_the_model_that_the_world_is_made_of_and_goes_on_where_it_stopped(told):
    first = tune.search(msgspec.structs.replace(told, trials=3))
    assert first.trials == len(trials(told)) == 3
    best = tune.search(told)
    assert best.trials == len(trials(told)) == 8
    assert best.value >= first.value and best.low < best.value < best.high
    assert best.hyperparameters["arm_features"] in ("shared", "hybrid")
    assert best.hyperparameters == agents.complete("lin_ucb", best.hyperparameters)
    assert json.loads((told.study / "best.json").read_text()) == msgspec.to_builtins(best)
    assert tune.search(told) == best  # nothing is left to do


def test_a_refused_window_judges_no_trial(told):
    without = tune.search(msgspec.structs.replace(told, trials=1, refused=[WINDOWS[2].start]))
    assert (
        without.effective_sample_size < 50
    )  # of the 150 decisions of the window before, not of the 3,000 refused ones


def test_workers_share_the_trials(told):
    best = tune.search(msgspec.structs.replace(told, workers=2, trials=4))
    finished = [trial.number for trial in trials(told) if trial.value is not None]
    assert len(finished) == len(set(finished)) >= 4
    assert best.value == max(trial.value for trial in trials(told) if trial.value is not None)


def test_a_worker_that_is_killed_is_a_failed_operation_and_the_study_goes_on(told):
    def kill_one():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        workers[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    two = msgspec.structs.replace(told, workers=2, trials=2)
    with pytest.raises(OperationError, match=r"^1 of 2 workers failed, with the exit codes -9; run the search again"):
        tune.search(two)
    killer.join()
    assert tune.search(two).trials >= 2


@pytest.mark.parametrize("algorithm", sorted(agents.DEFAULTS))
@pytest.mark.parametrize("has_arm_features", [False, True])
def test_what_is_suggested_can_be_trained(algorithm, has_arm_features):
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = search_space(algorithm, has_arm_features)
    for _ in range(20):
        suggested = tune.suggest(study.ask(), space)
        agents.complete(algorithm, suggested)
        assert ("arm_tikhonov" in suggested) == (suggested.get("arm_features") == "hybrid")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "magic"}, "algorithm must be one of"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"num_actions": 5}, "catalogue has 12 items for 5 actions"),
    ],
)
def test_wrong_input_is_refused_before_any_trial(told, change, message):
    wrong = msgspec.structs.replace(told, **change)
    with pytest.raises(InputError, match=message):
        tune.search(wrong)
    assert not (told.study / "trials.jsonl").exists()


def test_the_command_prints_the_best_settings_and_nothing_else(told, tmp_path):
    path = tmp_path / "catalogue.json"
    path.write_bytes(msgspec.json.encode(told.catalogue))
    flags = {"windows": told.windows, "study": told.study, "num-actions": 12, "catalogue": path, "trials": 2}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    found = subprocess.run([sys.executable, "-m", "trainer.tune", *arguments], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout) == json.loads((told.study / "best.json").read_text())


def test_the_command_line_says_what_is_wrong_in_one_line(told, tmp_path, capsys):
    arguments = ["--windows", "nowhere", "--study", str(told.study), "--num-actions", "12", "--catalogue"]
    path = tmp_path / "catalogue.json"
    path.write_bytes(msgspec.json.encode(told.catalogue))
    assert tune.main([*arguments, str(path)]) == 2
    assert capsys.readouterr().err == "trainer.tune: error: windows: no such folder: nowhere\n"
