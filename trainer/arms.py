"""Movies as arms: the catalogue's file, arm features, and how a catalogue may change from one policy to the next."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import Movie


def arm_features(catalogue: Sequence[Movie]) -> np.ndarray:
    """The features of every movie, which are known before it is first recommended.

    Returns:
      [K, F] float64: a constant 1, the year (in decades from 1980, 0 if unknown), the movie's `features`, and a 0 or 1
      per genre in the order of `genres`. So movies added at the end of the catalogue add columns at the end.

    Raises:
      InputError: a movie has another number of features than the first.
    """
    expected = len(catalogue[0].features)
    for movie in catalogue:
        if len(movie.features) != expected:
            raise InputError(
                f"catalogue: movie {movie.movie_id!r} has {len(movie.features)} features, the first has {expected}"
            )
    columns = genres(catalogue)
    return np.array(
        [
            [
                1.0,
                0.0 if movie.year is None else (movie.year - 1980) / 10,
                *movie.features,
                *(float(genre in movie.genres) for genre in columns),
            ]
            for movie in catalogue
        ]
    )


def has_features(catalogue: Sequence[Movie]) -> bool:
    """Whether anything is known of a movie besides its identifier, so that `arm_features` tells movies apart."""
    return any(movie.features or movie.genres or movie.year is not None for movie in catalogue)


def genres(catalogue: Sequence[Movie]) -> list[str]:
    """The genres in the catalogue, in the order in which they first occur."""
    return list(dict.fromkeys(genre for movie in catalogue for genre in movie.genres))


def read_catalogue(path: Path) -> list[Movie]:
    """The movies in a JSON list, one per action and in their order. Raises InputError that names the file."""
    try:
        movies = msgspec.json.decode(path.read_bytes(), type=list[Movie])
    except OSError as error:
        raise InputError(f"catalogue: {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"catalogue: {path}: {error}") from None
    _check_order(movies, f"catalogue: {path}")
    return movies


def check_catalogue(catalogue: Sequence[Movie], before: Sequence[Movie] | None) -> None:
    """Checks that `catalogue` may follow the catalogue `before` it: the same movies, with new ones only at the end.

    Raises:
      InputError: a movie is listed twice, none is active, one of the old movies is missing or has another action, or a
        retired movie is offered again.
    """
    _check_order(catalogue, "catalogue")
    seen: dict[str, int] = {}
    for action, movie in enumerate(catalogue):
        if movie.movie_id in seen:
            raise InputError(f"catalogue: movie {movie.movie_id!r} is both action {seen[movie.movie_id]} and {action}")
        seen[movie.movie_id] = action
    if not any(movie.status == "active" for movie in catalogue):
        raise InputError("catalogue: must have an active movie, or there is nothing to recommend")
    for old in before or []:
        if old.action >= len(catalogue):
            raise InputError(f"catalogue: movie {old.movie_id!r} is gone; retire it instead")
        new = catalogue[old.action]
        if new.movie_id != old.movie_id:
            raise InputError(
                f"catalogue: action {old.action} is movie {old.movie_id!r} in the parent, got {new.movie_id!r}"
            )
        if old.status == "retired" and new.status != "retired":
            raise InputError(f"catalogue: movie {old.movie_id!r} was retired, and is {new.status} again")


def _check_order(catalogue: Sequence[Movie], where: str) -> None:
    for action, movie in enumerate(catalogue):
        if movie.action != action:
            raise InputError(f"{where}: must list actions in order from 0, got {movie.action} at {action}")


def movie_factors(
    user: np.ndarray,
    movie: np.ndarray,
    rating: np.ndarray,
    timestamp: np.ndarray,
    num_movies: int,
    rank: int,
    seed: int,
) -> np.ndarray:
    """Latent factors of the movies, from the first half of the ratings by time only.

    A truncated singular value decomposition of the user x movie matrix, with the singular values on the movies' side,
    by randomised subspace iteration (Halko et al. 2011, "Finding structure with randomness").

    Args:
      user: [N] int, index of the user.
      movie: [N] int in [0, num_movies).
      rating: [N].
      timestamp: [N], any unit.
      num_movies: M.
      rank: how many factors.
      seed: of the iteration.

    Returns:
      [M, rank] float64, scaled to a mean square of 1; 0 for a movie without ratings in that half.
    """
    early = np.argsort(timestamp, kind="stable")[: len(timestamp) // 2]
    matrix = np.zeros((int(user.max()) + 1, num_movies))
    matrix[user[early], movie[early]] = rating[early]
    basis = np.random.default_rng(seed).normal(size=(len(matrix), rank + 10))
    for _ in range(10):
        right, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ right)
    _, strengths, vectors = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    factors: np.ndarray = vectors[:rank].T * strengths[:rank]
    scale = np.sqrt((factors**2).mean())
    return factors / scale if scale else factors
