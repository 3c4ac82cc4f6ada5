import os
import pathlib
import tracemalloc
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from contracts import live_versions
from contracts.errors import InputError
from contracts.live_versions import CONTROL_NAME, VERSIONS_NAME, Control, LiveVersion
from contracts.policies import LINEAR_NAME, Exploration, PolicyCard
from contracts.policy_arrays import ArmChanges, PolicyArrays, Scorer
from predictor import live, storage
from predictor import policy as policy_files
from predictor.follower import PolicyFollower
from predictor.live import LiveServing, LiveVersions
from predictor.policy import Policy
from tests.linear_policies import point_at, write_policy

K, D = 5, 3
OBSERVATIONS = np.random.default_rng(5).normal(size=(9, D)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    for seed, version in enumerate(("v1", "v2")):
        write_policy(tmp_path / "policies" / version, seed=seed)
    point_at(tmp_path / "policies", "v1")
    (tmp_path / "live" / VERSIONS_NAME).mkdir(parents=True)
    return tmp_path / "policies"


@pytest.fixture
def folder(store, tmp_path):
    return tmp_path / "live"


def changes(seed, arms):
    random = np.random.default_rng(seed)
    covariance = np.abs(random.normal(size=(len(arms), D * (D + 1) // 2))) + 0.1
    return ArmChanges(
        np.array(arms, np.int32),
        random.normal(size=(len(arms), D)).astype(np.float32),
        np.full(len(arms), seed, np.float32),
        np.array(arms, np.int32),
        covariance.astype(np.float32),
    )


def publish(folder, sequence, kind, changed, base="v1", age_seconds=0.0, num_actions=K):
    at = datetime.now(UTC) - timedelta(seconds=age_seconds)
    live_versions.publish(
        folder / VERSIONS_NAME,
        LiveVersion(
            kind=kind,
            base=base,
            sequence=sequence,
            published_at=at,
            complete_until=at,
            sums_digest="",
            interactions=1,
            num_actions=num_actions,
            width=D,
            changes=changed,
        ),
    )


def following(folder, store, **settings):
    settings = {"max_live_loss": 1.0} | settings  # the coefficients are random
    follower = PolicyFollower(store, live=LiveVersions(storage.place(folder), LiveServing(**settings)))
    follower.live.observe(OBSERVATIONS.tolist())
    follower.start()
    return follower


def serves(follower):
    follower.refresh()
    return (follower.line_up.live or follower.line_up.serving).card.version


def test_deltas_and_snapshots_give_the_same_scores_and_replay_bit_for_bit(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0, 2]))
    in_step = following(folder, store)
    assert in_step.line_up.live.card.version == "v1+1"
    publish(folder, 2, "delta", changes(2, [2, 4]))
    publish(folder, 3, "delta", changes(3, [1]))
    assert serves(in_step) == "v1+3"
    merged = ArmChanges(*(np.concatenate(parts) for parts in zip(changes(1, [0, 2]), changes(3, [1]), strict=True)))
    kept = [0, 2, 1]
    assert merged.arms.tolist() == kept
    whole = [changes(1, [0, 2]), changes(2, [2, 4]), changes(3, [1])]
    rows = {arm: (part, row) for part in whole for row, arm in enumerate(part.arms.tolist())}
    snapshot = ArmChanges(
        np.array(sorted(rows), np.int32),
        *(np.stack([rows[arm][0][column][rows[arm][1]] for arm in sorted(rows)]) for column in (1, 2)),
        np.array(sorted(rows), np.int32),
        np.stack([rows[arm][0][4][rows[arm][1]] for arm in sorted(rows)]),
    )
    replayed, num_samples = live.load(store, folder, "v1+3")
    publish(folder, 3, "snapshot", snapshot)
    late = following(folder, store)
    again, _ = live.load(store, folder, "v1+3")
    assert num_samples.tolist() == [1, 3, 2, 7, 2]
    wanted = in_step.line_up.live.scores(OBSERVATIONS)
    for policy in (late.line_up.live, replayed, again):
        assert policy.card.version == "v1+3"
        for one, other in zip(policy.scores(OBSERVATIONS), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    base = policy_files.load(store / "v1").scores(OBSERVATIONS)[0]
    assert not np.array_equal(base, wanted[0])
    np.testing.assert_array_equal(in_step.line_up.serving.scores(OBSERVATIONS)[0], base)  # the base is as it was


def test_after_a_gap_the_next_snapshot_goes_on(folder, store, monkeypatch):
    monkeypatch.setattr(live, "_LOOK_SECONDS", 0.0)
    publish(folder, 1, "snapshot", changes(1, [0]))
    follower = following(folder, store)
    publish(folder, 3, "delta", changes(3, [1]))
    assert serves(follower) == "v1+1"
    publish(folder, 4, "snapshot", changes(4, [1]))
    publish(folder, 5, "delta", changes(5, [1]))
    assert serves(follower) == "v1+4"
    assert serves(follower) == "v1+5"
    assert live.load(store, folder, "v1+3") is None  # its delta does not follow a version that is there


def test_the_base_serves_without_a_version_of_its_own(folder, store):
    follower = following(folder, store)
    assert serves(follower) == "v1"
    publish(folder, 1, "snapshot", changes(1, [0]), base="v2")
    assert serves(follower) == "v1"
    point_at(store, "v2")
    assert serves(follower) == "v2+1"
    assert (follower.swaps, follower.line_up.serving.card.version) == (1, "v2")
    point_at(store, "v1")
    assert serves(follower) == "v1"
    publish(folder, 2, "snapshot", changes(1, [0]))
    assert serves(follower) == "v1+2"


def test_the_base_serves_when_versions_are_old(folder, store, monkeypatch):
    publish(folder, 1, "snapshot", changes(1, [0]), age_seconds=11)
    follower = following(folder, store, live_age_seconds=10)
    assert serves(follower) == "v1"  # the server started long after it was published
    assert follower.live.status().error.startswith("no live version for 11 s")
    publish(folder, 2, "delta", changes(2, [0]))
    assert serves(follower) == "v1+2"
    now = live.time.monotonic()
    monkeypatch.setattr(live.time, "monotonic", lambda: now + 10.5)
    assert serves(follower) == "v1"


def test_a_broken_file_leaves_the_base_until_the_next_snapshot(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0]))
    follower = following(folder, store)
    (folder / VERSIONS_NAME / live_versions.file_name(2, "delta")).write_bytes(b"torn")
    assert serves(follower) == "v1"
    assert "000000000002.delta: not a live version" in follower.live.status().error
    publish(folder, 3, "snapshot", changes(3, [0]))
    assert serves(follower) == "v1+3"
    assert follower.live.status().error is None
    publish(folder, 4, "delta", changes(3, [0]), num_actions=K + 1)
    assert serves(follower) == "v1"
    assert "must have the shape (5, 3) of v1, got (6, 3)" in follower.live.status().error


def test_what_is_held_does_not_serve_nor_what_was_published_before_a_release(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0]))
    follower = following(folder, store)
    assert serves(follower) == "v1+1"
    control = folder / CONTROL_NAME
    control.write_bytes(msgspec.json.encode(Control(held=True, reason="flipped", changed_at=datetime.now(UTC))))
    assert serves(follower) == "v1"
    assert follower.live.status().error == "held: flipped"
    control.write_bytes(msgspec.json.encode(Control(changed_at=datetime.now(UTC))))
    assert serves(follower) == "v1"
    assert follower.live.status().error.startswith("no version since the release: ")
    publish(folder, 2, "snapshot", changes(2, [0]))
    assert serves(follower) == "v1+2"
    assert follower.live.status().error is None


