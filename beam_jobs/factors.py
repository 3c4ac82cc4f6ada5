"""Latent factors of users and movies, and the split of ratings into what is past and what is to come."""

import numpy as np

from beam_jobs.ratings import Ratings


def halves(ratings: Ratings) -> tuple[Ratings, Ratings]:
    """The earlier and the later half of the ratings by time. Users and movies keep their indexes in both."""
    order = np.argsort(ratings.timestamp, kind="stable")
    return _chosen(ratings, order[: len(order) // 2]), _chosen(ratings, order[len(order) // 2 :])


def halves_of_each_user(ratings: Ratings) -> tuple[Ratings, Ratings]:
    """The earlier and the later half of each user's ratings by time; of an odd number, the later half has one more."""
    order = np.lexsort((ratings.timestamp, ratings.user))
    counts = np.bincount(ratings.user, minlength=len(ratings.user_ids))
    begins = np.cumsum(counts) - counts
    user = ratings.user[order]
    is_earlier = np.arange(len(order)) - begins[user] < counts[user] // 2
    return _chosen(ratings, order[is_earlier]), _chosen(ratings, order[~is_earlier])


def factorise(ratings: Ratings, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A truncated singular value decomposition R ~ U S V^T of the user x movie matrix, 0 where there is no rating.

    Returns:
      U S^(1/2) [U, rank], V S^(1/2) [M, rank] and the singular values S [rank], the strongest first.
    """
    from scipy.sparse import csr_array  # it takes a while to import, and settings name worlds without making one
    from scipy.sparse.linalg import svds

    shape = len(ratings.user_ids), len(ratings.movies)
    matrix = csr_array((ratings.rating, (ratings.user, ratings.movie)), shape=shape)
    start = np.random.default_rng(seed).standard_normal(min(shape))
    left, strengths, right = svds(matrix, k=rank, v0=start)
    order = np.argsort(-strengths, kind="stable")
    left, strengths, right = left[:, order], strengths[order], right[order]
    # A pair of singular vectors may be negated: the larger side of each movie vector is made the positive one.
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    roots = signs * np.sqrt(strengths)
    return left * roots, right.T * roots, strengths


def known_factors(earlier: Ratings, rank: int, seed: int) -> np.ndarray:
    """What the earlier ratings tell of each movie: V S, scaled to a mean square of 1.

    Returns:
      [M, rank] float64; 0 for a movie without earlier ratings.
    """
    _, movie_factors, strengths = factorise(earlier, rank, seed)
    factors: np.ndarray = movie_factors * np.sqrt(strengths)
    factors[np.bincount(earlier.movie, minlength=len(factors)) == 0] = 0.0
    scale = np.sqrt((factors**2).mean())
    return factors / scale if scale else factors


def _chosen(ratings: Ratings, rows: np.ndarray) -> Ratings:
    return ratings._replace(
        user=ratings.user[rows],
        movie=ratings.movie[rows],
        rating=ratings.rating[rows],
        timestamp=ratings.timestamp[rows],
    )
