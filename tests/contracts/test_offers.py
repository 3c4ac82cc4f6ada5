import numpy as np

from contracts.offers import Offers

LISTS = [[3, 1], [], [0, 2, 4], []]


def test_lists_survive():
    offers = Offers.of(LISTS)
    assert len(offers) == 4 and offers.tolist() == LISTS
    assert Offers.of([[], []]).tolist() == [[], []] == Offers.all_arms(2).tolist()
    assert Offers.of([]).tolist() == [] == Offers.all_arms(0).tolist()


def test_rows_are_taken_and_joined():
    offers = Offers.of(LISTS)
    assert offers.take(np.array([2, 0, 2])).tolist() == [[0, 2, 4], [3, 1], [0, 2, 4]]
    assert offers.take(slice(1, None, 2)).tolist() == [[], []]
    assert offers.take(np.array([True, False, True, False])).tolist() == [[3, 1], [0, 2, 4]]
    assert offers.take(np.zeros(4, bool)).tolist() == []
    assert Offers.join([offers, Offers.all_arms(1), offers]).tolist() == [*LISTS, [], *LISTS]


def test_an_empty_list_offers_all_arms():
    offers = Offers.of(LISTS)
    assert offers.counts(10).tolist() == [2, 10, 3, 10]
    assert offers.include(np.array([1, 7, 3, 0])).tolist() == [True, True, False, True]
    assert offers.mask(5).astype(int).tolist() == [[0, 1, 0, 1, 0], [1] * 5, [1, 0, 1, 0, 1], [1] * 5]
    assert offers.mask(3).astype(int).tolist() == [[0, 1, 0], [1] * 3, [1, 0, 1], [1] * 3]  # arms 3 and 4 are unknown
