"""The simulated viewer: what a user of MovieLens would have rated a movie, and so the truth that regret needs.

The ratings are split by time. The earlier half is the past: what is known of the movies before the first decision, and
nothing else. The users of the later half are the viewers. Their user x movie matrix of ratings (0 where there is none) is
factorised by a truncated singular value decomposition, R ~ U S V^T. A user's observation is a row of U S^(1/2), a movie's
factors are a row of V S^(1/2), and the expected reward of showing a movie is their product: the approximated rating. The
observed reward adds Gaussian noise. Half of S on each side gives the observations a length of about one, on which the
usual ridge and confidence settings of linear bandits work.

The factorisation sees all movies; the actions are the ones with the most ratings in both halves.

Tastes may turn: at angle a a viewer likes `cos(a) x + sin(a) y`, where x is the observation that policies see and y another
viewer's. The observation stays as it is, and what it means changes.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

import msgspec
import numpy as np

from beam_jobs.factors import factorise, halves, known_factors
from beam_jobs.ratings import RatedMovie, Ratings
from contracts import items
from contracts.errors import InputError
from contracts.items import Attribute, Item

# Six decimals: short to write as JSON, far below any noise, and the last bits in which one machine's linear algebra
# differs from another's do not show.
OBSERVATION_DECIMALS = 6
MAX_REWARD_NOISE = 1e37  # rewards are stored as float32; 34 standard deviations fit


class Reference(NamedTuple):
    """Mean expected reward a decision, over users uniformly, of policies to compare with."""

    oracle: float  # the best action for each user
    best_fixed_action: float  # the one action that is best for all
    best_fixed: int  # which one that is
    uniform: float  # any action at random


@dataclass(frozen=True)
class MovieLens:
    """Viewers with known preferences: `U` users, `K` actions, observations of `D` values.

    A movie that the catalogue masks is not on offer: neither the oracle nor the uniform choice knows it.
    """

    clicks: ClassVar[bool] = False  # whether a reward is 1 or 0, with the expected reward as its probability

    user_ids: list[int]  # [U]
    catalogue: list[Item]  # [K], action 0 is the movie with the most ratings
    observations: np.ndarray  # [U, D] float32
    preferences: np.ndarray  # [U, L] float64: what they like; here, and not in every world, what policies see of them
    movie_factors: np.ndarray  # [K, L] float64
    known_factors: np.ndarray  # [K, F] float64, from the earlier ratings: what may be known of a movie beforehand
    reward_noise: float  # standard deviation
    seed: int  # of whose taste each viewer's turns to, and of what is drawn from the movies

    @classmethod
    def build(cls, ratings: Ratings, *, num_actions: int, rank: int, reward_noise: float, seed: int) -> Self:
        """Splits `ratings` by time, and factorises them; the same arguments give the same bytes.

        Raises:
          InputError: more actions than movies, a rank that the matrix does not have, or negative noise.
        """
        return cls.of(halves(ratings), num_actions=num_actions, rank=rank, reward_noise=reward_noise, seed=seed)

    @classmethod
    def of(cls, split: tuple[Ratings, Ratings], *, num_actions: int, rank: int, reward_noise: float, seed: int) -> Self:
        """As `build`, of ratings that are split already: what is known beforehand, and what the rewards are made of."""
        earlier, later = split
        num_movies = len(later.movies)
        if not 1 <= num_actions <= num_movies:
            raise InputError(f"--num-actions must be from 1 to {num_movies} (the movies rated), got {num_actions}")
        if not 0 <= reward_noise <= MAX_REWARD_NOISE:
            raise InputError(f"--reward-noise must be from 0 to {MAX_REWARD_NOISE:g}, got {reward_noise}")
        viewers = np.unique(later.user)
        largest_rank = min(len(viewers), num_movies) - 1
        if not 1 <= rank <= largest_rank:
            raise InputError(
                f"--rank must be from 1 to {largest_rank} (less than {len(viewers)} users of the later half of the"
                f" ratings, and {num_movies} movies), got {rank}"
            )
        user_factors, movie_factors, _ = factorise(later, rank, seed)
        observations = user_factors[viewers].round(OBSERVATION_DECIMALS).astype(np.float32)
        popularity = sum(np.bincount(half.movie, minlength=num_movies) for half in split)
        actions = np.argsort(-popularity, kind="stable")[:num_actions]  # ties by id: movies ascend by it
        return cls(
            user_ids=[later.user_ids[user] for user in viewers.tolist()],
            catalogue=[
                Item(action=action, item_id=str(movie.movie_id), attributes=_attributes(movie))
                for action, movie in enumerate(later.movies[index] for index in actions)
            ],
            observations=observations,
            preferences=observations.astype(np.float64),
            movie_factors=movie_factors[actions],
            known_factors=known_factors(earlier, rank, seed)[actions],
            reward_noise=reward_noise,
            seed=seed,
        )

    def featured(self) -> "MovieLens":
        """The same viewers, with a catalogue that says what is known of each movie beforehand: `known_factors`."""
        catalogue = [
            msgspec.structs.replace(item, features=row)
            for item, row in zip(self.catalogue, self.known_factors.tolist(), strict=True)
        ]
        return dataclasses.replace(self, catalogue=catalogue)

    def masking(self, actions: Collection[int]) -> "MovieLens":
        """The same viewers while the movies of `actions` are not on offer."""
        catalogue = [
            msgspec.structs.replace(item, status="masked") if item.action in actions else item
            for item in self.catalogue
        ]
        return dataclasses.replace(self, catalogue=catalogue)

    def drawn_actions(self, count: int) -> list[int]:
        """`count` actions at random, the same for the same seed; a larger count starts with them."""
        drawn: list[int] = np.random.default_rng([self.seed, 1]).permutation(self.num_actions)[:count].tolist()
        return drawn

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_actions(self) -> int:
        """K."""
        return len(self.catalogue)

    @property
    def observation_dim(self) -> int:
        """D."""
        return self.observations.shape[1]

    def observation_of_ratings(self, ratings: Mapping[int, float]) -> np.ndarray:
        """[D] float32: the observation of a new viewer with these ratings, by action.

        It is the row whose products with the movies' factors come closest to the ratings, with 0 for what is not rated
        ("folding in"; Sarwar et al. 2002, "Incremental singular value decomposition algorithms for highly scalable
        recommender systems"). A small ridge keeps it unique where there are fewer movies than factors.
        """
        rated = np.zeros(self.num_actions)
        for action, rating in ratings.items():
            rated[action] = rating
        squares = self.movie_factors.T @ self.movie_factors + 0.01 * np.eye(self.movie_factors.shape[1])
        found = np.linalg.solve(squares, self.movie_factors.T @ rated)
        return found.round(OBSERVATION_DECIMALS).astype(np.float32)

    def tastes(self, users: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """[N] user indexes -> [N, L] float64: what they like when tastes have turned by `angle` radians, one or [N]."""
        preferences = self.preferences[users]
        if not np.any(angle):
            return preferences
        angles = np.broadcast_to(angle, len(users))[:, np.newaxis]
        return np.cos(angles) * preferences + np.sin(angles) * self.preferences[self._others[users]]

    def expected_rewards(self, users: np.ndarray, actions: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """[N] user indexes, [N] actions and the angle of `tastes` -> [N] float64."""
        return np.einsum("nd,nd->n", self.tastes(users, angle), self.movie_factors[actions])

    def expected_of_all_actions(self, users: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """[N] user indexes and the angle of `tastes` -> [N, K] float64."""
        return self.tastes(users, angle) @ self.movie_factors.T

    def observed_rewards(
        self, users: np.ndarray, actions: np.ndarray, rng: np.random.Generator, angle: float | np.ndarray = 0.0
    ) -> np.ndarray:
        """The expected reward plus Gaussian noise, [N] float64."""
        return self.expected_rewards(users, actions, angle) + rng.normal(0.0, self.reward_noise, len(users))

    @cached_property
    def on_offer(self) -> np.ndarray:
        """[M] int64, ascending: the actions whose movies are."""
        return np.array([item.action for item in self.catalogue if item.status == "active"], np.int64)

    @cached_property
    def _others(self) -> np.ndarray:
        """[U]: to whose taste each user's turns."""
        return np.random.default_rng([self.seed, 0]).permutation(self.num_users)

    @cached_property
    def expected_reward_matrix(self) -> np.ndarray:
        """[U, K] float64."""
        return self.expected_of_all_actions(np.arange(self.num_users))

    @cached_property
    def reference(self) -> Reference:
        """What policies that know everything, one thing and nothing would get."""
        expected = self.expected_reward_matrix[:, self.on_offer]
        by_action = expected.mean(axis=0)
        return Reference(
            oracle=float(expected.max(axis=1).mean()),
            best_fixed_action=float(by_action.max()),
            best_fixed=int(self.on_offer[by_action.argmax()]),
            uniform=float(by_action.mean()),
        )


def _attributes(movie: RatedMovie) -> dict[str, Attribute]:
    """What the ratings' source knows of a movie."""
    known: dict[str, Attribute | None] = {
        "title": movie.title[: items.MAX_TEXT_LENGTH],
        "year": None if movie.year is None else float(movie.year),
        "genres": [genre[: items.MAX_CATEGORY_LENGTH] for genre in movie.genres],
    }
    return {name: value for name, value in known.items() if value}
