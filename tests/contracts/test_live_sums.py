from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import live_sums
from contracts.live_sums import MAX_BOUND, ArmSums
from contracts.trajectories import TrajectoryBatch

K, D = 5, 3


def interactions(size: int, seed: int = 0, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        (spread * random.normal(size=(size, D))).astype(np.float32),
        random.integers(K, size=size).astype(np.int32),
        random.normal(size=size).astype(np.float32),
    )


def part(rows: np.ndarray, all_rows: tuple[np.ndarray, ...]) -> ArmSums:
    return live_sums.of_interactions(*(column[rows] for column in all_rows))


def rounded(value: np.float32) -> Fraction:
    return Fraction(round(Fraction(float(value)) * 2**20), 2**20)


def test_sums_are_those_of_rational_numbers() -> None:
    x, action, r = interactions(60)
    sums = live_sums.of_interactions(x, action, r)
    assert sums.arms.tolist() == sorted(set(action.tolist()))
    for place, arm in enumerate(sums.arms.tolist()):
        rows = np.flatnonzero(action == arm)
        assert sums.counts[place] == len(rows)
        products = [
            sum(rounded(x[row, i]) * rounded(x[row, j]) for row in rows) * 2**40 for i in range(D) for j in range(i, D)
        ]
        assert sums.gram[place].tolist() == products
        assert sums.moment[place].tolist() == [
            sum(rounded(r[row]) * rounded(x[row, i]) for row in rows) * 2**40 for i in range(D)
        ]


@given(st.permutations(range(40)), st.integers(0, 40), st.integers(0, 1000))
def test_order_and_retraction_leave_nothing_behind(order: list[int], cut: int, seed: int) -> None:
    data = interactions(40, seed)
    whole = live_sums.of_interactions(*data)
    first, second = part(np.array(order[:cut], int), data), part(np.array(order[cut:], int), data)
    assert live_sums.equal(live_sums.add(second, first), whole)
    assert live_sums.equal(live_sums.subtract(whole, first), second)
    assert len(live_sums.subtract(whole, whole).arms) == 0


def test_a_sum_that_differs_in_one_bit_is_found() -> None:
    whole = live_sums.of_interactions(*interactions(40))
    for column in range(1, 5):
        columns = [one.copy() for one in whole]
        columns[column].flat[-1] += 1
        changed = ArmSums(*columns)
        assert not live_sums.equal(whole, changed)
        assert live_sums.differing(whole, changed).tolist() == [whole.arms[-1]]


def test_many_interactions_are_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = interactions(200)
    whole = live_sums.of_interactions(*data)
    monkeypatch.setattr(live_sums, "_PRODUCTS_PER_CHUNK", 7 * live_sums.triangle(D))
    assert live_sums.equal(live_sums.of_interactions(*data), whole)


def test_of_a_decoded_batch() -> None:
    x, action, r = interactions(30)
    batch = TrajectoryBatch(x, action, r, np.ones(30, np.float32), np.zeros(30, bool))
    assert live_sums.equal(live_sums.of_batch(batch, K), live_sums.of_interactions(x, action, r))
    with pytest.raises(ValueError, match=r"action: must be below 2, got [234]"):
        live_sums.of_batch(batch, 2)


def test_rewards_are_rounded_to_float32_as_in_the_record() -> None:
    x, action, r = interactions(30)
    wide = r.astype(np.float64) * (1 + 2.0**-30)
    assert live_sums.equal(live_sums.of_interactions(x, action, wide), live_sums.of_interactions(x, action, r))


@pytest.mark.parametrize(("value", "size", "in_range"), [(1.0, 1000, True), (2.0**11, 1, True), (2.0**11, 2, False)])
def test_the_range(value: float, size: int, in_range: bool) -> None:
    x = np.full((size, D), value, np.float32)
    sums = live_sums.of_interactions(x, np.zeros(size, np.int32), np.zeros(size, np.float32))
    assert sums.in_range.tolist() == [in_range]
    if in_range:
        assert live_sums.evidence(sums).a[0].tolist() == np.full((D, D), size * value**2).tolist()
    else:
        assert len(live_sums.evidence(sums).arms) == 0


