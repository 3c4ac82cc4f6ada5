"""The benchmark of learning: its worlds, and how settings are tuned. The peers have an environment of their own."""

import json
from typing import get_args

import numpy as np
import pytest

from beam_jobs.worlds import World
from bench import learning
from bench.episode import play, sample


def tried(**regrets: float) -> dict[str, float]:
    """Regrets of settings with these values of alpha, as `a0_5`, and the same tikhonov."""
    return {
        json.dumps({"algorithm": "lin_ucb", "alpha": float(name[1:].replace("_", ".")), "tikhonov": 0.3}): regret
        for name, regret in regrets.items()
    }


def test_an_axis_is_continued_where_the_best_is_at_its_end() -> None:
    def alphas(**regrets: float) -> list[float]:
        return [settings["alpha"] for settings in learning.continued(tried(**regrets))]

    assert alphas(a0_1=5, a0_25=3, a0_5=4) == []
    assert alphas(a0_1=2, a0_25=3, a0_5=4) == [0.04]
    assert alphas(a0_1=4, a0_25=3, a0_5=2) == [1.0]
    assert alphas(a0_1=1) == []  # one value is no axis
    assert alphas(a0_0=1, a0_25=3) == []  # 0 cannot be continued by a factor


def test_every_world_has_its_conditions() -> None:
    assert set(learning.CONDITIONS) == set(get_args(World))


@pytest.mark.parametrize("world", get_args(World))
def test_a_policy_learns_more_than_the_best_fixed_choice(world: World) -> None:
    played = learning._world("sample", world, 20, 0)
    earned = play(played, learning.Linear(played, 0, "lin_ts", alpha=0.1, tikhonov=1.0), 2000, True, 0)
    last = slice(-4000, None)
    assert earned[last].mean() > played.expected[last].mean(axis=0).max()


def test_a_world_turns_while_it_is_played() -> None:
    viewers = learning._viewers("sample", "trends", 20)
    still, turning = sample(viewers, 1000, 0), sample(viewers, 1000, 0, angle=np.pi)
    np.testing.assert_array_equal(still.observations, turning.observations)
    np.testing.assert_array_equal(still.expected[0], turning.expected[0])
    assert np.abs(still.expected[-1] - turning.expected[-1]).max() > 0.1


def test_in_a_world_of_clicks_rewards_are_clicks() -> None:
    played = learning._world("sample", "like", 20, 0)
    rows = np.arange(5000)
    rewards = played.rewards(rows, np.zeros(5000, int))
    assert set(rewards.tolist()) == {0.0, 1.0}
    assert rewards.mean() == pytest.approx(played.expected[rows, 0].mean(), abs=0.03)
