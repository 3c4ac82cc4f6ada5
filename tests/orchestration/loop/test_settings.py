import argparse
import re
from typing import get_args

import msgspec
import pytest

from contracts.command_line import add_flags
from contracts.errors import InputError
from contracts.policies import STRATEGIES, Exploration
from contracts.windows import WindowSettings
from orchestration.loop.settings import LoopSettings, changed, loop_settings
from trainer import agents


def parse(*flags: str) -> LoopSettings:
    parser = argparse.ArgumentParser()
    add_flags(parser, LoopSettings)
    return loop_settings(parser.parse_args(flags))


def test_no_flags_give_the_defaults():
    assert parse() == LoopSettings()


def test_every_setting_can_be_given_as_a_flag():
    given = LoopSettings(
        windows=3, window_seconds=0.5, seed=7, ratings="some/folder", missing_reward="default", epsilon=0.2
    )
    flags = [
        part for name in given.__struct_fields__ for part in (f"--{name.replace('_', '-')}", str(getattr(given, name)))
    ]
    assert parse(*flags) == given


def test_what_is_not_given_can_be_as_it_was_before():
    parser = argparse.ArgumentParser()
    add_flags(parser, LoopSettings)
    before = LoopSettings(seed=7, num_actions=5)
    assert loop_settings(parser.parse_args(["--seed", "8"]), before) == LoopSettings(seed=8, num_actions=5)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--window-seconds", "0", "--window-seconds: Expected `float` >= 0.1, got '0'"),
        ("--window-seconds", "-5", "--window-seconds: Expected `float` >= 0.1, got '-5'"),
        ("--window-seconds", "five", "--window-seconds: Expected `float`, got 'five'"),
        ("--window-seconds", "1e300", "--window-seconds: Expected `float` <= 86400.0, got '1e300'"),
        ("--decisions-per-window", "1e23", "--decisions-per-window: Expected `int`, got '1e23'"),
        ("--default-reward", "1e300", "--default-reward: Expected `float` <= 3.4028234663852886e+38, got '1e300'"),
        ("--reward-noise", "inf", "--reward-noise: must be finite, got 'inf'"),
        ("--reward-noise", "nan", "--reward-noise: Expected `float` >= 0.0, got 'nan'"),
        ("--windows", "2.5", "--windows: Expected `int`, got '2.5'"),
        ("--num-actions", "1", "--num-actions: Expected `int` >= 2, got '1'"),
        ("--epsilon", "1.5", "--epsilon: Expected `float` <= 1.0, got '1.5'"),
        ("--out", "", "--out: Expected `str` of length >= 1, got ''"),
    ],
)
def test_a_wrong_value_is_refused_with_flag_fact_and_value(flag, value, message):
    with pytest.raises(InputError) as caught:
        parse(f"{flag}={value}")
    assert str(caught.value) == message


def test_every_setting_has_a_help_text():
    parser = argparse.ArgumentParser()
    add_flags(parser, LoopSettings)
    text = parser.format_help()
    assert all(f"--{name.replace('_', '-')}" in text for name in LoopSettings.__struct_fields__)


def test_every_algorithm_and_strategy_is_named_in_the_help():
    helps = {field.name: get_args(field.type)[1].description for field in msgspec.structs.fields(LoopSettings)}
    assert set(re.findall(r"[a-z]+(?:_[a-z]+)*", helps["algorithm"])) >= set(agents.DEFAULTS)
    assert set(re.findall(r"[a-z]+(?:_[a-z]+)*", helps["exploration"])) >= set(STRATEGIES)


def test_changes_are_named():
    before = LoopSettings()
    after = msgspec.structs.replace(before, seed=3, windows=20)
    assert changed(before, after, ignore=("windows",)) == ["seed: 0 → 3"]


@pytest.mark.parametrize("owner", [WindowSettings, Exploration])
def test_a_setting_of_another_struct_has_its_bounds(owner):
    """A second range would drift apart from the first one."""
    own = {field.name: get_args(field.type) for field in msgspec.structs.fields(LoopSettings)}
    theirs = {field.name: get_args(field.type) for field in msgspec.structs.fields(owner)}
    shared = own.keys() & theirs.keys()
    assert len(shared) >= 4
    for name in shared:
        assert own[name][1] is theirs[name][1]
        assert set(get_args(own[name][0])) == set(get_args(theirs[name][0]))


def test_settings_travel_as_structs():
    settings = LoopSettings(reward_window_seconds=3, settle_seconds=0.5, holdback_share=0.2, temperature=0.7, gamma=5)
    window = settings.window_settings()
    assert (window.reward_window_seconds, window.settle_seconds, window.holdback_share) == (3, 0.5, 0.2)
    assert window.missing_reward == "drop"
    exploration = msgspec.structs.replace(settings, exploration="softmax").exploration_settings()
    assert (exploration.strategy, exploration.temperature, exploration.gamma) == ("softmax", 0.7, 5)
    assert settings.hyperparameters() == {"tikhonov": 0.3, "arm_features": "none", "half_life": 0.0}
    with pytest.raises(InputError, match=r"^--exploration: .*'magic'"):
        msgspec.structs.replace(settings, exploration="magic").exploration_settings()


@pytest.mark.parametrize("algorithm", sorted(agents.DEFAULTS))
def test_every_algorithm_gets_the_hyperparameters_that_it_has(algorithm):
    agents.complete(algorithm, LoopSettings(algorithm=algorithm).hyperparameters())


def test_a_half_life_is_a_number_or_auto():
    assert (parse("--half-life", "2.5").half_life, parse("--half-life", "auto").half_life) == (2.5, "auto")
    assert parse("--half-life", "auto").hyperparameters()["half_life"] == "auto"
    for wrong in ("-1", "often", "nan"):
        with pytest.raises(InputError, match=f"--half-life: .*got '{wrong}'"):
            parse("--half-life", wrong)
