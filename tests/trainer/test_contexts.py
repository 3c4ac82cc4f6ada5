import numpy as np
import pytest

from contracts.features import Category, FeatureSpec, Hashed, Number
from trainer import contexts
from trainer.contexts import Generation
from trainer.linear import SufficientStatistics


def generation(*features, constant=True):
    spec = FeatureSpec(constant=constant, features=list(features))
    return Generation(spec.dim, spec)


A, B = Number(name="a"), Number(name="b")
DEVICE = Category(name="device", values=["phone", "tablet"], unseen="refuse")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (Generation(3), Generation(5), [0, 1, 2, -1, -1]),
        (Generation(5), Generation(3), [0, 1, 2]),
        (Generation(3), generation(A, B), [0, 1, 2]),  # the spec says what the numbers have been all along
        (generation(A, B), generation(B, A), [0, 2, 1]),
        (generation(A), generation(A, constant=False), [1]),
        (generation(DEVICE, B), generation(B, DEVICE), [0, 3, 1, 2]),
        (generation(DEVICE), generation(Category(name="device", values=["tv", "phone"])), [0, -1, 1, -1]),
        (generation(A, B), generation(Number(name="a", scale=2.0), B), [0, -1, 2]),  # it means something else now
        (generation(Hashed(name="h", buckets=2)), generation(Hashed(name="h", buckets=3)), [0, -1, -1, -1]),
        (generation(A), generation(Category(name="a", values=["x"])), [0, -1, -1]),
    ],
)
def test_where_each_number_stood(old, new, expected):
    assert contexts.places(old, new).tolist() == expected


def test_carrying_sums_over_is_the_same_as_projecting_what_they_are_of():
    rng = np.random.default_rng(0)
    observation, action, reward = rng.normal(size=(50, 3)), rng.integers(0, 2, 50), rng.normal(size=50)
    old, new = generation(A, B), generation(B, DEVICE, A)
    statistics = SufficientStatistics.zeros(2, 3)
    statistics.add(observation, action, reward)
    carried = contexts.carried_over(statistics, old, new)
    direct = SufficientStatistics.zeros(2, 5)
    direct.add(contexts.project(observation, contexts.places(old, new)), action, reward)
    for name in ("a", "b", "n"):
        np.testing.assert_allclose(getattr(carried, name), getattr(direct, name), atol=1e-12)
    assert contexts.carried_over(statistics, old, old) is statistics
