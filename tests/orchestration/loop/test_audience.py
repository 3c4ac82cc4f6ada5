from datetime import UTC, datetime
from typing import get_args

import msgspec
import numpy as np
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.worlds import WORLDS, World
from contracts import policy_arrays
from contracts.errors import InputError
from contracts.policy_arrays import Scorer
from contracts.trajectories import TrajectoryBatch
from orchestration.loop import audience
from orchestration.loop.settings import LoopSettings
from tests.windows import consecutive_windows, write_window
from trainer import training


def test_arm_features_are_of_the_movies_that_are_offered_and_change_no_reward():
    plain = LoopSettings(num_actions=5, rank=3)
    featured = msgspec.structs.replace(plain, arm_features="hybrid")
    before, after = audience.load_movielens(plain), audience.load_movielens(featured)
    assert [len(movie.features) for movie in before.catalogue] == [0] * 5
    assert [len(movie.features) for movie in after.catalogue] == [3] * 5
    assert [item.item_id for item in after.catalogue] == [item.item_id for item in before.catalogue]
    assert np.array_equal(before.expected_reward_matrix, after.expected_reward_matrix)
    assert len({tuple(movie.features) for movie in after.catalogue}) == 5


@pytest.mark.parametrize("world", get_args(World))
def test_viewers_are_of_the_world_that_the_flag_names(world):
    settings = LoopSettings(num_actions=5, rank=3, drift=0.1, world=world)
    movielens = audience.load_movielens(settings)
    assert type(movielens) is WORLDS[world]
    assert movielens.reference.oracle > movielens.reference.best_fixed_action > movielens.reference.uniform


def test_a_world_whose_popularity_moves_needs_a_speed():
    with pytest.raises(InputError, match="--drift: above 0 in the world trends"):
        audience.load_movielens(LoopSettings(num_actions=5, rank=3, world="trends"))


def test_movies_that_come_out_and_movies_that_are_masked_are_different_ones():
    settings = LoopSettings(num_actions=12, rank=3, new_movies=4, masked_movies=3)
    movielens = audience.load_movielens(settings)
    new = audience.new_movies(settings, movielens)
    masked = {movie.action for movie in movielens.catalogue if movie.status == "masked"}
    assert (len(set(new)), len(masked)) == (4, 3) and not set(new) & masked
    assert set(movielens.on_offer.tolist()) == set(range(12)) - masked
    with pytest.raises(InputError, match="--new-movies and --masked-movies must leave 2 of the 12 movies"):
        audience.load_movielens(msgspec.structs.replace(settings, new_movies=8))


def test_where_tastes_drift_forgetting_pays(tmp_path):
    """Eight windows of uniform decisions, 0.3 radians each: what is learned with a half-life fits the next window better.
    Everything is seeded; the gain is 0.55 to 0.7 a decision with other seeds too, and the margin less than half of it."""
    num_actions, drift, count, windows = (
        20,
        0.3,
        2000,
        consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 8),
    )
    viewers = MovieLens.build(load_ratings("sample"), num_actions=num_actions, rank=5, reward_noise=0.5, seed=0)
    rng = np.random.default_rng(0)
    for number, window in enumerate(windows):
        users, actions = rng.integers(0, viewers.num_users, count), rng.integers(0, num_actions, count)
        batch = TrajectoryBatch(
            observation=viewers.observations[users],
            action=actions.astype(np.int32),
            reward=viewers.observed_rewards(users, actions, rng, drift * number).astype(np.float32),
            propensity=np.full(count, 1 / num_actions, np.float32),
            defaulted=np.zeros(count, bool),
        )
        write_window(tmp_path / "windows", window, batch)
    everybody = np.arange(viewers.num_users)
    next_window = viewers.expected_of_all_actions(everybody, drift * len(windows))
    earned = []
    for half_life in (0.0, 1.0):
        settings = training.Settings(
            windows=tmp_path / "windows",
            policies=tmp_path / "policies",
            num_actions=num_actions,
            catalogue=viewers.catalogue,
            hyperparameters={"half_life": half_life},
        )
        card = training.train(settings)
        mean = Scorer(policy_arrays.read(settings.policies / card.version, card)).means(viewers.observations)
        earned.append(next_window[everybody, mean.argmax(axis=1)].mean())
    assert earned[1] - earned[0] > 0.25


@pytest.mark.parametrize("reward_window", [0.05, 0.5, 2.0])
def test_the_share_answered_in_time_is_what_viewers_do(reward_window):
    """As the viewers of the simulator draw it: an answer after the reward window is no answer in time."""
    settings = LoopSettings(reward_window_seconds=reward_window, no_reward_probability=0.2, fault_rate=0.3)
    rng = np.random.default_rng(0)
    count = 200_000
    answered = rng.random(count) >= settings.no_reward_probability
    late = rng.random(count) < settings.fault_rate * audience.SHARE_LATE
    delays = np.where(late, reward_window + rng.uniform(*audience.LATE_SECONDS, count), 0)
    delays += np.where(late, 0, rng.uniform(*audience.ANSWER_SECONDS, count))
    share = (answered & (delays <= reward_window)).mean()
    assert audience.share_answered_in_time(settings, serving_began=True) == pytest.approx(share, abs=0.005)


def test_before_serving_begins_there_are_no_late_answers():
    settings = LoopSettings(reward_window_seconds=10.0, no_reward_probability=0.2, fault_rate=0.3)
    assert audience.share_answered_in_time(settings, serving_began=False) == pytest.approx(0.8)
