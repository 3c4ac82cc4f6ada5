from datetime import UTC, datetime

import numpy as np

from contracts.items import Item
from contracts.policies import ArmColumn, Exploration
from trainer import arms
from trainer.arms import arm_features, columns

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
