from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import numpy as np
import pytest

from contracts import live_versions, policies
from contracts.errors import InputError
from contracts.event_segments import OPEN_SUFFIX, segment_name
from contracts.live_versions import VERSIONS_NAME, LiveVersion
from contracts.policies import CARD_NAME, LINEAR_NAME, TrainedWindow
from contracts.policy_arrays import ArmChanges
from contracts.records import Decision, RewardEvent, StatusEvent, encoder
from contracts.windows import WindowSettings
from orchestration import live_control, live_watch
from orchestration.live_evidence import LiveCaution
from orchestration.live_watch import Beside, LiveWatch, OpenDecisions
from predictor import policy as serving
from predictor.line_up import takes
from tests.linear_policies import point_at, write_policy
from tests.live_learning import WINDOWS

SHARE = 0.2
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
WINDOW = WindowSettings(reward_window_seconds=2.0, missing_reward="drop")
DEFAULT = WindowSettings(reward_window_seconds=2.0, missing_reward="default", default_reward=-1.0)


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "policies"
    write_policy(folder / "v1", seed=1)
    write_policy(folder / "v2", seed=2)
    point_at(folder, "v2", anchor="v1", anchor_share=SHARE, mode="probation")
    return folder


@pytest.fixture
def beside(store):
    return Beside(serving.load(store / "v2"), serving.load(store / "v1"), "anchor", SHARE)


def ids(of_anchor, count):
    """Ids of decisions that fall to the anchor, or not."""
    found = [str(UUID(int=number)) for number in range(200)]
    return [one for one, side in zip(found, takes("anchor", SHARE, found), strict=True) if side == of_anchor][:count]


def decision(decision_id, version, seconds=0.0, **fields):
    return Decision(
        decision_id=decision_id,
        decided_at=NOW + timedelta(seconds=seconds),
        policy_version=version,
        observation=[1.0, 0.0, 0.0],
        action=1,
        propensity=0.5,
        **fields,
    )


def reward(decision_id, seconds=1.0, value=2.0):
    return RewardEvent(decision_id=decision_id, occurred_at=NOW + timedelta(seconds=seconds), reward=value)


def test_a_decision_belongs_to_the_live_version_of_its_time(beside):
    [anchors, other, late, early] = ids(True, 4)
    [first, second, alone, old] = ids(False, 4)
    events = [
        decision(early, "v1"),
        decision(first, "v2+7"),
        decision(anchors, "v1"),
        decision(second, "v2+8"),
        decision(other, "v1"),
        decision(alone, "v2"),  # no live version was serving
        decision(late, "v1"),
        decision(old, "v1+3"),  # of another base
    ]
    waiting = OpenDecisions(WINDOW)
    assert waiting.take(events, beside) == []
    found = waiting.take([reward(one.decision_id) for one in events], beside)
    assert [(one.decision.decision_id, one.by_anchor, one.live) for one, _ in found] == [
        (early, True, None),
        (first, False, "v2+7"),
        (anchors, True, "v2+7"),
        (second, False, "v2+8"),
        (other, True, "v2+8"),
        (alone, False, None),
        (late, True, None),
        (old, False, None),
    ]
    assert [value for _, value in found] == [2.0] * 8


def test_the_first_reward_in_time_counts(beside):
    [one, twice, slow, never] = ids(False, 4)
    waiting = OpenDecisions(WINDOW)
    waiting.take([decision(name, "v2+7") for name in (one, twice, slow, never)], beside)
    events = [reward(twice, value=1.0), reward(twice, value=5.0), reward(slow, seconds=2.1), reward("unknown")]
    assert [(found.decision.decision_id, value) for found, value in waiting.take(events, beside)] == [(twice, 1.0)]
    assert len(waiting) == 3
    assert waiting.take([decision(ids(False, 5)[-1], "v2+7", seconds=2.5)], beside) == []
    assert len(waiting) == 1  # the others waited too long


def test_several_rewards_make_one_once_no_more_can_come(beside):
    [paid, newer] = ids(False, 2)
    waiting = OpenDecisions(msgspec.structs.replace(WINDOW, reward_rule="sum"))
    waiting.take([decision(paid, "v2+7")], beside)
    events = [reward(paid, seconds=0.5), reward(paid, seconds=1.5, value=3.0), reward(paid, seconds=2.5, value=9.0)]
    assert waiting.take(events, beside) == []
    [(found, value)] = waiting.take([decision(newer, "v2+7", seconds=3.0)], beside)
    assert (found.decision.decision_id, value) == (paid, 5.0)


