"""The guard's verbs: hold, roll back, release, accept."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contracts import policies
from contracts.errors import InputError
from contracts.policies import TrainedWindow
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import policy_store
from orchestration.audit import guard, window_audits
from orchestration.audit.auditor import Auditor
from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import Finding
from orchestration.audit.guard import Guard
from orchestration.audit.settings import GuardSettings
from orchestration.audit.window_audits import WindowAudit
from orchestration.places import Places
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = WindowSettings()


def window(number: int) -> TrainingWindow:
    return TrainingWindow(START + timedelta(hours=number), START + timedelta(hours=number + 1))


def audited(
    number: int, *, alarm: bool = False, began: int = 0, examination: window_audits.Examination | None = None
) -> WindowAudit:
    finding = Finding(
        check="c", kind="break", alarm=True, statistic=9, threshold=1, fact="moved", meaning="a fault", began=began
    )
    return WindowAudit(
        window=window(number),
        accepted=not alarm,
        reason="c: moved; a fault" if alarm else "",
        examination=examination,
        findings=[finding] if alarm else [],
        evidence=Evidence(),
    )


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A store whose versions v0, v1, v2 were trained on one window more each, promoted one after the other."""
    places = Places(tmp_path)
    for number in range(3):
        card = write_policy(places.policies / f"v{number}")
        trained = [TrainedWindow(window=window(one), split="train", records=1) for one in range(number + 1)]
        card = msgspec.structs.replace(card, trained_on=trained)
        (places.policies / f"v{number}" / policies.CARD_NAME).write_bytes(policies.encode_json(card))
        policy_store.roll_out(places.policies, f"v{number}", "better", START + timedelta(hours=number))
        window_audits.write(places.audit, audited(number))
    return places


def watch(places: Places, audit: WindowAudit, after: int = 0) -> WindowAudit:
    """What the guard does when the auditor finds `audit`."""
    window_audits.write(places.audit, audit)
    kept = Auditor(None, places.policies, places.audit, SETTINGS)  # type: ignore[arg-type]  # nothing is read again
    return Guard(places, kept, GuardSettings(accept_consistent_after=after)).check(audit.window, audit.window.end)


def serving(places: Places) -> str:
    champion = policy_store.champion(places.policies)
    assert champion is not None
    return champion.version


def test_a_good_window_changes_nothing(places: Places) -> None:
    assert watch(places, audited(3)).accepted
    assert guard.state(places.root) is None and not guard.is_held(places.root)
    assert guard.refused_windows(places) == []


def test_a_bad_window_holds_and_the_champion_that_never_saw_it_serves(places: Places) -> None:
    watch(places, audited(3, alarm=True))
    found = guard.state(places.root)
    assert found is not None and found.held and found.window == found.began == window(3)
    assert (serving(places), found.rolled_back_to) == ("v2", None)
    assert guard.refused_windows(places) == [window(3).start]
    watch(places, audited(4, alarm=True))
    assert guard.state(places.root) == found  # the first reason stands


def test_a_champion_trained_on_a_bad_window_is_rolled_back(places: Places) -> None:
    watch(places, audited(3, alarm=True, began=2))
    found = guard.state(places.root)
    assert found is not None and (found.began, found.rolled_back_to) == (window(1), "v0")
    assert serving(places) == "v0"
    assert guard.refused_windows(places) == [window(number).start for number in (1, 2, 3)]


def test_without_a_clean_version_the_first_one_serves(places: Places) -> None:
    watch(places, audited(3, alarm=True, began=3))
    assert serving(places) == "v0"


def test_release_and_accept_are_written_down(places: Places) -> None:
    with pytest.raises(InputError, match="nothing is held"):
        guard.release(places, "why", START)
    watch(places, audited(3, alarm=True))
    with pytest.raises(InputError, match="a refused window expected, got window=20260101T000000"):
        guard.accept(places, window(0), "why", START)
    assert guard.find_window(places, window(3).folder) == guard.find_window(places, "2026-01-01T03:00:00Z") == window(3)
    with pytest.raises(InputError, match="no audited window starts at 2026-01-01T09"):
        guard.find_window(places, "2026-01-01T09:00:00Z")
    guard.accept(places, window(3), "a new price list", START)
    assert guard.is_held(places.root) and guard.refused_windows(places) == []
    assert not guard.release(places, "looked at", START).held
    verbs = [msgspec.json.decode(line)["verb"] for line in (places.root / "guard.jsonl").read_bytes().splitlines()]
    assert verbs == ["hold", "accept", "release"]


def test_a_window_that_the_loop_was_released_after_does_not_hold_again(places: Places) -> None:
    watch(places, audited(3, alarm=True))
    guard.release(places, "the feed is repaired", START)
    kept = window_audits.read(places.audit, window(3))
    assert kept is not None and kept.released and not kept.accepted
    watch(places, kept)
    assert not guard.is_held(places.root) and guard.refused_windows(places) == [window(3).start]
    watch(places, audited(4, alarm=True))
    assert guard.is_held(places.root)


def test_a_rule_accepts_a_consistent_change(places: Places) -> None:
    watch(places, audited(3, alarm=True, examination="consistent"), after=2)
    assert guard.is_held(places.root)
    watch(places, audited(4, alarm=True, examination="consistent"), after=2)
    assert not guard.is_held(places.root) and guard.refused_windows(places) == []


def test_a_rule_of_one_window_never_holds_a_consistent_change(places: Places) -> None:
    watch(places, audited(3, alarm=True, began=1, examination="consistent"), after=1)
    assert not guard.is_held(places.root) and guard.refused_windows(places) == []
    assert serving(places) == "v2"


def test_a_rule_never_accepts_noise(places: Places) -> None:
    for number in (3, 4, 5):
        watch(places, audited(number, alarm=True, examination="noise"), after=1)
    assert guard.is_held(places.root) and len(guard.refused_windows(places)) == 3


def test_a_torn_state_is_named(places: Places) -> None:
    (places.root / "guard.json").write_text("{")
    with pytest.raises(InputError, match=r"guard\.json: "):
        guard.state(places.root)


def test_a_person_holds_the_loop_once_and_releases_it(places: Places) -> None:
    held = guard.hold(places, "the catalogue is being replaced", START)
    assert (held.held, held.window, guard.is_held(places.root)) == (True, None, True)
    with pytest.raises(InputError, match="is held already"):
        guard.hold(places, "again", START)
    assert policy_store.champion(places.policies).version == "v2"  # it serves on
    assert not guard.release(places, "done", START).held


def test_windows_that_are_set_aside_are_not_trained_on_and_hold_nothing(places):
    guard.set_aside(
        places, [window(1), window(7)], "what was trained on it was rolled back"
    )  # the last was never audited
    assert guard.refused_windows(places) == [window(1).start]
    assert not guard.is_held(places.root)
    aside = window_audits.read(places.audit, window(1))
    assert aside is not None and (aside.accepted, aside.released) == (False, True)
    guard.set_aside(places, [window(1)], "again")
    assert window_audits.read(places.audit, window(1)) == aside
    guard.accept(places, window(1), "looked at it", START)
    assert guard.refused_windows(places) == []
