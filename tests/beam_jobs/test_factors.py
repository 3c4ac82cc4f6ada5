import numpy as np
import pytest

from beam_jobs.factors import factorise, halves, known_factors
from beam_jobs.ratings import RatedMovie, Ratings


def ratings(users: int = 60, num_movies: int = 30, rank: int = 2) -> tuple[np.ndarray, Ratings]:
    """The truth [M, rank], and what follows from it: everything rated once, at random times."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(num_movies, rank))
    user, movie = np.divmod(rng.permutation(users * num_movies), num_movies)
    rating = np.einsum("nr,nr->n", rng.normal(size=(users, rank))[user], truth[movie])
    return truth, Ratings(
        user.astype(np.int32),
        movie.astype(np.int32),
        rating,
        rng.permutation(len(user)).astype(np.int64),
        list(range(users)),
        [RatedMovie(number, "", None, ()) for number in range(num_movies)],
    )


def test_halves_are_before_and_after_and_together_all() -> None:
    _, everything = ratings()
    earlier, later = halves(everything)
    assert len(earlier.user) == len(later.user) == 900
    assert earlier.timestamp.max() < later.timestamp.min()
    assert sorted([*earlier.timestamp, *later.timestamp]) == list(range(1800))
    row = np.flatnonzero(everything.timestamp == later.timestamp[5])[0]
    for column, of_all in zip(later[:4], everything[:4], strict=True):
        assert column[5] == of_all[row]


def test_the_factors_multiply_to_the_ratings() -> None:
    _, everything = ratings()
    user_factors, movie_factors, strengths = factorise(everything, rank=2, seed=0)
    product = (user_factors @ movie_factors.T)[everything.user, everything.movie]
    np.testing.assert_allclose(product, everything.rating, atol=1e-9)
    assert strengths[0] >= strengths[1] > 0
    np.testing.assert_allclose(np.linalg.norm(movie_factors, axis=0) ** 2, strengths)


def test_known_factors_find_the_tastes_of_the_ratings_they_are_made_of() -> None:
    truth, everything = ratings()
    earlier, _ = halves(everything)
    found = known_factors(earlier, rank=2, seed=0)
    assert found.shape == (30, 2) and np.mean(found**2) == pytest.approx(1)
    residual = truth - found @ np.linalg.lstsq(found, truth, rcond=None)[0]
    assert np.mean(residual**2) < 0.3 * np.mean(truth**2)


def test_nothing_is_known_of_a_movie_without_earlier_ratings() -> None:
    _, everything = ratings()
    earlier, _ = halves(everything)
    rows = earlier.movie != 7
    without = Ratings(*(column[rows] for column in earlier[:4]), earlier.user_ids, earlier.movies)
    assert not known_factors(without, rank=2, seed=0)[7].any()
