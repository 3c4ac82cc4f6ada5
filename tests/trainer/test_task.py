import resource
import subprocess
import sys

import msgspec
import pytest

from contracts.policies import Exploration
from tests.trainer.test_training import NUM_ACTIONS, WINDOWS, catalogue, trajectories, two_windows
from tests.windows import write_window
from trainer import agents, task, training


@pytest.fixture
def settings(tmp_path):
    return two_windows(tmp_path)


def with_constant(folder):
    """Two windows whose observations start with a 1."""
    for index in range(2):
        batch = trajectories(100, index)
        observation = batch.observation.copy()
        observation[:, 0] = 1.0
        write_window(folder / "windows", WINDOWS[index], batch._replace(observation=observation))
    return training.Settings(
        windows=folder / "windows", policies=folder / "policies", num_actions=NUM_ACTIONS, catalogue=catalogue()
    )


def command(settings, *more):
    path = settings.windows.parent / "catalogue.json"
    path.write_bytes(msgspec.json.encode(settings.catalogue))
    paths = ["--windows", settings.windows, "--policies", settings.policies, "--catalogue", path]
    return [*map(str, paths), "--num-actions", str(NUM_ACTIONS), *more]


def test_the_command_line_trains_what_the_function_does(settings, capsys):
    settings = msgspec.structs.replace(
        settings, exploration=Exploration(alpha=0.7, epsilon=0.1), hyperparameters={"tikhonov": 0.3}
    )
    arguments = command(settings, "--alpha", "0.7", "--epsilon", "0.1", "--tikhonov", "0.3")
    assert task.main(arguments) == 0
    assert capsys.readouterr().out.strip() == training.train(settings).version


def test_every_setting_of_the_exploration_is_a_flag_and_the_strategy_is_the_algorithms(settings):
    arguments = command(settings, "--temperature", "0.3", "--gamma", "7", "--algorithm")
    for algorithm in agents.DEFAULTS:
        made = task.settings_from(task.build_parser().parse_args([*arguments, algorithm]))
        assert made.exploration == Exploration(strategy=agents.EXPLORATION[algorithm], temperature=0.3, gamma=7.0)
    made = task.settings_from(task.build_parser().parse_args([*arguments, "lin_ts", "--exploration", "greedy"]))
    assert made.exploration.strategy == "greedy"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algorithm", "magic"], "algorithm must be one of"),
        (["--epsilon", "1.5"], "--epsilon: Expected `float` <= 1.0, got '1.5'"),
        (["--alpha", "inf"], "alpha must be finite, got inf"),
        (["--gamma", "0"], "--gamma: Expected `float` > 0.0, got '0'"),
        (["--exploration", "magic"], "argument --exploration: invalid choice: 'magic'"),
        (["--algo", "lin_ts"], "unrecognized arguments: --algo lin_ts"),
        (["--until", "2026-01-01T00:00:00"], "argument --until: expected: a time with its time zone"),
        (["--only", "yesterday"], "argument --only: expected: a time with its time zone"),
        (["--catalogue", "nowhere.json"], "catalogue: nowhere.json: No such file or directory"),
        (["--catalogue", __file__], "test_task.py: JSON is malformed"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(settings, capsys, more, message):
    assert task.main(command(settings, *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("trainer.task: error: ") and captured.err.count("\n") == 1
    assert message in captured.err and not captured.out


def test_help_is_quick_to_come_and_says_what_it_does():
    program = """if True:
        import sys
        from trainer import task
        try:
            task.main(["--help"])
        finally:
            assert not {"tensorflow", "tf_agents"} & set(sys.modules)
    """
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "--tikhonov" in found.stdout and "holdback" in found.stdout


@pytest.mark.parametrize("largest_file", [100, 5_000])
def test_a_full_disk_is_one_line_and_its_own_exit_code(settings, largest_file):
    """The numpy form needs more than the first limit, TensorFlow's SavedModel more than the second."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    found = subprocess.run(
        [sys.executable, "-m", "trainer.task", *command(settings)], capture_output=True, text=True, preexec_fn=limit
    )
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr.startswith(f"trainer.task: failed: cannot write to {settings.policies}: ")
    assert found.stderr.count("\n") == 1 and len(found.stderr) < 400
    assert list(settings.policies.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["lin_ucb", "neural_boltzmann"])
def test_training_writes_nothing_to_standard_error(tmp_path, algorithm):
    arguments = command(with_constant(tmp_path), "--algorithm", algorithm)
    found = subprocess.run([sys.executable, "-m", "trainer.task", *arguments], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith(f"{algorithm}-")


def test_a_linear_policy_without_a_constant_is_warned_of_once(settings, tmp_path, capsys):
    assert task.main(command(settings)) == 0
    found = capsys.readouterr()
    warned = "trainer.task: warning: observation: none of its 4 numbers is constant. A linear model then expects"
    assert found.err.startswith(warned.replace("4", str(trajectories(1, 0).observation.shape[1])))
    assert found.err.count("\n") == 1
    assert task.main(command(settings, "--parent", found.out.strip(), "--tikhonov", "2")) == 0
    assert capsys.readouterr().err == ""  # the first policy was warned of
    other = with_constant(tmp_path / "other")
    assert task.main(command(other)) == 0
    assert capsys.readouterr().err == ""
