"""What went wrong, with what to do."""

from orchestration.loop import report_page, troubles
from orchestration.loop.settings import LoopSettings
from tests.orchestration.loop.reports import report, window


def facts(made):
    return [one.fact for one in troubles.found(made)]


def test_a_sound_run_has_none():
    assert troubles.found(report([window(1), window(2)])) == []
    assert troubles.troubles(report([window(1)])) == ""


def test_what_does_not_add_up_comes_first():
    made = report([window(1, promoted=False, reason="worse: gain -0.3")], lost_rewards=3, lost=3)
    first, second = facts(made)
    assert first == "3 rewards were accepted, but are not in the tables"
    assert second == "1 new policies were not promoted: worse: gain -0.3"


def test_a_hold_names_the_commands_that_end_it():
    held = [window(number, promoted=False, reason="held since window=x") for number in (2, 3)]
    (one,) = troubles.found(report([window(1), *held], LoopSettings(out="runs/x", exploration="ucb")))
    assert one.fact == "the guard held the loop in 2 of 3 windows, first in 2"
    assert "audit --root runs/x" in one.advice and "guard release --root runs/x" in one.advice


def test_windows_that_did_not_wait_long_enough_and_failed_requests():
    found = facts(report([window(1, overdue=True)], failed_requests=2))
    assert found == [
        "2 requests of viewers failed",
        "1 windows were processed before all of their events had come",
    ]


def test_every_trouble_is_on_the_page_before_the_figures_with_what_to_do():
    html = report_page.render(report([window(1)], lost_rewards=3, lost=3), [])
    assert html.index("✗ 3 rewards") < html.index("What to do:") < html.index("Does it learn?")
