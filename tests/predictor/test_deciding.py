import collections
import dataclasses
import re
import time
import uuid
from pathlib import Path

import msgspec
import numpy as np
import pytest

from contracts import policies
from contracts.errors import InputError
from contracts.features import Category, FeatureSpec, Number
from contracts.policies import STRATEGIES, Exploration
from contracts.records import FLOAT32_MAX, Decision, encoder, event_decoder
from predictor import deciding
from predictor import policy as policy_files
from predictor.follower import PolicyFollower
from predictor.line_up import LineUp
from predictor.messages import Instance
from predictor.policy import Policy
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


def checked_and_decided(line_up, instances, slate_size=1):
    return deciding.decide(line_up, deciding.check(instances, line_up, slate_size), slate_size)


def decide(policy, instances):
    """One decision an instance, by `policy` alone."""
    decided = checked_and_decided(LineUp(policy, policy_files.baseline(policy.card)), instances)
    assert (decided.shadows, decided.failures) == ([], [])
    return [decision for (decision,) in decided.slates]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_logged_decision_replays_exactly(tmp_path, strategy):
    write_policy(tmp_path / "v", exploration=Exploration(strategy=strategy, epsilon=0.5))
    policy = policy_files.load(tmp_path / "v")
    decided = decide(policy, instances(200))
    logged = [event_decoder.decode(encoder.encode(decision)) for decision in decided]
    assert logged == decided
    for decision in logged:  # one by one, as they were not decided
        assert deciding.replay(policy, [decision]) == ([decision.action], [decision.propensity])
        assert isinstance(decision, Decision)
        assert not decision.candidates or decision.action in decision.candidates


