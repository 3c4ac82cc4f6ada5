import numpy as np
import pytest

from trainer import off_policy
from trainer.intervals import Question
from trainer.reliability import doubt
from trainer.support import Support


def sums(rewards, propensities, target, support=None):
    found = off_policy.Sums.zeros(100, support)
    found.add(np.arange(len(rewards)) % 100, *(np.asarray(array, float) for array in (rewards, propensities, target)))
    return found


REWARDS = np.random.default_rng(0).normal(size=400)
HALF = np.full(400, 0.5)
ONE_LARGE = np.where(np.arange(400) == 7, 100.0, REWARDS)

CASES = {
    "sound": (sums(REWARDS, HALF, HALF), 100, None),
    "few groups": (sums(REWARDS, HALF, HALF), 19, "only 19 independent decisions (or viewers), at least 20 are needed"),
    "no match": (sums(REWARDS, HALF, 0 * HALF), 100, "in 400 decisions the log never took"),
    "constant": (sums(np.zeros(400), HALF, HALF), 100, "all rewards are 0, and reward_range is not known"),
    "untried": (sums(REWARDS, HALF, HALF, Support(1.0, 0.8)), 100, "80% of the policy's choices are hardly ever tried"),
    "one reward": (sums(ONE_LARGE, HALF, HALF), 100, "one reward makes up 96% of the spread of all"),
    "halved propensities": (sums(REWARDS, HALF / 2, HALF), 100, "the mean weight is 2.00 where 1 is expected"),
    "no support": (sums(REWARDS, HALF, HALF / 2), 100, "the mean weight is 0.50 where 1 is expected"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_shows_why_its_estimates_should_not_be_believed(case):
    log, groups, reason = CASES[case]
    found = doubt(log.evidence(groups), Question())
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_a_known_range_of_rewards_ends_the_doubt_about_rewards():
    known = Question(reward_range=(0.0, 100.0))
    assert doubt(CASES["constant"][0].evidence(100), known) is None
    assert doubt(CASES["one reward"][0].evidence(100), known) is None


def test_a_mean_weight_that_chance_explains_is_not_doubted():
    """Weights of 0 and 50 on a uniform log over 50 arms: the mean is anywhere between 0.5 and 1.5."""
    for seed in range(200):
        target = (np.random.default_rng(seed).random(1000) < 1 / 50).astype(float)
        log = sums(np.resize(REWARDS, 1000), np.full(1000, 1 / 50), target)
        assert doubt(log.evidence(100), Question()) is None
