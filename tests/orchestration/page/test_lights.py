"""The lights: what turns them on, and what they advise."""

from datetime import timedelta
from pathlib import Path

import pytest

from contracts.windows import Manifest, WindowCounts
from orchestration.audit.guard import GuardState
from orchestration.page import lights
from orchestration.page.state import Counts, Light
from tests.orchestration.page.events import START
from tests.orchestration.page.roots import audit, finding, window

ROOT = Path("runs/latest")


def counts(unreadable: int = 0) -> Counts:
    return Counts(events=10 + unreadable, decisions=6, rewards=4, unreadable=unreadable, orphans=0)


def manifest(**changed: int) -> Manifest:
    values = {"decisions": 10, "rewards": 8, "defaulted": 0, "dropped": 2, "repeated_rewards": 0, "late_rewards": 0}
    values |= {"orphan_rewards": 0, "duplicate_decisions": 0, "duplicate_rewards": 0} | changed
    return Manifest(
        window=window(1),
        reward_window_seconds=2.0,
        settle_seconds=1.0,
        missing_reward="drop",
        default_reward=0.0,
        holdback_share=0.1,
        observation_dim=3,
        counts=WindowCounts(**values),
        policy_versions={},
        files=[],
    )


def test_the_worst_comes_first():
    shown = lights.worst_first([Light(name=name, colour=name, fact="") for name in ("ok", "unknown", "bad", "warning")])
    assert [light.colour for light in shown] == ["bad", "warning", "unknown", "ok"]


def test_a_hold_is_bad_and_says_how_it_ends():
    held = GuardState(held=True, changed_at=START, verb="hold", reason="rewards flipped", rolled_back_to="v1")
    light = lights.of_guard(held, ROOT)
    assert light.colour == "bad" and "rewards flipped" in light.fact and "v1" in light.meaning
    assert "guard release --root runs/latest" in light.advice
    assert lights.of_guard(None, ROOT).colour == "ok"


def test_each_check_of_the_newest_window_has_a_light_with_its_figures():
    audits = [
        audit(0, finding("reward delay", alarm=True)),
        audit(
            1,
            finding("reward delay"),
            finding("residual", alarm=True),
            finding("observations", alarm=True, kind="warning"),
        ),
    ]
    found = {light.name: light for light in lights.of_audit(audits, ROOT)}
    assert found["reward delay"].colour == "ok"
    assert found["observations"].colour == "warning"
    assert found["residual"].colour == "bad" and "fact of residual" in found["residual"].fact
    assert "--accept" in found["residual"].advice
    assert found["refused windows"].colour == "warning" and found["refused windows"].fact.startswith("2 of 2")
    assert lights.of_audit([], ROOT)[0].colour == "unknown"


def test_a_contradiction_is_never_to_be_accepted():
    (light,) = [
        one
        for one in lights.of_audit([audit(1, finding("ids", alarm=True, kind="contradiction"))], ROOT)
        if one.name == "ids"
    ]
    assert "accept" not in light.advice and "repair" in light.advice


@pytest.mark.parametrize(
    ("health", "colours"),
    [
        ({"status": "ok", "policy_version": "v1", "fallbacks": 0, "events": {"logged": 5, "dropped": 0}}, ["ok", "ok"]),
        ({"status": "degraded", "load_error": "broken", "events": {"logged": 5, "dropped": 2}}, ["bad", "bad"]),
        ({"status": "ok", "fallbacks": 3, "events": {}}, ["warning", "ok"]),
        (
            {"status": "ok", "events": {}, "live": {"version": None, "error": "held by the guard"}},
            ["ok", "warning", "ok"],
        ),
        (None, ["bad"]),
    ],
)
def test_the_predictor(health, colours):
    assert [light.colour for light in lights.of_predictor(health, expected=True)] == colours


def test_no_predictor_is_not_a_fault_where_none_is_expected():
    assert lights.of_predictor(None, expected=False)[0].colour == "unknown"


def test_unreadable_events_are_to_be_looked_at_unless_the_run_breaks_them_on_purpose():
    assert lights.of_counts(counts(), 0.0).colour == "ok"
    assert lights.of_counts(counts(unreadable=2), 0.0).colour == "warning"
    assert "12 events = 6 decisions + 4 rewards + 2 unreadable" in lights.of_counts(counts(unreadable=2), 0.0).fact
    assert lights.of_counts(counts(unreadable=2), 0.01).colour == "ok"


def test_a_windows_counts_must_add_up():
    now = window(1).end + timedelta(seconds=6)
    sums, lag = lights.of_windows(manifest(), 5.0, 3.0, now)
    assert (sums.colour, lag.colour) == ("ok", "ok") and "6 s ago" in lag.fact
    assert lights.of_windows(manifest(dropped=1), 5.0, 3.0, now)[0].colour == "bad"
    assert lights.of_windows(manifest(), 5.0, 3.0, now + timedelta(seconds=60))[1].colour == "warning"
    assert len(lights.of_windows(manifest(), None, 3.0, now)) == 1  # nothing runs, so nothing lags
    assert lights.of_windows(None, 5.0, 3.0, now)[0].colour == "unknown"
