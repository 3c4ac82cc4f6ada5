"""What is served, added up: slots, first rewards in time, the truth; and that memory does not grow."""

import pytest

from orchestration.loop.truth import ServedDecision, SessionStart
from orchestration.page import slots
from orchestration.page.slots import Clock, Slots
from tests.orchestration.page.events import START, decision, lines, reward


def started(first_window: int = 1, seconds: float = 0.0) -> SessionStart:
    return SessionStart(START.timestamp() + seconds, first_window)


def made() -> Slots:
    added = Slots(Clock(5.0), reward_window_seconds=2.0)
    added.add_truth([started()])
    return added


def test_windows_count_from_the_start_of_the_viewers_and_go_on_where_a_resumed_run_does():
    clock = Clock(5.0)
    assert clock.slot(START.timestamp()) == 0
    clock.add(started())
    clock.add(started(first_window=3, seconds=100.0))
    assert [clock.slot(START.timestamp() + at) for at in (-1.0, 0.1, 4.9, 5.1, 99.0, 100.1, 105.1)] == [
        0,
        1,
        1,
        2,
        20,
        3,
        4,
    ]


def test_only_the_first_reward_in_time_counts():
    added = made()
    one, two, three = decision(1, 1.0), decision(2, 1.0), decision(3, 6.0, action=2, propensity=0.01)
    added.add_lines(lines(one, two, three, reward(one, 4.0), reward(one, 1.0, after=1.5), reward(two, 5.0, after=3.0)))
    first, second = added.all()
    assert (first.number, first.decisions, first.rewards, first.reward, first.late_rewards) == (1, 2, 1, 4.0, 1)
    assert (second.number, second.decisions, second.explored) == (2, 1, 1)
    assert [one.reward for one in added.latest] == [4.0, 5.0, None]
    assert [one.late for one in added.latest] == [False, True, False]


@pytest.mark.parametrize(("rule", "total"), [("first", 2.0), ("last", 1.0), ("max", 4.0), ("sum", 7.0)])
def test_several_rewards_become_one_by_the_rule_of_the_run(rule, total):
    added = Slots(Clock(5.0), reward_window_seconds=2.0, reward_rule=rule)
    added.add_truth([started()])
    one = decision(1, 1.0)
    middle, last, first = (reward(one, value, after=after) for value, after in ((4.0, 1.0), (1.0, 1.5), (2.0, 0.5)))
    added.add_lines(lines(reward(one, 9.0), one, middle, middle, last, first, reward(one, 3.0, after=3.0)))
    [slot] = added.all()
    assert (slot.rewards, slot.reward, slot.late_rewards, added.orphans) == (1, total, 0, 1)
    assert added.latest[0].reward == total and not added.latest[0].late


def test_every_line_has_one_fate():
    added = made()
    one = decision(1, 1.0)
    stranger = reward(decision(9, 1.0), 3.0)
    added.add_lines([*lines(one, one, reward(one, 4.0), stranger), b"{", b"\xff", b'{"kind":"decision"}'])
    assert (added.events, added.decisions, added.rewards, added.unreadable) == (7, 2, 2, 3)
    assert added.orphans == 1
    assert added.all()[0].decisions == 1  # the repeat is not another decision


def test_the_truth_is_added_to_the_window_of_its_decision():
    added = made()
    one = decision(1, 7.0)
    added.add_truth([ServedDecision(one.decision_id, "v1", 0, 0, 0.9, 2.0, 3.0, START.timestamp())])
    (slot,) = added.all()
    assert (slot.number, slot.truth_decisions, slot.expected, slot.oracle) == (2, 1, 2.0, 3.0)


def test_items_are_rare_until_they_were_shown_often():
    added = made()
    added.add_lines(lines(*(decision(number, 1.0) for number in range(slots.RARE_BELOW + 10))))
    assert added.all()[0].rare == slots.RARE_BELOW


@pytest.mark.parametrize("propensity", [1e-6, 0.001, 0.5, 0.9, 1.0])
def test_every_propensity_has_a_bin(propensity):
    added = made()
    added.add_lines(lines(decision(1, 1.0, propensity=propensity)))
    assert sum(added.all()[0].propensities) == 1


def test_memory_does_not_grow_with_traffic(monkeypatch):
    monkeypatch.setattr(slots, "SLOTS_KEPT", 10)
    monkeypatch.setattr(slots, "DECISIONS_AWAITED", 50)
    added = made()
    for number in range(1000):
        added.add_lines(lines(decision(number, float(number))))
    assert len(added.all()) == 10
    assert len(added._awaited) == 50
    assert len(added.latest) == slots.STREAMED
    assert added.decisions == 1000
