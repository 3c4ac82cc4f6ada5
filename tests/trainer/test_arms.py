from datetime import UTC, datetime

import numpy as np
import pytest

from contracts.items import Item
from contracts.policies import ArmColumn, Exploration
from trainer import arms
from trainer.arms import arm_features, columns, movie_factors

CATALOGUE = [
    Item(action=0, item_id="a", attributes={"year": 1980.0, "genres": ["Drama"], "title": "A"}, features=[0.5]),
    Item(action=1, item_id="b", attributes={"year": 2000.0, "genres": ["Comedy", "Drama"]}, features=[-1.0]),
    Item(action=2, item_id="c", features=[2.0]),
]


def test_features_of_the_items():
    assert columns(CATALOGUE) == [
        ArmColumn(attribute="year", center=1990.0, scale=10.0),
        ArmColumn(attribute="genres", category="Drama"),
        ArmColumn(attribute="genres", category="Comedy"),
    ]
    np.testing.assert_array_equal(
        arm_features(CATALOGUE, columns(CATALOGUE)),
        [  # 1, its own, the year in standard deviations from the mean (0 if unknown), Drama, Comedy
            [1, 0.5, -1, 1, 0],
            [1, -1, 1, 1, 1],
            [1, 2, 0, 0, 0],
        ],
    )


def test_new_categories_and_numbers_leave_what_is_known_of_the_others_where_it_was():
    added = Item(action=3, item_id="d", attributes={"genres": ["Action"], "stars": 4.0, "year": 2020.0}, features=[1.0])
    by = columns([*CATALOGUE, added], before=columns(CATALOGUE))
    grown = arm_features([*CATALOGUE, added], by)
    np.testing.assert_array_equal(grown[:3, :5], arm_features(CATALOGUE, columns(CATALOGUE)))
    np.testing.assert_array_equal(grown[3], [1, 1, 3, 0, 0, 0, 1])  # the year on the old scale, stars, Action
    np.testing.assert_array_equal(grown[:, 6], [0, 0, 0, 1])


def test_added_items_are_new_until_they_are_known_like_the_median_item():
    since = datetime(2026, 1, 1, tzinfo=UTC)
    catalogue = [
        *(Item(action=k, item_id=str(k)) for k in range(3)),
        Item(action=3, item_id="3", since=since),
        Item(action=4, item_id="4", since=since),
        Item(action=5, item_id="5", since=since, status="masked"),
        Item(action=6, item_id="6", since=since),
    ]
    counts = np.array([40.0, 3.0, 50.0, 39.0, 12.0, 0.0, 60.0])
    assert arms.new_actions(catalogue, counts, Exploration()) == [3, 4]  # the median is 39.5
    assert arms.new_actions(catalogue, counts, Exploration(new_item_samples=20)) == [4]
    assert arms.new_actions(catalogue, np.zeros(7), Exploration()) == []  # to a policy that knows nothing


def test_a_number_that_is_the_same_for_all_items_is_not_divided_by_zero():
    same = [Item(action=k, item_id=str(k), attributes={"price": 5.0}) for k in range(3)]
    np.testing.assert_array_equal(arm_features(same, columns(same)), [[1, 0]] * 3)


def test_columns_are_bounded_and_the_rarest_categories_and_retired_items_have_none(monkeypatch):
    monkeypatch.setattr(arms, "MAX_COLUMNS", 2)
    assert [column.category for column in columns(CATALOGUE)] == [None, "Drama"]
    items = [
        Item(action=k, item_id=str(k), attributes={"topic": topic}, status=status)
        for k, (topic, status) in enumerate([("x", "retired"), ("x", "retired"), ("y", "active"), ("z", "masked")])
    ]
    assert [column.category for column in columns(items)] == ["y", "z"]
    assert columns(CATALOGUE, before=columns(items)) == columns(items)


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
