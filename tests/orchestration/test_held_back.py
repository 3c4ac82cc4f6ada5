from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from contracts import policies
from contracts.errors import InputError
from contracts.offers import Offers
from contracts.policies import PolicyCard, TrainedWindow
from contracts.trajectories import TrajectoryBatch
from contracts.windows import MANIFEST_NAME, encode_manifest
from orchestration import held_back
from predictor import policy as serving
from tests.linear_policies import write_policy
from tests.windows import consecutive_windows, write_window
from trainer import off_policy

WINDOW, NEXT = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 5, 2)
K, D = 5, 3
AS_THEY_ARE = np.arange(D)


def logged(actions: list[int], candidates: list[list[int]]) -> TrajectoryBatch:
    count = len(actions)
    return TrajectoryBatch(
        observation=np.arange(count * D, dtype=np.float32).reshape(count, D),
        action=np.array(actions, np.int32),
        reward=np.zeros(count, np.float32),
        propensity=np.full(count, 0.5, np.float32),
        defaulted=np.zeros(count, bool),
        candidates=Offers.of(candidates),
    )


def card_of(store: Path, version: str, masked: tuple[int, ...] = (), num_actions: int = K) -> PolicyCard:
    """A policy in the store, trained on the window, that does not offer some of its arms."""
    card = write_policy(store / version, num_actions=num_actions)
    catalogue = [
        msgspec.structs.replace(movie, status="masked" if movie.action in masked else "active")
        for movie in card.catalogue
    ]
    trained_on = [TrainedWindow(window=WINDOW, split="train", records=1)]
    card = msgspec.structs.replace(card, catalogue=catalogue, trained_on=trained_on)
    (store / version / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    return card


def write(windows: Path, batch: TrajectoryBatch, *versions: str) -> None:
    window = write_window(windows, WINDOW, logged([0], [[]]), batch)
    manifest = msgspec.structs.replace(window.manifest, policy_versions=dict.fromkeys(versions, 1))
    (window.folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))


def test_candidates_and_the_masks_of_the_versions_that_decided_say_what_was_on_offer(tmp_path: Path) -> None:
    card = card_of(tmp_path, "new")
    card_of(tmp_path, "one", masked=(4,))
    card_of(tmp_path, "other", masked=(1,), num_actions=4)
    write(tmp_path / "windows", logged([0, 3], [[], [1, 3, 2]]), "one", "other", "deleted")
    found = held_back.read(tmp_path, tmp_path / "windows", card)
    assert found.always_offered(K).tolist() == [True, False, True, True, False]
    on = found.judged_by([serving.load(tmp_path / "new")], K)
    assert on.offered.astype(int).tolist() == [[1, 0, 1, 1, 0], [0, 0, 1, 1, 0]]
    assert on.left_out == 0 and on.clusters is None
    assert found.judged_by([], 3).offered.astype(int).tolist() == [[1, 0, 1], [0, 0, 1]]


def test_the_baseline_offers_what_the_champion_offers(tmp_path: Path) -> None:
    card, champion = card_of(tmp_path, "new"), card_of(tmp_path, "champion", masked=(2,))
    write(tmp_path / "windows", logged([0], [[]]), serving.BASELINE_VERSION)
    assert held_back.read(tmp_path, tmp_path / "windows", card).always_offered(3).tolist() == [True] * 3
    found = held_back.read(tmp_path, tmp_path / "windows", card, champion)
    assert found.always_offered(3).tolist() == [True, True, False]


def test_decisions_in_which_a_policy_had_nothing_to_choose_from_are_left_out(tmp_path: Path) -> None:
    card_of(tmp_path, "new", masked=(1, 3))
    card_of(tmp_path, "old", masked=(0,))
    new, old = (serving.load(tmp_path / version) for version in ("new", "old"))
    slates = np.array([b"018f0000-0000-7000-8000-0123456789ab"] * 3)
    batch = logged([1, 2, 0], [[1, 3], [1, 2], [0]])._replace(slate_id=slates, place=np.arange(3, dtype=np.int32))
    write(tmp_path / "windows", batch)
    found = held_back.read(tmp_path, tmp_path / "windows", new.card)
    for judges, kept in (([new], [1, 2]), ([old], [0, 1]), ([new, old], [1])):
        on = found.judged_by(judges, K)
        assert on.left_out == 3 - len(kept)
        # Records of one batch are read grouped by their length.
        assert sorted(on.decisions.observation[:, 0].tolist()) == batch.observation[kept, 0].tolist()
        assert on.clusters is not None and len(set(on.clusters.tolist())) == 1


def test_the_window_must_be_there(tmp_path: Path) -> None:
    card = card_of(tmp_path, "new")
    write_window(tmp_path / "windows", NEXT, logged([0], [[]]))
    with pytest.raises(InputError, match="has no window that starts at 2026-01-01T00:00:00"):
        held_back.read(tmp_path, tmp_path / "windows", card)


