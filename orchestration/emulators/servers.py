"""Installs the emulators, and starts those of Pub/Sub and BigQuery on free ports.

What works on an emulator need not work on Google Cloud. Known differences: the BigQuery emulator runs a load job again
when the job id repeats, accepts unknown fields, and answers a value of the wrong type with HTTP 500. The Pub/Sub
emulator ignores subscription filters and permissions.
"""

import contextlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import msgspec

from beam_jobs.payloads import DecisionShape
from contracts.errors import InputError, OperationError
from orchestration.cloud.configuration import EMULATED_WAREHOUSE, EMULATED_WATERMARK
from orchestration.emulators.redirect import BigQueryEndpoint, redirect
from orchestration.emulators.reliable_reader import ACK_DEADLINE_SECONDS
from orchestration.processes import Child, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".emulators"
REQUIREMENTS = ROOT / "requirements" / "emulators.txt"
START_TIMEOUT_SECONDS = 60.0
ADDRESSES_NAME = "emulators.json"
TOPIC = "projects/local-emulators/topics/events"
SUBSCRIPTION = "projects/local-emulators/subscriptions/ingest"
LIVE_SUBSCRIPTION = "projects/local-emulators/subscriptions/live"


class Addresses(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the Pub/Sub and BigQuery emulators listen; the content of `emulators.json`."""

    pubsub: str  # 127.0.0.1:…
    bigquery_rest: str
    bigquery_grpc: str

    @property
    def bigquery(self) -> BigQueryEndpoint:
        """The addresses of the BigQuery emulator, as `redirect` takes them."""
        return BigQueryEndpoint(self.bigquery_rest, self.bigquery_grpc)


def install(environment: Path = ENVIRONMENT) -> None:
    """Creates the environment of the BigQuery and Cloud Storage emulators from the locked requirements.

    Does nothing when it is there and up to date. Raises OperationError when a download or an installation fails.
    """
    done = environment / ".installed"
    if done.is_file() and done.read_text() == REQUIREMENTS.read_text():
        return
    python = environment / "bin" / "python"
    # uv comes with the development requirements.
    uv = [sys.executable, "-m", "uv", "--quiet"]
    commands = [
        [*uv, "venv", "--allow-existing", "--python", sys.executable, str(environment)],
        [*uv, "pip", "sync", "--python", str(python), "--require-hashes", str(REQUIREMENTS)],
        # DuckDB, on which the BigQuery emulator runs, would otherwise download these two at its start.
        [
            *(str(python), "-c"),
            "from duckdb_extensions import import_extension; import_extension('spatial'); import_extension('avro')",
        ],
    ]
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip() or "no output").splitlines()[-1]
            raise OperationError(f"the emulators' environment {environment} cannot be created: {reason}")
    done.write_text(REQUIREMENTS.read_text())


def installed(environment: Path, program: str) -> Path:
    """The path of the environment's Python. Raises InputError when `program` is not installed there."""
    if not (environment / ".installed").is_file():
        raise InputError(f"{program} is not installed: run `python -m orchestration.emulators install`")
    return environment / "bin" / "python"


def pubsub_program() -> Path:
    """The path of Google's Pub/Sub emulator, a part of gcloud. Raises InputError with how to install what is missing."""
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
    """Runs the Pub/Sub emulator until the block ends; yields its `host:port`.

    Raises InputError when it is not installed, OperationError when it does not start.
    """
    port = free_port()
    command = [str(pubsub_program()), "--host=127.0.0.1", f"--port={port}"]
    with Child("Pub/Sub emulator", command, logs / "pubsub.log") as emulator:
        wait_until_ready(emulator, lambda: answers(f"http://127.0.0.1:{port}/"))
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def bigquery_emulator(logs: Path, environment: Path = ENVIRONMENT) -> Iterator[BigQueryEndpoint]:
    """Runs the BigQuery emulator in memory until the block ends; yields its addresses.

    Raises InputError when it is not installed, OperationError when it does not start.
    """
    python = installed(environment, "the BigQuery emulator")
    rest, grpc = free_port(), free_port()
    command = [str(python.with_name("bqemulator")), "start", "--ephemeral", "--log-level", "warning"]
    command += ["--rest-port", str(rest), "--grpc-port", str(grpc)]
    with Child("BigQuery emulator", command, logs / "bigquery.log") as emulator:
        wait_until_ready(emulator, lambda: answers(f"http://127.0.0.1:{rest}/healthz"))
        yield BigQueryEndpoint(f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")


@contextlib.contextmanager
def ingesting(logs: Path, status: Path, shape: DecisionShape) -> Iterator[tuple[Addresses, Child]]:
    """Runs the Pub/Sub and BigQuery emulators and, between them, the streaming job `ingest_events`.

    Messages published to `TOPIC` are stored in `EMULATED_WAREHOUSE`. The clients of this process are pointed at the
    emulators. Yields the addresses, and the job's process, once the job reads.

    Args:
      logs: folder for the output of the three processes.
      status: file to which the job writes its watermark: what it has stored of what Pub/Sub has taken.
      shape: shape of a valid decision; the job stores any other as a dead letter.

    Raises InputError when an emulator is not installed, OperationError when one does not start.
    """
    with contextlib.ExitStack() as stack:
        pubsub = stack.enter_context(pubsub_emulator(logs))
        bigquery = stack.enter_context(bigquery_emulator(logs))
        stack.enter_context(redirect(pubsub, bigquery))
        _create_resources()
        status.unlink(missing_ok=True)  # an earlier run may have left one
        command = [sys.executable, "-m", "orchestration.emulators.ingest", "--events", f"pubsub:{SUBSCRIPTION}"]
        command += ["--warehouse", EMULATED_WAREHOUSE, "--status", str(status), *shape.flags()]
        command += ["--pubsub", pubsub, "--bigquery-rest", bigquery.rest, "--bigquery-grpc", bigquery.grpc]
        job = stack.enter_context(Child("streaming ingest_events", command, logs / "ingest_events.log"))
        wait_until_ready(job, status.is_file)
        yield Addresses(pubsub=pubsub, bigquery_rest=bigquery.rest, bigquery_grpc=bigquery.grpc), job


def _create_resources() -> None:
    from google.cloud import pubsub_v1

    from beam_jobs import bigquery
    from beam_jobs.places import parse_dataset

    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=TOPIC)
        subscriber.create_subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=ACK_DEADLINE_SECONDS)
    dataset = parse_dataset(EMULATED_WAREHOUSE)
    client = bigquery.client(dataset.project)
    client.create_dataset(dataset.name)
    client.close()


