import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import RatedMovie, Ratings, load_ratings
from contracts.errors import InputError


def low_rank_ratings(num_users: int = 12, num_movies: int = 8, rank: int = 2) -> tuple[Ratings, np.ndarray]:
    """Every viewer rated every movie, and the matrix has exactly this rank; as many ratings by others came before."""
    rng = np.random.default_rng(3)
    matrix = rng.uniform(0.5, 1.2, (num_users, rank)) @ rng.uniform(0.5, 1.2, (rank, num_movies))
    user, movie = np.divmod(np.arange(2 * matrix.size), num_movies)
    ratings = Ratings(
        user.astype(np.int32),
        movie.astype(np.int32),
        np.concatenate([rng.uniform(0.5, 5, matrix.size), matrix.ravel()]),
        np.repeat([0, 1], matrix.size),
        list(range(2 * num_users)),
        [RatedMovie(100 + index, f"movie {index}", None, ()) for index in range(num_movies)],
    )
    return ratings, matrix


def build(ratings: Ratings, num_actions: int = 8, rank: int = 2, reward_noise: float = 0.5) -> MovieLens:
    return MovieLens.build(ratings, num_actions=num_actions, rank=rank, reward_noise=reward_noise, seed=0)


def test_a_matrix_of_that_rank_is_approximated_exactly() -> None:
    ratings, matrix = low_rank_ratings()
    viewers = build(ratings)
    np.testing.assert_allclose(viewers.expected_reward_matrix, matrix, atol=1e-5)
    assert viewers.reference.oracle == pytest.approx(matrix.max(axis=1).mean(), abs=1e-5)
    assert viewers.reference.best_fixed_action == pytest.approx(matrix.mean(axis=0).max(), abs=1e-5)
    assert viewers.reference.best_fixed == matrix.mean(axis=0).argmax()
    assert viewers.reference.uniform == pytest.approx(matrix.mean(), abs=1e-5)


def test_what_is_known_of_movies_is_from_earlier_ratings_alone_and_the_viewers_from_later_ones_alone() -> None:
    """Ratings that change in one half leave what is made of the other as it was, to the bit."""
    ratings, _ = low_rank_ratings()
    viewers = build(ratings)
    assert viewers.user_ids == list(range(12, 24))
    later = ratings.timestamp == 1
    for changes in (later, ~later):
        rating = ratings.rating.copy()
        rating[changes] = np.random.default_rng(0).permutation(rating[changes])
        other = build(ratings._replace(rating=rating))
        known = np.array_equal(other.known_factors, viewers.known_factors)
        seen = np.array_equal(other.observations, viewers.observations)
        paid = np.array_equal(other.expected_reward_matrix, viewers.expected_reward_matrix)
        assert (known, seen, paid) == ((True, False, False) if changes is later else (False, True, True))


def test_a_featured_catalogue_says_what_is_known() -> None:
    viewers = build(low_rank_ratings()[0])
    assert [item.features for item in viewers.catalogue] == [[]] * 8
    assert [item.features for item in viewers.featured().catalogue] == viewers.known_factors.tolist()


def test_what_is_masked_is_known_and_not_on_offer() -> None:
    ratings, matrix = low_rank_ratings()
    whole = build(ratings)
    best = whole.reference.best_fixed
    viewers = whole.masking([best, 0])
    offered = [action for action in range(8) if action not in (best, 0)]
    assert [movie.action for movie in viewers.catalogue if movie.status == "masked"] == sorted({best, 0})
    assert viewers.on_offer.tolist() == offered and whole.on_offer.tolist() == list(range(8))
    assert viewers.reference.oracle == pytest.approx(matrix[:, offered].max(axis=1).mean(), abs=1e-5)
    assert viewers.reference.best_fixed == offered[matrix[:, offered].mean(axis=0).argmax()]
    assert viewers.reference.uniform == pytest.approx(matrix[:, offered].mean(), abs=1e-5)
    np.testing.assert_array_equal(viewers.expected_reward_matrix, whole.expected_reward_matrix)


def test_tastes_turn_to_those_of_another_viewer() -> None:
    viewers = build(low_rank_ratings()[0])
    users = np.arange(12)
    np.testing.assert_array_equal(viewers.expected_of_all_actions(users), viewers.expected_reward_matrix)
    turned = viewers.expected_of_all_actions(
        users, np.pi / 2
    )  # each user has another user's taste, and no two the same
    order = np.lexsort(turned.T), np.lexsort(viewers.expected_reward_matrix.T)
    np.testing.assert_allclose(turned[order[0]], viewers.expected_reward_matrix[order[1]], atol=1e-9)
    assert np.abs(turned - viewers.expected_reward_matrix).max() > 0.1
    half = viewers.expected_of_all_actions(users, np.pi / 4)
    np.testing.assert_allclose(half, (turned + viewers.expected_reward_matrix) / np.sqrt(2), atol=1e-9)
    # An angle for each decision, and one action of each.
    angles, actions = np.linspace(0, 3, 12), users % 8
    each = [viewers.expected_of_all_actions(users[n : n + 1], angles[n])[0, actions[n]] for n in users]
    np.testing.assert_allclose(viewers.expected_rewards(users, actions, angles), each, atol=1e-12)