def status(decision_id, what, seconds=1.5):
    return StatusEvent(decision_id=decision_id, occurred_at=NOW + timedelta(seconds=seconds), status=what)


def test_decisions_that_never_happened_are_not_looked_at(beside):
    [shown, late, unseen, cancelled, newer] = ids(False, 5)
    waiting = OpenDecisions(DEFAULT)
    waiting.take([decision(name, "v2+7", deferred=True) for name in (shown, late, unseen)], beside)
    waiting.take([decision(cancelled, "v2+7")], beside)
    events = [reward(shown), status(shown, "activated"), status(late, "activated", seconds=2.1), reward(unseen)]
    events += [status(cancelled, "cancelled"), reward(cancelled), status("unknown", "activated")]
    assert waiting.take(events, beside) == []
    found = waiting.take([decision(newer, "v2+7", seconds=3.0)], beside)
    assert [(one.decision.decision_id, value) for one, value in found] == [(shown, 2.0)]


def test_silence_counts_where_it_is_an_answer(beside):
    [silent, newer] = ids(False, 2)
    waiting = OpenDecisions(DEFAULT)
    waiting.take([decision(silent, "v2+7")], beside)
    [(found, value)] = waiting.take([decision(newer, "v2+7", seconds=2.5)], beside)
    assert (found.decision.decision_id, value) == (silent, -1.0)


def test_of_a_slate_the_first_place_is_looked_at(beside):
    [first, second] = ids(False, 2)
    waiting = OpenDecisions(WINDOW)
    slate = {"slate_id": first}
    waiting.take([decision(first, "v2+7", place=0, **slate), decision(second, "v2+7", place=1, **slate)], beside)
    found = waiting.take([reward(second), reward(first)], beside)
    assert [one.decision.decision_id for one, _ in found] == [first]


TRUE = np.random.default_rng(1).normal(size=(5, 3))  # what the arms are worth


class World:
    """A base that knows the truth, live versions over it, and an event log that is written as the predictor would."""

    def __init__(self, root):
        self.root, self.store, self.live, self.events = root, root / "policies", root / "live", root / "events"
        self.events.mkdir()
        (self.live / VERSIONS_NAME).mkdir(parents=True)
        write_policy(self.store / "v1", seed=1)
        covariance = np.tile(1e-4 * np.eye(3, dtype=np.float32), (5, 1, 1))
        ones = np.ones(5, np.float32)
        np.savez(
            self.store / "v1" / LINEAR_NAME, theta=TRUE.astype(np.float32), covariance=covariance, num_samples=ones
        )
        self.window = WINDOWS[0]
        trained = [TrainedWindow(window=self.window, split="train", records=1)]
        card = msgspec.structs.replace(serving.read_card(self.store / "v1"), trained_on=trained)
        (self.store / "v1" / CARD_NAME).write_bytes(policies.encode_json(card))
        point_at(self.store, "v1")
        self.rng = np.random.default_rng(0)
        self.log = self.events / f"{segment_name(self.window.start, 'test')}{OPEN_SUFFIX}"
        self.seconds = 0.0

    def publish(self, sequence, theta, kind="delta"):
        every = np.arange(5, dtype=np.int32)
        narrow = np.tile(np.array([1e-4, 0, 0, 1e-4, 0, 1e-4], np.float32), (5, 1))
        version = LiveVersion(
            kind=kind,
            base="v1",
            sequence=sequence,
            published_at=datetime.now(UTC),
            complete_until=None,
            sums_digest="",
            interactions=0,
            num_actions=5,
            width=3,
            changes=ArmChanges(every, theta.astype(np.float32), np.ones(5, np.float32), every, narrow),
        )
        live_versions.publish(self.live / VERSIONS_NAME, version)

    def serve(self, count, version=None, change=lambda value: value):
        """Decisions of the base, or of a live version and of the base by its share, and their rewards."""
        base = serving.load(self.store / "v1")
        live = base if version is None else live_watch.live_serving.load(self.store, self.live, version)[0]
        observation = self.rng.normal(size=(count, 3)).astype(np.float32)
        names = [f"019b76da-a800-7000-8000-{self.rng.integers(2**48):012x}" for _ in range(count)]
        sides = takes("base", 0.05, names)
        lines = []
        for i, name in enumerate(names):
            policy = base if sides[i] else live
            chance = policy.probabilities(observation[i : i + 1])[0]
            action = int(self.rng.choice(5, p=chance / chance.sum()))
            self.seconds += 0.001
            decided_at = self.window.start + timedelta(seconds=self.seconds)
            value = change(float(observation[i] @ TRUE[action]) + self.rng.normal(0, 0.3))
            made = Decision(
                decision_id=name,
                decided_at=decided_at,
                policy_version=policy.card.version,
                observation=observation[i].tolist(),
                action=action,
                propensity=float(chance[action]),
            )
            answer = RewardEvent(decision_id=name, occurred_at=decided_at + timedelta(seconds=0.5), reward=value)
            lines += [encoder.encode(made), encoder.encode(answer)]
        with self.log.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in [*lines, b"no event"]))

    def watch(self):
        settings = WindowSettings(reward_window_seconds=2.0, missing_reward="drop", holdback_share=0.5)
        return LiveWatch(self.events, self.live, self.store, settings, LiveCaution(), 0.05)