@pytest.mark.parametrize("value", [2.0**11 + 1, -3e38, np.nan])
def test_a_value_beyond_the_range_takes_its_arm_out_until_it_is_retracted(value: float) -> None:
    x, action, r = interactions(50)
    whole = live_sums.of_interactions(x, action, r)
    wrong = x[:1].copy()
    wrong[0, 1] = value
    odd = live_sums.of_interactions(wrong, np.array([2], np.int32), r[:1])
    both = live_sums.add(whole, odd)
    assert both.arms[~both.in_range].tolist() == [2]
    assert 2 not in live_sums.evidence(both).arms
    assert live_sums.equal(live_sums.subtract(both, odd), whole)
    reward = live_sums.of_interactions(x[:1], np.array([2], np.int32), np.array([value], np.float32))
    assert not reward.in_range.any()


def test_the_limit_keeps_sums_inside_int64() -> None:
    largest = np.full((1, 1), 2.0**11, np.float32)
    one = live_sums.of_interactions(largest, np.zeros(1, np.int32), np.zeros(1, np.float32))
    assert one.bound.tolist() == [MAX_BOUND]
    assert one.gram.tolist() == [[MAX_BOUND << 40]]
    assert MAX_BOUND << 40 < 2**63


def test_evidence_is_what_the_products_of_floats_give() -> None:
    x, action, r = interactions(500)
    found = live_sums.evidence(live_sums.of_interactions(x, action, r))
    for place, arm in enumerate(found.arms):
        mine = x[action == arm].astype(np.float64)
        np.testing.assert_allclose(found.a[place], mine.T @ mine, atol=2e-3)
        np.testing.assert_allclose(found.b[place], mine.T @ r[action == arm].astype(np.float64), atol=1e-3)
        assert found.n[place] == len(mine)


def test_select_and_replace() -> None:
    old, new = live_sums.of_interactions(*interactions(50, 1)), live_sums.of_interactions(*interactions(50, 2))
    chosen = live_sums.select(new, np.array([1, 3, 9]))
    assert chosen.arms.tolist() == [1, 3, 9]
    assert chosen.counts[2] == 0
    replaced = live_sums.replace(old, chosen)
    assert live_sums.equal(live_sums.select(replaced, np.array([1, 3])), live_sums.select(new, np.array([1, 3])))
    assert live_sums.equal(live_sums.select(replaced, np.array([0, 2, 4])), live_sums.select(old, np.array([0, 2, 4])))
    nothing = live_sums.select(live_sums.empty(D), np.array([4]))
    assert nothing.counts.tolist() == [0]
    assert 1 not in live_sums.replace(old, live_sums.select(live_sums.empty(D), np.array([1]))).arms


def test_bytes_are_the_same_and_decode_to_the_same_sums() -> None:
    data = interactions(80)
    whole = live_sums.of_interactions(*data)
    again = live_sums.add(part(np.arange(40, 80), data), part(np.arange(40), data))
    assert live_sums.encode(whole) == live_sums.encode(again)
    assert live_sums.equal(live_sums.decode(live_sums.encode(whole), D), whole)
    assert live_sums.equal(live_sums.decode(live_sums.encode(live_sums.empty(D)), D), live_sums.empty(D))


def test_bytes_that_do_not_fit_are_refused() -> None:
    columns = live_sums.encode(live_sums.of_interactions(*interactions(80)))
    with pytest.raises(ValueError, match="observation_dim 4"):
        live_sums.decode(columns, 4)
    with pytest.raises(ValueError, match="5 columns"):
        live_sums.decode(columns[:4], D)
    with pytest.raises(ValueError, match="ascend"):
        live_sums.decode([columns[0][::-1], *columns[1:]], D)
    with pytest.raises(ValueError, match="one observation_dim expected, got 3 and 4"):
        live_sums.add(live_sums.empty(3), live_sums.empty(4))