def test_movies_are_drawn_at_random_and_the_same_again() -> None:
    viewers = build(low_rank_ratings()[0])
    drawn = viewers.drawn_actions(8)
    assert sorted(drawn) == list(range(8)) != drawn
    assert viewers.drawn_actions(3) == drawn[:3]


def test_actions_are_the_most_rated_movies_ties_by_id() -> None:
    ratings, _ = low_rank_ratings()
    few = np.flatnonzero(~((ratings.movie == 0) & (ratings.user < 3)))  # three ratings less for the first movie
    ratings = ratings._replace(
        user=ratings.user[few], movie=ratings.movie[few], rating=ratings.rating[few], timestamp=ratings.timestamp[few]
    )
    viewers = build(ratings)
    assert [item.item_id for item in viewers.catalogue] == ["101", "102", "103", "104", "105", "106", "107", "100"]
    assert [movie.action for movie in viewers.catalogue] == list(range(8))
    assert build(ratings, num_actions=3).num_actions == 3


def test_expected_rewards_agree_in_all_their_forms() -> None:
    viewers = build(low_rank_ratings()[0])
    users, actions = np.array([0, 5, 11, 5]), np.array([7, 0, 3, 1])
    expected = viewers.expected_reward_matrix[users, actions]
    np.testing.assert_allclose(viewers.expected_rewards(users, actions), expected, rtol=1e-12)
    by_observation = viewers.observations[users].astype(np.float64) @ viewers.movie_factors.T
    np.testing.assert_allclose(by_observation[np.arange(4), actions], expected, rtol=1e-12)


def test_noise_has_the_stated_deviation_and_comes_from_the_generator() -> None:
    viewers = build(low_rank_ratings()[0])
    users, actions = np.zeros(20_000, int), np.zeros(20_000, int)
    noise = viewers.observed_rewards(users, actions, np.random.default_rng(1)) - viewers.expected_reward_matrix[0, 0]
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    again = viewers.observed_rewards(users, actions, np.random.default_rng(1)) - viewers.expected_reward_matrix[0, 0]
    assert (noise == again).all()
    silent = build(low_rank_ratings()[0], reward_noise=0)
    assert (
        silent.observed_rewards(users, actions, np.random.default_rng(1)) == silent.expected_rewards(users, actions)
    ).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_actions": 9}, r"--num-actions must be from 1 to 8 \(the movies rated\), got 9"),
        ({"num_actions": 0}, "--num-actions must be from 1 to 8 .*, got 0"),
        (
            {"rank": 8},
            r"--rank must be from 1 to 7 \(less than 12 users of the later half of the ratings, and 8 movies\), got 8",
        ),
        ({"rank": 0}, "--rank must be from 1 to 7 .*, got 0"),
        ({"reward_noise": -0.1}, "--reward-noise must be from 0 to 1e.37, got -0.1"),
        ({"reward_noise": float("nan")}, "--reward-noise must be from 0 to 1e.37, got nan"),
        ({"reward_noise": 1e39}, "--reward-noise must be from 0 to 1e.37, got 1e.39"),
    ],
)
def test_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(low_rank_ratings()[0], **change)  # type: ignore[arg-type]


DIGEST = """
import hashlib
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
viewers = MovieLens.build(load_ratings("sample"), num_actions=100, rank=20, reward_noise=0.5, seed=0)
print(hashlib.sha256(viewers.observations.tobytes()).hexdigest())
"""


def test_the_same_bytes_in_another_process_with_other_threads() -> None:
    viewers = MovieLens.build(load_ratings("sample"), num_actions=100, rank=20, reward_noise=0.5, seed=0)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=environment, cwd=root
    )
    assert other.stdout.strip() == hashlib.sha256(viewers.observations.tobytes()).hexdigest()


@pytest.mark.movielens
def test_reference_on_movielens_100k(movielens_100k: Path) -> None:
    viewers = MovieLens.build(load_ratings(str(movielens_100k)), num_actions=100, rank=20, reward_noise=0.5, seed=0)
    assert viewers.reference.uniform == pytest.approx(0.925, abs=0.001)
    assert viewers.reference.best_fixed_action == pytest.approx(2.366, abs=0.001)
    assert viewers.reference.oracle == pytest.approx(3.838, abs=0.001)
    assert viewers.catalogue[viewers.reference.best_fixed].attributes["title"] == "Titanic"
    assert viewers.observations.shape == (586, 20)
