"""The watch over a trial, on decisions of two policies whose values are known."""

import math

import msgspec
import numpy as np
import pytest

from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import Exploration, PolicyCard
from orchestration import watch
from orchestration.watch import Evidence, Look, Rows
from predictor.policy import Policy

K, D, SHARE = 4, 2, 0.1
VALUES = np.array([1.0, 0.8, 0.5, 0.2])  # true expected reward of each arm, for everyone


def policy(favourite: int, version: str = "v", epsilon: float = 0.2, masked: tuple[int, ...] = ()) -> Policy:
    """Takes `favourite` mostly, and believes that the arms are worth less the further they are from it."""
    mean = -np.abs(np.arange(K) - favourite) / 10.0
    catalogue = [Item(action=k, item_id=str(k), status="masked" if k in masked else "active") for k in range(K)]
    card = PolicyCard(
        version=version,
        parent=None,
        algorithm="a",
        hyperparameters={},
        observation_dim=D,
        num_actions=K,
        catalogue=catalogue,
        trained_on=[],
        exploration=Exploration(strategy="epsilon_greedy", epsilon=epsilon),
    )

    def scores(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(mean, (len(observations), 1)), np.zeros((len(observations), K))

    return Policy(card, scores)


def decisions(rng: np.random.Generator, candidate: Policy, anchor: Policy, count: int, share: float = SHARE) -> Rows:
    observation = np.zeros((count, D), np.float32)
    by_anchor = rng.random(count) < share
    chance = np.where(by_anchor[:, np.newaxis], anchor.probabilities(observation), candidate.probabilities(observation))
    action = (chance.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return Rows(observation, [[]] * count, action, VALUES[action] + rng.normal(0, 0.2, count), by_anchor)


def nothing(rng: np.random.Generator, candidate: Policy, anchor: Policy, share: float = SHARE) -> Evidence:
    """No evidence yet, on the scale of decisions of the anchor alone; the margin is 5%."""
    rows = decisions(rng, anchor, anchor, 1000)
    propensity = anchor.probabilities(rows.observation)[np.arange(1000), rows.action]
    return watch.nothing_yet(watch.scale_of(rows, propensity, candidate, anchor), share, 0.05)


def tried(candidate: Policy, anchor: Policy, seed: int, share: float = SHARE, at_most: int = 40) -> Look:
    rng = np.random.default_rng(seed)
    evidence = nothing(rng, candidate, anchor, share)
    for _ in range(at_most):
        evidence = evidence.add(decisions(rng, candidate, anchor, 250, share), candidate, anchor)
        look = evidence.look("new", "old")
        if look.outcome != "on probation":
            break
    return look


@pytest.mark.parametrize("share", [SHARE, 0.5, 0.9])
def test_the_gain_is_estimated_without_bias_though_the_model_is_wrong(share):
    candidate, anchor = policy(0), policy(2)
    truth = 0.8 * (VALUES[0] - VALUES[2])  # epsilon is spread alike
    rng = np.random.default_rng(1)
    evidence = nothing(rng, candidate, anchor, share).add(
        decisions(rng, candidate, anchor, 40_000, share), candidate, anchor
    )
    error = math.sqrt(evidence.sequence.variance / evidence.sequence.count)
    # Clipping takes 1% of the residuals at most, and these have a weight of about 1.
    assert abs(evidence.sequence.mean - truth) < 4 * error + 0.01
    assert evidence.look("new", "old").cost == pytest.approx(share * evidence.sequence.total)


def test_what_clipping_took_widens_the_interval_on_its_side():
    """All arms are worth the same, and the anchor's model underrates them, the ones it does not favour by more."""
    candidate, anchor = policy(0), policy(2)
    scale = watch.Scale(low=-1.0, high=2.0, residual=0.3, unit=1.0)
    rng, evidence = np.random.default_rng(4), watch.nothing_yet(scale, SHARE, 0.5)
    for _ in range(20):
        rows = decisions(rng, candidate, anchor, 1000)
        evidence = evidence.add(rows._replace(reward=np.ones(1000)), candidate, anchor)
    assert evidence.sequence.interval(watch.ERROR)[1] < 0  # as if it lost
    look = evidence.look("new", "old")
    assert look.low < 0 < look.high
    assert look.outcome == "confirmed"
    absurd = evidence.add(rows._replace(reward=np.full(1000, 1e9)), candidate, anchor)
    assert absurd.look("new", "old").high < 5 * scale.high


@pytest.mark.parametrize(("favourite", "outcome"), [(0, "confirmed"), (2, "rolled back"), (3, "rolled back")])
def test_a_better_version_is_confirmed_and_a_worse_one_rolled_back(favourite, outcome):
    for seed in range(5):
        look = tried(policy(favourite), policy(1), seed)
        assert (look.outcome, look.version, look.anchor) == (outcome, "new", "old")
        assert look.needed is None


def test_a_version_that_equals_its_anchor_is_confirmed():
    assert tried(policy(1), policy(1, "anchor"), seed=0).outcome == "confirmed"


def test_what_is_undecided_says_how_many_more_decisions_would_decide_it():
    rng = np.random.default_rng(3)
    candidate, anchor = policy(0, epsilon=0.1), policy(1)
    evidence = nothing(rng, candidate, anchor)
    assert (
        evidence.look("new", "old").reason
        == "no decisions yet; how many more decisions would decide it cannot be estimated yet"
    )
    evidence = evidence.add(decisions(rng, candidate, anchor, 100), candidate, anchor)
    look = evidence.look("new", "old")
    assert look.outcome == "on probation"
    assert look.needed is not None and look.needed_at_equal_share is not None
    assert look.needed_at_equal_share < look.needed
    assert f"about {look.needed:,} more decisions at a share of 10% would decide it" in look.reason
    more = 0
    while look.outcome == "on probation":
        evidence, more = evidence.add(decisions(rng, candidate, anchor, 50), candidate, anchor), more + 50
        look_before, look = look, evidence.look("new", "old")
    assert look_before.needed is not None
    first = nothing(np.random.default_rng(3), candidate, anchor).look("new", "old")
    assert (first.gain, first.decisions, first.cost) == (None, 0, 0.0)
    assert 50 <= more < 20_000


def test_a_trial_goes_on_with_another_share():
    rng = np.random.default_rng(10)
    candidate, anchor = policy(0), policy(2)
    rows = decisions(rng, anchor, anchor, 1000)
    propensity = anchor.probabilities(rows.observation)[np.arange(1000), rows.action]
    scale = watch.scale_of(rows, propensity, candidate, anchor)
    evidence = watch.nothing_yet(scale, 0.5, 0.05, later_share=0.1)
    evidence = evidence.add(decisions(rng, candidate, anchor, 10_000, 0.5), candidate, anchor)
    first = evidence.sequence.total
    evidence = evidence.at_share(0.1).add(decisions(rng, candidate, anchor, 20_000, 0.1), candidate, anchor)
    truth = 0.8 * (VALUES[0] - VALUES[2])
    for mean in (first / 10_000, (evidence.sequence.total - first) / 20_000):
        assert abs(mean - truth) < 0.05
    assert evidence.cost == pytest.approx(0.5 * first + 0.1 * (evidence.sequence.total - first))
    with pytest.raises(InputError, match=r"^anchor_share: must leave each policy the share that the trial began with"):
        evidence.at_share(0.05)
    assert [evidence.may_have(share) for share in (0.0, 0.05, 0.1, 0.5, 0.9, 1.0)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]


def test_a_fault_that_begins_after_a_long_good_time_is_seen_soon():
    """The mean over the whole trial stays above that of the anchor for long; the detector does not wait for it."""
    rng = np.random.default_rng(4)
    candidate, anchor = policy(0), policy(1)
    evidence = nothing(rng, candidate, anchor)
    evidence = evidence.add(decisions(rng, candidate, anchor, 20_000), candidate, anchor)
    assert not evidence.detector.alarms(watch.FAULT_ERROR)
    broken = decisions(rng, candidate, anchor, 3_000)
    broken = broken._replace(reward=np.where(broken.action == 0, 0.0, broken.reward))
    evidence = evidence.add(broken, candidate, anchor)
    assert evidence.sequence.mean > 0
    look = evidence.look("new", "old")
    assert look.outcome == "rolled back"
    assert look.reason.startswith("rewards fell suddenly below the anchor's: ")


def test_a_fault_of_the_version_is_seen_though_both_choose_alike():
    """As when a page shows what the new version chose wrongly: the same actions are worth less."""
    rng = np.random.default_rng(9)
    candidate, anchor = policy(1, "new"), policy(1, "old")
    evidence = nothing(rng, candidate, anchor)
    sound = evidence.add(decisions(rng, candidate, anchor, 3_000), candidate, anchor)
    assert sound.look("new", "old").outcome != "rolled back"
    rows = decisions(rng, candidate, anchor, 3_000)
    rows = rows._replace(reward=np.where(rows.by_anchor, rows.reward, 0.0))
    look = evidence.add(rows, candidate, anchor).look("new", "old")
    assert look.gain == 0.0
    assert look.outcome == "rolled back"


def test_equal_policies_are_rarely_rolled_back():
    """Alike in value, not in what they choose: every arm is worth the same."""
    wrong, candidate, anchor = 0, policy(0, "a"), policy(2, "b")
    for seed in range(40):
        rng = np.random.default_rng(seed)

        def alike(rows: Rows, rng: np.random.Generator = rng) -> Rows:
            return rows._replace(reward=rng.normal(0.5, 0.4, len(rows.action)))

        before = alike(decisions(rng, anchor, anchor, 1000))
        propensity = anchor.probabilities(before.observation)[np.arange(1000), before.action]
        evidence = watch.nothing_yet(watch.scale_of(before, propensity, candidate, anchor), SHARE, 0.05)
        for _ in range(8):
            evidence = evidence.add(alike(decisions(rng, candidate, anchor, 500)), candidate, anchor)
        wrong += evidence.look("new", "old").outcome == "rolled back"
    assert wrong <= 2


def test_decisions_that_neither_policy_could_make_are_left_out():
    rng = np.random.default_rng(5)
    candidate, anchor = policy(0, masked=(3,)), policy(1, masked=(3,))
    evidence = nothing(rng, candidate, anchor)
    rows = decisions(rng, candidate, anchor, 10)
    added = evidence.add(rows._replace(action=np.full(10, 3)), candidate, anchor)
    assert added.sequence.count == 0
    off = evidence.add(rows._replace(candidates=[[3]] * 4 + [[0, 9]] * 3 + [[0, 1]] * 3), candidate, anchor)
    assert off.sequence.count <= 3


def test_candidates_change_what_both_would_have_done():
    """Where only one arm is on offer the policies are alike, so such decisions show no difference at all."""
    rng = np.random.default_rng(6)
    candidate, anchor = policy(0), policy(3)
    evidence = nothing(rng, candidate, policy(1))
    rows = decisions(rng, candidate, anchor, 50)._replace(candidates=[[2]] * 50, action=np.full(50, 2))
    added = evidence.add(rows, candidate, anchor)
    assert (added.sequence.count, added.sequence.total, added.spread) == (50, 0.0, 0.0)


def test_evidence_survives_being_stored():
    rng = np.random.default_rng(7)
    candidate, anchor = policy(0), policy(1)
    rows = [decisions(rng, candidate, anchor, 100) for _ in range(2)]
    evidence = nothing(rng, candidate, anchor)
    stored = msgspec.json.decode(msgspec.json.encode(evidence.add(rows[0], candidate, anchor)), type=Evidence)
    at_once = evidence.add(rows[0], candidate, anchor).add(rows[1], candidate, anchor)
    assert stored.add(rows[1], candidate, anchor) == at_once
    assert (
        at_once.add(
            rows[0]._replace(**{name: value[:0] for name, value in rows[0]._asdict().items()}), candidate, anchor
        )
        == at_once
    )


@pytest.mark.parametrize("rare", [0.004, 0.3])
def test_residuals_are_clipped_where_little_is_lost(rare):
    rng = np.random.default_rng(8)
    clicks = (rng.random(5000) < rare).astype(float)
    rows = Rows(np.zeros((5000, D), np.float32), [[]] * 5000, np.zeros(5000, np.int64), clicks, np.zeros(5000, bool))
    scale = watch.scale_of(rows, np.full(5000, 0.85), policy(0), policy(0))
    assert scale.residual > 0.9 * (1 - rare) if rare < 0.1 else scale.residual > 0.6
    assert (scale.low, scale.high, scale.unit) == (0.0, 1.0, pytest.approx(clicks.mean()))


def test_what_cannot_be_watched_is_refused():
    rows = Rows(np.zeros((9, D), np.float32), [[]] * 9, np.zeros(9, np.int64), np.ones(9), np.zeros(9, bool))
    with pytest.raises(InputError, match=r"^rewards: must differ to be judged by, got 9 alike$"):
        watch.scale_of(rows, np.ones(9), policy(0), policy(0))
    scale = watch.scale_of(rows._replace(reward=np.arange(9.0)), np.ones(9), policy(0), policy(1))
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match=rf"^anchor_share: must be above 0 and below 1 to watch by, got {share}$"):
            watch.nothing_yet(scale, share, 0.02)


def test_an_anchor_that_knows_fewer_items_watches_what_both_offer():
    """The version has retired item 0 and has two more, which it shows with 40% of its decisions and which are worth 0.9."""
    anchor = policy(0, "anchor", epsilon=0.4)
    catalogue = [Item(action=k, item_id=str(k), status="retired" if k == 0 else "active") for k in range(K + 2)]
    card = msgspec.structs.replace(anchor.card, version="more", num_actions=K + 2, catalogue=catalogue)
    mean = np.array([0.0, 0.5, -0.5, -0.5, 0.6, -0.5])
    new = Policy(card, lambda x: (np.tile(mean, (len(x), 1)), np.zeros((len(x), K + 2))))
    values = np.array([*VALUES, 0.9, 0.9])
    rng, count = np.random.default_rng(5), 4000
    x = np.zeros((count, D), np.float32)
    by_anchor = rng.random(count) < SHARE
    common = [1, 2, 3]
    chance = np.zeros((count, K + 2))
    chance[~by_anchor] = new.probabilities(x[~by_anchor])
    chance[by_anchor, :K] = anchor.probabilities(x[by_anchor], [common] * int(by_anchor.sum()))
    action = (chance.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    reward = values[action] + rng.normal(0, 0.2, count)
    rows = Rows(x, [common if one else [] for one in by_anchor], action, reward, by_anchor)
    scale = watch.scale_of(rows, chance[np.arange(count), action], new, anchor)
    evidence = watch.nothing_yet(scale, SHARE, 0.05).add(rows, new, anchor)
    assert evidence.sequence.count == count  # every decision counts, also of items that the anchor does not know
    truth = (new.probabilities(x[:1])[0] - np.pad(anchor.probabilities(x[:1], [common])[0], (0, 2))) @ values
    assert evidence.sequence.mean == pytest.approx(truth, abs=0.03)
