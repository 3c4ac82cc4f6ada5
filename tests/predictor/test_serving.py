import asyncio
import collections
import dataclasses
import re
import threading
import time
import uuid

import msgspec
import numpy as np
import pytest

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Exploration
from contracts.records import FLOAT32_MAX, Decision, encoder, event_decoder
from predictor import policy as policy_files
from predictor import serving
from predictor.exploration import STRATEGIES
from predictor.messages import Instance
from predictor.serving import Champion, LineUp
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


def decide(policy, instances):
    """One decision an instance, by `policy` alone."""
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    serving.check(instances, line_up)
    decided = serving.decide(line_up, instances)
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
        assert serving.replay(policy, [decision]) == ([decision.action], [decision.propensity])
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


def test_champion_follows_the_pointer_and_keeps_the_old_one_when_the_next_is_broken(store):
    champion = Champion(store)
    assert champion.line_up is None
    champion.refresh()
    assert champion.line_up.serving.card.version == "v1"
    point_at(store, "v2")
    champion.refresh()
    assert (champion.line_up.serving.card.version, champion.swaps) == ("v2", 1)
    first = champion.line_up.serving
    champion.refresh()
    assert champion.line_up.serving is first  # not loaded again
    point_at(store, "v3")
    with pytest.raises(InputError, match=r"v3/policy.json: cannot be read"):
        champion.refresh()
    assert champion.line_up.serving is first


def test_champion_must_be_what_the_pointer_says(store):
    write_policy(store / "v3", version="v4")
    point_at(store, "v3")
    with pytest.raises(InputError, match=r"v3/policy.json: must be of version v3, got v4$"):
        Champion(store).refresh()


def test_neither_policy_nor_store(tmp_path):
    with pytest.raises(
        InputError, match=r"^policy: .* is neither a policy \(it has no policy.json\) nor a policy store"
    ):
        Champion(tmp_path)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_extreme_observations_still_get_a_decision(tmp_path, strategy):
    write_policy(tmp_path / "v", exploration=Exploration(strategy=strategy))
    extremes = [[FLOAT32_MAX] * 3, [-FLOAT32_MAX] * 3, [0.0] * 3, [1e-45, 0.0, -1e-45], [FLOAT32_MAX, 0.0, -1e-45]]
    for decision in decide(policy_files.load(tmp_path / "v"), [Instance(extreme) for extreme in extremes]):
        assert event_decoder.decode(encoder.encode(decision)) == decision


