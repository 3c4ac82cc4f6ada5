import json

import numpy as np
import pytest

from contracts.errors import InputError
from tests.trainer import published_estimates
from trainer import slates
from trainer.intervals import Question


def published_log():
    log = published_estimates.slates()
    rows = np.indices(log.action.shape)
    model = (log.model[rows[0], rows[1], log.action], (log.model * log.distribution).sum(axis=2))
    return (
        (log.rewards, log.propensities, log.target),
        {"marginals": (log.marginal_propensities, log.marginal_target), "model": model},
    )


def test_estimates_equal_the_published_implementations():
    """Open Bandit Pipeline 0.5.7 and VowpalWabbit/estimators 0.2.2 on the same arrays: see published_estimates."""
    published = json.loads(published_estimates.PUBLISHED.read_text())["slates"]
    arrays, more = published_log()
    found = slates.estimate(*arrays, **more)
    for name in slates.NAMES:
        assert getattr(found, name).value == pytest.approx(published[name], rel=1e-12), name


def test_parts_merge_to_the_whole():
    arrays, more = published_log()
    group = np.arange(60) % 25

    def sums(rows):
        found = slates.SlateSums.zeros(25)
        pairs = [tuple(array[rows] for array in pair) for pair in (more["marginals"], more["model"])]
        found.add(group[rows], *(array[rows] for array in arrays), *pairs)
        return found

    merged, whole = sums(slice(0, 20)), sums(slice(0, 60))
    merged.merge(sums(slice(20, 60)))
    for name in slates.NAMES:
        ours, theirs = (getattr(one.estimates(with_model=True), name) for one in (merged, whole))
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


class Cascade:
    """Two places of two items each; the reward of the second place also depends on the first."""

    logging, target = 0.5, 0.8  # the probability of item 1

    def log(self, seed, size=600):
        rng = np.random.default_rng(seed)
        item = rng.random((size, 2)) < self.logging
        expected = np.stack([0.2 + 0.4 * item[:, 0], 0.1 + 0.6 * item[:, 0] * item[:, 1]], axis=1)
        rewards = (rng.random((size, 2)) < expected).astype(float)
        return rewards, np.full((size, 2), 0.5), np.where(item, self.target, 1 - self.target)

    @property
    def truth(self):
        return 0.2 + 0.4 * self.target + 0.1 + 0.6 * self.target**2


def test_intervals_cover_the_value_of_a_slate_whose_places_depend_on_each_other():
    world = Cascade()
    found = [slates.estimate(*world.log(seed)) for seed in range(300)]
    for name in ("sips", "rips"):
        intervals = [getattr(one, name) for one in found]
        assert np.mean([one.low <= world.truth <= one.high for one in intervals]) >= 0.92, name
        assert all(one.reliable for one in intervals)
    width = {
        name: np.mean([getattr(one, name).high - getattr(one, name).low for one in found]) for name in slates.NAMES[:2]
    }
    assert width["rips"] < width["sips"]
    # Each place alone misses what the second owes to the first.
    assert np.mean([one.iips.value for one in found]) < world.truth - 0.1


def test_a_policys_own_log_is_worth_its_mean_reward():
    rewards, propensities, _ = Cascade().log(0)
    found = slates.estimate(rewards, propensities, propensities)
    for name in ("sips", "rips", "iips", "pseudo_inverse"):
        assert getattr(found, name).value == pytest.approx(rewards.sum(axis=1).mean()), name
    assert found.cascade_dr is None and found.slates == 600


def test_what_a_log_of_slates_cannot_say_is_not_reliable_and_has_a_width():
    rewards, propensities, target = Cascade().log(1)
    few = slates.estimate(rewards[:5], propensities[:5], target[:5]).rips
    assert few.reason == "only 5 independent slates, at least 20 are needed" and few.low < few.high
    silent = slates.estimate(np.zeros((600, 2)), propensities, target).rips
    assert silent.reason == "all slates earned 0, and reward_range is not known" and silent.low < silent.high
    known = slates.estimate(np.zeros((600, 2)), propensities, target, question=Question(reward_range=(0.0, 2.0))).rips
    assert known.reliable and 0 < known.high < 0.2
    other = slates.estimate(rewards, propensities, np.zeros((600, 2))).sips
    assert other.reason == "the log never showed a slate that the policy would show" and other.low < other.high


WRONG = {
    "one dimension": ((np.ones(4), np.ones(4), np.ones(4)), r"rewards must be \[S, P\] .* got shape \[4\]"),
    "shapes": ((np.ones((4, 2)), np.ones((4, 3)), np.ones((4, 2))), r"all arrays must have the shape .* got \[4, 3\]"),
    "NaN": ((np.full((4, 2), np.nan), np.ones((4, 2)), np.ones((4, 2))), "all arrays must be finite"),
    "propensity 0": ((np.ones((4, 2)), np.zeros((4, 2)), np.ones((4, 2))), "propensities must be probabilities, got 0"),
    "above 1": ((np.ones((4, 2)), np.ones((4, 2)), np.full((4, 2), 2)), "target_probabilities must be probabilities"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(case):
    arrays, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        slates.estimate(*arrays)
