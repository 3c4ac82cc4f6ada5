"""The jobs are really submitted by DataflowRunner, to a local endpoint and a Cloud Storage emulator.

What is posted must parse strictly into the Dataflow API's own `Job`, and the pipeline that is staged must hold the steps.
That proves its shape; whether Dataflow accepts it can only be seen there.
"""

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from google.cloud import dataflow_v1beta3
from google.protobuf import json_format

from beam_jobs import (
    bigquery,
    bigquery_sinks,
    export_trajectories,
    generate_movielens,
    ingest_events,
    learn_live,
    replay_dead_letters,
)
from beam_jobs.files import publish
from beam_jobs.places import Dataset
from beam_jobs.tables import TableRows, record_batch
from contracts.event_segments import segment_name
from contracts.records import DeadLetter
from contracts.schemas import DEAD_LETTERS, DECISIONS
from contracts.windows import decode_manifest
from orchestration.emulators.redirect import BigQueryEndpoint
from tests import simulated
from tests.simulated import START
from tests.storage import beam_storage_at, storage_emulator

PROJECT = "local-test"
_numbers = itertools.count()


class Dataflow(NamedTuple):
    """A local endpoint that takes jobs, and the folder in which the emulated bucket is."""

    endpoint: str
    bucket: Path
    posted: list[dict[str, Any]]


