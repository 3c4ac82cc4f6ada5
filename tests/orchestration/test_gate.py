"""The gate and the roll-out, with policies that were really trained, on decisions whose truth is known."""

import dataclasses
import re
import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from contracts import policies
from contracts.features import FeatureSpec, Hashed
from contracts.items import Item
from contracts.offers import Offers
from contracts.policies import Exploration, PolicyCard
from contracts.trajectories import TrajectoryBatch, join
from orchestration import gate, policy_store
from predictor import policy as serving
from tests.linear_policies import write_policy
from tests.windows import consecutive_windows, write_window
from trainer import artifact, training, untrained

D, K = 4, 5
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
THETA = np.random.default_rng(5).normal(size=(K, D))


def logged(rng: np.random.Generator, count: int, theta: np.ndarray = THETA) -> TrajectoryBatch:
    """Decisions of a uniform policy, rewards linear in the observation with noise."""
    observation = rng.normal(size=(count, D)).astype(np.float32)
    action = rng.integers(0, K, count).astype(np.int32)
    reward = (observation * theta[action]).sum(axis=1) + rng.normal(0, 0.1, count)
    return TrajectoryBatch(
        observation, action, reward.astype(np.float32), np.full(count, 1 / K, np.float32), np.zeros(count, bool)
    )


@dataclasses.dataclass
class Shop:
    """A store and windows, to train policies in."""

    store: Path
    windows: Path

    def window(self, number: int, train: TrajectoryBatch, holdback: TrajectoryBatch) -> None:
        window = consecutive_windows(START, 5, number + 1)[number]
        write_window(self.windows, window, train, holdback)

    def train(self, parent: str | None, exploration: Exploration | None = None, num_actions: int = K) -> PolicyCard:
        settings = training.Settings(
            windows=self.windows,
            policies=self.store,
            num_actions=num_actions,
            catalogue=[Item(action=k, item_id=str(k)) for k in range(num_actions)],
            parent=parent,
            exploration=exploration or Exploration(),
        )
        return training.train(settings)

    def fake(self, theta: np.ndarray, parent: PolicyCard, version: str) -> str:
        """A policy that claims these parameters, otherwise like the next update of `parent`."""
        card = msgspec.structs.replace(parent, version=version, parent=parent.version)

        def parts(folder: Path) -> None:
            shutil.copytree(self.store / parent.version, folder, dirs_exist_ok=True)
            (folder / policies.CARD_NAME).unlink()  # the other one is written last
            arrays = dict(np.load(folder / policies.LINEAR_NAME))
            np.savez(folder / policies.LINEAR_NAME, **(arrays | {"theta": theta.astype(np.float32)}))

        artifact.write(self.store, card, parts)
        return version


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    (tmp_path / "store").mkdir()
    return Shop(tmp_path / "store", tmp_path / "windows")


@pytest.fixture
def champion(shop: Shop) -> PolicyCard:
    """Trained on a window that is enough to know the movies, and rolled out."""
    rng = np.random.default_rng(0)
    shop.window(0, logged(rng, 400), logged(rng, 400))
    card = shop.train(None)
    policy_store.roll_out(shop.store, card.version, "first", NOW)
    return card


def test_the_first_policy_is_promoted(shop):
    rng = np.random.default_rng(0)
    shop.window(0, logged(rng, 400), logged(rng, 400))
    result = gate.evaluate(shop.store, shop.windows, shop.train(None).version, None)
    assert (result.verdict, result.promoted) == ("undecided", True)
    assert result.reason == "first policy: nothing that has learned served before"
    assert result.evaluation is not None
    assert result.evaluation.low < result.evaluation.value < result.evaluation.high
    assert result.evaluation.decisions == 400
    assert result.evaluation.estimator == "dr"


