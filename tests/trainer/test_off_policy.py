import numpy as np
import pytest

from contracts.errors import InputError
from trainer import off_policy
from trainer.off_policy import Sums


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
        rewards, propensities, target, q_logged=q_logged, q_target=q_target, switch_threshold=2.0
    )
    # w = 0.5, 4, 0
    assert found.ips.value == pytest.approx(0.5 / 3)
    assert found.snips.value == pytest.approx(0.5 / 4.5)
    assert found.dm.value == pytest.approx(2.0)
    assert found.dr.value == pytest.approx((1 + 0.25 + 2 - 4 + 3) / 3)
    assert found.switch_dr.value == pytest.approx((1 + 0.25 + 2 + 3) / 3)
    assert found.effective_sample_size == pytest.approx(4.5**2 / 16.25)
    assert (found.largest_weight, found.mean_weight) == pytest.approx((4.0, 1.5))
    assert found.zero_weight_share == pytest.approx(1 / 3)
    assert found.decisions == 3


def test_a_constant_reward_gives_that_constant(world):
    log = world.log(500, 0)
    rewards = np.full(500, 2.5)
    found = off_policy.estimate(
        rewards, log["propensities"], log["target_probabilities"], q_logged=rewards, q_target=rewards
    )
    for interval in (found.snips, found.dm, found.dr, found.switch_dr):
        assert interval == pytest.approx((2.5, 2.5, 2.5))


def test_the_logging_policy_itself_is_worth_the_mean_reward(world):
    log = world.log(500, 0)
    found = off_policy.estimate(log["rewards"], log["propensities"], log["propensities"])
    mean, standard_error = log["rewards"].mean(), log["rewards"].std() / np.sqrt(500)
    for interval in (found.ips, found.snips):
        assert interval.value == pytest.approx(mean)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert found.effective_sample_size == pytest.approx(500)
    assert found.mean_weight == found.largest_weight == 1
    assert found.dm is None and found.dr is None and found.switch_dr is None


def test_the_interval_covers_the_truth_as_often_as_it_says(world):
    repetitions = 1000
    covered = {"ips": 0, "snips": 0, "dr": 0, "switch_dr": 0}
    for repetition in range(repetitions):
        found = off_policy.estimate(**world.log(400, repetition), seed=repetition)
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
    estimates = [off_policy.estimate(**world.log(400, seed), seed=seed).snips for seed in range(repetitions)]
    assert sum(low <= world.truth <= high for _, low, high in estimates) >= 0.88 * repetitions


def test_lists_and_other_numbers_are_taken_and_the_unit_does_not_matter(world):
    log = world.log(300, 0)
    found = off_policy.estimate(**log)
    assert off_policy.estimate(**{name: values.tolist() for name, values in log.items()}) == found
    single = off_policy.estimate(**{name: values.astype(np.float32) for name, values in log.items()})
    assert single.dr == pytest.approx(found.dr, rel=1e-4)
    large = off_policy.estimate(1e200 * log["rewards"], log["propensities"], log["target_probabilities"])
    assert [1e-200 * value for value in large.ips] == pytest.approx(list(found.ips))


@pytest.mark.parametrize("decisions", [1, 2, 3])
def test_a_few_decisions_are_enough_to_estimate_from(decisions):
    rewards = np.arange(decisions) + 1.0
    found = off_policy.estimate(rewards, np.ones(decisions), np.ones(decisions), q_logged=rewards, q_target=rewards)
    for interval in (found.ips, found.snips, found.dm, found.dr, found.switch_dr):
        assert interval.value == pytest.approx(rewards.mean())
        assert interval.low <= interval.value <= interval.high


def test_estimates_are_unbiased_on_epsilon_greedy_logs(world):
    estimates = [off_policy.estimate(**world.log(500, seed, epsilon=0.3), seed=seed) for seed in range(150)]
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(found, name).value for found in estimates])
        assert abs(values.mean() - world.truth) < 3 * values.std() / np.sqrt(len(values)), name
    # The reward model alone is wrong by the factor it was given.
    assert np.mean([found.dm.value for found in estimates]) == pytest.approx(0.7 * world.truth, rel=0.02)


def test_a_higher_confidence_has_a_wider_interval_and_the_seed_decides(world):
    log = world.log(2000, 0)
    narrow, wide = (off_policy.estimate(**log, confidence=confidence).ips for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert off_policy.estimate(**log, seed=5) == off_policy.estimate(**log, seed=5)
    assert off_policy.estimate(**log, seed=5) != off_policy.estimate(**log, seed=6)


def test_no_support_is_shown():
    """The logging policy never takes what the target would."""
    found = off_policy.estimate(np.ones(10), np.full(10, 0.5), np.zeros(10))
    assert (found.effective_sample_size, found.mean_weight, found.zero_weight_share) == (0, 0, 1)
    assert np.isnan(found.snips.value) and found.ips.value == 0


def test_gain_is_paired(world):
    log = world.log(2000, 0)
    champion = log["target_probabilities"]
    same = off_policy.gain(log["rewards"], log["propensities"], champion, champion)
    assert same.gain == (0, 0, 0) and same.estimator == "snips"
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
    q = {"q_logged": log["q_logged"], "q_candidate": log["q_target"], "q_champion": np.zeros(4000)}
    found = off_policy.gain(log["rewards"], uniform, target, uniform, **(q if with_model else {}))
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
    assert merged.estimates(True).dr == pytest.approx(whole.estimates(True).dr)
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
    "threshold": ({"switch_threshold": np.nan}, "switch_threshold must be at least 0, got nan"),
    "confidence": ({"confidence": 95}, r"confidence must be in \(0, 1\), got 95"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(case):
    change, message = WRONG[case]
    right = {"rewards": np.ones(4), "propensities": np.ones(4), "target_probabilities": np.ones(4)}
    with pytest.raises(InputError, match=message):
        off_policy.estimate(**(right | change))


def test_gain_refuses_half_a_model():
    with pytest.raises(InputError, match="must be given together"):
        off_policy.gain(*np.ones((4, 3)), q_logged=np.ones(3), q_candidate=np.ones(3))
