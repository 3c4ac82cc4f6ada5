"""Probation, from decisions in a warehouse to the pointer: policies on disk that decide, and rewards that one knows."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import export_trajectories, generate_movielens, tables, warehouse
from beam_jobs.warehouses import open_warehouse
from contracts import policies
from contracts.errors import InputError
from contracts.policies import Exploration, TrainedWindow
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import held_back, policy_store, probation, watch
from orchestration.audit import guard, window_audits
from orchestration.audit.evidence import Evidence
from orchestration.audit.window_audits import WindowAudit
from orchestration.places import Places
from orchestration.watch import Caution
from predictor import deciding
from predictor import policy as serving
from predictor.line_up import LineUp
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = WindowSettings(reward_window_seconds=2.0, missing_reward="drop")
CAUTION = Caution(anchor_share=0.2, margin=0.05)
D, K = 3, 5


def window(number: int) -> TrainingWindow:
    return TrainingWindow(START + timedelta(seconds=5 * number), START + timedelta(seconds=5 * number + 5))


def now(number: int) -> datetime:
    return window(number).end + timedelta(seconds=3)


class Shop:
    """A root whose viewers like what the policy `first` finds good, and decisions of what the pointer names."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root)
        warehouse.create(self.places.warehouse)
        self.source = probation.Source(open_warehouse(str(self.places.warehouse), PipelineOptions([])), SETTINGS)
        self.add("first", 0)
        policy_store.roll_out(self.places.policies, "first", "the first", START)
        self._taste = serving.load(self.places.policies / "first")
        self._rng = np.random.default_rng(0)

    def add(self, version: str, newest: int, times: float = 1.0) -> str:
        """A policy with the coefficients of `first` times a number, trained on the windows up to the newest."""
        folder = self.places.policies / version
        write_policy(folder, seed=1, exploration=Exploration(strategy="epsilon_greedy", epsilon=0.1))
        arrays = dict(np.load(folder / policies.LINEAR_NAME))
        np.savez(folder / policies.LINEAR_NAME, **(arrays | {"theta": (times * arrays["theta"]).astype(np.float32)}))
        trained = [TrainedWindow(window=window(number), split="train", records=1) for number in range(newest + 1)]
        card = msgspec.structs.replace(serving.read_card(folder), trained_on=trained)
        (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
        return version

    def serve(self, number: int, count: int = 1500, then: str | None = None, users: int = 0) -> None:
        """Decisions of a window by the policies that the pointer names; in its second half, `then` in place of the first.

        With `users`, they are made for so many users, in turn.
        """
        pointer = policy_store.champion(self.places.policies)
        assert pointer is not None
        decisions, rewards = [], []
        for half in range(2):
            version = then if then is not None and half else pointer.version
            load = {name: serving.load(self.places.policies / name) for name in (version, pointer.anchor or version)}
            anchor = load[pointer.anchor] if pointer.anchor else None
            line_up = LineUp(load[version], load[version], anchor=anchor, anchor_share=pointer.anchor_share)
            first = round(window(number).start.timestamp() * 1e6) + half * 2_500_000
            decided_at = first + np.sort(self._rng.integers(0, 2_500_000, count // 2))
            ids = generate_movielens.uuid7(decided_at, self._rng).astype("U36").tolist()
            observation = self._rng.normal(size=(count // 2, D)).astype(np.float32)
            liked, _ = self._taste.scores(observation)
            for policy, rows in line_up.shares(ids):
                own = [ids[row] for row in rows]
                chosen = deciding.choose(policy, observation[rows], [[]] * len(rows), own)
                for row, action, propensity in zip(rows, *chosen, strict=True):
                    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(decided_at[row]))
                    decisions.append(
                        Decision(
                            decision_id=ids[row],
                            decided_at=moment,
                            policy_version=policy.card.version,
                            user_id=str(row % users) if users else None,
                            observation=observation[row].tolist(),
                            action=action,
                            propensity=propensity,
                        )
                    )
                    reward = float(liked[row, action] + self._rng.normal(0, 0.5))
                    rewards.append(RewardEvent(decision_id=ids[row], occurred_at=moment, reward=reward))
        for table, records in ((DECISIONS, decisions), (REWARDS, rewards)):
            warehouse.write(self.places.warehouse, table, f"{number:03d}", tables.record_batch(table, records))
        window_audits.write(
            self.places.audit,
            WindowAudit(window=window(number), accepted=True, reason="", findings=[], evidence=Evidence()),
        )

    def enter(self, version: str, number: int, caution: Caution = CAUTION) -> policies.Champion:
        return probation.enter(self.places, self.source, version, caution, "gate", now(number))

    def step(self, number: int) -> probation.Look | None:
        return probation.step(self.places, self.source, window(number), now(number))

    @property
    def pointer(self) -> policies.Champion:
        found = policy_store.champion(self.places.policies)
        assert found is not None
        return found


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.serve(0)
    return shop


def test_a_worse_version_is_rolled_back_and_what_it_learned_from_is_set_aside(shop):
    shop.serve(1)
    entered = shop.enter(shop.add("second", 1, times=-1.0), 1)
    assert (entered.version, entered.mode, entered.anchor, entered.anchor_share) == (
        "second",
        "probation",
        "first",
        0.2,
    )
    shop.serve(2)
    look = shop.step(2)
    assert look is not None
    assert (look.version, look.anchor, look.outcome) == ("second", "first", "rolled back")
    assert look.high <= 0
    assert look.cost < 0  # the anchor's share was worth it
    assert (shop.pointer.version, shop.pointer.anchor, shop.pointer.rolled_back) == ("first", None, "second")
    assert guard.refused_windows(shop.places) == [window(1).start]  # not the one before, nor the one that showed it
    assert not guard.is_held(shop.places.root)
    aside = window_audits.read(shop.places.audit, window(1))
    assert aside is not None
    assert aside.reason.startswith("second, trained on it, was rolled back: earns less than the anchor: gain -")
    guard.accept(shop.places, window(1), "looked at it", now(2))
    assert guard.refused_windows(shop.places) == []
    assert shop.step(3) is None  # nothing is on probation


def test_a_version_that_is_as_good_is_confirmed_and_becomes_the_next_anchor(shop):
    shop.enter(shop.add("second", 0, times=1.2), 0)
    number = 1
    while shop.pointer.anchor is not None:
        shop.serve(number)
        look = shop.step(number)
        number += 1
        assert number < 12
    assert look is not None
    assert (look.outcome, shop.pointer.version, shop.pointer.mode) == ("confirmed", "second", "canary")
    assert [one.outcome for one in probation.history(shop.places.root)] == ["on probation"] * (number - 2) + [
        "confirmed"
    ]
    assert [past.version for past in policy_store.history(shop.places.policies)] == ["first", "second"]
    shop.serve(number)
    assert shop.enter(shop.add("third", number), number).anchor == "second"
    trial = probation.read(shop.places.root)
    assert trial is not None
    assert (trial.versions, trial.look.decisions) == (["third"], 0)


def test_the_next_update_takes_its_place_and_the_evidence_goes_on(shop):
    shop.enter(shop.add("second", 0, times=1.1), 0)
    shop.serve(1, count=200)
    first = shop.step(1)
    assert first is not None and first.outcome == "on probation"
    assert 195 <= first.decisions <= 199
    entered = shop.enter(shop.add("third", 1, times=1.1), 1)
    assert (entered.version, entered.previous, entered.anchor) == ("third", "second", "first")
    shop.serve(2, count=200)
    second = shop.step(2)
    assert second is not None
    assert second.version == "third"
    assert first.decisions + 195 <= second.decisions <= first.decisions + 200
    again = shop.step(2)  # a window counts once
    assert again == second
    trial = probation.read(shop.places.root)
    assert trial is not None and trial.versions == ["second", "third"]


def test_the_decisions_of_a_window_belong_to_the_version_that_served_beside_the_anchor(shop):
    """One half is by a version that is as good, the other by its opposite: both count against the anchor."""
    shop.enter(shop.add("second", 0, times=1.1), 0)
    shop.enter(shop.add("third", 0, times=-1.0), 0)
    policies_before = shop.pointer
    assert policies_before.version == "third"
    pointer = msgspec.structs.replace(policies_before, version="second")
    (shop.places.policies / policies.CHAMPION_NAME).write_bytes(policies.encode_json(pointer))
    shop.serve(1, then="third")
    (shop.places.policies / policies.CHAMPION_NAME).write_bytes(policies.encode_json(policies_before))
    look = shop.step(1)
    assert look is not None
    assert look.outcome == "rolled back"
    assert 1490 <= look.decisions <= 1500
    taste = serving.load(shop.places.policies / "first")
    observation = np.random.default_rng(9).normal(size=(20_000, D)).astype(np.float32)
    liked, _ = taste.scores(observation)
    values = {
        version: (serving.load(shop.places.policies / version).probabilities(observation) * liked).sum(axis=1).mean()
        for version in ("first", "second", "third")
    }
    truth = (values["second"] + values["third"]) / 2 - values["first"]
    assert look.gain == pytest.approx(truth, abs=0.25)


def test_a_process_that_died_before_the_pointer_moved_moves_it_the_next_time(shop, monkeypatch):
    shop.enter(shop.add("second", 0, times=-1.0), 0)
    shop.serve(1)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(policy_store, "roll_back", dies)
        with pytest.raises(KeyboardInterrupt):
            shop.step(1)
    assert shop.pointer.version == "second"
    look = shop.step(1)
    assert look is not None and look.outcome == "rolled back"
    assert shop.pointer.version == "first"
    assert len(probation.history(shop.places.root)) == 1


def test_what_cannot_be_watched_serves_at_once(shop):
    other = shop.places.policies / "other"
    write_policy(other, observation_dim=4)
    assert shop.enter(shop.add("second", 0), 0, Caution(anchor_share=0.0)).mode == "canary"
    pointer = shop.enter("other", 0)
    assert (pointer.version, pointer.anchor) == ("other", None)
    assert pointer.reason == "gate; no probation: other: observation_dim must be 3 as in second, got 4"
    pointer = shop.enter(shop.add("third", 7), 7)  # its newest window has no decisions
    assert pointer.anchor is None
    shop.add("fourth", 7)
    pointer = shop.enter("fourth", 7)
    assert pointer.reason == "gate; no probation: rewards: must differ to be judged by, got 0 alike"


def test_a_state_that_cannot_be_read_names_its_file(shop):
    (shop.places.root / probation.STATE_NAME).write_text("{}")
    with pytest.raises(InputError, match=r"probation\.json: "):
        shop.step(1)
    (shop.places.root / probation.HISTORY_NAME).write_text("{}\n")
    with pytest.raises(InputError, match=r"probation\.jsonl, line 1: "):
        probation.history(shop.places.root)


def test_what_is_held_back_comes_with_its_users(shop):
    """The same interactions as the export holds back, in the order of its file."""
    export_trajectories.export(shop.source.warehouse, shop.places.windows, window(0), SETTINGS)
    policy = shop.add("second", 0)
    card = serving.read_card(shop.places.policies / policy)
    found = held_back.read(shop.places.policies, shop.places.windows, card)
    rows, users = shop.source.held_back(window(0), SETTINGS)
    assert rows.num_rows == len(users) == len(found.decisions.action) > 100
    assert rows.column("reward").to_numpy().astype(np.float32).tolist() == found.decisions.reward.tolist()
    assert held_back.read(shop.places.policies, shop.places.windows, card, log=shop.source).viewers is None
    shop.serve(1, users=10)
    export_trajectories.export(shop.source.warehouse, shop.places.windows, window(1), SETTINGS)
    card = serving.read_card(shop.places.policies / shop.add("third", 1))
    viewers = held_back.read(shop.places.policies, shop.places.windows, card, log=shop.source).viewers
    assert viewers is not None and set(viewers.tolist()) == set(range(10))


def test_of_a_request_that_an_endpoint_gave_to_one_version_the_first_decision_counts(shop):
    """A log in which each moment has three decisions, as a request of three has them."""
    found = shop.source.read(window(0))
    count = len(found.version) // 3 * 3
    rows = watch.take(found.rows, np.arange(count))
    asked = found._replace(
        version=found.version[:count],
        propensity=found.propensity[:count],
        decided_at=np.repeat(found.decided_at[:count:3], 3),
        rows=rows,
    )
    assert asked.shared("ids") is asked
    first = asked.shared("traffic")
    assert len(first.version) == len(first.rows.action) == count // 3
    assert first.rows.reward.tolist() == rows.reward[::3].tolist()
    assert first.decided_at.tolist() == found.decided_at[:count:3].tolist()
