import fcntl
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from contracts.errors import OperationError
from contracts.event_segments import OPEN_SUFFIX, open_segments, seal, sealed_segments, segment_name
from orchestration import ingestion

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_it_waits_for_the_writer_of_an_older_segment_and_not_of_a_younger_one(tmp_path):
    old, young = (tmp_path / (segment_name(START + timedelta(days=day), "predictor") + OPEN_SUFFIX) for day in (0, 2))
    with old.open("wb") as first, young.open("wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        writer = threading.Timer(0.2, seal, [old])
        begin = time.monotonic()
        writer.start()
        ingestion.wait_until_sealed(tmp_path, START + timedelta(days=1))
        assert time.monotonic() - begin >= 0.15
        writer.join()
        assert (len(sealed_segments(tmp_path)), open_segments(tmp_path)) == (1, [young])


def test_a_segment_whose_writer_was_killed_is_sealed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "SEAL_TIMEOUT_SECONDS", 0.0)
    (tmp_path / (segment_name(START, "predictor") + OPEN_SUFFIX)).write_bytes(b"{}\n")
    ingestion.wait_until_sealed(tmp_path, START + timedelta(days=1))
    assert len(sealed_segments(tmp_path)) == 1


def test_a_writer_that_does_not_seal_is_a_failed_operation(tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "SEAL_TIMEOUT_SECONDS", 0.1)
    with (tmp_path / (segment_name(START, "predictor") + OPEN_SUFFIX)).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OperationError, match=r"^the event log in .* was not sealed within 0.1 s$"):
            ingestion.wait_until_sealed(tmp_path, START + timedelta(days=1))


def test_it_does_not_return_before_the_moment(tmp_path):
    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    ingestion.wait_until_sealed(tmp_path, moment)
    assert datetime.now(UTC) >= moment