def test_the_base_keeps_its_share_and_an_anchor_takes_its_place(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0]))
    follower = following(folder, store, base_share=0.25)
    assert follower.line_up.deciding == {"live": ("v1", 0.75), "base": ("v1", 0.25)}
    ids = [f"01a20375-ec4c-7{n:03x}-8{n:03x}-{n * 7919:012x}" for n in range(400)]
    by_version = {policy.card.version: len(rows) for policy, rows in follower.line_up.shares(ids)}
    assert set(by_version) == {"v1", "v1+1"}
    assert sum(by_version.values()) == 400
    point_at(store, "v1", mode="probation", anchor="v2", anchor_share=0.1)
    follower.refresh()
    assert follower.line_up.deciding == {"live": ("v1", 0.9), "anchor": ("v2", 0.1)}


def test_after_an_alarm_the_anchor_decides_alone_until_the_release(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0]))
    point_at(store, "v1", mode="probation", anchor="v2", anchor_share=0.1)
    follower = following(folder, store)
    control = folder / CONTROL_NAME
    alarm = Control(held=True, reason="flipped", anchor_alone=True, changed_at=datetime.now(UTC))
    control.write_bytes(msgspec.json.encode(alarm))
    follower.refresh()
    assert follower.line_up.deciding == {"serving": ("v1", 0.0), "anchor": ("v2", 1.0)}
    [(policy, rows)] = follower.line_up.shares([f"01a20375-ec4c-7{n:03x}-8{n:03x}-{n * 7919:012x}" for n in range(100)])
    assert (policy.card.version, len(rows)) == ("v2", 100)
    control.write_bytes(msgspec.json.encode(msgspec.structs.replace(alarm, held=False, anchor_alone=False)))
    follower.refresh()
    assert follower.line_up.deciding["anchor"] == ("v2", 0.1)
    control.write_bytes(msgspec.json.encode(alarm))
    point_at(store, "v1")  # it is confirmed: there is no anchor beside it
    follower.refresh()
    assert follower.line_up.deciding == {"serving": ("v1", 1.0)}


def test_a_policy_without_arrays_serves_as_it_is(folder, store):
    versions = LiveVersions(storage.place(folder), LiveServing())
    baseline = policy_files.baseline(policy_files.read_card(store / "v1"))
    assert versions.refresh(baseline, baseline) is None
    assert "no arrays" in versions.status().error


