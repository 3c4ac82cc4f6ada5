import json
import re

import numpy as np
import pytest

from contracts.errors import InputError
from tests.trainer import published_estimates
from trainer import off_policy
from trainer.intervals import Question
from trainer.off_policy import Model, Sums
from trainer.support import Support, difference_support


class World:
    """Contexts, linear rewards with noise, and softmax policies: everything is known."""

    def __init__(self, num_actions=5, observation_dim=3):
        rng = np.random.default_rng(11)
        self.taste = rng.normal(size=(num_actions, observation_dim))
        self.target_taste = self.taste + 0.5 * rng.normal(size=self.taste.shape)
        contexts = np.random.default_rng(12).normal(size=(400_000, observation_dim))
        self.truth = float(np.mean(np.sum(self.rewards(contexts) * self.target(contexts), axis=1)))

    def rewards(self, contexts):
        return contexts @ self.taste.T

    def target(self, contexts):
        scores = np.exp(contexts @ self.target_taste.T)
        return scores / scores.sum(axis=1, keepdims=True)

    def log(self, decisions, seed, epsilon=1.0):
        """Arguments of `estimate`, from an epsilon-greedy logging policy; the reward model is wrong by a factor."""
        rng = np.random.default_rng([3, seed])
        contexts = rng.normal(size=(decisions, self.taste.shape[1]))
        expected = self.rewards(contexts)
        logging = np.full_like(expected, epsilon / expected.shape[1])
        logging[np.arange(decisions), expected.argmax(axis=1)] += 1 - epsilon
        action = (logging.cumsum(axis=1) > rng.random((decisions, 1))).argmax(axis=1)
        rows = np.arange(decisions)
        target = self.target(contexts)
        return {
            "rewards": expected[rows, action] + rng.normal(size=decisions),
            "propensities": logging[rows, action],
            "target_probabilities": target[rows, action],
            "q_logged": 0.7 * expected[rows, action],
            "q_target": 0.7 * np.sum(expected * target, axis=1),
        }


@pytest.fixture(scope="module")
def world():
    return World()


def test_formulas():
    rewards, propensities, target = np.array([1.0, 0.0, 2.0]), np.array([0.5, 0.25, 1.0]), np.array([0.25, 1.0, 0.0])
    q_logged, q_target = np.array([0.5, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])
    found = off_policy.estimate(
        rewards, propensities, target, q_logged=q_logged, q_target=q_target, support=Support(2.0)
    )
    # w = 0.5, 4, 0
    assert found.ips.value == pytest.approx(0.5 / 3)
    assert found.snips.value == pytest.approx(0.5 / 4.5)
    assert found.dm.value == pytest.approx(2.0)
    assert found.dr.value == pytest.approx((1 + 0.25 + 2 - 4 + 3) / 3)
    assert found.switch_dr.value == pytest.approx((1 + 0.25 + 2 + 3) / 3)
    assert found.effective_sample_size == pytest.approx(4.5**2 / 16.25)
    assert (found.weights.largest_weight, found.weights.mean_weight) == pytest.approx((4.0, 1.5))
    assert found.weights.zero_weight_share == pytest.approx(1 / 3)
    assert found.decisions == 3


def test_a_constant_reward_gives_that_constant_and_is_not_believed(world):
    log = world.log(500, 0)
    rewards = np.full(500, 2.5)
    found = off_policy.estimate(
        rewards, log["propensities"], log["target_probabilities"], q_logged=rewards, q_target=rewards
    )
    for interval in (found.snips, found.dr, found.switch_dr):
        assert interval.value == pytest.approx(2.5)
        assert interval.low < 2.5 < interval.high
        assert not interval.reliable and interval.reason == "all rewards are 2.5, and reward_range is not known"
    known = off_policy.estimate(
        rewards, log["propensities"], log["target_probabilities"], question=Question(reward_range=(0.0, 5.0))
    )
    assert known.recommended.reliable and 0 < known.recommended.low < 2.5 < known.recommended.high < 5


