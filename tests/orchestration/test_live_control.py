from datetime import UTC, datetime, timedelta

from orchestration import live_control

NOW = datetime(2026, 11, 28, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)


def test_the_first_reason_of_a_hold_stands_until_it_is_released(tmp_path):
    assert not live_control.read(tmp_path).held
    assert live_control.hold(tmp_path, "refused", NOW)
    assert not live_control.hold(tmp_path, "another", LATER)
    assert live_control.read(tmp_path).reason == "refused"
    assert live_control.release(tmp_path, "mended", LATER)
    assert not live_control.release(tmp_path, "mended", LATER)
    assert (live_control.read(tmp_path).held, live_control.read(tmp_path).reason) == (False, "mended")
    assert live_control.holds(tmp_path) == 1


def test_an_alarm_lets_the_anchor_decide_alone_also_while_it_is_held(tmp_path):
    live_control.hold(tmp_path, "refused", NOW)
    assert not live_control.hold(tmp_path, "alarm", LATER, anchor_alone=True)  # it was held before
    control = live_control.read(tmp_path)
    assert (control.anchor_alone, control.reason, control.changed_at) == (True, "alarm", LATER)
    assert not live_control.hold(tmp_path, "refused", LATER)
    assert live_control.read(tmp_path).anchor_alone
    live_control.release(tmp_path, "mended", LATER)
    assert not live_control.read(tmp_path).anchor_alone
    assert live_control.holds(tmp_path) == 1


def test_refused_windows_stay_out_whether_it_is_held_or_not(tmp_path):
    live_control.hold(tmp_path, "refused", NOW)
    live_control.refuse(tmp_path, [NOW], LATER)
    assert (live_control.read(tmp_path).held, live_control.read(tmp_path).refused) == (True, [NOW])
    live_control.release(tmp_path, "mended", LATER)
    assert live_control.read(tmp_path).refused == [NOW]
    written = (tmp_path / live_control.HISTORY_NAME).read_text()
    live_control.refuse(tmp_path, [NOW], LATER)
    assert (tmp_path / live_control.HISTORY_NAME).read_text() == written
