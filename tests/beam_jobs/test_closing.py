"""A window closes when the watermark has passed it, whatever the clock says."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from beam_jobs.closing import NOTICE_SECONDS, sleep_until, wait_until_complete
from contracts.errors import OperationError
from contracts.watermarks import WaitSettings, Watermark

LIMIT = WaitSettings(watermark_limit_seconds=2 * NOTICE_SECONDS)


def behind(moment: datetime, seconds: float) -> Callable[[], Watermark]:
    """A watermark that stands still before `moment` for that long, then jumps to now."""
    free_at = datetime.now(UTC) + timedelta(seconds=seconds)

    def read() -> Watermark:
        now = datetime.now(UTC)
        if now >= free_at:
            return Watermark(complete_until=now, at=now)
        return Watermark(complete_until=moment - timedelta(seconds=1), at=now, held_by="segment x, still open")

    return read


def test_it_returns_at_once_when_the_watermark_has_passed() -> None:
    said: list[str] = []
    waited = wait_until_complete(behind(datetime.now(UTC), 0), datetime.now(UTC), LIMIT, said.append)
    assert waited.seconds < NOTICE_SECONDS
    assert (waited.held_by, waited.overdue, said) == ("", False, [])


def test_it_does_not_return_before_the_moment() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    waited = wait_until_complete(behind(moment, 0), moment, LIMIT, lambda line: None)
    assert waited.mark.complete_until >= moment
    assert waited.seconds < 0.1  # from the moment on


def test_it_says_once_why_it_waits() -> None:
    said: list[str] = []
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    waited = wait_until_complete(behind(moment, 1.5 * NOTICE_SECONDS), moment, LIMIT, said.append)
    assert said == [
        "Waiting: events before 2026-01-01 00:00:00.000 are complete until 2025-12-31 23:59:59.000;"
        " held by segment x, still open"
    ]
    assert (waited.held_by, waited.overdue) == ("segment x, still open", False)


def test_past_the_limit_it_alarms_and_goes_on_waiting() -> None:
    said: list[str] = []
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    waited = wait_until_complete(behind(moment, 2.5 * NOTICE_SECONDS), moment, LIMIT, said.append)
    assert [line.partition(":")[0] for line in said] == ["Waiting", "ALARM"]
    assert said[1].startswith("ALARM: the watermark is behind for more than 2 s: events before 2026")
    assert waited.overdue and waited.seconds > LIMIT.watermark_limit_seconds


def test_a_job_gives_up_at_the_limit() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    soon = WaitSettings(watermark_limit_seconds=0.1)
    with pytest.raises(OperationError, match=r"^the watermark is behind for more than 0.1 s: .* held by segment x"):
        wait_until_complete(behind(moment, 5), moment, soon, lambda line: None, give_up=True)


def test_waiting_ends_when_the_check_says_so() -> None:
    def check() -> None:
        raise OperationError("predictor ended with exit code 1")

    moment = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(OperationError, match="predictor ended"):
        wait_until_complete(behind(moment, 5), moment, LIMIT, lambda line: None, check)


def test_sleeping_ends_at_its_time_or_with_a_failed_check() -> None:
    def broken() -> None:
        raise OperationError("it crashed")

    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    sleep_until(moment)
    assert datetime.now(UTC) >= moment
    with pytest.raises(OperationError, match="it crashed"):
        sleep_until(datetime.now(UTC) + timedelta(seconds=600), broken)