def test_a_request_is_one_moment_and_its_ids_are_uuid7(store):
    policy = policy_files.load(store / "v1")
    before = time.time_ns() // 1_000_000
    decisions = decide(policy, instances(300))
    after = time.time_ns() // 1_000_000
    assert len({decision.decided_at for decision in decisions}) == 1
    assert len({decision.decision_id for decision in decisions}) == 300
    milliseconds = round(decisions[0].decided_at.timestamp() * 1000 // 1)
    assert before <= milliseconds <= after
    for decision in decisions:
        identity = uuid.UUID(decision.decision_id)
        assert (identity.version, identity.variant) == (7, uuid.RFC_4122)
        assert identity.int >> 80 == int(decision.decided_at.timestamp() * 1000)
    assert len({decision.decision_id[14:] for decision in decisions}) == 300


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (Instance([1.0]), "instances[1].observation: must have 3 numbers, got 1"),
        (Instance([1.0, 2.0, 3.0], None, [0, 5]), "instances[1].candidates: must be below 5, got 5"),
        (Instance([1.0, 2.0, 3.0], None, [0, 2, 0]), "instances[1].candidates: must differ, got one twice"),
    ],
)
def test_wrong_instances(store, instance, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        decide(policy_files.load(store / "v1"), [*instances(1), instance])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_extreme_observations_still_get_a_decision(tmp_path, strategy):
    write_policy(tmp_path / "v", exploration=Exploration(strategy=strategy))
    extremes = [[FLOAT32_MAX] * 3, [-FLOAT32_MAX] * 3, [0.0] * 3, [1e-45, 0.0, -1e-45], [FLOAT32_MAX, 0.0, -1e-45]]
    for decision in decide(policy_files.load(tmp_path / "v"), [Instance(extreme) for extreme in extremes]):
        assert event_decoder.decode(encoder.encode(decision)) == decision


def test_shadow_is_scored_and_logged_and_never_served(store):
    point_at(store, "v1", candidate="v2", mode="shadow")
    champion = PolicyFollower(store)
    champion.refresh()
    decided = checked_and_decided(champion.line_up, instances(100))
    decisions = [decision for (decision,) in decided.slates]
    assert {decision.policy_version for decision in decisions} == {"v1"}
    assert [shadow.decision_id for shadow in decided.shadows] == [decision.decision_id for decision in decisions]
    shadow_policy = policy_files.load(store / "v2")
    probabilities = shadow_policy.probabilities(
        np.array([decision.observation for decision in decisions], np.float32),
        [decision.candidates for decision in decisions],
    )
    for row, (decision, shadow) in enumerate(zip(decisions, decided.shadows, strict=True)):
        assert (shadow.policy_version, shadow.served_action) == ("v2", decision.action)
        assert shadow.propensity == probabilities[row, shadow.action]
        assert shadow.propensity_of_served == probabilities[row, decision.action]
        assert msgspec.json.decode(encoder.encode(shadow), type=deciding.ShadowDecision) == shadow


def test_a_policy_that_returns_nonsense_leaves_the_decision_to_the_baseline(store, caplog):
    policy = policy_files.load(store / "v1")

    def nonsense(observations):
        mean, std = policy.scorer(observations)
        mean[:, 2] = np.nan
        return mean, std

    broken = dataclasses.replace(policy, scorer=nonsense)
    decided = checked_and_decided(LineUp(broken, policy_files.baseline(policy.card), shadow=broken), instances(20))
    assert decided.failures == ["v1: scores must be finite"] * 2
    assert decided.shadows == []
    assert "the baseline decides" in caplog.text
    for (decision,), instance in zip(decided.slates, instances(20), strict=True):
        assert decision.policy_version == "uniform"
        assert decision.propensity == pytest.approx(1 / (len(instance.candidates) or 5))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slates(tmp_path, strategy):
    write_policy(tmp_path / "v", exploration=Exploration(strategy=strategy, epsilon=0.5))
    policy = policy_files.load(tmp_path / "v")
    asked = instances(60)
    decided = checked_and_decided(LineUp(policy, policy_files.baseline(policy.card)), asked, slate_size=3)
    identities = {decision.decision_id for slate in decided.slates for decision in slate}
    assert len(identities) == 180
    for slate, instance in zip(decided.slates, asked, strict=True):
        left = list(instance.candidates) or list(range(5))
        assert slate[0].candidates == instance.candidates
        for place, decision in enumerate(slate):
            if place:
                assert decision.candidates == left
            left.remove(decision.action)
        assert deciding.replay(policy, slate) == ([d.action for d in slate], [d.propensity for d in slate])


def test_places_of_a_slate_log_its_id_and_what_was_left(store):
    policy = policy_files.load(store / "v1")
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    asked = [Instance([1.0, 2.0, 3.0]), Instance([1.0, 2.0, 3.0], None, [4, 0, 2])]
    for slate, offered in zip(checked_and_decided(line_up, asked, 3).slates, (range(5), [4, 0, 2]), strict=True):
        assert [decision.place for decision in slate] == [0, 1, 2]
        assert {decision.slate_id for decision in slate} == {slate[0].decision_id}
        taken = [decision.action for decision in slate]
        assert slate[0].candidates == ([] if len(offered) == 5 else offered)
        for place in (1, 2):
            assert slate[place].candidates == [action for action in offered if action not in taken[:place]]
    for [decision] in checked_and_decided(line_up, asked).slates:
        assert decision.slate_id is None and decision.place is None


def test_slates_come_up_as_often_as_they_say(tmp_path):
    """The propensity of the whole slate, against 20,000 of them."""
    write_policy(tmp_path / "v", exploration=Exploration(strategy="softmax"), num_actions=4)
    policy = policy_files.load(tmp_path / "v")
    n = 20_000
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    decided = checked_and_decided(line_up, [Instance([0.5, -1.0, 0.2])] * n, slate_size=2)
    stated, counts = {}, collections.Counter()
    for slate in decided.slates:
        slate_actions = tuple(decision.action for decision in slate)
        stated[slate_actions] = slate[0].propensity * slate[1].propensity
        counts[slate_actions] += 1
    assert len(stated) == 12
    assert sum(stated.values()) == pytest.approx(1)
    for slate_actions, propensity in stated.items():
        assert abs(counts[slate_actions] / n - propensity) < 5 * np.sqrt(propensity * (1 - propensity) / n)


def test_a_slate_larger_than_what_is_on_offer(store):
    policy = policy_files.load(store / "v1")
    message = r"^parameters.slate_size: must be at most the 3 arms of instances\[1\], got 4$"
    with pytest.raises(InputError, match=message):
        deciding.check(instances(2), LineUp(policy, policy_files.baseline(policy.card)), slate_size=4)


def test_what_is_not_on_offer_is_never_decided_for(tmp_path):
    card = write_policy(tmp_path / "v", exploration=Exploration(strategy="uniform"))
    catalogue = [
        msgspec.structs.replace(movie, status="retired" if movie.action in (0, 3) else "active")
        for movie in card.catalogue
    ]
    (tmp_path / "v" / policies.CARD_NAME).write_bytes(
        policies.encode_json(msgspec.structs.replace(card, catalogue=catalogue))
    )
    policy = policy_files.load(tmp_path / "v")
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    observation = [1.0, 2.0, 3.0]
    for _ in range(50):
        decided = checked_and_decided(line_up, [Instance(observation), Instance(observation, None, [0, 1, 3, 4])], 2)
        assert {decision.action for decision in decided.slates[0]} <= {1, 2, 4}
        assert {decision.action for decision in decided.slates[1]} == {1, 4}
    with pytest.raises(
        InputError, match=r"^instances\[0\].candidates: must include an arm whose item is active, got none$"
    ):
        deciding.check([Instance(observation, None, [0, 3])], line_up)
    with pytest.raises(
        InputError, match=r"^parameters.slate_size: must be at most the 3 arms of instances\[0\], got 4$"
    ):
        deciding.check([Instance(observation)], line_up, 4)


@pytest.mark.parametrize("slate_size", [1, 5])
@pytest.mark.parametrize("candidates", [[], [4, 1, 2, 0, 3]])
def test_logged_bytes_is_an_upper_bound_of_what_is_logged(tmp_path, slate_size, candidates):
    """For the longest version, user and numbers that there can be, and for ordinary ones without waste of more than a few times."""
    for version, user, number in (("\x01" * 128, "\x01" * 128, -2.2250738585072014e-308), ("v1", "u17", 0.25)):
        write_policy(tmp_path / user[:2] / "v", version=version)
        policy = policy_files.load(tmp_path / user[:2] / "v")
        asked = [Instance([number] * 3, user, candidates)] * 4
        decided = checked_and_decided(LineUp(policy, policy_files.baseline(policy.card)), asked, slate_size)
        written = len(encoder.encode_lines([decision for slate in decided.slates for decision in slate]))
        bound = deciding.logged_bytes(asked, slate_size, LineUp(policy, policy))
        assert written <= bound
        assert bound < 6 * written


def test_a_live_version_that_fails_leaves_the_decision_to_its_base(store, caplog):
    base = policy_files.load(store / "v1")
    card = msgspec.structs.replace(base.card, version="v1+3")
    live = policy_files.Policy(card, lambda observations: (np.full((len(observations), 5), np.nan),) * 2)
    decided = checked_and_decided(LineUp(base, policy_files.baseline(base.card), live=live), instances(3))
    assert {decision.policy_version for (decision,) in decided.slates} == {"v1"}
    assert decided.failures == ["v1+3: scores must be finite"]
    assert "the base decides" in caplog.text


def test_candidates_and_exclusions_may_name_items(tmp_path):
    write_policy(tmp_path / "v")  # the items of actions 0 to 4 are "100" to "104"
    policy = policy_files.load(tmp_path / "v")
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    x = [0.5, -1.0, 0.2]
    asked = deciding.check(
        [
            Instance(x, candidates=["104", 1, "not yet known"]),
            Instance(x, exclude=["100", 2, "long gone"]),
            Instance(x, candidates=["100", "101", "103"], exclude=["101"]),
            Instance(x, candidates=[3]),
        ],
        line_up,
    )
    offered = [[4, 1], [1, 3, 4], [0, 3], [3]]
    assert [one.candidates for one in asked] == offered
    for [decision], actions in zip(deciding.decide(line_up, asked).slates, offered, strict=True):
        assert decision.candidates == actions and decision.action in actions
        assert deciding.replay(policy, [decision]) == ([decision.action], [decision.propensity])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": ["x", "y"]}, r"instances\[0\]\.candidates: must include an item of the catalogue, got 'x'"),
        ({"candidates": ["101", 1]}, r"instances\[0\]\.candidates: must differ, got one twice"),
        ({"candidates": ["101", 5]}, r"instances\[0\]\.candidates: must be below 5, got 5"),
        ({"candidates": [1], "exclude": ["101"]}, r"instances\[0\]\.exclude: must leave something on offer, got 1"),
        ({"exclude": [0, 1, 2, 3, 4]}, r"instances\[0\]\.exclude: must leave something on offer, got 5 exclusions"),
    ],
)
def test_items_that_leave_no_choice_are_refused(tmp_path, fields, message):
    write_policy(tmp_path / "v")
    policy = policy_files.load(tmp_path / "v")
    with pytest.raises(InputError, match=message):
        deciding.check([Instance([0.5, -1.0, 0.2], **fields)], LineUp(policy, policy_files.baseline(policy.card)))