@pytest.fixture(scope="module")
def dataflow(tmp_path_factory: pytest.TempPathFactory, emulators_environment: Path) -> Iterator[Dataflow]:
    posted: list[dict[str, Any]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            job = json.loads(body)
            posted.append({"path": self.path, "job": job})
            answer = json.dumps({**job, "id": f"job-{len(posted)}", "currentState": "JOB_STATE_PENDING"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path_factory.mktemp("storage")
    (folder / "data" / "bucket").mkdir(parents=True)
    with (
        storage_emulator(folder / "logs", folder / "data", emulators_environment) as url,
        beam_storage_at(url),
    ):
        # By name: Beam takes an endpoint at an address for Google's own.
        yield Dataflow(f"http://localhost:{server.server_port}", folder / "data" / "bucket", posted)
    server.shutdown()
    server.server_close()


def submit(dataflow: Dataflow, main: Callable[[list[str]], int], flags: list[str], *more: str) -> tuple[Any, Any]:
    """Runs a job's `main` with DataflowRunner: (the posted job, the staged pipeline)."""
    number = next(_numbers)
    beam_flags = [
        "--runner=DataflowRunner",
        f"--project={PROJECT}",
        "--region=europe-west1",
        f"--temp_location=gs://bucket/temp-{number}",
        f"--staging_location=gs://bucket/staging-{number}",
        f"--job_name=bandit-{number}",
        f"--dataflow_endpoint={dataflow.endpoint}",
        "--no_auth",
        "--sdk_container_image=europe-docker.pkg.dev/local-test/bandit/beam:1",
        "--sdk_location=container",
        "--machine_type=n2-standard-2",
        "--max_num_workers=7",
        *more,
    ]
    before = len(dataflow.posted)
    assert main([*flags, *beam_flags]) == 0
    [request] = dataflow.posted[before:]
    assert request["path"].startswith(f"/v1b3/projects/{PROJECT}/locations/europe-west1/jobs")
    job = dataflow_v1beta3.Job.pb(dataflow_v1beta3.Job())
    json_format.ParseDict(request["job"], job)  # unknown fields are errors
    staged = beam_runner_api_pb2.Pipeline()
    [path] = (dataflow.bucket / f"staging-{number}").rglob("pipeline.pb")
    staged.ParseFromString(path.read_bytes())
    return job, staged


def steps(pipeline: Any) -> set[str]:
    """The names of the top-level steps and those within composites."""
    return {transform.unique_name for transform in pipeline.components.transforms.values()}


def options(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(job.environment.sdk_pipeline_options)["options"]
    return found


def check_workers(job: Any) -> None:
    [pool] = job.environment.worker_pools
    assert pool.machine_type == "n2-standard-2"
    assert pool.autoscaling_settings.max_num_workers == 7
    images = {image.container_image for image in pool.sdk_harness_container_images}
    assert images == {"europe-docker.pkg.dev/local-test/bandit/beam:1"}


def test_generate_movielens(dataflow: Dataflow) -> None:
    flags = ["--num-decisions=1000", "--start=2026-01-01T00:00:00Z", "--events=gs://bucket/events"]
    job, staged = submit(dataflow, generate_movielens.main, flags)
    assert job.type_ == dataflow_v1beta3.JobType.JOB_TYPE_BATCH
    check_workers(job)
    assert "SimulateUniformPolicy/GenerateShard" in steps(staged)


def test_export_trajectories(dataflow: Dataflow, bigquery_endpoint: BigQueryEndpoint) -> None:
    client = bigquery.client(PROJECT)
    client.create_dataset("to_export", exists_ok=True)
    client.close()
    bigquery.ensure_tables(Dataset(PROJECT, "to_export"), None)
    flags = [f"--warehouse=bigquery:{PROJECT}.to_export", "--windows=gs://bucket/windows"]
    flags += ["--start=2026-01-01T00:00:00Z", "--end=2026-01-01T00:05:00Z"]
    job, staged = submit(dataflow, export_trajectories.main, flags)
    assert job.type_ == dataflow_v1beta3.JobType.JOB_TYPE_BATCH
    check_workers(job)
    names = steps(staged)
    assert {"ReadWindowRows/OpenParts", "ReadWindowRows/ReadPart", "WriteWindow/WriteManifest"} <= names
    assert "JoinRewards/JoinBucket" in names


@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
def test_ingest_events(dataflow: Dataflow, pubsub_host: str, bigquery_endpoint: BigQueryEndpoint, mode: str) -> None:
    from google.cloud import pubsub_v1

    topic, subscription = f"projects/{PROJECT}/topics/{mode}", f"projects/{PROJECT}/subscriptions/{mode}"
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic)
    client = bigquery.client(PROJECT)
    client.create_dataset("ingested", exists_ok=True)
    client.close()
    flags = [f"--events=pubsub:{subscription}", f"--warehouse=bigquery:{PROJECT}.ingested"]
    flags += [f"--dead-letter-topic={topic}", "--timestamp-attribute=event_time"]
    more = ["--enable_streaming_engine"]
    if mode == "at_least_once":
        more.append("--dataflow_service_options=streaming_mode_at_least_once")
    job, staged = submit(dataflow, ingest_events.main, flags, *more)
    assert job.type_ == dataflow_v1beta3.JobType.JOB_TYPE_STREAMING
    check_workers(job)
    assert options(job)["streaming"] is True
    assert options(job)["enable_streaming_engine"] is True
    service_options = list(job.environment.service_options)
    assert ("streaming_mode_at_least_once" in service_options) == (mode == "at_least_once")
    names = steps(staged)
    for step in ("ReadEvents/Read", "ReadEvents/BatchMessages", "ParseEvents/Parse", "PublishDeadLetters"):
        assert any(name == step or name.startswith(f"{step}/") for name in names), (step, sorted(names))
    for table in ("decisions", "rewards", "dead_letters"):
        assert any(name.startswith(f"StoreEvents/Write_{table}") for name in names)
    reads = [
        transform.spec
        for transform in staged.components.transforms.values()
        if transform.spec.urn == "beam:transform:pubsub_read:v1"
    ]
    [read] = [beam_runner_api_pb2.PubSubReadPayload.FromString(spec.payload) for spec in reads]
    assert read.subscription == subscription
    assert read.timestamp_attribute == "event_time"
    assert read.with_attributes


def test_learn_live(dataflow: Dataflow, pubsub_host: str) -> None:
    from google.cloud import pubsub_v1

    topic, subscription = f"projects/{PROJECT}/topics/live", f"projects/{PROJECT}/subscriptions/live"
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic)
    flags = [f"--events=pubsub:{subscription}", "--windows=gs://bucket/windows", "--live=gs://bucket/live"]
    flags += ["--start=2026-01-01T00:00:00Z", "--window-seconds=300", "--observation-dim=20", "--num-actions=100"]
    job, staged = submit(dataflow, learn_live.main, [*flags, "--buckets=16"], "--enable_streaming_engine")
    assert job.type_ == dataflow_v1beta3.JobType.JOB_TYPE_STREAMING
    check_workers(job)
    assert "streaming_mode_at_least_once" not in list(job.environment.service_options)
    stateful = {
        transform.unique_name
        for transform in staged.components.transforms.values()
        if transform.spec.urn == "beam:transform:pardo:v1"
        and beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload).state_specs
    }
    for step in ("WatchRecord/Watch", "JoinLive/JoinBucket", "EmitSums/Emit"):
        assert any(name.startswith(step) for name in stateful), (step, stateful)


@pytest.mark.parametrize("job", ["replay_dead_letters", "ingest_events"])
def test_a_template_is_made_before_anything_runs(
    dataflow: Dataflow, dataset: Dataset, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flex template's launcher asks for the job's graph alone: what it would do is not done yet."""
    letters = [
        DeadLetter(payload=simulated.events(1)[0], error_type="x", error_message="m", stage="p", failed_at=START)
    ]
    store = bigquery_sinks.InsertRowsFn(dataset, DEAD_LETTERS)
    store.setup()
    list(store.process(TableRows("before", record_batch(DEAD_LETTERS, letters))))
    store.teardown()
    publish(f"gs://bucket/to_ingest/{segment_name(START, 'test')}.jsonl", [b"?\n"])
    number = next(_numbers)
    flags = {
        "replay_dead_letters": ["--start=2026-01-01T00:00:00Z", "--end=2026-01-02T00:00:00Z"],
        "ingest_events": ["--events=gs://bucket/to_ingest"],
    }
    main = {"replay_dead_letters": replay_dead_letters.main, "ingest_events": ingest_events.main}[job]
    before = len(dataflow.posted)
    flags_of_launcher = [
        "--runner=DataflowRunner",
        f"--project={PROJECT}",
        "--region=europe-west1",
        f"--temp_location=gs://bucket/temp-{number}",
        f"--staging_location=gs://bucket/staging-{number}",
        f"--template_location=gs://bucket/staging-{number}/template_launches/job_object",
        "--no_auth",
        "--sdk_location=container",
    ]
    tables = f"--warehouse=bigquery:{dataset.project}.{dataset.name}"
    assert main([*flags[job], tables, *flags_of_launcher]) == 0
    assert capsys.readouterr().out == "submitted\n"
    assert dataflow.posted[before:] == []
    [made] = (dataflow.bucket / f"staging-{number}").rglob("job_object")
    job_proto = dataflow_v1beta3.Job.pb(dataflow_v1beta3.Job())
    json_format.ParseDict(json.loads(made.read_text()), job_proto)
    [path] = (dataflow.bucket / f"staging-{number}").rglob("pipeline.pb")
    staged = beam_runner_api_pb2.Pipeline.FromString(path.read_bytes())
    assert ("RemoveDeadLetters" in steps(staged)) == (job == "replay_dead_letters")
    assert len(simulated.rows(dataset, DEAD_LETTERS)) == 1
    assert simulated.rows(dataset, DECISIONS) == []


def test_the_three_jobs_on_a_bucket(
    dataflow: Dataflow,
    bigquery_endpoint: BigQueryEndpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they run on Dataflow, files in Cloud Storage and tables in BigQuery, but on the local runner."""
    client = bigquery.client(PROJECT)
    client.create_dataset("on_a_bucket", exists_ok=True)
    client.close()
    cloud = ["--no_auth", f"--project={PROJECT}"]
    start = "--start=2026-01-01T00:00:00Z"
    rows = [f"{user}\t{movie}\t{1 + (user * movie) % 5}\t1" for user in range(30) for movie in range(20)]
    publish("gs://bucket/ml-100k/u.data", ["\n".join(rows).encode()])
    size = ["--ratings=gs://bucket/ml-100k", "--num-decisions=60", "--num-actions=5", "--rank=3"]
    size.append("--decisions-per-shard=20")
    events = ["--events=gs://bucket/run/events", "--catalogue=gs://bucket/run/catalogue.json"]
    assert generate_movielens.main([*size, start, *events, *cloud]) == 0
    assert (dataflow.bucket / "run" / "catalogue.json").is_file()
    publish("gs://bucket/run/events/notes.jsonl", [b"no event\n"])  # not a segment: left alone
    tables = f"--warehouse=bigquery:{PROJECT}.on_a_bucket"
    assert ingest_events.main(["--events=gs://bucket/run/events", tables, *cloud]) == 0
    into_bigquery = capsys.readouterr().out.splitlines()[-1]
    assert ingest_events.main(["--events=gs://bucket/run/events", f"--warehouse={tmp_path}", *cloud]) == 0
    assert capsys.readouterr().out.splitlines() == [into_bigquery]
    assert "60 decisions" in into_bigquery
    window = [start, "--window-seconds=5", "--windows=gs://bucket/run/windows", "--max-records-per-file=25"]
    for _ in range(2):  # the second time it is there already
        assert export_trajectories.main([tables, *window, *cloud]) == 0
        assert "60 trajectories" in capsys.readouterr().out
    folder = dataflow.bucket / "run" / "windows" / "window=20260101T000000.000000Z"
    manifest = decode_manifest((folder / "manifest.json").read_bytes(), "manifest")
    assert {file.name for file in manifest.files} | {"manifest.json"} == {path.name for path in folder.iterdir()}
    for file in manifest.files:
        assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