def test_swaps_while_deciding_never_mix_versions(store):
    """Each policy would give its own propensity; a mixture would show."""
    for version, epsilon in (("v1", 0.1), ("v2", 0.2)):
        folder = store / version
        card = policies.decode_card((folder / policies.CARD_NAME).read_bytes(), version)
        card = msgspec.structs.replace(card, exploration=Exploration(strategy="epsilon_greedy", epsilon=epsilon))
        (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    champion = Champion(store)
    champion.refresh()
    stop, decisions = threading.Event(), []

    def keep_deciding():
        while not stop.is_set():
            decisions.extend(decide(champion.line_up.serving, [Instance([1.0, 2.0, 3.0])] * 4))

    caller = threading.Thread(target=keep_deciding)
    caller.start()
    for i in range(200):
        point_at(store, f"v{1 + (i + 1) % 2}")
        champion.refresh()
    stop.set()
    caller.join()
    assert champion.swaps == 200
    assert {decision.policy_version for decision in decisions} == {"v1", "v2"}
    allowed = {"v1": {0.92, 0.02}, "v2": {0.84, 0.04}}
    for decision in decisions:
        assert round(decision.propensity, 12) in allowed[decision.policy_version]


def test_following_reports_a_failure_and_recovers(store):
    champion = Champion(store)
    champion.refresh()

    async def scenario():
        following = asyncio.create_task(champion.follow(0.01))
        point_at(store, "v3")
        while champion.load_error is None:
            await asyncio.sleep(0.01)
        assert champion.line_up.serving.card.version == "v1"
        assert "v3" in champion.load_error
        write_policy(store / "v3", seed=3)
        while champion.line_up.serving.card.version != "v3":
            await asyncio.sleep(0.01)
        assert champion.load_error is None
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_candidate_takes_its_share_and_the_id_tells_which(store):
    point_at(store, "v1", candidate="v2", candidate_share=0.3)
    champion = Champion(store)
    champion.refresh()
    decided = serving.decide(champion.line_up, instances(4000))
    decisions = [decision for (decision,) in decided.slates]
    by_version = {"v1": champion.line_up.serving, "v2": champion.line_up.candidate}
    share = sum(decision.policy_version == "v2" for decision in decisions) / 4000
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    ids = [decision.decision_id for decision in decisions]
    taken = [decision.policy_version == "v2" for decision in decisions]
    assert taken == serving.takes_candidate(ids, champion.line_up).tolist()
    for decision, instance in zip(decisions, instances(4000), strict=True):
        assert decision.observation == instance.observation
        policy = by_version[decision.policy_version]
        assert serving.replay(policy, [decision]) == ([decision.action], [decision.propensity])


def test_rollback_is_one_pointer_and_loads_nothing(store):
    point_at(store, "v2", candidate="v1", candidate_share=1.0)
    champion = Champion(store)
    champion.refresh()
    first = champion.line_up
    assert {decision.policy_version for (decision,) in serving.decide(first, instances(50)).slates} == {"v1"}
    point_at(store, "v2")
    champion.refresh()
    assert (champion.line_up.serving, champion.line_up.candidate) == (first.serving, None)
    assert champion.line_up.serving is first.serving


def test_shadow_is_scored_and_logged_and_never_served(store):
    point_at(store, "v1", candidate="v2", mode="shadow")
    champion = Champion(store)
    champion.refresh()
    decided = serving.decide(champion.line_up, instances(100))
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
        assert msgspec.json.decode(encoder.encode(shadow), type=serving.ShadowDecision) == shadow


def test_apprentice_is_shadowed_by_the_baseline(store):
    point_at(store, "v1", mode="apprentice")
    champion = Champion(store)
    champion.refresh()
    decided = serving.decide(champion.line_up, instances(30))
    assert {decision.policy_version for (decision,) in decided.slates} == {"uniform"}
    assert {shadow.policy_version for shadow in decided.shadows} == {"v1"}


def test_candidate_of_another_shape_is_not_served(store):
    write_policy(store / "v3", num_actions=6)
    champion = Champion(store)
    champion.refresh()
    point_at(store, "v1", candidate="v3", candidate_share=0.5)
    with pytest.raises(InputError, match=r"^v3: num_actions must be 5 as in v1, got 6$"):
        champion.refresh()
    assert champion.line_up.candidate is None


def test_a_policy_that_returns_nonsense_leaves_the_decision_to_the_baseline(store, caplog):
    policy = policy_files.load(store / "v1")

    def nonsense(observations):
        mean, std = policy.scorer(observations)
        mean[:, 2] = np.nan
        return mean, std

    broken = dataclasses.replace(policy, scorer=nonsense)
    decided = serving.decide(LineUp(broken, policy_files.baseline(policy.card), shadow=broken), instances(20))
    assert decided.failures == ["v1: scores must be finite"] * 2
    assert decided.shadows == []
    assert "the baseline does" in caplog.text
    for (decision,), instance in zip(decided.slates, instances(20), strict=True):
        assert decision.policy_version == "uniform"
        assert decision.propensity == pytest.approx(1 / (len(instance.candidates) or 5))


def test_a_store_starts_with_the_version_before_when_the_champion_is_broken(store, caplog):
    write_policy(store / "v3")
    (store / "v3" / policies.LINEAR_NAME).unlink()
    point_at(store, "v3", previous="v2")
    champion = Champion(store)
    champion.start()
    assert champion.line_up.serving.card.version == "v2"
    assert champion.load_error.endswith("v3/linear.npz: is missing")
    assert "v2 serves instead of the champion" in caplog.text


def test_a_store_starts_with_the_baseline_when_nothing_loads(store):
    write_policy(store / "v3", num_actions=4)
    (store / "v3" / policies.LINEAR_NAME).unlink()
    point_at(store, "v3", previous="v0")
    champion = Champion(store)
    champion.start()
    assert champion.line_up.serving.card.version == "uniform"
    assert champion.line_up.serving.card.num_actions == 4
    write_policy(store / "v4")
    point_at(store, "v4")
    champion.refresh()
    assert (champion.line_up.serving.card.version, champion.load_error) == ("v4", None)


def test_a_store_without_any_card_does_not_start(store):
    point_at(store, "v9", previous="v8")
    with pytest.raises(InputError, match=r"v9/policy.json: cannot be read"):
        Champion(store).start()


def test_a_declared_baseline(store):
    champion = Champion(store, baseline=store / "v2")
    point_at(store, "v1", mode="apprentice")
    champion.start()
    assert champion.line_up.serving.card.version == "v2"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slates(tmp_path, strategy):
    write_policy(tmp_path / "v", exploration=Exploration(strategy=strategy, epsilon=0.5))
    policy = policy_files.load(tmp_path / "v")
    asked = instances(60)
    decided = serving.decide(LineUp(policy, policy_files.baseline(policy.card)), asked, slate_size=3)
    identities = {decision.decision_id for slate in decided.slates for decision in slate}
    assert len(identities) == 180
    for slate, instance in zip(decided.slates, asked, strict=True):
        left = list(instance.candidates) or list(range(5))
        assert slate[0].candidates == instance.candidates
        for place, decision in enumerate(slate):
            if place:
                assert decision.candidates == left
            left.remove(decision.action)
        assert serving.replay(policy, slate) == ([d.action for d in slate], [d.propensity for d in slate])


def test_slates_come_up_as_often_as_they_say(tmp_path):
    """The propensity of the whole slate, against 20,000 of them."""
    write_policy(tmp_path / "v", exploration=Exploration(strategy="softmax"), num_actions=4)
    policy = policy_files.load(tmp_path / "v")
    n = 20_000
    line_up = LineUp(policy, policy_files.baseline(policy.card))
    decided = serving.decide(line_up, [Instance([0.5, -1.0, 0.2])] * n, slate_size=2)
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
        serving.check(instances(2), LineUp(policy, policy_files.baseline(policy.card)), slate_size=4)


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
        decided = serving.decide(line_up, [Instance(observation), Instance(observation, None, [0, 1, 3, 4])], 2)
        assert {decision.action for decision in decided.slates[0]} <= {1, 2, 4}
        assert {decision.action for decision in decided.slates[1]} == {1, 4}
    with pytest.raises(
        InputError, match=r"^instances\[0\].candidates: must have one of a movie that is on offer, got none$"
    ):
        serving.check([Instance(observation, None, [0, 3])], line_up)
    with pytest.raises(
        InputError, match=r"^parameters.slate_size: must be at most the 3 arms of instances\[0\], got 4$"
    ):
        serving.check([Instance(observation)], line_up, 4)