SPEC = FeatureSpec(features=[Number(name="hour", scale=24), Category(name="device", values=["phone"], unseen="refuse")])


def line_up_with_features(folder: Path) -> LineUp:
    card = write_policy(folder / "v")
    policy = policy_files.load(folder / "v")
    policy = Policy(msgspec.structs.replace(card, features=SPEC), policy.scorer)
    return LineUp(policy, policy_files.baseline(policy.card))


def test_named_features_are_encoded_and_the_observation_is_logged(tmp_path):
    line_up = line_up_with_features(tmp_path)
    asked = [Instance(context={"hour": 6, "device": "phone"}, candidates=[1, 2]), Instance([1.0, 0.5, 1.0])]
    checked = deciding.check(asked, line_up)
    assert [instance.observation for instance in checked] == [[1.0, 0.25, 1.0], [1.0, 0.5, 1.0]]
    for (decision,) in deciding.decide(line_up, checked).slates:
        assert event_decoder.decode(encoder.encode(decision)) == decision
    encoded = b"".join(encoder.encode(slate[0]) for slate in deciding.decide(line_up, checked).slates)
    assert len(encoded) < deciding.logged_bytes(asked, 1, line_up)


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (Instance(context={"hour": 6, "device": "tv"}), "instances[1].context.device: one of phone expected, got 'tv'"),
        (Instance([1.0, 2.0, 3.0], context={}), "instances[1]: either observation or context expected, got both"),
        (Instance(), "instances[1].observation: must have 3 numbers, got 0"),
    ],
)
def test_wrong_contexts(tmp_path, instance, message):
    right = Instance(context={"hour": 6, "device": "phone"})
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        deciding.check([right, instance], line_up_with_features(tmp_path))


