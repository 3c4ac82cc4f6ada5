import contextlib
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts import event_segments
from contracts.errors import InputError
from contracts.records import RewardEvent, encoder, event_decoder
from orchestration.processes import free_port
from predictor.publisher import attributes, check_topic
from tests.linear_policies import write_policy
from tests.predictor.test_app import Load, observe
from tests.servers import predictor
from tests.topics import Topic, pubsub_on


@pytest.fixture(scope="module")
def emulator(pubsub_host):
    return pubsub_host


@contextlib.contextmanager
def topic(address, name):
    made = Topic(address, name)
    try:
        yield made
    finally:
        made.close()


def publish(folder, name, address, *flags):
    """What is in the folder, by a publisher that ends when it is done."""
    command = [sys.executable, "-m", "predictor.publisher", "--events", folder, "--topic", name, *flags]
    environment = os.environ | {"PUBSUB_EMULATOR_HOST": address}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def segment(folder: Path, number: int, events: list[bytes]) -> None:
    (folder / f"20261122T13050{number}.000000Z-w-{number:06d}.jsonl").write_bytes(b"".join(e + b"\n" for e in events))


def serving(store, folder, address, topic_name, *flags):
    environment = {"PUBSUB_EMULATOR_HOST": address}
    return predictor(store, folder, "--topic", topic_name, "--segment-seconds", "0.1", *flags, environment=environment)


def test_segments_are_published_in_order_and_removed(emulator, tmp_path):
    events = [b"%d" % i for i in range(1250)]
    segment(tmp_path, 1, events[:1100])
    segment(tmp_path, 2, [])
    segment(tmp_path, 3, events[1100:])
    # Of a server that was killed: its last line is torn, and goes as it is.
    torn = tmp_path / "20261122T130504.000000Z-w-000004.jsonl.open"
    torn.write_bytes(b"whole\nto")
    with topic(emulator, "ordered") as to:
        result = publish(tmp_path, to.name, emulator)
        assert (result.returncode, result.stderr) == (0, "")
        received = to.pull(1252)
    assert sorted(received) == sorted([*events, b"whole", b"to"])
    assert list(tmp_path.glob("*.jsonl*")) == []
    status = json.loads((tmp_path / "publisher.json").read_bytes())
    assert status == {"published": 1252, "retried": 0, "segments": 4, "waiting": 0, "error": None}


def test_a_publisher_that_waits_for_the_topic_ends_with_its_server(emulator, tmp_path):
    segment(tmp_path, 1, [b"1"])
    command = [sys.executable, "-m", "predictor.publisher", "--events", tmp_path, "--drain-seconds", "0.5"]
    command += ["--topic", "projects/test-project/topics/nowhere"]
    environment = os.environ | {"PUBSUB_EMULATOR_HOST": emulator}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            status = tmp_path / "publisher.json"
            while not (status.exists() and b"NOT_FOUND" in status.read_bytes()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert len(event_segments.sealed_segments(tmp_path)) == 1


def test_what_cannot_be_published_stays_on_the_disk(emulator, tmp_path):
    segment(tmp_path, 1, [b"1"])
    result = publish(tmp_path, "projects/test-project/topics/nowhere", emulator, "--drain-seconds", "1")
    assert result.returncode == 0
    assert "1 segments were left" in result.stderr
    assert len(event_segments.sealed_segments(tmp_path)) == 1
    status = json.loads((tmp_path / "publisher.json").read_bytes())
    assert status["error"].startswith("NOT_FOUND: ")
    assert status["retried"] >= 1
    with topic(emulator, "later") as to:
        publish(tmp_path, to.name, emulator)
        assert to.pull(1) == [b"1"]


def test_wrong_topic(tmp_path):
    with pytest.raises(InputError, match=r"^--topic: must be projects/PROJECT/topics/TOPIC, got 'events'$"):
        check_topic("events")
    result = publish(tmp_path, "events", "127.0.0.1:1")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_a_publisher_without_credentials_is_a_failed_operation(tmp_path):
    """No credentials: one line and exit code 3. A file in the place of the folder is wrong input: exit code 2."""
    (tmp_path / "file").write_bytes(b"")
    environment = {name: value for name, value in os.environ.items() if name != "PUBSUB_EMULATOR_HOST"}
    environment |= {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "missing.json")}
    for events, code, message in [
        (tmp_path / "events", 3, "failed: topic: cannot connect to projects/p/topics/events: File "),
        (tmp_path / "file", 2, f"error: events: cannot make the folder {tmp_path}/file: File exists"),
    ]:
        command = [
            sys.executable,
            "-m",
            "predictor.publisher",
            "--events",
            events,
            "--topic",
            "projects/p/topics/events",
        ]
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == code
        assert result.stderr.startswith(f"predictor.publisher: {message}")
        assert result.stderr.count("\n") == 1


