import msgspec
import numpy as np
import pytest

from contracts.policies import CARD_NAME, encode_json
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
    asked = deciding.check(instances(4000), follower.line_up)
    decided = deciding.decide(follower.line_up, asked)
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


def with_items(folder, **items):
    """The policy in `folder` with other items at some actions, or with another status."""
    card = policy_files.read_card(folder)
    catalogue = [msgspec.structs.replace(item, **items.get(f"a{item.action}", {})) for item in card.catalogue]
    (folder / CARD_NAME).write_bytes(encode_json(msgspec.structs.replace(card, catalogue=catalogue)))
    return policy_files.load(folder)


@pytest.mark.parametrize("role", ["candidate", "anchor"])
@pytest.mark.parametrize("slate_size", [1, 2])
def test_the_policy_beside_chooses_among_what_both_offer_and_its_log_says_so(store, role, slate_size):
    """The one that serves has retired item 1, has another item at action 3, and two more items."""
    beside = policy_files.load(store / "v1")
    write_policy(store / "more", num_actions=7)
    serving = with_items(store / "more", a1={"status": "retired"}, a3={"item_id": "another"})
    line_up = LineUp(serving, policy_files.baseline(serving.card), **{role: beside, f"{role}_share": 0.5})
    assert line_up.common == [0, 2, 4]
    observations = [instance.observation for instance in instances(3000)]
    offers = [[], ["102", 4, 6], [5, "106", 3], [2, 4], [2, 3]]
    asked = deciding.check(
        [Instance(x, candidates=offers[i % len(offers)]) for i, x in enumerate(observations)], line_up, slate_size
    )
    decided = deciding.decide(line_up, asked, slate_size)
    assert not decided.failures
    by_version = {"v1": beside, "more": serving}
    seen = {version: set() for version in by_version}
    taken = dict.fromkeys(by_version, 0)
    for i, slate in enumerate(decided.slates):
        version = slate[0].policy_version
        taken[version] += 1
        for decision in slate:
            seen[version].add(decision.action)
            replayed = deciding.replay(by_version[version], [decision])
            assert replayed == ([decision.action], [decision.propensity])
        if version == "v1":
            within = {0: [0, 2, 4], 1: [2, 4], 3: [2, 4], 4: [2]}[i % len(offers)]
            assert slate[0].candidates == within and len(within) >= slate_size
        else:
            assert slate[0].candidates == [int(one) - 100 if isinstance(one, str) else one for one in offers[i % 5]]
    assert seen["v1"] == {0, 2, 4} and {3, 5, 6} < seen["more"] <= {0, 2, 3, 4, 5, 6}
    assert abs(taken["v1"] / 3000 - (0.4 if slate_size == 1 else 0.3)) < 0.05


def test_policies_that_offer_the_same_are_not_restricted(store):
    one, other = (policy_files.load(store / version) for version in ("v1", "v2"))
    assert policy_files.in_common(one, other) is None
    other = with_items(store / "v2", a0={"attributes": {"title": "another title"}})
    assert policy_files.in_common(one, other) is None
    assert policy_files.in_common(one, with_items(store / "v2", a0={"status": "masked"})) == [1, 2, 3, 4]


def test_a_shadow_that_knows_other_items_is_scored_over_what_it_knows(store):
    shadow = policy_files.load(store / "v1")
    write_policy(store / "more", num_actions=7)
    serving = policy_files.load(store / "more")
    line_up = LineUp(serving, policy_files.baseline(serving.card), shadow=shadow)
    asked = deciding.check([Instance(one.observation) for one in instances(300)], line_up)
    decided = deciding.decide(line_up, asked)
    assert not decided.failures and len(decided.shadows) == 300
    assert {shadow.action for shadow in decided.shadows} <= set(range(5))
    unknown = [one.propensity_of_served for one in decided.shadows if one.served_action > 4]
    assert unknown and set(unknown) == {0.0}
