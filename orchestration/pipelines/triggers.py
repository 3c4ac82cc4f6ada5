"""What starts a retraining on Google Cloud: a schedule, a new training window, or a person. Each window starts one, and so
does each revision of a window.

`infra/services.tf` deploys the function below. It takes Eventarc's event of a new object in the bucket. If the object is the manifest of a window, the
function submits a retraining under a job id made from the window, so a repeated event starts nothing. While a pipeline is
under way it submits nothing: a retraining takes every window that the champion has not seen, and a pipeline that exports
a window writes a manifest too. The image `orchestration` holds the function, and the account `trigger` runs it.

On this machine the function runs with `functions-framework --source
orchestration/pipelines/triggers.py --target retrain_on_manifest --signature-type cloudevent`.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from contracts.errors import InputError
from contracts.windows import MANIFEST_NAME
from orchestration.cloud import configuration
from orchestration.cloud.configuration import Configuration

if TYPE_CHECKING:
    from orchestration.cloud.vertex_jobs import Compiled

FINALIZED = "google.cloud.storage.object.v1.finalized"
_MANIFEST = re.compile(rf"windows/window=(?P<window>[0-9TZ.]+Z(?:\.r\d+)?)/{re.escape(MANIFEST_NAME)}")


class CloudEvent(Protocol):
    """An event as functions-framework passes it: attributes by key, and the data."""

    data: Any

    def __getitem__(self, attribute: str) -> Any: ...


def retrain_on_manifest(event: CloudEvent) -> str:
    """The function's entry point: submits a retraining for a new manifest, and logs and returns what it did.

    An event that Cloud Storage did not send is logged and acknowledged, since delivering it again would not help. Raises
    InputError if the environment names no configuration or Vertex AI refuses the request, and OperationError if Vertex
    AI fails; Eventarc then delivers the event again.
    """
    loaded = _configured(os.environ)
    try:
        name, bucket = _object(event)
    except InputError as error:
        said = str(error)
    else:
        said = on_manifest(name, bucket, loaded)
    print(said, flush=True)
    return said


def on_manifest(name: str, bucket: str, loaded: Configuration) -> str:
    """Submits a retraining if the new object `name` of `bucket` is a manifest of the environment `loaded`.

    Returns a sentence about what it did. Raises InputError or OperationError.
    """
    cloud = loaded.needed_cloud()
    if bucket != cloud.bucket or (window := window_of(name)) is None:
        return f"gs://{bucket}/{name} is not the manifest of a training window of {loaded.name}: nothing to do"
    from orchestration.cloud.vertex_jobs import VertexJobs

    wanted = job_id(cloud.name, "retrain", window)
    running = VertexJobs(cloud.target).under_way()
    if running not in (None, wanted):
        return f"{running} is under way: it takes the window {window}, or the run after it does"
    return submit("retrain", loaded, {}, job_id=wanted)


def _object(event: CloudEvent) -> tuple[str, str]:
    """Name and bucket of the object in an event. Raises InputError if the event has none."""
    if event["type"] != FINALIZED:
        raise InputError(f"event: type {FINALIZED}, got {event['type']!r}")
    data = event.data if isinstance(event.data, Mapping) else {}
    name, bucket = data.get("name"), data.get("bucket")
    if not isinstance(name, str) or not isinstance(bucket, str):
        raise InputError(f"event: data with the name and bucket of an object, got {event.data!r:.200}")
    return name, bucket


def window_of(name: str) -> str | None:
    """The start of a window and its revision, as in its folder's name, if the object `name` is its manifest; else None."""
    match = _MANIFEST.fullmatch(name)
    return match["window"] if match else None


def job_id(environment: str, pipeline: str, text: str) -> str:
    """An id as Vertex AI takes it for a pipeline job, such as `bandit-dev-retrain-20260101t000000-000000z`."""
    return re.sub(r"[^a-z0-9-]", "-", f"{environment}-{pipeline}-{text}".lower())[:128]


def submit(pipeline: str, loaded: Configuration, given: dict[str, str], job_id: str) -> str:
    """Compiles a pipeline and runs it on Vertex AI under that id. Returns a sentence about what it did.

    Raises InputError or OperationError.
    """
    target = loaded.needed_cloud().target
    from orchestration.cloud.vertex_jobs import VertexJobs

    with _compiled(pipeline, loaded, given) as (compiled, _):
        return VertexJobs(target).submit(compiled, job_id)


def schedule(pipeline: str, loaded: Configuration, given: dict[str, str]) -> str:
    """Creates or updates the schedule of a pipeline, with the cron line of the environment.

    Returns a sentence about what it did. Raises InputError or OperationError.
    """
    cloud = loaded.needed_cloud()
    from orchestration.cloud.vertex_jobs import VertexJobs

    with _compiled(pipeline, loaded, given) as (compiled, digest):
        return VertexJobs(cloud.target).schedule(compiled, cloud.cron, digest)


@contextmanager
def _compiled(pipeline: str, loaded: Configuration, given: dict[str, str]) -> "Iterator[tuple[Compiled, str]]":
    """The pipeline, in a file that exists until the block ends, and a digest of it and its parameters."""
    from orchestration.cloud.vertex_jobs import Compiled
    from orchestration.pipelines import definitions, parameters

    built = definitions.build(pipeline, loaded)
    values = parameters.values(built, loaded, given)
    text = definitions.compiled(built)
    digest = hashlib.sha256(text.encode() + msgspec.json.encode(values, order="deterministic")).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline}.yaml"
        path.write_text(text)
        yield Compiled(pipeline, path, values, f"{loaded.needed_cloud().root_uri}/pipelines"), digest[:32]


def _configured(environment: Mapping[str, str]) -> Configuration:
    for name in ("RECOMMENDER_CONFIG", "RECOMMENDER_PROJECT"):
        if not environment.get(name):
            raise InputError(f"{name}: required in the function's environment, got none")
    return configuration.load(environment["RECOMMENDER_CONFIG"], environment["RECOMMENDER_PROJECT"])
