import numpy as np
import pytest

from predictor import deciding
from predictor import policy as policy_files
from predictor.follower import PolicyFollower
from predictor.line_up import LineUp
from predictor.messages import Instance
from tests.linear_policies import point_at, write_policy


@pytest.fixture
def store(tmp_path):
    write_policy(tmp_path / "v1", seed=1)
    write_policy(tmp_path / "v2", seed=2)
    point_at(tmp_path, "v1")
    return tmp_path


def instances(count, seed=0, observation_dim=3):
    observations = np.random.default_rng(seed).normal(size=(count, observation_dim)).tolist()
    return [
        Instance(observation, f"user-{i}", [4, 1, 2] if i % 3 else []) for i, observation in enumerate(observations)
    ]


def test_candidate_takes_its_share_and_the_id_tells_which(store):
    point_at(store, "v1", candidate="v2", candidate_share=0.3)
    follower = PolicyFollower(store)
    follower.refresh()
    decided = deciding.decide(follower.line_up, instances(4000))
    decisions = [decision for (decision,) in decided.slates]
    by_version = {"v1": follower.line_up.serving, "v2": follower.line_up.candidate}
    share = sum(decision.policy_version == "v2" for decision in decisions) / 4000
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    ids = [decision.decision_id for decision in decisions]
    taken = [decision.policy_version == "v2" for decision in decisions]
    assert taken == follower.line_up.takes(ids).tolist()
    for decision, instance in zip(decisions, instances(4000), strict=True):
        assert decision.observation == instance.observation
        policy = by_version[decision.policy_version]
        assert deciding.replay(policy, [decision]) == ([decision.action], [decision.propensity])


def test_every_row_has_one_policy_and_a_share_without_rows_is_left_out(store):
    serving, candidate = (policy_files.load(store / version) for version in ("v1", "v2"))
    ids = deciding.new_decision_ids(0, 100)
    line_up = LineUp(serving, policy_files.baseline(serving.card), candidate, 0.5)
    (first, rows), (second, others) = line_up.shares(ids)
    assert (first, second) == (serving, candidate)
    assert sorted(rows + others) == list(range(100))
    assert LineUp(serving, serving, candidate, 0.0).shares(ids) == [(serving, list(range(100)))]
    assert LineUp(serving, serving, candidate, 1.0).shares(ids) == [(candidate, list(range(100)))]
    assert [policy.card.version for policy in LineUp(serving, serving, shadow=candidate)] == ["v1", "v2"]


def test_the_anchor_takes_its_share_by_another_hash_than_a_candidate(store):
    serving, anchor = (policy_files.load(store / version) for version in ("v1", "v2"))
    ids = deciding.new_decision_ids(0, 4000)
    line_up = LineUp(serving, policy_files.baseline(serving.card), anchor=anchor, anchor_share=0.2)
    (first, rows), (second, others) = line_up.shares(ids)
    assert (first, second) == (serving, anchor)
    assert others == np.flatnonzero(line_up.takes(ids)).tolist()
    assert sorted(rows + others) == list(range(4000))
    assert abs(len(others) / 4000 - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)
    candidate = LineUp(serving, serving, candidate=anchor, candidate_share=0.2)
    both = (candidate.takes(ids) & line_up.takes(ids)).mean()
    assert abs(both - 0.04) < 5 * np.sqrt(0.04 * 0.96 / 4000)
    assert line_up.deciding == {"serving": ("v1", 0.8), "anchor": ("v2", 0.2)}
    assert candidate.deciding == {"serving": ("v1", 0.8), "candidate": ("v2", 0.2)}
    assert LineUp(serving, serving).deciding == {"serving": ("v1", 1.0)}
    assert not LineUp(serving, serving).takes(ids).any()
    assert [policy.card.version for policy in line_up] == ["v1", "v2"]