def decision_ids(received):
    return [event_decoder.decode(message).decision_id for message in received]


def test_each_answered_decision_is_delivered_once_after_sigterm(emulator, tmp_path):
    write_policy(tmp_path / "v1")
    with (
        topic(emulator, "terminated") as to,
        serving(tmp_path / "v1", tmp_path / "events", emulator, to.name) as server,
    ):
        load = Load(server, clients=2)
        load.wait_for(1000)
        server.process.terminate()
        assert server.process.wait(60) == 0
        load.stop()
        delivered = decision_ids(to.pull(len(load.answered)))
    answered = [prediction["decision_id"] for prediction in load.answered]
    assert len(answered) > 100
    assert len(delivered) == len(set(delivered))
    assert set(answered) <= set(delivered)
    assert len(delivered) - len(answered) <= 2 * 3  # answers on their way when their client was cut off


def test_sigkill_loses_only_what_was_not_yet_written(emulator, tmp_path):
    write_policy(tmp_path / "v1")
    with (
        topic(emulator, "killed") as to,
        serving(tmp_path / "v1", tmp_path / "events", emulator, to.name) as server,
    ):
        load = Load(server, clients=2)
        load.wait_for(1000)
        server.process.kill()
        load.stop()
        # The publisher outlives the server: it seals what was open, delivers it, and ends.
        delivered = set(decision_ids(to.pull(1, seconds=5)))
        deadline = time.monotonic() + 60
        while list((tmp_path / "events").glob("*.jsonl*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        delivered |= set(decision_ids(to.pull(0)))
    lost = [one for one in (p["decision_id"] for p in load.answered) if one not in delivered]
    assert len(delivered) > 100
    # Those that were still gathered: what was decided before anything that is there is there too.
    for decision_id in lost:
        assert decision_id[:13] >= max(delivered)[:13]  # the milliseconds


def test_pubsub_away_under_load(emulator, tmp_path):
    """It is not there for 30 seconds, and then it is; every decision arrives, and no answer waits for it."""
    write_policy(tmp_path / "v1")
    port = free_port()
    name = "projects/test-project/topics/away"
    with serving(tmp_path / "v1", tmp_path / "events", f"127.0.0.1:{port}", name) as server:
        load = Load(server, clients=1)
        away_until = time.monotonic() + 30
        server.wait_for(lambda health: (health["published"]["error"] or "").startswith("UNAVAILABLE"))
        load.wait_for(100)
        time.sleep(max(0.0, away_until - time.monotonic()))
        health = server.get("/health").body
        assert health["published"]["error"].startswith("UNAVAILABLE")
        assert health["published"]["published"] == 0
        assert health["events"]["dropped"] == 0
        assert b'predictor_published_total{outcome="published"} 0.0' in server.read("/metrics")
        with pubsub_on(port, tmp_path) as address, topic(address, "away") as to:
            # Sealed segments may have gone to a topic that was not there yet: those are tried again too.
            load.stop()
            assert load.failures == []
            delivered = decision_ids(to.pull(len(load.answered), seconds=120))
            assert sorted(delivered) == sorted(p["decision_id"] for p in load.answered)
            assert server.get("/health").body["published"]["error"] is None
            assert server.post("/predict", {"instances": [{"observation": observe(1)[0]}]}).status == 200
            assert server.stop() == 0
            assert len(to.pull(1)) == 1


def test_a_publisher_that_dies_is_started_again(emulator, tmp_path):
    import psutil

    write_policy(tmp_path / "v1")
    with (
        topic(emulator, "restarted") as to,
        serving(tmp_path / "v1", tmp_path / "events", emulator, to.name) as server,
    ):
        (first,) = psutil.Process(server.process.pid).children()
        first.kill()
        server.post("/predict", {"instances": [{"observation": observe(1)[0]}]})
        assert len(to.pull(1)) == 1
        (second,) = psutil.Process(server.process.pid).children()
        assert second.pid != first.pid
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            encoder.encode(
                RewardEvent(
                    decision_id="018f0000-0000-7000-8000-000000000000",
                    occurred_at=datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
                    reward=4.5,
                )
            ),
            {"kind": "reward", "event_time": "2026-01-01T00:00:00.000001Z"},
        ),
        (
            b'{"kind":"decision","decided_at":"2026-01-01T00:00:00Z", broken',
            {"kind": "decision", "event_time": "2026-01-01T00:00:00Z"},
        ),
        (b"\xff\xfe", {}),
    ],
)
def test_a_message_says_its_kind_and_time(event, expected):
    assert attributes(event) == expected