def test_the_first_policys_interval_holds_the_truth_though_the_log_hardly_did_what_it_would_do(tmp_path):
    """None of the logged decisions is like the policy's: what is left is its own model, which was fitted to few."""
    repetitions, covered = 20, 0
    for seed in range(repetitions):
        shop = Shop(tmp_path / f"{seed}" / "store", tmp_path / f"{seed}" / "windows")
        rng = np.random.default_rng(seed)
        held_back = logged(rng, 300)
        held_back = held_back._replace(action=(held_back.observation @ THETA.T).argmin(axis=1).astype(np.int32))
        shop.window(0, logged(rng, 15), held_back)
        card = shop.train(None)
        result = gate.evaluate(shop.store, shop.windows, card.version, None)
        assert result.promoted
        assert result.evaluation is not None
        doubted = ", the policy's " in result.reason
        assert result.evaluation.estimator == ("switch_dr" if doubted else "dr")
        probabilities = serving.load(shop.store / card.version).probabilities(held_back.observation)
        truth = float((probabilities * (held_back.observation @ THETA.T)).sum(axis=1).mean())
        covered += result.evaluation.low <= truth <= result.evaluation.high
    assert covered >= 0.95 * repetitions


def test_the_own_next_update_is_promoted_though_undecided(shop, champion):
    rng = np.random.default_rng(1)
    shop.window(1, logged(rng, 400), logged(rng, 400))
    result = gate.evaluate(shop.store, shop.windows, shop.train(champion.version).version, champion.version)
    assert (result.verdict, result.promoted) == ("undecided", True)
    assert result.reason.startswith("own next update, undecided: gain ")


def test_what_follows_a_policy_that_has_learned_nothing_is_judged_as_a_first_one(shop):
    rng = np.random.default_rng(0)
    catalogue = [Item(action=k, item_id=str(k)) for k in range(K)]
    untaught = untrained.write(
        shop.store, catalogue, FeatureSpec(constant=False, features=[Hashed(name="x", buckets=D)])
    )
    shop.window(0, logged(rng, 500), logged(rng, 200))
    policy_store.roll_out(shop.store, untaught.version, "the first", NOW)
    candidate = shop.train(untaught.version)
    assert (candidate.parent, candidate.features) == (untaught.version, untaught.features)
    result = gate.evaluate(shop.store, shop.windows, candidate.version, untaught.version)
    assert result.promoted
    assert result.reason.startswith("first policy: ")
    assert result.gain is None


def test_another_setting_waits_though_undecided(shop, champion):
    rng = np.random.default_rng(1)
    shop.window(1, logged(rng, 400), logged(rng, 400))
    bolder = shop.train(champion.version, exploration=Exploration(alpha=0.6))
    result = gate.evaluate(shop.store, shop.windows, bolder.version, champion.version)
    assert (result.verdict, result.promoted) == ("undecided", False)
    assert result.reason.startswith("not the champion's own next update, undecided: gain ")


def test_another_setting_passes_if_it_is_tried_beside_the_champion(shop, champion):
    rng = np.random.default_rng(1)
    shop.window(1, logged(rng, 400), logged(rng, 400))
    bolder = shop.train(champion.version, exploration=Exploration(alpha=0.6)).version
    result = gate.evaluate(shop.store, shop.windows, bolder, champion.version, tried=True)
    assert (result.verdict, result.promoted) == ("undecided", True)
    assert result.must_be_confirmed
    assert result.reason.startswith("another algorithm or setting, to be tried beside the champion, undecided: gain ")


def test_an_update_of_a_version_on_probation_is_compared_with_the_anchor(shop, champion):
    rng = np.random.default_rng(1)
    shop.window(1, logged(rng, 400), logged(rng, 400))
    worse = shop.fake(-THETA, champion, "upside-down")
    update = shop.fake(-THETA, serving.read_card(shop.store / worse), "upside-down-too")
    beside_worse = gate.evaluate(shop.store, shop.windows, update, worse)
    assert (beside_worse.verdict, beside_worse.promoted) == ("undecided", True)
    beside_anchor = gate.evaluate(shop.store, shop.windows, update, worse, anchor=champion.version)
    assert (beside_anchor.verdict, beside_anchor.promoted) == ("worse", False)


