"""How a decision came about, with real policies."""

from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts.errors import InputError
from orchestration import policy_store
from orchestration.page.explain import Explainer
from predictor import deciding
from predictor import live as live_versions
from predictor import policy as serving
from predictor.line_up import LineUp
from predictor.messages import Instance
from tests.linear_policies import write_policy
from tests.live_learning import WINDOWS, Emitter, sums_of, write_base
from trainer import live
from trainer.live import LiveSettings, LiveTrainer


@pytest.fixture
def store(tmp_path):
    write_policy(tmp_path / "v1")
    policy_store.roll_out(tmp_path, "v1", "first", datetime(2026, 1, 1, tzinfo=UTC))
    return tmp_path


def decide(store, candidates=()):
    policy = serving.load(store / "v1")
    observation = np.linspace(-1, 1, policy.card.observation_dim).tolist()
    instance = Instance(observation, "u1", list(candidates))
    line_up = LineUp(policy, serving.baseline(policy.card))
    return deciding.decide(line_up, deciding.check([instance], line_up)).slates[0][0]


def test_contributions_add_up_to_the_score_and_the_replay_agrees(store):
    decision = decide(store)
    found = Explainer(store, store / "live").explain(decision, [])
    chosen = next(arm for arm in found.arms if arm.action == decision.action)
    assert sum(one.added for one in found.contributions) == pytest.approx(chosen.expected_reward, abs=1e-6)
    assert (found.replayed_action, found.replayed_propensity) == (decision.action, decision.propensity)
    assert chosen.probability == pytest.approx(decision.propensity)
    assert sum(arm.probability for arm in found.arms) == pytest.approx(1.0)
    assert found.why_not is None


def test_arms_that_were_not_on_offer_have_no_probability(store):
    decision = decide(store, candidates=[1])
    arms = {arm.action: arm for arm in Explainer(store, store / "live").explain(decision, []).arms}
    assert (arms[1].offered, arms[1].probability) == (True, 1.0)
    assert all(not arm.offered and arm.probability == 0.0 for action, arm in arms.items() if action != 1)


def test_a_log_that_contradicts_the_policy_shows_in_the_replay(store):
    decision = msgspec.structs.replace(decide(store), propensity=0.123)
    assert Explainer(store, store / "live").explain(decision, []).replayed_propensity != 0.123


def test_the_baselines_decisions_are_explained_without_features(store):
    decision = msgspec.structs.replace(decide(store), policy_version=serving.BASELINE_VERSION)
    found = Explainer(store, store / "live").explain(decision, [])
    assert found.contributions == [] and "uniformly" in found.why_not
    assert len({arm.probability for arm in found.arms}) == 1


@pytest.mark.parametrize("version", ["gone", "../v1", "v1/../v1"])
def test_a_version_that_is_not_in_the_store_is_named(store, version):
    decision = msgspec.structs.replace(decide(store), policy_version=version)
    with pytest.raises(InputError, match="policy_version: one of the store expected"):
        Explainer(store, store / "live").explain(decision, [])


def test_an_observation_of_another_length_is_named(store):
    decision = msgspec.structs.replace(decide(store), observation=[1.0])
    with pytest.raises(InputError, match="observation: v1 takes"):
        Explainer(store, store / "live").explain(decision, [])


def test_a_live_version_is_made_again_from_its_files(tmp_path):
    policies, folder = tmp_path / "policies", tmp_path / "live"
    write_base(policies, "v1", WINDOWS[:2])
    policy_store.roll_out(policies, "v1", "first", datetime(2026, 1, 1, tzinfo=UTC))
    Emitter(folder).emit({WINDOWS[2]: sums_of(7)})
    with live.locked(folder):
        LiveTrainer(folder, policies, LiveSettings()).step()
    policy = live_versions.load(policies, folder, "v1+1")[0]
    observation = np.linspace(-1, 1, policy.card.observation_dim).tolist()
    line_up = LineUp(policy, serving.baseline(policy.card))
    decision = deciding.decide(line_up, deciding.check([Instance(observation, "u1")], line_up)).slates[0][0]
    found = Explainer(policies, folder).explain(decision, [])
    chosen = next(arm for arm in found.arms if arm.action == decision.action)
    assert sum(one.added for one in found.contributions) == pytest.approx(chosen.expected_reward, abs=1e-6)
    assert (found.replayed_action, found.replayed_propensity) == (decision.action, decision.propensity)
    gone = msgspec.structs.replace(decision, policy_version="v1+2")
    with pytest.raises(InputError, match=r"the files of the live version v1\+2 are gone"):
        Explainer(policies, folder).explain(gone, [])
