"""What must hold in every world, and what is special to each."""

import hashlib
import pickle
from typing import get_args

import numpy as np
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import Person, RatedMovie, Ratings
from beam_jobs.worlds import WORLDS, Ideal, Like, SecondHalf, Trends, World
from contracts.errors import InputError

GENRES = ("Action", "Comedy", "Drama")
USERS, MOVIES, ACTIONS = 80, 25, 12


def ratings(people: bool = False, genres: bool = True) -> Ratings:
    """Everything is rated once, in random order, except that the last viewers come late and the first movies early."""
    rng = np.random.default_rng(5)
    user, movie = np.divmod(np.arange(USERS * MOVIES), MOVIES)
    timestamp = rng.permutation(len(user)) + 500 * (user > 70) - 500 * (movie < 3)
    rating = np.clip(np.round(rng.normal(3.5, 1, len(user)) + (user + movie) % 3 - 1), 1, 5)
    return Ratings(
        user.astype(np.int32),
        movie.astype(np.int32),
        rating,
        timestamp.astype(np.int64),
        list(range(USERS)),
        [RatedMovie(k, f"movie {k}", None, GENRES[: 1 + k % 3] if genres else ()) for k in range(MOVIES)],
        {k: Person(20 + k, "FM"[k % 2], "abc"[k % 3]) for k in range(USERS) if k % 5} if people else None,
    )


def build(world: World, of: Ratings | None = None, **sizes: int) -> MovieLens:
    wanted = {"num_actions": ACTIONS, "rank": 6, "seed": 0} | sizes
    return WORLDS[world].build(of or ratings(), reward_noise=0.5, **wanted)  # type: ignore[arg-type]


@pytest.fixture(params=get_args(World))
def world(request: pytest.FixtureRequest) -> World:
    name: World = request.param
    return name


def test_the_same_arguments_give_the_same_bytes(world: World) -> None:
    def digest() -> str:
        viewers = build(world)
        rng, users, actions = np.random.default_rng(1), np.arange(50), np.arange(50) % ACTIONS
        rewards = viewers.observed_rewards(users, actions, rng, 0.3)
        arrays = [viewers.observations, viewers.preferences, viewers.movie_factors, viewers.known_factors, rewards]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    assert digest() == digest()


def test_the_reference_is_what_the_best_choices_get(world: World) -> None:
    """By what is paid, decision by decision, and not by the matrix that the reference is computed from."""
    viewers = build(world).masking([3])
    everybody, offered = np.arange(viewers.num_users), [a for a in range(ACTIONS) if a != 3]
    paid = np.array([viewers.expected_rewards(everybody, np.full(len(everybody), action)) for action in offered])
    assert viewers.reference.oracle == pytest.approx(paid.max(axis=0).mean())
    assert viewers.reference.best_fixed_action == pytest.approx(paid.mean(axis=1).max())
    assert viewers.reference.best_fixed == offered[paid.mean(axis=1).argmax()]
    assert viewers.reference.uniform == pytest.approx(paid.mean())


