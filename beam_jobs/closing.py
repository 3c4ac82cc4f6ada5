"""Waiting for the moment at which a window closes: when the watermark says that its events are in the tables."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from contracts.errors import OperationError
from contracts.watermarks import WaitSettings, Watermark
from contracts.windows import TrainingWindow, WindowSettings

POLL_SECONDS = 0.05
NOTICE_SECONDS = 1.0  # a shorter wait is not worth a line


class Waited(NamedTuple):
    """A wait that is over.

    mark: the watermark that ended it.
    seconds: since the clock reached the moment, or since the wait began if that was later.
    held_by: what held the watermark, as it was said last; empty for a wait that was not worth a line.
    overdue: whether it took longer than the limit.
    """

    mark: Watermark
    seconds: float
    held_by: str
    overdue: bool


def wait_until_complete(
    read: Callable[[], Watermark],
    moment: datetime,
    settings: WaitSettings,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    give_up: bool = False,
) -> Waited:
    """Returns once every event that reached the log before `moment` is in the tables.

    It says why it waits, and says it again, ever more rarely, when something else holds the watermark. A wait that is longer than the
    limit is an alarm; the wait goes on.

    Args:
      read: the watermark now.
      moment: with a time zone.
      settings: the limit.
      say: takes a line for people.
      check: called while waiting; raises an exception when waiting longer is pointless.
      give_up: whether to end the wait at the limit.

    Raises OperationError at the limit, with `give_up`.
    """
    sleep_until(moment, check)
    begin = time.monotonic()
    held_by = said = ""
    overdue, next_notice = False, NOTICE_SECONDS
    while (mark := read()).complete_until < moment:
        waited = time.monotonic() - begin
        held_by = mark.held_by or held_by
        fact = f"events before {_clock(moment)} are complete until {_clock(mark.complete_until)}; held by {held_by}"
        if waited >= settings.watermark_limit_seconds and not overdue:
            line = f"the watermark is behind for more than {settings.watermark_limit_seconds:g} s: {fact}"
            if give_up:
                raise OperationError(line)
            say(f"ALARM: {line}")
            overdue, said = True, held_by
        elif waited >= next_notice and said != held_by:
            say(f"Waiting: {fact}")
            said, next_notice = held_by, 2 * waited
        check()
        time.sleep(POLL_SECONDS)
    return Waited(mark, time.monotonic() - begin, said, overdue)


def closed_windows(
    first: TrainingWindow,
    settings: WindowSettings,
    wait: Callable[[datetime], object],
    until: datetime | None = None,
) -> Iterator[TrainingWindow]:
    """`first` and the windows after it, of the same length, each after `wait` for its closing time.

    Ends with the last window that ends by `until`; without `until` it never ends.
    """
    window = first
    while until is None or window.end <= until:
        wait(window.closes_at(settings.reward_window_seconds, settings.settle_seconds))
        yield window
        window = TrainingWindow(window.end, window.end + (window.end - window.start))


def sleep_until(moment: datetime, check: Callable[[], None] = lambda: None) -> None:
    """Returns at `moment`, by the clock; calls `check` while it waits."""
    while (left := (moment - datetime.now(UTC)).total_seconds()) > 0:
        check()
        time.sleep(min(left, POLL_SECONDS))


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