def sure(policy_folder, theta):
    """Rewrites the policy with these coefficients, of which it is sure."""
    covariance = np.tile(1e-6 * np.eye(D, dtype=np.float32), (K, 1, 1))
    np.savez(policy_folder / LINEAR_NAME, theta=theta, covariance=covariance, num_samples=np.ones(K, np.float32))


def replacing(theta):
    """The changes that give all arms these coefficients."""
    every = np.arange(K, dtype=np.int32)
    return ArmChanges(every, theta, np.ones(K, np.float32), every, np.ones((K, D * (D + 1) // 2), np.float32))


def test_a_version_that_its_base_expects_to_be_much_worse_never_serves(folder, store):
    theta = np.random.default_rng(9).normal(size=(K, D)).astype(np.float32)
    sure(store / "v1", theta)
    publish(folder, 1, "snapshot", replacing(-theta))  # as if every reward had been flipped
    follower = following(folder, store, max_live_loss=0.15)
    assert serves(follower) == "v1"
    status = follower.live.status()
    assert (status.refused, status.version) == (1, None)
    assert status.error.startswith("refused: v1 expects a loss of 1.00 of the range of rewards, above 0.15")
    publish(folder, 2, "delta", replacing(theta * np.float32(0.9)))  # a sound one follows
    assert serves(follower) == "v1+2"
    status = follower.live.status()
    assert (status.refused, status.expected_loss) == (1, 0.0)


def test_an_anchor_judges_where_there_is_one(folder, store):
    theta = np.random.default_rng(9).normal(size=(K, D)).astype(np.float32)
    sure(store / "v1", theta)
    sure(store / "v2", -theta)
    publish(folder, 1, "snapshot", replacing(-theta))
    point_at(store, "v1", mode="probation", anchor="v2", anchor_share=0.1)
    follower = following(folder, store, max_live_loss=0.15)
    assert serves(follower) == "v1+1"


def test_a_model_that_is_unsure_refuses_nothing():
    def policy(theta, variance):
        arrays = PolicyArrays.linear(theta, np.tile(variance * np.eye(D), (K, 1, 1)), np.ones(K))
        return Policy(card, Scorer(arrays))

    card = PolicyCard(
        version="v",
        parent=None,
        algorithm="lin_ucb",
        hyperparameters={},
        observation_dim=D,
        num_actions=K,
        catalogue=[],
        trained_on=[],
        exploration=Exploration(),
    )
    theta = np.random.default_rng(9).normal(size=(K, D))
    worse = policy(-theta, 0.01)
    assert live.expected_loss(worse, policy(theta, 1e-6), OBSERVATIONS) == pytest.approx(1.0, abs=0.01)
    assert live.expected_loss(worse, policy(theta, 100.0), OBSERVATIONS) == 0.0
    assert live.expected_loss(worse, policy(0 * theta, 1e-6), OBSERVATIONS) == 0.0


def test_the_base_serves_until_there_is_something_to_judge_on(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0]))
    follower = PolicyFollower(store, live=LiveVersions(storage.place(folder), LiveServing(max_live_loss=1.0)))
    assert serves(follower) == "v1"
    assert follower.live.status().error == "too few observations to judge a version on: 0 of 8"
    follower.live.observe(OBSERVATIONS.tolist())
    assert serves(follower) == "v1+1"


def test_what_cannot_be_replayed(folder, store):
    assert live.load(store, folder, "v1") is None
    assert live.load(store, folder, "v1+1") is None
    assert live.load(store, folder, "gone+1") is None
    assert live.load(store, folder / "none", "v1+1") is None
    publish(folder, 1, "snapshot", changes(1, [0]), base="v2")
    assert live.load(store, folder, "v1+1") is None
    (folder / VERSIONS_NAME / live_versions.file_name(1, "snapshot")).write_bytes(b"torn")
    with pytest.raises(InputError, match="not a live version"):
        live.load(store, folder, "v1+1")


def test_ten_thousand_versions_leave_memory_flat(folder, store):
    publish(folder, 1, "snapshot", changes(1, [0]))
    follower = following(folder, store)
    versions = folder / VERSIONS_NAME
    publish(folder, 2, "delta", changes(2, [1]))
    template = live_versions.read(versions / live_versions.file_name(2, "delta"))

    def apply(begin, end):
        for sequence in range(begin, end):
            path = versions / live_versions.file_name(sequence, "delta")
            path.write_bytes(live_versions.encode(msgspec.structs.replace(template, sequence=sequence)))
            follower.refresh()
            os.unlink(path)  # noqa: PTH108 - the cheaper call, ten thousand times

    def traced():
        # pathlib interns names in the interpreter's one table, which is made anew now and then, and does not grow.
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
        return sum(trace.size for trace in kept.traces)

    apply(2, 1000)
    tracemalloc.start()
    apply(1000, 1500)
    before = traced()
    apply(1500, 10_001)
    after = traced()
    tracemalloc.stop()
    assert follower.line_up.live.card.version == "v1+10000"
    assert follower.live.status().applied == 10_000
    assert after - before < 50_000, f"{after - before} bytes"
    assert follower.swaps == 0