def test_live_versions_that_learned_well_are_left_alone_and_bad_ones_are_held(tmp_path):
    world = World(tmp_path)
    world.serve(400)
    watch = world.watch()
    assert watch.step() is None
    world.publish(1, TRUE + 0.01, kind="snapshot")
    for sequence in range(2, 6):
        world.serve(200, f"v1+{sequence - 1}")
        assert watch.step() is None
        world.publish(sequence, TRUE + 0.01 * sequence)
    assert watch.evidence.evidence.sequence.count == 800
    world.publish(6, -TRUE)
    alarm = None
    for _ in range(10):
        world.serve(60, "v1+6")
        if alarm := watch.step():
            break
    assert "live versions" in alarm.reason
    control = live_control.read(world.live)
    assert (control.held, control.anchor_alone, control.reason) == (True, True, alarm.reason)
    assert watch.step() is None  # it is held
    live_control.release(world.live, "mended", datetime.now(UTC))
    world.publish(7, TRUE)
    world.serve(200, "v1+7")
    assert watch.step() is None and not live_control.read(world.live).held


def test_a_feed_that_lies_is_held_though_live_versions_look_good_by_it(tmp_path):
    world = World(tmp_path)
    world.serve(400)
    watch = world.watch()
    watch.step()
    world.publish(1, TRUE, kind="snapshot")
    world.serve(100, "v1+1", change=lambda value: -value)
    assert "rewards are far from what the base expects" in watch.step().reason
    assert not live_control.read(world.live).anchor_alone  # the base has not learned from them


def test_a_version_whose_files_are_gone_is_not_judged(tmp_path):
    world = World(tmp_path)
    world.serve(400)
    watch = world.watch()
    watch.step()
    world.publish(1, -TRUE, kind="snapshot")
    world.serve(50, "v1+1")
    (world.live / VERSIONS_NAME / live_versions.file_name(1, "snapshot")).unlink()
    assert watch.step() is None
    assert watch.evidence.evidence.sequence.count == 0


def test_a_base_that_disappears_is_said_once_and_the_one_before_is_watched(tmp_path, capsys):
    world = World(tmp_path)
    world.serve(400)
    watch = world.watch()
    watch.step()
    point_at(world.store, "v9")
    for _ in range(3):
        assert watch.step() is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("orchestration.live_watch: v1 is watched still: ")


def test_a_store_without_a_champion_is_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="--policies: a store with a champion"):
        LiveWatch(tmp_path, tmp_path, tmp_path, WINDOW, LiveCaution(), 0.05)
    assert live_watch.main(["--live", str(tmp_path), "--events", str(tmp_path), "--policies", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert live_watch.main(["--live", str(tmp_path)]) == 2


def test_a_person_holds_and_releases(tmp_path, capsys):
    assert live_watch.main(["--live", str(tmp_path), "--hold", "looks odd"]) == 0
    assert live_control.read(tmp_path).reason == "looks odd"
    assert live_watch.main(["--live", str(tmp_path), "--release", "is fine"]) == 0
    assert not live_control.read(tmp_path).held
    assert capsys.readouterr().err.count("\n") == 2