def test_a_loss_that_the_model_expects_is_refused_where_the_log_cannot_tell(shop, champion):
    """Twelve decisions, of which the candidate would have made hardly one."""
    shop.window(1, logged(np.random.default_rng(2), 400), logged(np.random.default_rng(3), 400))
    own = shop.train(champion.version)
    shop.window(1, logged(np.random.default_rng(2), 400), logged(np.random.default_rng(3), 12))
    sound = gate.evaluate(shop.store, shop.windows, own.version, champion.version)
    assert (sound.verdict, sound.promoted) == ("undecided", True)
    worst = shop.fake(-THETA, own, "worst")
    card = msgspec.structs.replace(own, version=worst, parent=champion.version)
    (shop.store / worst / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    result = gate.evaluate(shop.store, shop.windows, worst, champion.version)
    assert (result.verdict, result.promoted) == ("worse", False)
    assert re.search(r"a loss of at least \d\.\d+ by the model of what serves", result.reason)


def test_a_worse_candidate_is_refused_and_a_better_one_promoted(shop, champion):
    worse = shop.fake(-THETA, champion, "upside-down")
    result = gate.evaluate(shop.store, shop.windows, worse, champion.version)
    assert (result.verdict, result.promoted) == ("worse", False)
    assert result.gain_high is not None and result.gain_high < 0
    turned = gate.evaluate(shop.store, shop.windows, champion.version, worse)
    assert (turned.verdict, turned.promoted) == ("better", True)


def test_what_few_decisions_speak_for_stays_undecided_and_the_reason_is_given(shop, champion):
    """Nine decisions, which cannot have an effective sample size of 20: whatever their interval says."""
    shop.window(1, logged(np.random.default_rng(2), 400), logged(np.random.default_rng(3), 9))
    candidate = shop.train(champion.version, exploration=Exploration(alpha=0.6))
    result = gate.evaluate(shop.store, shop.windows, candidate.version, champion.version)
    assert (result.verdict, result.promoted) == ("undecided", False)
    assert re.search(r"the candidate's effective sample size is \d\.\d \(largest weight \d\.\d\)$", result.reason)
    assert result.evaluation is not None and not result.evaluation.reliable
    assert result.evaluation.reason == "only 9 independent decisions (or viewers), at least 20 are needed"


def test_a_candidate_that_always_picks_the_same_movie_is_refused(shop, champion):
    constant = np.zeros((K, D))
    result = gate.evaluate(shop.store, shop.windows, shop.fake(constant, champion, "constant"), champion.version)
    assert (result.verdict, result.promoted) == ("worse", False)
    assert result.reason == "sanity check failed: action 0 looks best for all of 400 observations"


def test_a_candidate_that_is_not_a_number_is_refused(shop, champion):
    broken = shop.fake(np.full((K, D), np.nan), champion, "nan")
    result = gate.evaluate(shop.store, shop.windows, broken, champion.version)
    assert (result.verdict, result.promoted) == ("worse", False)
    assert "theta must be finite" in result.reason


def test_nothing_held_back_leaves_it_undecided(shop):
    rng = np.random.default_rng(0)
    shop.window(0, logged(rng, 400), logged(rng, 0))
    result = gate.evaluate(shop.store, shop.windows, shop.train(None).version, None)
    assert result.reason == "first policy: no decisions were held back"
    assert result.evaluation is None


def small_policy(folder: Path, theta: np.ndarray, trained_on: list[policies.TrainedWindow]) -> None:
    """A linear policy with these parameters that is sure of them."""
    card = write_policy(folder, num_actions=len(theta), observation_dim=D, exploration=Exploration(epsilon=0.2))
    covariance = np.tile(np.eye(D, dtype=np.float32) * 1e-4, (len(theta), 1, 1))
    samples = np.full(len(theta), 100.0, np.float32)
    np.savez(folder / policies.LINEAR_NAME, theta=theta.astype(np.float32), covariance=covariance, num_samples=samples)
    card = msgspec.structs.replace(card, trained_on=trained_on)
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))


def mask_all_but(folder: Path, active: Collection[int]) -> None:
    """Retires the other movies of a policy's catalogue."""
    path = folder / policies.CARD_NAME
    card = policies.decode_card(path.read_bytes(), "card")
    catalogue = [
        msgspec.structs.replace(movie, status="active" if movie.action in active else "retired")
        for movie in card.catalogue
    ]
    path.write_bytes(policies.encode_json(msgspec.structs.replace(card, catalogue=catalogue)))


