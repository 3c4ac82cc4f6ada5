"""Live learning from the Pub/Sub emulator, as the loop starts it."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts.live_emissions import SUMS_FOLDER, Reader
from orchestration.emulators import learn_live
from orchestration.emulators.reliable_reader import _subscriber
from orchestration.processes import Child
from tests.beam_jobs.test_learn_live import assert_equal, export_all, flags, learned, make_folders
from tests.live_logs import faulty_log, follow_until, payload, plan, write_segment
from tests.streaming_jobs import Queue, publish


def left(subscription: str) -> int:
    """The messages that the subscription still delivers."""
    from google.pubsub_v1.types import PullRequest

    client = _subscriber()
    request = PullRequest(subscription=subscription, max_messages=1000, return_immediately=True)
    found = len(client.transport.pull(request, timeout=60).received_messages)
    client.close()
    return found


def test_what_is_published_is_learned_once_and_acknowledged(tmp_path: Path, queue: Queue) -> None:
    make_folders(tmp_path)
    how = plan(datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=20))
    lines = list(map(payload, faulty_log(how.origin, 9, 150)))
    write_segment(tmp_path / "events", lines, 1)  # for the record alone
    settings = {name.replace("_", "-"): str(getattr(how.settings, name)) for name in how.settings.__struct_fields__}
    source = {"events": f"pubsub:{queue.subscription}", "start": how.origin.isoformat()}
    given = flags(tmp_path, **source, **settings)
    with Child("learn_live", [sys.executable, "-m", learn_live.__name__, *given], tmp_path / "log"):
        publish(queue.topic, lines)
        reader = follow_until(
            Reader(tmp_path / "live" / SUMS_FOLDER),
            lambda it: it.latest is not None and it.latest.events >= len(lines),
        )
        assert left(queue.subscription) == 0
    assert_equal(learned(reader, how), export_all(tmp_path, how))


def test_a_wrong_flag_is_one_line(tmp_path: Path, capsys) -> None:
    assert learn_live.main(flags(tmp_path, windows="/nowhere")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