def interactions(batch: TrajectoryBatch) -> pa.RecordBatch:
    """The rows of a batch, as the join has them."""
    return pa.RecordBatch.from_pydict(
        {
            "observation": [[float(value) for value in row] for row in batch.observation],
            "action": batch.action,
            "propensity": batch.propensity.astype(np.float64),
            "reward": batch.reward.astype(np.float64),
        }
    )


def test_viewers_are_those_of_the_rows_with_the_same_values() -> None:
    batch = logged([0, 1, 2, 3], [[]] * 4)
    more = logged([0, 1, 2, 3, 4], [[]] * 5)  # one of which was not exported
    shuffled = batch.take(np.array([2, 0, 3, 1]))  # records of one batch are read grouped by their length
    found = held_back.viewers(shuffled, interactions(more), ["ann", "bob", None, "ann", "ann"], AS_THEY_ARE)
    assert found is not None and found.tolist() == [-1, 0, 0, 1]
    late = batch._replace(reward=np.array([0, 0, 0, 1], np.float32))  # its reward came after the export
    assert held_back.viewers(late, interactions(batch), ["ann", "bob", None, "ann"], AS_THEY_ARE) is None
    assert held_back.viewers(batch, interactions(batch), ["a", "b", "c", "d"], AS_THEY_ARE) is None
    assert held_back.viewers(batch, interactions(batch), [None] * 4, AS_THEY_ARE) is None


def test_viewers_are_found_where_the_policy_takes_other_features_than_those_that_decided() -> None:
    """Decisions of three numbers, of which a policy takes the last, then one that they lack, then the first."""
    batch, places = logged([0, 1, 2], [[]] * 3), np.array([2, -1, 0])
    seen = batch._replace(observation=np.stack([batch.observation[:, 2], np.zeros(3), batch.observation[:, 0]], axis=1))
    found = held_back.viewers(seen, interactions(batch), ["ann", "bob", "ann"], places)
    assert found is not None and found.tolist() == [0, 1, 0]
    assert held_back.viewers(seen, interactions(batch), ["ann", "bob", "ann"], AS_THEY_ARE) is None


def test_of_decisions_with_the_same_values_the_first_is_the_first() -> None:
    batch = logged([1, 1, 1], [[]] * 3)._replace(observation=np.ones((3, D), np.float32))
    found = held_back.viewers(batch, interactions(batch), ["ann", "bob", "ann"], AS_THEY_ARE)
    assert found is not None and found.tolist() == [0, 1, 0]


def test_decisions_for_one_viewer_belong_together_as_those_of_a_slate_do(tmp_path: Path) -> None:
    write_policy(tmp_path / "new")
    policy = serving.load(tmp_path / "new")
    ids = [b"018f0000-0000-7000-8000-0123456789ab"] * 2 + [b"018f0000-0000-7000-8000-0123456789ac"] * 2 + [b""]
    slates = logged([0, 1, 2, 3, 4], [[]] * 5)._replace(
        slate_id=np.array(ids), place=np.array([0, 1, 0, 1, 0], np.int32)
    )
    viewed = np.array([0, 0, 0, 0, -1])
    of = held_back.HeldBack(slates, [], viewed).judged_by([policy], K).clusters
    assert of is not None and len(set(of[:4].tolist())) == 1 and of[4] not in of[:4]
    alone = slates._replace(slate_id=None, place=None)
    of = held_back.HeldBack(alone, [], np.array([0, -1, 1, 0, -1])).judged_by([policy], K).clusters
    assert of is not None and [int(one == of[0]) for one in of] == [1, 0, 0, 1, 0] and len(set(of.tolist())) == 4


def test_intervals_cover_where_viewers_come_again() -> None:
    """60 viewers, 20 decisions each; each has a mood of its own, which all of their rewards share."""
    rng = np.random.default_rng(0)
    users, each, logs = 60, 20, 200
    held = {"with": 0, "without": 0}
    widths = {"with": 0.0, "without": 0.0}
    for _ in range(logs):
        user = np.repeat(np.arange(users), each)
        action = rng.integers(0, 2, users * each)
        mood = rng.normal(0, 1, users)
        reward = (action + mood[user] + rng.normal(0, 1, len(user))).astype(np.float32)
        batch = TrajectoryBatch(
            observation=np.zeros((len(user), 1), np.float32),
            action=action.astype(np.int32),
            reward=reward,
            propensity=np.full(len(user), 0.5, np.float32),
            defaulted=np.zeros(len(user), bool),
        )
        viewed = held_back.viewers(batch, interactions(batch), [str(one) for one in user], np.arange(1))
        for how, numbers in (("with", viewed), ("without", None)):
            judged = held_back.HeldBack(batch, [], numbers).judged_by([], 2)
            found = off_policy.estimate(
                reward.astype(np.float64),
                np.full(len(user), 0.5),
                (action == 1).astype(float),
                clusters=judged.clusters,
            ).snips
            held[how] += found.low <= 1.0 <= found.high
            widths[how] += found.high - found.low
    assert widths["with"] > 1.5 * widths["without"]
    assert held["with"] >= 0.91 * logs
    assert held["without"] < 0.8 * logs