def test_after_the_catalogue_has_grown_the_arms_that_both_know_are_compared(shop):
    rng = np.random.default_rng(1)
    shop.window(0, logged(rng, 400), logged(rng, 400))
    trained_on = [policies.TrainedWindow(window=consecutive_windows(START, 5, 1)[0], split="train", records=400)]
    new_arms = rng.normal(size=(2, D))
    small_policy(shop.store / "old", THETA, trained_on)
    small_policy(shop.store / "good", np.concatenate([THETA, new_arms]), trained_on)
    small_policy(shop.store / "bad", np.concatenate([-THETA, new_arms]), trained_on)
    # Without the new arms, they are one and the same policy.
    result = gate.evaluate(shop.store, shop.windows, "good", "old")
    assert result.gain == pytest.approx(0)
    assert result.gain_low is not None and result.gain_high is not None
    assert -0.1 < result.gain_low < 0 < result.gain_high < 0.1
    assert result.reason.endswith(" on 400 decisions, compared over the 5 arms both know; 2 new")
    result = gate.evaluate(shop.store, shop.windows, "bad", "old")
    assert (result.verdict, result.promoted) == ("worse", False)
    assert result.reason.endswith(", compared over the 5 arms both know; 2 new")
    # Judged the other way round, by the model of the one with more arms.
    result = gate.evaluate(shop.store, shop.windows, "old", "bad")
    assert (result.verdict, result.promoted) == ("better", True)
    assert result.reason.endswith(", compared over the 5 arms both know; 2 fewer")


def test_the_own_next_update_passes_after_two_items_were_added_to_the_catalogue(shop, champion):
    """With decisions for the new ones among the held-back ones, as another policy may have made them."""
    rng = np.random.default_rng(1)
    held_back = logged(rng, 400)
    held_back.action[:3] = K + 1
    shop.window(1, logged(rng, 400), held_back)
    candidate = shop.train(champion.version, num_actions=K + 2)
    result = gate.evaluate(shop.store, shop.windows, candidate.version, champion.version)
    assert (result.verdict, result.promoted) == ("undecided", True)
    assert result.reason.startswith("own next update, undecided: gain ")
    assert result.reason.endswith(", compared over the 5 arms both know; 2 new")


def test_a_policy_of_a_longer_context_is_compared_with_one_that_does_not_know_it(shop, champion):
    rng = np.random.default_rng(1)

    def longer(batch: TrajectoryBatch) -> TrajectoryBatch:
        more = rng.normal(size=(len(batch.action), 2)).astype(np.float32)
        return batch._replace(observation=np.concatenate([batch.observation, more], axis=1))

    shop.window(1, longer(logged(rng, 400)), longer(logged(rng, 400)))
    candidate = shop.train(champion.version)
    assert candidate.observation_dim == D + 2
    result = gate.evaluate(shop.store, shop.windows, candidate.version, champion.version)
    assert (result.verdict, result.promoted) == ("undecided", True)
    assert result.gain_low is not None and result.gain_high is not None and result.gain_high - result.gain_low < 1
    # And back: the champion knows more than the window and the candidate.
    policy_store.roll_out(shop.store, candidate.version, "longer", NOW)
    shop.window(2, logged(rng, 400), logged(rng, 400))
    third = shop.train(candidate.version)
    assert third.observation_dim == D
    assert gate.evaluate(shop.store, shop.windows, third.version, candidate.version).promoted


def test_without_an_arm_in_common_that_is_on_offer_it_stays_undecided(shop):
    rng = np.random.default_rng(1)
    shop.window(0, logged(rng, 400), logged(rng, 400))
    trained_on = [policies.TrainedWindow(window=consecutive_windows(START, 5, 1)[0], split="train", records=400)]
    small_policy(shop.store / "old", THETA, trained_on)
    small_policy(shop.store / "new", np.random.default_rng(3).normal(size=(2 * K, D)), trained_on)
    mask_all_but(shop.store / "new", range(K, 2 * K))
    result = gate.evaluate(shop.store, shop.windows, "new", "old")
    assert (result.verdict, result.promoted, result.evaluation) == ("undecided", False, None)
    assert "new offers none of the 5 arms that both policies know" in result.reason


