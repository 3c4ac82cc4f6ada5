"""Worlds: what viewers see of the world, what policies see of them, and how rewards come about.

    latent       a viewer's observation is their taste, and the reward is linear in it (`beam_jobs.movielens`)
    second_half  policies see who a viewer is and what they rated in the first half of their ratings; the rewards are made
                 of the second half
    ideal        the reward falls with the distance between a viewer and a movie: it is not linear in the observation
    like         the reward is a click, 1 or 0
    trends       the popularity of each movie moves as it did over the years of the later ratings

All are made of public ratings, and in each what is known of movies (`known_factors`) comes from ratings that no reward is
made of.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np

from beam_jobs.factors import halves, halves_of_each_user
from beam_jobs.movielens import OBSERVATION_DECIMALS, MovieLens
from beam_jobs.ratings import MAX_RATING, MIN_RATING, Ratings
from contracts.errors import InputError

World = Literal["latent", "second_half", "ideal", "like", "trends"]

IDEAL_DIMENSIONS = 5  # of the space in which viewers look for the nearest movie; with many, all movies are far away
IDEAL_WIDTH = 0.5  # the distance at which a reward has fallen to 61% of MAX_RATING
LIKED = 2.5  # the approximated rating at which a viewer clicks every other time
STEEPNESS = 2.0  # how fast the odds of a click grow with the rating: e^2 per star
TREND_SLICES = 12  # of the later ratings by time, in each of which popularity is counted
TREND_REWARD = 0.5  # what is added to a reward where a movie is e times as popular as on average
TREND_LIMIT = 2.0  # of the logarithm of how many times as popular a movie is


class SecondHalf(MovieLens):
    """Viewers whose observation is what is known of them before: their past ratings, and who they are.

    The observation is a constant 1, the logarithm of how many ratings the viewer gave in the first half, each genre's share
    of the stars given in it (a movie may have several genres), and, where the source has them, age, gender and occupation.
    """

    @classmethod
    def build(cls, ratings: Ratings, *, num_actions: int, rank: int, reward_noise: float, seed: int) -> Self:
        """As `MovieLens.build`. Raises InputError for a source with neither genres nor anything about its users."""
        earlier, later = halves_of_each_user(ratings)
        viewers = cls.of((earlier, later), num_actions=num_actions, rank=rank, reward_noise=reward_noise, seed=seed)
        return dataclasses.replace(viewers, observations=_profiles(earlier, viewers.user_ids))

    def observation_of_ratings(self, ratings: Mapping[int, float]) -> np.ndarray:
        """[D] float32: the observation of the viewer whose rewards come closest to these ratings, by action."""
        return _observation_of_closest(self, ratings)


class Ideal(MovieLens):
    """Viewers and movies are points, and a viewer wants the nearest movie (Coombs 1964, "A theory of data").

    The expected reward is `MAX_RATING exp(-d^2 / (2 w^2))` at a distance d. The points are the strongest factors of the
    ratings, each centred and scaled to one spread for viewers and movies, and weighted by the square root of its strength.
    The observation is a constant 1 and the viewer's point.
    """

    @classmethod
    def build(cls, ratings: Ratings, *, num_actions: int, rank: int, reward_noise: float, seed: int) -> Self:
        """As `MovieLens.build`."""
        latent = cls.of(halves(ratings), num_actions=num_actions, rank=rank, reward_noise=reward_noise, seed=seed)
        users, movies = (
            values[:, :IDEAL_DIMENSIONS].astype(np.float64) for values in (latent.preferences, latent.movie_factors)
        )
        strengths = (users**2).sum(axis=0)
        weights = np.sqrt(strengths / strengths.sum())
        points = (weights * _standardised(users)).round(OBSERVATION_DECIMALS).astype(np.float32)
        return dataclasses.replace(
            latent,
            observations=np.concatenate([np.ones((len(points), 1), np.float32), points], axis=1),
            preferences=points.astype(np.float64),
            movie_factors=weights * _standardised(movies),
        )

    def expected_rewards(self, users: np.ndarray, actions: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """As `MovieLens`."""
        return _nearness(((self.tastes(users, angle) - self.movie_factors[actions]) ** 2).sum(axis=1))

    def expected_of_all_actions(self, users: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """As `MovieLens`."""
        tastes = self.tastes(users, angle)
        squares = (tastes**2).sum(axis=1)[:, np.newaxis] + (self.movie_factors**2).sum(axis=1)
        return _nearness(squares - 2 * tastes @ self.movie_factors.T)

    def observation_of_ratings(self, ratings: Mapping[int, float]) -> np.ndarray:
        """[D] float32: the observation of the viewer whose rewards come closest to these ratings, by action."""
        return _observation_of_closest(self, ratings)


class Like(MovieLens):
    """Viewers who click or do not: the reward is 1 with a probability that grows with the approximated rating, else 0.

    There is no other noise.
    """

    clicks = True

    def expected_rewards(self, users: np.ndarray, actions: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """The probability of a click, as `MovieLens`."""
        return _click_probability(super().expected_rewards(users, actions, angle))

    def expected_of_all_actions(self, users: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """The probability of a click, as `MovieLens`."""
        return _click_probability(super().expected_of_all_actions(users, angle))

    def observed_rewards(
        self, users: np.ndarray, actions: np.ndarray, rng: np.random.Generator, angle: float | np.ndarray = 0.0
    ) -> np.ndarray:
        """[N] float64: 1 for a click, else 0."""
        return (rng.random(len(users)) < self.expected_rewards(users, actions, angle)).astype(np.float64)


@dataclass(frozen=True)
class Trends(MovieLens):
    """Viewers with tastes that stay, and movies that become more and less popular.

    The later ratings are cut into slices by time. A movie's popularity is the logarithm of its share of a slice's ratings
    over its share of all slices'. One turn of the angle passes through all slices, and then comes back to the first.
    Between two slices popularity is interpolated.
    """

    popularity: np.ndarray = field(default_factory=lambda: np.zeros((1, 0)))  # [S, K] float64

    @classmethod
    def build(cls, ratings: Ratings, *, num_actions: int, rank: int, reward_noise: float, seed: int) -> Self:
        """As `MovieLens.build`."""
        split = halves(ratings)
        viewers = cls.of(split, num_actions=num_actions, rank=rank, reward_noise=reward_noise, seed=seed)
        actions = {item.item_id: item.action for item in viewers.catalogue}
        action_of = np.array([actions.get(str(movie.movie_id), -1) for movie in ratings.movies])
        later = split[1]
        order = np.argsort(later.timestamp, kind="stable")
        counts = np.array(
            [
                np.bincount(shown[shown >= 0], minlength=num_actions)
                for shown in (action_of[later.movie[rows]] for rows in np.array_split(order, TREND_SLICES))
            ]
        )
        # One more rating per slice, shared by all movies, so that a movie without any has a logarithm.
        shares = (counts + 1 / num_actions) / (counts.sum(axis=1, keepdims=True) + 1)
        popularity = np.clip(np.log(shares / shares.mean(axis=0)), -TREND_LIMIT, TREND_LIMIT)
        return dataclasses.replace(viewers, popularity=popularity)

    def tastes(self, users: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """[N] user indexes -> [N, L] float64; tastes stay at every angle."""
        return super().tastes(users)

    def expected_rewards(self, users: np.ndarray, actions: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """As `MovieLens`, at this angle of the popularity's turn."""
        popular = self._popular(np.broadcast_to(angle, len(users)))
        return super().expected_rewards(users, actions) + popular[np.arange(len(users)), actions]

    def expected_of_all_actions(self, users: np.ndarray, angle: float | np.ndarray = 0.0) -> np.ndarray:
        """As `MovieLens`, at this angle of the popularity's turn."""
        return super().expected_of_all_actions(users) + self._popular(np.broadcast_to(angle, len(users)))

    def _popular(self, angles: np.ndarray) -> np.ndarray:
        """[N] angles -> [N, K] what popularity adds to a reward."""
        count = len(self.popularity)
        place = angles / (2 * np.pi) * count
        before = np.floor(place).astype(int)
        part = (place - before)[:, np.newaxis]
        here, there = self.popularity[before % count], self.popularity[(before + 1) % count]
        return TREND_REWARD * ((1 - part) * here + part * there)


