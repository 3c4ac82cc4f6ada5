"""The watch over live versions, on decisions of policies whose values are known."""

import numpy as np
import pytest

from contracts.items import Item
from contracts.policies import Exploration, PolicyCard, TrainedWindow
from orchestration.live_evidence import Decided, LiveCaution, LiveEvidence
from orchestration.watch import Rows
from predictor.policy import Policy
from tests.live_learning import WINDOWS

K, D, SHARE = 4, 2, 0.1
VALUES = np.array([1.0, 0.8, 0.5, 0.2])  # true expected reward of each arm, for everyone
FIRST = WINDOWS[0]
STARTS = FIRST.start.timestamp() * 1e6


def policy(favourite, version="base", epsilon=0.2):
    """Knows what the arms are worth, and takes `favourite` mostly."""
    card = PolicyCard(
        version=version,
        parent=None,
        algorithm="a",
        hyperparameters={},
        observation_dim=D,
        num_actions=K,
        catalogue=[Item(action=k, item_id=str(k)) for k in range(K)],
        trained_on=[TrainedWindow(window=FIRST, split="train", records=1)],
        exploration=Exploration(strategy="epsilon_greedy", epsilon=epsilon),
    )
    mean = VALUES.copy()
    if favourite:
        mean = np.where(np.arange(K) == favourite, 2.0, mean)

    def scores(observations):
        return np.tile(mean, (len(observations), 1)), np.zeros((len(observations), K))

    return Policy(card, scores)


BASE = policy(0)


def decided(rng, count, live=None, at=STARTS, change=lambda reward: reward):
    """Decisions of the base alone, or of `live` and of the base as the anchor."""
    observation = np.zeros((count, D), np.float32)
    by_anchor = rng.random(count) < SHARE
    of_base = BASE.probabilities(observation)
    chance = of_base if live is None else np.where(by_anchor[:, np.newaxis], of_base, live.probabilities(observation))
    action = (chance.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    reward = VALUES[action] + rng.normal(0, 0.2, count)
    return Decided(
        rows=Rows(observation, [[]] * count, action, change(reward), by_anchor),
        propensity=of_base[np.arange(count), action],
        decided_at=np.full(count, at, np.int64),
        held_back=np.full(count, live is None),
        live=[None if live is None else live.card.version] * count,
    )


def watching(rng):
    evidence = LiveEvidence(LiveCaution())
    evidence.remember(decided(rng, 500))
    evidence.begin(BASE, BASE, SHARE)
    return evidence


def until_alarm(evidence, rng, live, at_most=20_000, **faults):
    """Decisions until it alarmed, and why; None if it did not."""
    for count in range(0, at_most, 20):
        evidence.add(decided(rng, 20, live, **faults), BASE, BASE, {live.card.version: live})
        if (alarm := evidence.alarm()) is not None:
            return count + 20, alarm
    return None


@pytest.mark.parametrize("seed", range(3))
def test_a_version_that_chooses_as_well_is_left_alone(seed):
    rng = np.random.default_rng(seed)
    assert until_alarm(watching(rng), rng, policy(0, "base+1", epsilon=0.1), at_most=10_000) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_version_that_chooses_worse_earns_less(seed):
    rng = np.random.default_rng(seed)
    count, alarm = until_alarm(watching(rng), rng, policy(3, "base+1"))
    assert alarm.of_versions and "live versions" in alarm.reason and count <= 300


@pytest.mark.parametrize(
    "fault", [lambda reward: -reward, lambda reward: np.where(reward > 0.6, 0.0, 2.0)], ids=["flipped", "turned around"]
)
def test_rewards_that_mean_something_else_are_noticed_though_the_version_chooses_well(fault):
    rng = np.random.default_rng(0)
    count, alarm = until_alarm(watching(rng), rng, policy(0, "base+1"), change=fault)
    assert not alarm.of_versions and "rewards" in alarm.reason and count <= 100


def test_where_the_base_is_unsure_no_reward_is_a_surprise():
    rng = np.random.default_rng(0)
    evidence = watching(rng)
    unsure = Policy(
        BASE.card, lambda observations: (BASE.scores(observations)[0], np.full((len(observations), K), 1.1))
    )
    evidence.add(decided(rng, 200, BASE, change=lambda reward: -reward), unsure, BASE, {})
    assert evidence.surprise.decisions == 0 and evidence.alarm() is None


def test_without_a_reference_nothing_is_judged():
    rng = np.random.default_rng(0)
    evidence = LiveEvidence(LiveCaution())
    evidence.begin(BASE, BASE, SHARE)
    assert until_alarm(evidence, rng, policy(3, "base+1"), at_most=500) is None
    assert evidence.surprise is None and evidence.evidence is None


def test_only_what_was_decided_before_the_end_of_the_newest_window_is_a_reference():
    rng = np.random.default_rng(0)
    evidence = LiveEvidence(LiveCaution())
    evidence.remember(decided(rng, 500, at=FIRST.end.timestamp() * 1e6 + 1))
    evidence.begin(BASE, BASE, SHARE)
    assert evidence.surprise is None
    evidence.remember(decided(rng, 500))
    evidence.begin(BASE, BASE, SHARE)
    assert evidence.surprise is not None and evidence.surprise.expected == pytest.approx(0.04, rel=0.2)


def test_another_share_begins_the_comparison_anew_and_keeps_the_scale():
    rng = np.random.default_rng(0)
    evidence, live = watching(rng), policy(0, "base+1")
    evidence.add(decided(rng, 100, live), BASE, BASE, {"base+1": live})
    before = evidence.evidence
    assert before.sequence.count == 100
    evidence.begin(BASE, BASE, SHARE)
    assert evidence.evidence is before
    evidence.begin(BASE, BASE, 0.05)
    assert (evidence.evidence.sequence.count, evidence.evidence.scale) == (0, before.scale)


def test_again_forgets_what_was_seen_but_not_what_it_is_compared_with():
    rng = np.random.default_rng(0)
    evidence, live = watching(rng), policy(3, "base+1")
    assert until_alarm(evidence, rng, live) is not None
    again = evidence.again()
    assert again.alarm() is None
    again.begin(BASE, BASE, SHARE)
    assert until_alarm(again, rng, live) is not None
