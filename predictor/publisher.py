"""Publishes the sealed segments of an event log to a Pub/Sub topic, and removes each once Pub/Sub confirmed all of it.

    python -m predictor.publisher --events runs/events --topic projects/PROJECT/topics/TOPIC < /dev/null

The folder is the queue. During an outage of Pub/Sub, segments wait on the disk, so memory never holds more than a few
batches. Publishing runs in its own process so that it does not slow predictions. After the end of its standard input (at
once, in the command above), the process publishes all sealed segments and ends, at the latest `--drain-seconds` later.

Guaranteed: each written event is published at least once. It is published twice if the confirmation of a batch was lost,
or if this process was killed in the middle of a segment; readers find copies by `decision_id`. The counters are in
`publisher.json` in the folder. With PUBSUB_EMULATOR_HOST it publishes to that emulator.
"""

import contextlib
import fcntl
import logging
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
from msgspec import Meta

from contracts import event_segments
from contracts.command_line import FlagParser, add_flags, from_flags, run_main
from contracts.errors import InputError, OperationError
from predictor.event_log import make_folder

STATUS_NAME = "publisher.json"

_log = logging.getLogger(__name__)

_BATCH_MESSAGES, _BATCH_BYTES = 500, 4_000_000  # Pub/Sub takes at most 1,000 and 10 MB
_IN_FLIGHT = 4
_PUBLISH_SECONDS = 10.0
_BACK_OFF_SECONDS = (0.1, 5.0)
_POLL_SECONDS = 0.05
_STATUS_SECONDS = 0.25
_HEAD_BYTES = 256
_KIND = re.compile(rb'"kind":"(decision|reward|status)"')
_EVENT_TIME = re.compile(rb'"(?:decided_at|occurred_at)":"([0-9T:.+Z-]{20,40})"')
_TOPIC = re.compile(r"projects/[a-z0-9:.-]+/topics/[A-Za-z][A-Za-z0-9._~+%-]{2,254}")


DrainSeconds = Annotated[float, Meta(gt=0, description="time to publish what is left when stopping")]


class PublisherSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish, and where to."""

    events: Annotated[str, Meta(description="the folder of the event log")]
    topic: Annotated[str, Meta(description="projects/PROJECT/topics/TOPIC")]
    drain_seconds: DrainSeconds = 10.0


class Status(msgspec.Struct, kw_only=True):
    """`publisher.json`: counters since this publisher started. `error` is why it waits, or null."""

    published: int = 0
    retried: int = 0  # batches that were sent again
    segments: int = 0  # published and removed
    waiting: int = 0  # sealed segments not yet published
    error: str | None = None


class _OutOfTimeError(Exception):
    """The drain time has passed; what is left stays on the disk."""


class Publisher:
    """Publishes the segments of one folder."""

    def __init__(
        self,
        folder: Path,
        send: Callable[[Any], Any],
        request: Callable[[list[bytes]], Any],
        until: IO[Any],
        drain_seconds: float,
    ) -> None:
        """Args:
        folder: the event log.
        send: starts publishing a request and returns its future.
        request: makes a request of events.
        until: its end asks the publisher to finish.
        drain_seconds: how long it may take to finish.
        """
        self.status = Status()
        self._until = until
        self._drain_seconds = drain_seconds
        self._deadline: float | None = None  # monotonic; set at the end of `until`
        self._folder = folder
        self._send = send
        self._request = request
        self._status_at = 0.0

    def publish_sealed(self) -> None:
        """Publishes and removes the segments that are sealed now. Raises _OutOfTimeError."""
        segments = event_segments.sealed_segments(self._folder)
        for i, segment in enumerate(segments):
            self.status.waiting = len(segments) - i
            self._publish(segment)
            segment.unlink(missing_ok=True)
            self.status.segments += 1
        self.status.waiting = 0
        self.write_status()

    def ended(self, wait_seconds: float) -> bool:
        """Whether `until` has ended; waits up to `wait_seconds` for that."""
        if self._deadline is not None:
            time.sleep(wait_seconds)
            return True
        readable, _, _ = select.select([self._until], [], [], wait_seconds)
        if not readable or os.read(self._until.fileno(), 4096):
            return False
        self._deadline = time.monotonic() + self._drain_seconds
        return True

    def write_status(self, now: bool = False) -> None:
        """Writes `publisher.json`, at most every quarter of a second unless `now`."""
        if now or time.monotonic() >= self._status_at:
            self._status_at = time.monotonic() + _STATUS_SECONDS
            draft = self._folder / f".{STATUS_NAME}"
            # If the folder was deleted, the event log creates it again.
            with contextlib.suppress(FileNotFoundError):
                draft.write_bytes(msgspec.json.encode(self.status))
                draft.replace(self._folder / STATUS_NAME)

    def _publish(self, segment: Path) -> None:
        in_flight: deque[tuple[list[bytes], Any]] = deque()
        for batch in _batches(segment):
            in_flight.append((batch, self._send(self._request(batch))))
            if len(in_flight) == _IN_FLIGHT:
                self._confirm(*in_flight.popleft())
        while in_flight:
            self._confirm(*in_flight.popleft())

    def _confirm(self, batch: list[bytes], future: Any) -> None:
        import grpc

        wait, longest = _BACK_OFF_SECONDS
        while True:
            try:
                future.result()
            except grpc.RpcError as error:
                self.status.retried += 1
                problem = f"{error.code().name}: {error.details()}"
                if self.status.error != problem:
                    _log.warning("publishing failed, the events wait on the disk: %s", problem)
                self.status.error = problem
                self.status.waiting = len(event_segments.sealed_segments(self._folder))
                self.write_status()
                if self._deadline is not None and time.monotonic() + wait > self._deadline:
                    raise _OutOfTimeError from None
                self.ended(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, longest)
                future = self._send(self._request(batch))
            else:
                self.status.published += len(batch)
                self.status.error = None
                self.write_status()
                return


def _batches(segment: Path) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    with segment.open("rb") as file:
        for line in file:
            event = line.rstrip(b"\n")
            if batch and (len(batch) == _BATCH_MESSAGES or size + len(event) > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            if event:
                batch.append(event)
                size += len(event)
    if batch:
        yield batch


def run(folder: Path, topic: str, emulator: str | None, drain_seconds: float, until: IO[Any]) -> int:
    """Publishes until the end of `until`, then what is left. Returns how many sealed segments could not be published.

    Raises:
      InputError: the folder cannot be created or written to.
      OperationError: the disk fails, or Google finds no credentials.
    """
    make_folder(folder)
    try:
        with (folder / "publisher.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # an earlier server's publisher may still be finishing
            publisher = Publisher(folder, *_connect(topic, emulator), until, drain_seconds)
            _publish_until_ended(publisher, folder)
            return publisher.status.waiting
    except OSError as error:
        raise OperationError(f"events: cannot publish from {folder}: {error.strerror or error}") from None


def _publish_until_ended(publisher: Publisher, folder: Path) -> None:
    publisher.write_status(now=True)
    try:
        while True:
            ended = publisher.ended(_POLL_SECONDS)
            event_segments.seal_abandoned(folder)  # a killed server leaves its segment open
            publisher.publish_sealed()
            if ended:
                break
    except _OutOfTimeError:
        pass
    publisher.status.waiting = len(event_segments.sealed_segments(folder))
    publisher.write_status(now=True)


def _connect(topic: str, emulator: str | None) -> tuple[Callable[[Any], Any], Callable[[list[bytes]], Any]]:
    """How to send a request, and how to make one: the calls below Google's client, whose batching would be a second
    queue, in memory.

    Raises OperationError if Google finds no credentials.
    """
    import grpc
    from google.auth.exceptions import GoogleAuthError
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
    from google.pubsub_v1.types import PublishRequest, PubsubMessage

    # gRPC's own waits between attempts to connect grow to two minutes.
    options = [("grpc.max_reconnect_backoff_ms", 2000)]
    if emulator:
        transport = PublisherGrpcTransport(channel=grpc.insecure_channel(emulator, options))
    else:
        try:
            transport = PublisherGrpcTransport(
                channel=lambda *args, **kwargs: PublisherGrpcTransport.create_channel(
                    *args, **(kwargs | {"options": [*kwargs.get("options", ()), *options]})
                )
            )
        except GoogleAuthError as error:
            raise OperationError(f"topic: cannot connect to {topic}: {' '.join(str(error).split())}") from None
    as_request, as_message = PublishRequest.pb(), PubsubMessage.pb()

    publish: Any = transport.publish  # gRPC's own callable, whatever its annotation says

    def send(request: Any) -> Any:
        return publish.future(request, timeout=_PUBLISH_SECONDS)

    def request(events: list[bytes]) -> Any:
        messages = [as_message(data=event, attributes=attributes(event)) for event in events]
        return as_request(topic=topic, messages=messages)

    return send, request


def attributes(event: bytes) -> dict[str, str]:
    """`kind` and `event_time` (for the job's --timestamp-attribute) of a message, as far as the event has them.

    Both are found by a search, without decoding: the predictor writes them first, and the ingestion validates events.
    """
    head = event[:_HEAD_BYTES]
    found = {"kind": _KIND.search(head), "event_time": _EVENT_TIME.search(head)}
    return {name: match[1].decode() for name, match in found.items() if match}


class PublisherProcess:
    """A publisher process beside a server. It is started again if it dies, and stopped after the log is closed."""

    def __init__(self, folder: Path, topic: str, drain_seconds: float) -> None:
        """Raises InputError for a topic that is not `projects/PROJECT/topics/TOPIC`."""
        check_topic(topic)
        self._command = [sys.executable, "-m", "predictor.publisher", "--events", str(folder), "--topic", topic]
        self._command += ["--drain-seconds", str(drain_seconds)]
        self._status = folder / STATUS_NAME
        self._drain_seconds = drain_seconds
        self._stopping = threading.Event()
        self._process = self._spawn()
        threading.Thread(target=self._keep, name="publisher", daemon=True).start()

    def status(self) -> Status:
        """The last status that it wrote; all zeros before the first."""
        try:
            return msgspec.json.decode(self._status.read_bytes(), type=Status)
        except (OSError, msgspec.DecodeError):
            return Status()

    def stop(self) -> Status:
        """Lets it publish what is sealed, for at most `drain_seconds`, and returns its last status."""
        self._stopping.set()
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(self._drain_seconds + _PUBLISH_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return self.status()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._command, stdin=subprocess.PIPE)

    def _keep(self) -> None:
        while True:
            code = self._process.wait()
            if self._stopping.wait(1.0):
                return
            _log.error("the publisher ended with %d and is started again", code)
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = self._spawn()


def check_topic(topic: str) -> None:
    """Raises InputError unless `topic` is `projects/PROJECT/topics/TOPIC`."""
    if not _TOPIC.fullmatch(topic):
        raise InputError(f"--topic: must be projects/PROJECT/topics/TOPIC, got {topic!r}")


def command(argv: Sequence[str] | None) -> None:
    """Publishes with these flags."""
    parser = FlagParser(prog="python -m predictor.publisher", documentation=__doc__)
    add_flags(parser, PublisherSettings)
    settings = from_flags(parser.parse_args(argv), PublisherSettings)
    check_topic(settings.topic)
    folder = Path(settings.events)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.nice(10)  # predictions take precedence
    # These signals are meant for the server, which ends this process by closing its standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    left = run(folder, settings.topic, os.environ.get("PUBSUB_EMULATOR_HOST"), settings.drain_seconds, sys.stdin)
    if left:
        _log.warning("%d segments were left in %s; the next publisher takes them", left, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_main("predictor.publisher", command, argv)


if __name__ == "__main__":
    sys.exit(main())