def test_the_logging_policy_itself_is_worth_the_mean_reward(world):
    log = world.log(500, 0)
    found = off_policy.estimate(log["rewards"], log["propensities"], log["propensities"])
    mean, standard_error = log["rewards"].mean(), log["rewards"].std() / np.sqrt(500)
    for interval in (found.ips, found.snips):
        assert interval.value == pytest.approx(mean)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert found.effective_sample_size == pytest.approx(500)
    assert found.weights.mean_weight == found.weights.largest_weight == 1
    assert found.dm is None and found.dr is None and found.switch_dr is None


def test_the_interval_covers_the_truth_as_often_as_it_says(world):
    repetitions = 1000
    covered = {"ips": 0, "snips": 0, "dr": 0, "switch_dr": 0}
    for repetition in range(repetitions):
        found = off_policy.estimate(**world.log(400, repetition), question=Question(seed=repetition))
        for name in covered:
            interval = getattr(found, name)
            covered[name] += interval.low <= world.truth <= interval.high
    for name, times in covered.items():
        assert 0.93 <= times / repetitions <= 0.97, covered | {"which": name}


class Slates:
    """One best of many actions for each context, uniform logs: a few large weights make most of an estimate."""

    def __init__(self, num_actions=100):
        self.num_actions = num_actions
        self.taste = np.random.default_rng(100).normal(size=(num_actions, 3))
        self.truth = float(np.mean(self.values(np.random.default_rng(101).normal(size=(100_000, 3)))))

    def target(self, contexts):
        scores = np.exp(2 * (contexts @ self.taste.T))
        return scores / scores.sum(axis=1, keepdims=True)

    def values(self, contexts):
        return np.sum((contexts @ self.taste.T + 1) * self.target(contexts), axis=1)

    def log(self, decisions, seed):
        rng = np.random.default_rng([5, seed])
        contexts = rng.normal(size=(decisions, 3))
        expected, target = contexts @ self.taste.T + 1, self.target(contexts)
        rows, action = np.arange(decisions), rng.integers(0, self.num_actions, decisions)
        return {
            "rewards": expected[rows, action] + rng.normal(size=decisions),
            "propensities": np.full(decisions, 1 / self.num_actions),
            "target_probabilities": target[rows, action],
            "q_logged": 0.7 * expected[rows, action],
            "q_target": 0.7 * np.sum(expected * target, axis=1),
        }


def test_the_interval_is_wider_where_a_few_large_weights_make_most_of_it():
    """An effective sample size of about 20: with normal quantiles, snips covers the truth in 84.5% here."""
    world, repetitions = Slates(), 200
    estimates = [
        off_policy.estimate(**world.log(400, seed), question=Question(seed=seed)).snips for seed in range(repetitions)
    ]
    bounds = [(interval.low, interval.high) for interval in estimates]
    assert sum(low <= world.truth <= high for low, high in bounds) >= 0.88 * repetitions


def test_lists_and_other_numbers_are_taken_and_the_unit_does_not_matter(world):
    log = world.log(300, 0)
    found = off_policy.estimate(**log)
    assert off_policy.estimate(**{name: values.tolist() for name, values in log.items()}) == found
    single = off_policy.estimate(**{name: values.astype(np.float32) for name, values in log.items()})
    for name in ("value", "low", "high"):
        assert getattr(single.dr, name) == pytest.approx(getattr(found.dr, name), rel=1e-4)
    large = off_policy.estimate(1e120 * log["rewards"], log["propensities"], log["target_probabilities"])
    bounds = [1e-120 * value for value in (large.ips.value, large.ips.low, large.ips.high)]
    assert bounds == pytest.approx([found.ips.value, found.ips.low, found.ips.high])