WORLDS: dict[World, type[MovieLens]] = {
    "latent": MovieLens,
    "second_half": SecondHalf,
    "ideal": Ideal,
    "like": Like,
    "trends": Trends,
}


def _nearness(squared_distance: np.ndarray) -> np.ndarray:
    return np.asarray(MAX_RATING * np.exp(-squared_distance / (2 * IDEAL_WIDTH**2)))


def _click_probability(rating: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-STEEPNESS * (rating - LIKED))))


def _standardised(values: np.ndarray) -> np.ndarray:
    """[N, L] -> the same with mean 0 and standard deviation 1 by column, and nothing beyond 3 of them."""
    spread = values.std(axis=0)
    return np.clip((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1), -3, 3)


def _observation_of_closest(viewers: MovieLens, ratings: Mapping[int, float]) -> np.ndarray:
    """Rewards are first scaled so that the best action of a viewer has MAX_RATING on average."""
    actions = list(ratings)
    expected = viewers.expected_reward_matrix[:, actions] * (MAX_RATING / viewers.reference.oracle)
    closest = ((expected - np.array(list(ratings.values()))) ** 2).sum(axis=1).argmin()
    return np.asarray(viewers.observations[closest])


def _profiles(earlier: Ratings, user_ids: list[int]) -> np.ndarray:
    """[U, D] float32: the observations of `SecondHalf`, of ratings that no reward is made of."""
    genres = sorted({genre for movie in earlier.movies for genre in movie.genres})
    if not genres and not earlier.people:
        raise InputError(
            "--world: second_half needs ratings with genres (u.item, movies.csv) or users (u.user), got neither"
        )
    has_genre = np.array([[genre in movie.genres for genre in genres] for movie in earlier.movies], np.float64)
    has_genre = has_genre.reshape(len(earlier.movies), len(genres))  # also without any genre
    given = np.bincount(earlier.user, minlength=len(earlier.user_ids))
    stars = np.bincount(earlier.user, earlier.rating, minlength=len(given))
    of_genre = np.zeros((len(given), len(genres)))
    np.add.at(of_genre, earlier.user, earlier.rating[:, np.newaxis] * has_genre[earlier.movie])
    row_of = {user_id: row for row, user_id in enumerate(earlier.user_ids)}
    rows = [row_of[user_id] for user_id in user_ids]
    past = np.column_stack([np.ones(len(rows)), np.log1p(given[rows]) / 5])
    shares = of_genre[rows] / np.maximum(stars[rows], MIN_RATING)[:, np.newaxis]
    profiles = np.concatenate([past, shares, _people(earlier, user_ids)], axis=1)
    return profiles.round(OBSERVATION_DECIMALS).astype(np.float32)


def _people(ratings: Ratings, user_ids: list[int]) -> np.ndarray:
    """[U, P]: age (in 15 years from 30), and a 0 or 1 per gender and per occupation; all 0 for a user who is not known."""
    people = ratings.people or {}
    kinds = sorted({("gender", one.gender) for one in people.values()})
    kinds += sorted({("occupation", one.occupation) for one in people.values()})
    rows = np.zeros((len(user_ids), 1 + len(kinds) if people else 0))
    for row, user_id in zip(rows, user_ids, strict=True):
        if one := people.get(user_id):
            row[0] = (one.age - 30) / 15
            row[1:] = [getattr(one, name) == value for name, value in kinds]
    return rows