def test_a_policy_without_a_spec_takes_no_context(store):
    policy = policy_files.load(store / "v1")
    with pytest.raises(
        InputError, match=r"^instances\[0\].context: v1 has no feature spec; an observation expected, got"
    ):
        deciding.check([Instance(context={"hour": 6})], LineUp(policy, policy_files.baseline(policy.card)))


def test_observations_of_another_length_are_taken_only_while_a_context_may_change(tmp_path):
    write_policy(tmp_path / "v")
    policy = policy_files.load(tmp_path / "v")
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    sent = [[0.5, -1.0, 0.2], [0.5, -1.0], [0.5, -1.0, 0.2, 9.0, 9.0]]
    instances = [Instance(observation) for observation in sent]
    with pytest.raises(InputError, match=r"instances\[1\]\.observation: must have 3 numbers, got 2"):
        deciding.check(instances, line_up)
    decided = deciding.decide(line_up, deciding.check(instances, line_up, any_length=True))
    decisions = [decision for [decision] in decided.slates]
    assert [decision.observation for decision in decisions] == sent  # the log has what was sent
    padded = [[0.5, -1.0, 0.2], [0.5, -1.0, 0.0], [0.5, -1.0, 0.2]]
    chance = policy.probabilities(np.array(padded, np.float32))[range(3), [one.action for one in decisions]]
    assert [decision.propensity for decision in decisions] == chance.tolist()
    assert deciding.replay(policy, decisions) == ([d.action for d in decisions], [d.propensity for d in decisions])


@pytest.mark.parametrize("slate_size", [1, 2])
def test_withdrawn_items_are_not_shown_and_the_log_lists_what_was_on_offer(tmp_path, slate_size):
    write_policy(tmp_path / "v", seed=3)  # its items are "100" to "104"
    policy = policy_files.load(tmp_path / "v")
    withdrawn = frozenset({"100", "103", "another policy's"})
    line_up = LineUp(policy, policy_files.baseline(policy.card), withdrawn=withdrawn)
    assert line_up.withheld == {0, 3}
    asked = [Instance(one.observation, None, [] if i % 2 else [4, 0, 2]) for i, one in enumerate(instances(400))]
    decided = deciding.decide(line_up, deciding.check(asked, line_up, slate_size), slate_size)
    for i, slate in enumerate(decided.slates):
        assert slate[0].candidates == ([1, 2, 4] if i % 2 else [4, 2])
        for decision in slate:
            assert decision.action not in line_up.withheld
            assert deciding.replay(policy, [decision]) == ([decision.action], [decision.propensity])
    written = len(encoder.encode_lines([decision for slate in decided.slates for decision in slate]))
    assert written <= deciding.logged_bytes(asked, slate_size, line_up)
    with pytest.raises(
        InputError, match=r"instances\[0\]\.candidates: must include an item that is on offer, got none"
    ):
        deciding.check([Instance([0.1, 0.2, 0.3], None, ["103"])], line_up)
    with pytest.raises(InputError, match="slate_size: must be at most the 3 arms"):
        deciding.check([Instance([0.1, 0.2, 0.3])], line_up, 4)