@pytest.mark.parametrize("decisions", [1, 2, 3])
def test_a_few_decisions_are_enough_to_estimate_from(decisions):
    rewards = np.arange(decisions) + 1.0
    found = off_policy.estimate(rewards, np.ones(decisions), np.ones(decisions), q_logged=rewards, q_target=rewards)
    for interval in (found.ips, found.snips, found.dm, found.dr, found.switch_dr):
        assert interval.value == pytest.approx(rewards.mean())
        assert interval.low <= interval.value <= interval.high


def test_estimates_are_unbiased_on_epsilon_greedy_logs(world):
    estimates = [
        off_policy.estimate(**world.log(500, seed, epsilon=0.3), question=Question(seed=seed)) for seed in range(150)
    ]
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(found, name).value for found in estimates])
        assert abs(values.mean() - world.truth) < 3 * values.std() / np.sqrt(len(values)), name
    # The reward model alone is wrong by the factor it was given.
    assert np.mean([found.dm.value for found in estimates]) == pytest.approx(0.7 * world.truth, rel=0.02)


def test_a_higher_confidence_has_a_wider_interval_and_the_seed_decides(world):
    log = world.log(2000, 0)
    narrow, wide = (
        off_policy.estimate(**log, question=Question(confidence=confidence)).ips for confidence in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert off_policy.estimate(**log, question=Question(seed=5)) == off_policy.estimate(
        **log, question=Question(seed=5)
    )
    assert off_policy.estimate(**log, question=Question(seed=5)) != off_policy.estimate(
        **log, question=Question(seed=6)
    )


def test_no_support_is_shown():
    """The logging policy never takes what the target would."""
    found = off_policy.estimate(np.ones(10), np.full(10, 0.5), np.zeros(10))
    assert (found.effective_sample_size, found.weights.mean_weight, found.weights.zero_weight_share) == (0, 0, 1)
    assert np.isnan(found.snips.value) and found.ips.value == 0
    assert found.ips.low < found.ips.high and found.snips.low < found.snips.high
    assert not found.recommended.reliable
    many = off_policy.estimate(np.arange(50.0), np.full(50, 0.5), np.zeros(50))
    assert many.recommended.reason == "in 50 decisions the log never took an action that the policy would take"


def test_gain_is_paired(world):
    log = world.log(2000, 0)
    champion = log["target_probabilities"]
    same = off_policy.gain(log["rewards"], log["propensities"], champion, champion)
    assert same.gain.low < same.gain.value == 0 < same.gain.high and same.estimator == "snips"
    # Nearly the same policy: the two estimates vary together, and their difference little.
    candidate = 0.95 * champion + 0.05 * log["propensities"]
    near = off_policy.gain(log["rewards"], log["propensities"], candidate, champion)
    alone = off_policy.estimate(log["rewards"], log["propensities"], candidate).snips
    other = off_policy.estimate(log["rewards"], log["propensities"], champion).snips
    assert near.gain.value == pytest.approx(alone.value - other.value)
    assert near.gain.high - near.gain.low < 0.2 * (alone.high - alone.low)
    assert near.candidate.effective_sample_size > near.champion.effective_sample_size


@pytest.mark.parametrize("with_model", [False, True])
def test_gain_tells_a_better_policy_from_a_worse_one(world, with_model):
    log = world.log(4000, 1)
    uniform, target = log["propensities"], log["target_probabilities"]
    model = Model(log["q_logged"], log["q_target"], np.zeros(4000)) if with_model else None
    found = off_policy.gain(log["rewards"], uniform, target, uniform, model=model)
    assert found.estimator == ("switch_dr" if with_model else "snips")
    assert 0 < found.gain.low < world.truth < found.gain.high  # uniform earns nothing in this world


def test_sums_of_parts_merge_to_the_sums_of_all(world):
    log = list(world.log(900, 0).values())
    group = np.arange(900) % 50
    whole, merged = Sums.zeros(50), Sums.zeros(50)
    whole.add(group, *log)
    for part in (slice(0, 300), slice(300, 900)):
        other = Sums.zeros(50)
        other.add(group[part], *(array[part] for array in log))
        merged.merge(other)
    np.testing.assert_allclose(merged.table, whole.table, rtol=1e-12)
    assert merged.weights() == pytest.approx(whole.weights())
    for name in ("snips", "dr", "dros"):
        ours, theirs = (getattr(sums.estimates(True), name) for sums in (merged, whole))
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert merged.rewards.low == whole.rewards.low and merged.smallest_propensity == whole.smallest_propensity
    # However the decisions are grouped, the estimate is the same and the interval nearly so.
    single = off_policy.estimate(**world.log(900, 0))
    assert single.dr.value == pytest.approx(merged.estimates(True).dr.value)


WRONG = {
    "no decisions": ({"rewards": np.array([])}, r"rewards must be \[N\] with N > 0, got shape \[0\]"),
    "two dimensions": ({"rewards": np.ones((4, 1))}, r"rewards must be \[N\] with N > 0, got shape \[4, 1\]"),
    "shape": ({"propensities": np.ones(3)}, r"propensities must have the shape of rewards, \[4\], got \[3\]"),
    "NaN reward": ({"rewards": np.array([1, np.nan, 1, 1])}, "rewards must be finite, got nan at 1"),
    "no propensity": ({"propensities": np.array([1, 1, 0, 1])}, r"propensities must be in \(0, 1\], got 0.0 at 2"),
    "above 1": ({"target_probabilities": np.full(4, 1.1)}, r"target_probabilities must be in \[0, 1\], got 1.1 at 0"),
    "NaN": ({"target_probabilities": np.full(4, np.nan)}, r"target_probabilities must be in \[0, 1\], got nan at 0"),
    "half a model": ({"q_logged": np.ones(4)}, "q_logged and q_target must be given together"),
    "model not finite": ({"q_logged": np.full(4, np.inf), "q_target": np.ones(4)}, "q_logged must be finite, got inf"),
    "text": ({"rewards": ["much"] * 4}, "rewards must be numbers: could not convert string to float: 'much'"),
    "rows of several lengths": ({"rewards": [[1], [1, 2], 3, 4]}, "rewards must be numbers: "),
    "weights without end": ({"propensities": np.full(4, 1e-320)}, "must be finite: the largest weight is inf"),
    "clusters": ({"clusters": np.zeros(3)}, r"clusters must have the shape of rewards, \[4\], got \[3\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(case):
    change, message = WRONG[case]
    right = {"rewards": np.ones(4), "propensities": np.ones(4), "target_probabilities": np.ones(4)}
    with pytest.raises(InputError, match=message):
        off_policy.estimate(**(right | change))


def test_gain_refuses_half_a_model():
    with pytest.raises(InputError, match="must be given together"):
        off_policy.gain(*np.ones((4, 3)), model=Model(np.ones(3), np.ones(3), None))


def test_estimates_equal_published_implementations():
    """Open Bandit Pipeline 0.5.7 on the same arrays: see published_estimates."""
    published = json.loads(published_estimates.PUBLISHED.read_text())["bandit"]
    log = published_estimates.bandit()
    rows = np.arange(len(log.action))
    found = off_policy.estimate(
        log.reward,
        log.logging[rows, log.action],
        log.target[rows, log.action],
        q_logged=log.model[rows, log.action],
        q_target=(log.target * log.model).sum(axis=1),
        support=Support(published_estimates.SWITCH_THRESHOLD),
    )
    for name in ("ips", "snips", "dm", "dr", "switch_dr", "dros"):
        assert getattr(found, name).value == pytest.approx(published[name], rel=1e-12), name


def test_the_reward_model_alone_is_never_reliable_and_the_recommended_one_is_switch_dr(world):
    found = off_policy.estimate(**world.log(500, 0))
    assert not found.dm.reliable and found.dm.reason == "the interval does not show the error of the reward model"
    assert found.recommended == found.switch_dr and found.recommended.reliable and found.recommended.reason is None
    assert (found.dros.low, found.dros.high) == (found.switch_dr.low, found.switch_dr.high)


def test_no_interval_is_without_width_where_every_matched_reward_is_0():
    """Clicks elsewhere in the log, none among the 20 decisions that the policy would have taken."""
    rewards = np.zeros(2000)
    rewards[:10] = 1
    target = np.zeros(2000)
    target[-20:] = 1
    found = off_policy.estimate(rewards, np.full(2000, 0.01), target)
    assert found.ips.value == found.snips.value == 0
    assert found.recommended.reliable and found.recommended.method == "cressie_read"
    assert 0.1 < found.recommended.high < 0.3  # the rule of three: 3 in 20


def test_weights_that_the_log_did_not_show_widen_the_interval():
    """A log that explores 2%, and a policy that disagrees with its best arm: nearly nothing of that is in the log."""
    rng = np.random.default_rng(0)
    agrees = np.arange(1000) < 900
    log = {
        "rewards": rng.normal(size=1000),
        "propensities": np.full(1000, 0.98),
        "target_probabilities": agrees.astype(float),
        "q_logged": np.zeros(1000),
        "q_target": np.zeros(1000),
    }
    plain = off_policy.estimate(**log, support=Support(1 / 0.98)).recommended
    left = off_policy.estimate(**log, support=Support(1 / 0.98, untried=0.1)).recommended
    assert left.high - left.low > plain.high - plain.low + 0.2
    wide = off_policy.estimate(**log, support=Support(1000.0)).recommended
    assert wide.method == "cressie_read" and wide.high - wide.low > plain.high - plain.low + 0.15


def test_wrong_propensities_are_noticed(world):
    log = world.log(2000, 0) | {"propensities": np.full(2000, 0.1)}  # they were 0.2
    found = off_policy.estimate(**log).recommended
    assert not found.reliable and re.match(r"the mean weight is (1.9|2.0)\d* where 1 is expected", found.reason)


def test_a_threshold_that_scales_keeps_the_log_in_the_estimate():
    """Uniform over 100 arms: with a fixed threshold of 10, switch-DR was the reward model alone."""
    slates = Slates()
    log = slates.log(2000, 0)
    found = off_policy.estimate(**log)
    assert found.switch_dr.value == found.dr.value != found.dm.value
    assert found.switch_dr.low <= slates.truth <= found.switch_dr.high


def test_decisions_of_one_viewer_are_resampled_together():
    rng = np.random.default_rng(1)
    mood = np.repeat(rng.normal(size=100), 20)
    rewards = mood + 0.1 * rng.normal(size=2000)
    ones = np.ones(2000)
    alone = off_policy.estimate(rewards, ones, ones).recommended
    together = off_policy.estimate(rewards, ones, ones, clusters=np.repeat(np.arange(100), 20)).recommended
    assert together.high - together.low == pytest.approx(4 / np.sqrt(100), rel=0.25)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    few = off_policy.estimate(rewards, ones, ones, clusters=np.repeat(np.arange(10), 200)).recommended
    assert few.reason == "only 10 independent decisions (or viewers), at least 20 are needed"


def test_the_gain_over_a_policy_with_the_same_untried_choices_is_narrow():
    """Both take, in a third of the decisions, what the log took in 2%: what they share is no reason for doubt."""
    rng = np.random.default_rng(4)
    taken = rng.random(2000) < 0.02
    propensities = np.where(taken, 0.02, 0.98)
    champion = np.where(np.arange(2000) % 3 == 0, taken, ~taken).astype(float)
    candidate = 0.95 * champion + 0.05 * (1 - champion)
    rewards = rng.normal(size=2000)
    model = Model(np.zeros(2000), np.zeros(2000), np.zeros(2000))
    both = [np.stack([of, 1 - of], axis=1) for of in (candidate, champion)]
    support = difference_support(*both, (candidate - champion) / propensities)
    found = off_policy.gain(rewards, propensities, candidate, champion, model=model, support=support).gain
    alone = off_policy.estimate(rewards, propensities, champion, q_logged=model[0], q_target=model[0]).recommended
    assert found.low < 0 < found.high and found.reliable
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
