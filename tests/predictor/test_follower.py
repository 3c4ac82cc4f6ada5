import asyncio
import threading

import msgspec
import numpy as np
import pytest

from contracts import policies
from contracts.errors import InputError, OperationError
from contracts.policies import Exploration
from predictor import deciding, storage
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


def checked_and_decided(line_up, instances):
    return deciding.decide(line_up, deciding.check(instances, line_up))


def decide(policy, instances):
    """One decision per instance, by `policy` alone."""
    decided = checked_and_decided(LineUp(policy, policy_files.baseline(policy.card)), instances)
    return [decision for (decision,) in decided.slates]


def test_champion_follows_the_pointer_and_keeps_the_old_one_when_the_next_is_broken(store):
    follower = PolicyFollower(store)
    assert follower.line_up is None
    follower.refresh()
    assert follower.line_up.serving.card.version == "v1"
    point_at(store, "v2")
    follower.refresh()
    assert (follower.line_up.serving.card.version, follower.swaps) == ("v2", 1)
    first = follower.line_up.serving
    follower.refresh()
    assert follower.line_up.serving is first  # not loaded again
    point_at(store, "v3")
    with pytest.raises(InputError, match=r"v3/policy.json: cannot be read"):
        follower.refresh()
    assert follower.line_up.serving is first


def test_champion_must_be_what_the_pointer_says(store):
    write_policy(store / "v3", version="v4")
    point_at(store, "v3")
    with pytest.raises(InputError, match=r"v3/policy.json: must be of version v3, got v4$"):
        PolicyFollower(store).refresh()


def test_neither_policy_nor_store(tmp_path):
    with pytest.raises(
        InputError, match=r"^policy: .* is neither a policy \(it has no policy.json\) nor a policy store"
    ):
        PolicyFollower(tmp_path)