def offered_to(batch: TrajectoryBatch, rng: np.random.Generator, arms: int) -> TrajectoryBatch:
    """The decisions as if a uniform policy had chosen among `arms` random arms, which each lists."""
    others = [rng.permutation(np.delete(np.arange(K), action))[: arms - 1] for action in batch.action]
    lists = [[int(action), *map(int, other)] for action, other in zip(batch.action, others, strict=True)]
    return batch._replace(candidates=Offers.of(lists), propensity=np.full(len(batch.action), 1 / arms, np.float32))


def test_policies_are_compared_by_what_was_on_offer(shop):
    """The estimate holds the truth of choosing among two arms, and the mean weight is near 1."""
    rng = np.random.default_rng(1)
    batch = offered_to(logged(rng, 2000), rng, 2)
    shop.window(0, logged(rng, 400), batch)
    trained_on = [policies.TrainedWindow(window=consecutive_windows(START, 5, 1)[0], split="train", records=400)]
    small_policy(shop.store / "old", np.random.default_rng(3).normal(size=(K, D)), trained_on)
    small_policy(shop.store / "good", THETA, trained_on)
    result = gate.evaluate(shop.store, shop.windows, "good", "old")
    assert (result.verdict, result.promoted) == ("better", True)
    probabilities = serving.load(shop.store / "good").probabilities(batch.observation, batch.offers.tolist())
    truth = float((probabilities * (batch.observation @ THETA.T)).sum(axis=1).mean())
    assert result.evaluation is not None and result.evaluation.reliable
    assert result.evaluation.low < truth < result.evaluation.high
    assert result.evaluation.high - result.evaluation.low < 0.4


def test_decisions_that_offered_a_policy_nothing_are_left_out_and_named(shop):
    rng = np.random.default_rng(1)
    batch = offered_to(logged(rng, 400), rng, 2)
    shop.window(0, logged(rng, 400), batch)
    trained_on = [policies.TrainedWindow(window=consecutive_windows(START, 5, 1)[0], split="train", records=400)]
    small_policy(shop.store / "old", THETA, trained_on)
    small_policy(shop.store / "new", THETA, trained_on)
    mask_all_but(shop.store / "new", (0, 1, 2))
    result = gate.evaluate(shop.store, shop.windows, "new", "old")
    nothing = sum(set(offer) <= {3, 4} for offer in batch.offers.tolist())
    assert nothing and f", {nothing} decisions left out that offered no arm of a policy" in result.reason
    assert result.evaluation is not None and result.evaluation.decisions == 400 - nothing


def test_places_of_one_slate_are_not_counted_as_independent(shop):
    """A hundred slates of four places with one observation and one reward know as much as a hundred decisions."""
    rng = np.random.default_rng(1)
    single = logged(rng, 100)
    slates = np.array([f"018f0000-0000-7000-8000-{number:012x}".encode() for number in rng.integers(0, 2**40, 100)])
    four = join([single._replace(slate_id=slates, place=np.full(100, place, np.int32)) for place in range(4)])
    widths = []
    for number, held_back in enumerate((single, four, four._replace(slate_id=None, place=None))):
        shop.window(number, logged(rng, 400), held_back)
        trained_on = [policies.TrainedWindow(window=consecutive_windows(START, 5, 3)[number], split="train", records=1)]
        small_policy(shop.store / f"v{number}", THETA, trained_on)
        result = gate.evaluate(shop.store, shop.windows, f"v{number}", None)
        assert result.evaluation is not None
        slate = result.evaluation.slate
        assert (slate is None) == (number != 1) == ("; a slate of it earns " not in result.reason)
        assert slate is None or slate.slates == 100
        widths.append(result.evaluation.high - result.evaluation.low)
    assert widths[1] > 0.9 * widths[0]
    assert widths[2] < 0.7 * widths[0]
