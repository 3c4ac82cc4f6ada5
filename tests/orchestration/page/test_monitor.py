"""The document of a run, section by section."""

from datetime import timedelta

import msgspec
import pytest

from orchestration import policy_store
from orchestration.audit import guard
from orchestration.loop.run_folder import Running
from orchestration.page.monitor import Monitor
from tests.orchestration.page.events import START, decision, lines, segment
from tests.orchestration.page.roots import HOSTILE, make, window

NOW = START + timedelta(seconds=12)


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "run")


def looked(folder):
    monitor = Monitor(folder.root)
    monitor.follow()
    return monitor.state([], NOW)


def test_is_it_learning(folder):
    learning = looked(folder).learning
    (point,) = learning.points
    assert (point.number, point.decisions, point.reward, point.expected, point.oracle) == (1, 3, 3.0, 2.0, 2.5)
    # Rewards came at 2 and 3 s, the policy of window 1 served 4 s after its end.
    assert point.freshness_seconds == pytest.approx(9 - 2.5)
    assert learning.reference.best_fixed == 2.0
    serving = learning.serving
    assert (serving.version, serving.windows, serving.records) == ("v1", 2, 103)
    assert serving.trained_until == window(1).end


def test_a_root_without_simulated_viewers_has_no_reference_and_slots_that_are_no_windows(folder):
    folder.settings_json.unlink()
    folder.write_running(Running(predictor=None))
    state = looked(folder)
    assert state.slot == "10 s"
    assert state.learning.reference is None
    assert [point.freshness_seconds for point in state.learning.points] == [None] * len(state.learning.points)
    assert state.learning.points


def test_is_anything_wrong(folder):
    wrong = looked(folder).wrong
    assert not wrong.held
    assert [light.name for light in wrong.lights if light.colour == "warning"] == ["observations"]
    assert wrong.counts.events == wrong.counts.decisions + wrong.counts.rewards + wrong.counts.unreadable == 5
    guard.hold(folder, "a look", NOW)
    held = looked(folder).wrong
    assert held.held and held.lights[0].name == "guard" and "a look" in held.lights[0].fact


def test_what_it_chooses(folder):
    choices = looked(folder).choices
    assert choices.slots == [1]
    assert [(choice.item, choice.shares) for choice in choices.items] == [
        (HOSTILE[action], [0.3333]) for action in range(3)
    ]
    assert sum(choices.propensities) == 3


def test_what_it_did_just_now_comes_latest_first_and_grows(folder):
    monitor = Monitor(folder.root)
    monitor.follow()
    assert [one.decision.reward for one in monitor.state([], NOW).stream] == [None, 2.0, 4.0]
    segment(folder.events, 6.0, lines(decision(7, 6.0, action=4)), sealed=False)
    monitor.follow()
    state = monitor.state([], NOW)
    assert state.stream[0].item == HOSTILE[4]
    assert [point.number for point in state.learning.points] == [1, 2]


def test_the_timeline_says_what_served_and_why(folder):
    policy_store.roll_back(folder.policies, "reward fell", NOW)
    guard.hold(folder, "a look", NOW + timedelta(seconds=1))
    timeline = looked(folder).timeline
    assert [(one.what, one.version) for one in timeline] == [
        ("hold", ""),
        ("rolled back", "v0"),
        ("promoted", "v1"),
        ("promoted", "v0"),
    ]
    assert timeline[1].reason == "reward fell (in place of v1)"


def test_a_root_without_a_loop_is_shown_too(tmp_path):
    segment(tmp_path / "events", 0, lines(decision(1)))
    monitor = Monitor(tmp_path)
    monitor.follow()
    state = monitor.state([], NOW)
    assert (state.settings, state.learning.serving, state.learning.reference) == ("", None, None)
    assert state.wrong.counts.decisions == 1
    assert [one.item for one in state.stream] == ["item 0"]


def test_a_live_version_and_an_anchor_are_shown_beside_the_champion(folder, monkeypatch):
    monitor = Monitor(folder.root)
    monkeypatch.setattr(monitor.sources, "health", lambda: {"live": {"version": "v1+7", "age_seconds": 0.4}})
    assert monitor.state([], NOW).learning.serving.beside == "live version v1+7 decides, 0.4 s old"
    trial = msgspec.structs.replace(
        policy_store.champion(folder.policies), mode="probation", anchor="v0", anchor_share=0.05
    )
    (folder.policies / "champion.json").write_bytes(msgspec.json.encode(trial))
    assert monitor.state([], NOW).learning.serving.beside.startswith(
        "on probation; the anchor v0 takes 5% of the decisions; live"
    )