def subscribe_live() -> None:
    """Makes the subscription that live learning reads; it has what is published from now on."""
    from google.cloud import pubsub_v1

    with pubsub_v1.SubscriberClient() as subscriber:
        subscriber.create_subscription(name=LIVE_SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=ACK_DEADLINE_SECONDS)


def up(root: Path, shape: DecisionShape, stop: threading.Event) -> None:
    """Runs `ingesting` for the pipelines of a root folder, until `stop` is set.

    Raises InputError when emulators are up for `root` or it cannot be created, and what `ingesting` raises.
    """
    path = root / ADDRESSES_NAME
    if path.is_file() and _both_answer(_read(path)):
        raise InputError(f"--root: emulators already run for {root}: see {path}")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--root: {root} cannot be created: {error.strerror}") from None
    with ingesting(root / "logs", root / EMULATED_WATERMARK, shape) as (addresses, job):
        path.write_bytes(msgspec.json.encode(addresses) + b"\n")
        try:
            print(f"Up: {path}. Ctrl-C stops the emulators. Once a pipeline has promoted a champion, serve it with:")
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
    """The addresses of the emulators that run for `root`.

    Raises InputError when none was started, OperationError when they no longer answer.
    """
    path = root / ADDRESSES_NAME
    how = f"run `python -m orchestration.emulators up --root {root}` first"
    if not path.is_file():
        raise InputError(f"no emulators are up for root {root}: {how}")
    found = _read(path)
    if not _both_answer(found):
        raise OperationError(f"the emulators in {path} no longer answer: {how}")
    return found


def _read(path: Path) -> Addresses:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Addresses)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None


def _both_answer(addresses: Addresses) -> bool:
    return answers(f"http://{addresses.pubsub}/") and answers(f"{addresses.bigquery_rest}/healthz")


def answers(url: str) -> bool:
    """Whether an HTTP server answers at `url` within a second, with an error or without."""
    try:
        with urlopen(url, timeout=1):
            return True
    except OSError as error:
        return getattr(error, "code", None) is not None  # an HTTP error is an answer too


def wait_until_ready(child: Child, ready: Callable[[], bool]) -> None:
    """Returns once `ready()`. Raises OperationError when the process ends first, or takes too long."""

    def check() -> None:
        child.check()
        if child.exit_code() is not None:
            raise OperationError(f"{child.name} ended before it answered: see {child.log}")

    if not wait_until(ready, START_TIMEOUT_SECONDS, check):
        raise OperationError(f"{child.name} did not answer within {START_TIMEOUT_SECONDS:g} s: see {child.log}")