def test_swaps_while_deciding_never_mix_versions(store):
    """Each policy would give its own propensity; a mixture would show."""
    for version, epsilon in (("v1", 0.1), ("v2", 0.2)):
        folder = store / version
        card = policies.decode_card((folder / policies.CARD_NAME).read_bytes(), version)
        card = msgspec.structs.replace(card, exploration=Exploration(strategy="epsilon_greedy", epsilon=epsilon))
        (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    follower = PolicyFollower(store)
    follower.refresh()
    stop, decisions = threading.Event(), []

    def keep_deciding():
        while not stop.is_set():
            decisions.extend(decide(follower.line_up.serving, [Instance([1.0, 2.0, 3.0])] * 4))

    caller = threading.Thread(target=keep_deciding)
    caller.start()
    for i in range(200):
        point_at(store, f"v{1 + (i + 1) % 2}")
        follower.refresh()
    stop.set()
    caller.join()
    assert follower.swaps == 200
    assert {decision.policy_version for decision in decisions} == {"v1", "v2"}
    allowed = {"v1": {0.92, 0.02}, "v2": {0.84, 0.04}}
    for decision in decisions:
        assert round(decision.propensity, 12) in allowed[decision.policy_version]


def test_following_reports_a_failure_and_recovers(store):
    follower = PolicyFollower(store)
    follower.refresh()

    async def scenario():
        following = asyncio.create_task(follower.follow(0.01))
        point_at(store, "v3")
        while follower.load_error is None:
            await asyncio.sleep(0.01)
        assert follower.line_up.serving.card.version == "v1"
        assert "v3" in follower.load_error
        write_policy(store / "v3", seed=3)
        while follower.line_up.serving.card.version != "v3":
            await asyncio.sleep(0.01)
        assert follower.load_error is None
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_rollback_is_one_pointer_and_loads_nothing(store):
    point_at(store, "v2", candidate="v1", candidate_share=1.0)
    follower = PolicyFollower(store)
    follower.refresh()
    first = follower.line_up
    assert {decision.policy_version for (decision,) in checked_and_decided(first, instances(50)).slates} == {"v1"}
    point_at(store, "v2")
    follower.refresh()
    assert (follower.line_up.serving, follower.line_up.candidate) == (first.serving, None)
    assert follower.line_up.serving is first.serving


def test_apprentice_is_shadowed_by_the_baseline(store):
    point_at(store, "v1", mode="apprentice")
    follower = PolicyFollower(store)
    follower.refresh()
    decided = checked_and_decided(follower.line_up, instances(30))
    assert {decision.policy_version for (decision,) in decided.slates} == {"uniform"}
    assert {shadow.policy_version for shadow in decided.shadows} == {"v1"}


def test_candidate_of_another_shape_is_not_served(store):
    write_policy(store / "v3", observation_dim=4)
    follower = PolicyFollower(store)
    follower.refresh()
    point_at(store, "v1", candidate="v3", candidate_share=0.5)
    with pytest.raises(InputError, match=r"^v3: observation_dim must be 3 as in v1, got 4$"):
        follower.refresh()
    assert follower.line_up.candidate is None


def test_a_store_starts_with_the_version_before_when_the_champion_is_broken(store, caplog):
    write_policy(store / "v3")
    (store / "v3" / policies.LINEAR_NAME).unlink()
    point_at(store, "v3", previous="v2")
    follower = PolicyFollower(store)
    follower.start()
    assert follower.line_up.serving.card.version == "v2"
    assert follower.load_error.endswith("v3/linear.npz: is missing")
    assert "v2 serves instead of the champion" in caplog.text


def test_a_store_starts_with_the_baseline_when_nothing_loads(store):
    write_policy(store / "v3", num_actions=4)
    (store / "v3" / policies.LINEAR_NAME).unlink()
    point_at(store, "v3", previous="v0")
    follower = PolicyFollower(store)
    follower.start()
    assert follower.line_up.serving.card.version == "uniform"
    assert follower.line_up.serving.card.num_actions == 4
    write_policy(store / "v4")
    point_at(store, "v4")
    follower.refresh()
    assert (follower.line_up.serving.card.version, follower.load_error) == ("v4", None)


def test_a_store_without_any_card_does_not_start(store):
    point_at(store, "v9", previous="v8")
    with pytest.raises(InputError, match=r"v9/policy.json: cannot be read"):
        PolicyFollower(store).start()


def test_a_declared_baseline(store):
    follower = PolicyFollower(store, baseline=store / "v2")
    point_at(store, "v1", mode="apprentice")
    follower.start()
    assert follower.line_up.serving.card.version == "v2"


def test_an_unknown_mode_is_refused_and_changes_nothing(store):
    """The pointer's decoder refuses it already; a mode that is added there and not here must not become a canary."""
    follower = PolicyFollower(store)
    follower.refresh()
    pointer = policies.decode_champion((store / policies.CHAMPION_NAME).read_bytes(), "champion.json")
    with pytest.raises(
        InputError, match=r"^champion.mode: must be canary, shadow, apprentice or probation, got 'other'$"
    ):
        follower._assemble(msgspec.structs.replace(pointer, candidate="v2", mode="other"))


def on_probation(store, version="v2", anchor="v1", share=0.25):
    point_at(store, version, mode="probation", anchor=anchor, anchor_share=share)


def test_a_version_on_probation_serves_beside_its_anchor(store):
    on_probation(store)
    follower = PolicyFollower(store)
    follower.refresh()
    assert follower.line_up.deciding == {"serving": ("v2", 0.75), "anchor": ("v1", 0.25)}
    decisions = [decision for (decision,) in checked_and_decided(follower.line_up, instances(4000)).slates]
    by_anchor = follower.line_up.takes([decision.decision_id for decision in decisions])
    assert [decision.policy_version == "v1" for decision in decisions] == by_anchor.tolist()
    serving = follower.line_up.serving
    point_at(store, "v2")  # confirmed
    follower.refresh()
    assert follower.line_up.deciding == {"serving": ("v2", 1.0)}
    assert follower.line_up.serving is serving


@pytest.mark.parametrize(("broken", "alone"), [("v1", "v2"), ("v2", "v1")])
@pytest.mark.parametrize("started", [False, True])
def test_if_the_version_on_probation_or_its_anchor_does_not_load_the_other_serves(
    store, caplog, broken, alone, started
):
    array = store / broken / policies.LINEAR_NAME
    kept = array.read_bytes()
    array.write_bytes(b"")
    on_probation(store)
    follower = PolicyFollower(store)
    if started:
        follower.start()
        assert f"{alone} serves alone" in caplog.text
        assert f"{broken}/linear.npz" in follower.load_error
    for _ in range(2):
        with pytest.raises(InputError, match=f"{broken}/linear.npz"):
            follower.refresh()
        assert follower.line_up.deciding == {"serving": (alone, 1.0)}
        assert follower.swaps == 0  # it is tried again, and swapped to once
    array.write_bytes(kept)
    follower.refresh()
    assert follower.line_up.deciding == {"serving": ("v2", 0.75), "anchor": ("v1", 0.25)}
    assert follower.load_error is None


def test_an_anchor_of_another_shape_serves_alone(store):
    write_policy(store / "v3", observation_dim=4)
    on_probation(store, version="v3")
    follower = PolicyFollower(store)
    follower.start()
    assert follower.line_up.deciding == {"serving": ("v1", 1.0)}
    assert follower.load_error == "v3: observation_dim must be 3 as in v1, got 4"


def test_a_store_that_cannot_be_reached_keeps_the_line_up(store, monkeypatch):
    follower = PolicyFollower(store)
    follower.refresh()

    def away(self, name):
        raise OperationError("policy: cannot read the store")

    async def scenario():
        following = asyncio.create_task(follower.follow(0.01))
        while follower.load_error is None:
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    monkeypatch.setattr(storage.Disk, "read", away)
    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert follower.load_error == "policy: cannot read the store"
    assert follower.line_up.serving.card.version == "v1"
    with pytest.raises(OperationError, match=r"^policy: cannot read the store$"):
        PolicyFollower(store).start()


def test_withdrawn_items_are_followed_through_swaps(store, monkeypatch):
    monkeypatch.setattr("predictor.follower._WITHDRAWN_SECONDS", 0.0)
    follower = PolicyFollower(store)
    follower.refresh()
    assert follower.line_up.withheld == frozenset()
    (store / policies.WITHDRAWN_NAME).write_bytes(b'["101"]')
    follower.refresh()
    assert follower.line_up.withheld == {1} and follower.swaps == 0
    point_at(store, "v2")
    follower.refresh()
    assert (follower.line_up.serving.card.version, follower.line_up.withheld) == ("v2", {1})
    (store / policies.WITHDRAWN_NAME).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"withdrawn\.json: not a list of item ids"):
        follower.refresh()
    assert follower.line_up.withheld == {1}
    (store / policies.WITHDRAWN_NAME).unlink()
    follower.refresh()
    assert follower.line_up.withheld == frozenset()
