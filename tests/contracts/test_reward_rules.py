import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import FLOAT32_MAX, Status
from contracts.reward_rules import RewardRule, combine, happened

REWARDS = [(2, 1.0), (1, 4.0), (1, 3.0), (3, -2.0), (3, 4.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("rule", "expected"), [("first", (1, 3.0)), ("last", (3, 4.0)), ("max", (1, 4.0)), ("sum", (3, 10.0))]
)
def test_each_rule(rule: RewardRule, expected: tuple[int, float]) -> None:
    """The repeat of (2, 1.0) counts once; of equal times and of equal values always the same one is taken."""
    assert combine(rule, REWARDS) == expected
    assert combine(rule, REWARDS[::-1]) == expected


@pytest.mark.parametrize("rule", ["first", "last", "max", "sum"])
def test_one_reward_is_itself(rule: RewardRule) -> None:
    assert combine(rule, [(7, -0.25)]) == (7, -0.25)


def test_a_sum_stays_within_the_bounds_of_a_reward() -> None:
    assert combine("sum", [(1, 3e38), (2, 3e38)]) == (2, FLOAT32_MAX)
    assert combine("sum", [(1, -3e38), (2, -3e38)]) == (2, -FLOAT32_MAX)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1).flatmap(
        lambda some: st.tuples(st.just(some), st.permutations(some))
    )
)
def test_the_order_of_arrival_does_not_matter(both: tuple[list[tuple[int, float]], list[tuple[int, float]]]) -> None:
    for rule in ("first", "last", "max", "sum"):
        assert combine(rule, both[0]) == combine(rule, both[1])


@pytest.mark.parametrize(
    ("deferred", "statuses", "expected"),
    [
        (None, [], True),
        (None, ["activated"], True),
        (None, ["cancelled"], False),
        (True, [], False),
        (True, ["activated", "activated"], True),
        (True, ["activated", "cancelled"], False),
        (True, ["cancelled", "activated"], False),
    ],
)
def test_a_cancellation_prevails_and_a_deferred_decision_needs_its_activation(
    deferred: bool | None, statuses: list[Status], expected: bool
) -> None:
    assert happened(deferred, statuses) is expected


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown rule: 'mean'"):
        combine("mean", [(1, 1.0)])  # type: ignore[arg-type]
