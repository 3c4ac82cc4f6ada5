"""Flat names become the structs that own them, and every wrong value is one line that says where it was set."""

import pytest
from msgspec.structs import asdict

from contracts.errors import InputError
from contracts.policies import Exploration
from orchestration.cloud import configuration
from orchestration.pipelines import definitions, parameters
from orchestration.pipelines.canary import Canary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "shared.root = 'r'\n[retrain]\nwindw_seconds = 1.0",
            "retrain.windw_seconds: retrain has no such parameter; it has: root, until",
        ),
        (
            "shared.root = 'r'\n[bootstrap]\nnum_actions = 2.5",
            "bootstrap.num_actions: Expected `int`, got `float`, got 2.5",
        ),
        ("shared.root = 'r'\n[bootstrap]\nratings = 3", "bootstrap.ratings: Expected `str`, got `int`, got 3"),
        ("shared.root = 'r'\n[tune]\nhyperparameters = 0.1", "tune.hyperparameters: tune has no such parameter"),
        (
            "shared.root = 'r'\n[retrain]\nhyperparameters = 0.1",
            "retrain.hyperparameters: must be of type dict, got 0.1",
        ),
        ("shared.root = 'r'\n[retrain]\nepsilon = true", "retrain.epsilon: Expected `float`, got `bool`, got True"),
        ("shared.root = 'r'\n[retrain]\ndefault_reward = nan", "retrain.default_reward: "),
        ("shared.root = 'r'\n[retrain]\ncanary_share = 20", "retrain.canary_share: Expected `float` < 1.0, got 20"),
        ("shared.root = 'r'\nshared.window_seconds = 0", "bootstrap.window_seconds: Expected `float` > 0.0, got 0"),
        ("shared.root = 'r'\n[tune]\ntrials = -1", "tune.trials: Expected `int` >= 1, got -1"),
        ("shared.root = 'r'\n[tune]\nalpha = -0.5", "tune.alpha: Expected `float` >= 0.0, got -0.5"),
        ("shared.root = 'r'\n[tune]\nmissing_reward = 'x'", "tune.missing_reward: Invalid enum value 'x'"),
        ("shared.root = 'r'\n[tune]\nuntil = 'noon'", "tune.until: a time with its time zone, such as 2026"),
        ("shared.root = 'r'\n[retrain]\nholdback_share = 1", "retrain.holdback_share: Expected `float` < 1.0, got 1"),
        (
            "shared.root = 'r'\n[retrain]\nreward_window_seconds = 0",
            "retrain.reward_window_seconds: Expected `float` > 0.0, got 0",
        ),
        ("shared.root = 'r'\n[tune]\ntemperature = 0", "tune.temperature: Expected `float` > 0.0, got 0"),
        ("shared.root = 'r'\n[tune]\nexploration = 'best'", "tune.exploration: Invalid enum value 'best'"),
        ("", "bootstrap.root is missing: bootstrap requires it"),
    ],
)
def test_a_wrong_parameter_is_one_line(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(f"backend = 'local'\n{text}")
    with pytest.raises(InputError) as raised:
        definitions.check(configuration.load(str(path)))
    assert str(raised.value).startswith(f"c.toml: {message}")


def values(name: str, config: str, **given: str) -> dict:
    loaded = configuration.load(config, "films" if config in ("dev", "prod") else "")
    return parameters.values(definitions.build(name, loaded), loaded, given)


def test_every_setting_of_an_exploration_reaches_the_pipeline():
    found = values("retrain", "local", exploration="softmax", temperature="0.25", gamma="7", epsilon="0.1", alpha="1")
    wanted = Exploration(strategy="softmax", temperature=0.25, gamma=7.0, epsilon=0.1, alpha=1.0)
    assert found["exploration"] == asdict(wanted)


def test_flags_take_precedence_and_the_rest_is_as_configured_or_declared():
    found = values("retrain", "local", canary_seconds="3", hyperparameters='{"tikhonov": 1}')
    assert found["canary"] == asdict(Canary(share=0.1, decisions=100, seconds=3.0))
    assert found["hyperparameters"] == {"tikhonov": 1}
    assert (found["windows"]["missing_reward"], found["windows"]["late_horizon_seconds"]) == ("drop", 3600.0)
    assert values("tune", "prod")["root"] == "/gcs/films-bandit"
    assert values("retrain", "prod")["canary"]["decisions"] == 2000  # the file's [retrain], not the default


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epsilon": "much"}, "--set epsilon: Expected `float`, got 'much'"),
        ({"holdback_share": "1"}, "--set holdback_share: Expected `float` < 1.0, got '1'"),
        ({"canary_share": "2"}, "--set canary_share: Expected `float` < 1.0, got '2'"),
        ({"hyperparameters": "ridge"}, "--set hyperparameters: must be JSON of type dict, got 'ridge'"),
        ({"rank": "3"}, "--set rank: retrain has no such parameter; it has: root, until, "),
        ({"until": "2026-01-01"}, "--set until: a time with its time zone, such as 2026-01-01T00:00:00Z, got"),
    ],
)
def test_a_wrong_flag_is_one_line(given, message):
    with pytest.raises(InputError) as raised:
        values("retrain", "local", **given)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