@pytest.mark.parametrize("angle", [0.0, 0.7, 4.0])
def test_expected_rewards_agree_in_both_forms_and_with_what_is_observed(world: World, angle: float) -> None:
    viewers = build(world)
    rng = np.random.default_rng(0)
    users, actions = rng.integers(0, viewers.num_users, 40), rng.integers(0, ACTIONS, 40)
    angles = angle * rng.random(40)
    expected = viewers.expected_rewards(users, actions, angles)
    np.testing.assert_allclose(viewers.expected_of_all_actions(users, angles)[np.arange(40), actions], expected)
    observed = np.mean([viewers.observed_rewards(users, actions, rng, angles) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(observed, expected, atol=5 * 0.5 / np.sqrt(4000))


def test_later_ratings_change_nothing_that_is_known_before(world: World) -> None:
    """Nor do earlier ratings change a reward. In `second_half`, what policies see of viewers is known before."""
    viewers, given = build(world), ratings()
    order = np.lexsort((given.timestamp, given.user)) if world == "second_half" else np.argsort(given.timestamp)
    later = (
        order.reshape(USERS, MOVIES)[:, MOVIES // 2 :].ravel() if world == "second_half" else order[len(order) // 2 :]
    )
    earlier = np.setdiff1d(order, later)
    for changed in (later, earlier):
        rating, movie = given.rating.copy(), given.movie.copy()
        permuted = np.random.default_rng(0).permutation(changed)
        rating[changed], movie[changed] = rating[permuted], movie[permuted]
        other = build(world, given._replace(rating=rating, movie=movie))
        assert other.catalogue == viewers.catalogue  # the most rated movies of both halves
        assert np.array_equal(other.known_factors, viewers.known_factors) == (changed is later)
        assert np.array_equal(other.expected_reward_matrix, viewers.expected_reward_matrix) == (changed is earlier)
        if world == "second_half":
            assert np.array_equal(other.observations, viewers.observations) == (changed is later)


def test_masked_and_pickled_viewers_are_of_the_same_world(world: World) -> None:
    viewers = build(world)
    for other in (viewers.masking([2]), pickle.loads(pickle.dumps(viewers))):
        assert type(other) is type(viewers)
        np.testing.assert_array_equal(other.expected_reward_matrix, viewers.expected_reward_matrix)


def test_a_rating_by_a_new_viewer_gives_an_observation(world: World) -> None:
    """What a viewer would have rated leads back to the observation of a viewer who likes nearly the same."""
    viewers = build(world)
    user = 7
    scale = 1.0 if world in ("latent", "like", "trends") else 5 / viewers.reference.oracle
    liked = MovieLens.expected_of_all_actions(viewers, np.array([user]))[0] if scale == 1.0 else None
    rated = (viewers.expected_reward_matrix[user] if liked is None else liked) * scale
    found = viewers.observation_of_ratings(dict(enumerate(rated.tolist())))
    assert found.shape == (viewers.observation_dim,) and found.dtype == np.float32
    np.testing.assert_allclose(found, viewers.observations[user], atol=0.15)


def test_past_and_person_are_what_policies_see_in_second_half() -> None:
    given = ratings(people=True)
    viewers = build("second_half", given)
    assert isinstance(viewers, SecondHalf)
    assert viewers.observations.shape == (USERS, 2 + len(GENRES) + 1 + 2 + 3)
    user = 4
    own = np.flatnonzero(given.user == user)
    seen = own[np.argsort(given.timestamp[own])][: MOVIES // 2]
    stars = given.rating[seen]
    has = [np.array([genre in given.movies[movie].genres for movie in given.movie[seen]]) for genre in GENRES]
    shares = [stars[one].sum() / stars.sum() for one in has]
    person = [(24 - 30) / 15, 1, 0, 0, 1, 0]  # F of F and M, b of a, b and c
    np.testing.assert_allclose(viewers.observations[user], [1, np.log1p(MOVIES // 2) / 5, *shares, *person], atol=1e-6)
    assert not viewers.observations[5, -6:].any()  # of whom nothing is known


def test_second_half_needs_something_to_see() -> None:
    with pytest.raises(InputError, match="--world: second_half needs ratings with genres"):
        build("second_half", ratings(genres=False))
    assert build("second_half", ratings(genres=False, people=True)).observations.shape == (USERS, 2 + 6)


def test_in_ideal_the_nearest_movie_is_the_best_and_no_linear_model_knows_it() -> None:
    viewers = build("ideal")
    assert isinstance(viewers, Ideal)
    distance = np.linalg.norm(viewers.preferences[:, None] - viewers.movie_factors[None], axis=2)
    expected = viewers.expected_reward_matrix
    np.testing.assert_array_equal(expected.argmax(axis=1), distance.argmin(axis=1))
    np.testing.assert_array_equal(viewers.observations[:, 1:], viewers.preferences.astype(np.float32))
    fitted = viewers.observations @ np.linalg.lstsq(viewers.observations, expected, rcond=None)[0]
    chosen = expected[np.arange(len(expected)), fitted.argmax(axis=1)].mean()
    assert chosen < 0.97 * viewers.reference.oracle


def test_in_like_rewards_are_clicks() -> None:
    viewers = build("like")
    assert isinstance(viewers, Like)
    users, actions = np.arange(40), np.arange(40) % ACTIONS
    assert set(viewers.observed_rewards(users, actions, np.random.default_rng(0)).tolist()) == {0.0, 1.0}
    rating = MovieLens.expected_rewards(viewers, users, actions)
    np.testing.assert_array_equal(np.argsort(rating), np.argsort(viewers.expected_rewards(users, actions)))


def test_in_trends_popularity_moves_and_comes_back_and_tastes_stay() -> None:
    viewers = build("trends")
    assert isinstance(viewers, Trends)
    users = np.arange(viewers.num_users)
    now = viewers.expected_of_all_actions(users)
    np.testing.assert_allclose(viewers.expected_of_all_actions(users, 2 * np.pi), now, atol=1e-9)
    moved = viewers.expected_of_all_actions(users, np.pi) - now
    assert np.abs(moved).max() > 0.1
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-9)  # alike for all viewers
    # Of the first movies, most ratings came early: they are popular in the first slice and not in the last.
    early = [item.action for item in viewers.catalogue if item.item_id in ("0", "1", "2")]
    if early:
        assert (viewers.popularity[0, early] > viewers.popularity[-1, early]).all()
