import msgspec
import numpy as np
import pytest

from contracts.errors import InputError
from contracts.policies import Movie
from trainer.arms import arm_features, check_catalogue, movie_factors, read_catalogue


def movies(*changes):
    catalogue = [
        Movie(action=0, movie_id="a", year=1980, genres=["Drama"], features=[0.5]),
        Movie(action=1, movie_id="b", year=2000, genres=["Comedy", "Drama"], features=[-1.0]),
        Movie(action=2, movie_id="c", features=[2.0]),
    ]
    for action, change in changes:
        catalogue[action] = msgspec.structs.replace(catalogue[action], **change)
    return catalogue


def test_features_of_the_movies():
    np.testing.assert_array_equal(
        arm_features(movies()),
        [  # 1, decades from 1980, its own, Drama, Comedy
            [1, 0, 0.5, 1, 0],
            [1, 2, -1, 1, 1],
            [1, 0, 2, 0, 0],
        ],
    )
    with pytest.raises(InputError, match="movie 'b' has 2 features, the first has 1"):
        arm_features(movies((1, {"features": [1.0, 2.0]})))


def test_movies_of_a_new_genre_leave_what_is_known_of_the_others_where_it_was():
    grown = arm_features([*movies(), Movie(action=3, movie_id="d", genres=["Action"], features=[1.0])])
    np.testing.assert_array_equal(grown[:3, :5], arm_features(movies()))
    np.testing.assert_array_equal(grown[:, 5], [0, 0, 0, 1])


ALLOWED = {
    "the same": movies(),
    "one more": [*movies(), Movie(action=3, movie_id="d")],
    "masked": movies((1, {"status": "masked"})),
    "retired": movies((1, {"status": "retired"})),
    "another title": movies((1, {"title": "B"})),
}
REFUSED = {
    "gone": (movies()[:2], "movie 'c' is gone; retire it instead"),
    "reused": (movies((1, {"movie_id": "z"})), "action 1 is movie 'b' in the parent, got 'z'"),
    "nothing to recommend": (
        movies(*((action, {"status": ("masked", "retired")[action % 2]}) for action in range(3))),
        "must have an active movie",
    ),
    "twice": (movies((2, {"movie_id": "a"})), "movie 'a' is both action 0 and 2"),
    "out of order": (movies()[::-1], "must list actions in order from 0, got 2 at 0"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_catalogue_may_grow_and_change_its_status(case):
    check_catalogue(ALLOWED[case], movies())


@pytest.mark.parametrize("case", REFUSED)
def test_an_action_stays_the_same_movies(case):
    catalogue, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        check_catalogue(catalogue, movies())


def test_a_masked_movie_comes_back_a_retired_one_does_not():
    check_catalogue(movies(), movies((1, {"status": "masked"})))
    with pytest.raises(InputError, match="movie 'b' was retired, and is active again"):
        check_catalogue(movies(), movies((1, {"status": "retired"})))


def ratings(seed=0, users=60, num_movies=30, rank=2):
    """Two tastes, everything rated once, at random times."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(num_movies, rank))
    user, movie = np.divmod(rng.permutation(users * num_movies), num_movies)
    taste = rng.normal(size=(users, rank))
    return truth, user, movie, np.einsum("nr,nr->n", taste[user], truth[movie]), np.arange(users * num_movies)


def test_movie_factors_find_the_tastes_and_know_nothing_of_later_ratings():
    truth, user, movie, rating, timestamp = ratings()
    found = movie_factors(user, movie, rating, timestamp, 30, rank=2, seed=0)
    assert found.shape == (30, 2) and np.mean(found**2) == pytest.approx(1)
    residual = truth - found @ np.linalg.lstsq(found, truth, rcond=None)[0]
    assert np.mean(residual**2) < 0.3 * np.mean(truth**2)
    later = timestamp >= len(timestamp) // 2
    changed = np.where(later, 5 - rating, rating)
    np.testing.assert_array_equal(found, movie_factors(user, movie, changed, timestamp, 30, rank=2, seed=0))
    only_late = np.where(movie == 7, later, True)
    unseen = movie_factors(user[only_late], movie[only_late], rating[only_late], timestamp[only_late] + 10**6, 31, 2, 0)
    assert not unseen[30].any()


def test_a_catalogue_out_of_order_is_refused(tmp_path):
    path = tmp_path / "catalogue.json"
    path.write_bytes(msgspec.json.encode([Movie(action=k, movie_id=str(k)) for k in (4, 3)]))
    with pytest.raises(InputError, match="must list actions in order from 0, got 4 at 0"):
        read_catalogue(path)
