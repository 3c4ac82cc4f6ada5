"""What starts a retraining in the cloud: the schedule, a new training window, or a person. The same window, once.

A function takes Eventarc's event of a new object in the bucket; where that is the manifest of a window, it submits the
retraining under a job id made from the window, so an event that comes twice starts nothing twice. While a pipeline is
under way it submits none: a retraining takes every window that the champion has not seen, and a pipeline that exports a
window writes a manifest itself. The image `orchestration` holds the function:

    gcloud run deploy retrain --image=IMAGE --region=REGION --no-allow-unauthenticated --command=functions-framework \\
        --args=--source=/app/orchestration/pipelines/triggers.py,--target=retrain_on_manifest,--signature-type=cloudevent \\
        --service-account=bandit-pipelines@PROJECT.iam.gserviceaccount.com --memory=2Gi --timeout=600 \\
        --set-env-vars=RECOMMENDER_CONFIG=prod,RECOMMENDER_PROJECT=PROJECT
    gcloud eventarc triggers create retrain --location=REGION --destination-run-service=retrain \\
        --event-filters=type=google.cloud.storage.object.v1.finalized --event-filters=bucket=PROJECT-bandit \\
        --service-account=bandit-pipelines@PROJECT.iam.gserviceaccount.com

That account also needs roles/eventarc.eventReceiver, and roles/run.invoker on the service; Cloud Storage's own agent
roles/pubsub.publisher. Here it is the same: `functions-framework --source orchestration/pipelines/triggers.py
--target retrain_on_manifest --signature-type cloudevent`.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from contracts.errors import InputError
from contracts.windows import MANIFEST_NAME
from orchestration.cloud import configuration
from orchestration.cloud.configuration import Configuration

FINALIZED = "google.cloud.storage.object.v1.finalized"
_MANIFEST = re.compile(rf"windows/window=(?P<window>[0-9TZ.]+)/{re.escape(MANIFEST_NAME)}")


class CloudEvent(Protocol):
    """As functions-framework gives it: attributes by key, and the data."""

    data: Any

    def __getitem__(self, attribute: str) -> Any: ...


def retrain_on_manifest(event: CloudEvent) -> str:
    """The function's entry point: submits a retraining for a new manifest, and says what it did, in its log too.

    An event that is not one of Cloud Storage is told and done with: it would be no better the next time it is delivered.
    Raises InputError when the environment names no configuration, or Vertex AI refuses: Eventarc delivers it again.
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
    """What becomes of a new object `name` of a bucket in the environment `loaded`. Raises InputError."""
    cloud = loaded.needed_cloud()
    if bucket != cloud.bucket or (window := window_of(name)) is None:
        return f"gs://{bucket}/{name} is not the manifest of a training window of {loaded.name}: nothing to do"
    from orchestration.cloud.vertex import Vertex
    from orchestration.pipelines import definitions

    wanted = job_id("retrain", window)
    running = Vertex(definitions.place(cloud)).under_way()
    if running not in (None, wanted):
        return f"{running} is under way: it takes the window {window}, or the run after it does"
    return submit("retrain", loaded, {}, job_id=wanted)


def _object(event: CloudEvent) -> tuple[str, str]:
    """Name and bucket of the object that an event is about. Raises InputError."""
    if event["type"] != FINALIZED:
        raise InputError(f"event: {FINALIZED} expected, got {event['type']!r}")
    data = event.data if isinstance(event.data, Mapping) else {}
    name, bucket = data.get("name"), data.get("bucket")
    if not isinstance(name, str) or not isinstance(bucket, str):
        raise InputError(f"event: data with the name and bucket of an object expected, got {event.data!r:.200}")
    return name, bucket


def window_of(name: str) -> str | None:
    """The window whose manifest the object `name` is: its start, as its folder says it. None for any other object."""
    match = _MANIFEST.fullmatch(name)
    return match["window"] if match else None


def job_id(pipeline: str, text: str) -> str:
    """`retrain-20260101t000000-000000z`: as Vertex AI takes ids of pipeline jobs, the same for the same window."""
    return re.sub(r"[^a-z0-9-]", "-", f"{pipeline}-{text}".lower())[:128]


def submit(pipeline: str, loaded: Configuration, given: dict[str, str], job_id: str) -> str:
    """Compiles a pipeline and runs it on Vertex AI under that id. Says what it did. Raises InputError."""
    cloud = loaded.needed_cloud()
    from orchestration.cloud.vertex import Vertex
    from orchestration.pipelines import definitions

    with tempfile.TemporaryDirectory() as folder:
        yaml, parameters, _ = _prepare(pipeline, loaded, given, Path(folder))
        vertex = Vertex(definitions.place(cloud))
        return vertex.submit(pipeline, yaml, job_id, parameters, f"{cloud.root_uri}/pipelines")


def schedule(pipeline: str, loaded: Configuration, given: dict[str, str]) -> str:
    """Creates or updates the schedule of a pipeline, as the environment's cron line says. Raises InputError."""
    cloud = loaded.needed_cloud()
    from orchestration.cloud.vertex import Vertex
    from orchestration.pipelines import definitions

    with tempfile.TemporaryDirectory() as folder:
        yaml, parameters, digest = _prepare(pipeline, loaded, given, Path(folder))
        vertex = Vertex(definitions.place(cloud))
        return vertex.schedule(pipeline, yaml, parameters, f"{cloud.root_uri}/pipelines", cloud.cron, digest)


def _prepare(
    pipeline: str, loaded: Configuration, given: dict[str, str], folder: Path
) -> tuple[Path, dict[str, Any], str]:
    """The compiled pipeline, its parameters, and a digest of both."""
    from orchestration.pipelines import definitions

    built = definitions.build(pipeline, loaded)
    parameters = definitions.parameters(pipeline, loaded, given, built)
    text = definitions.compiled(built)
    path = folder / f"{pipeline}.yaml"
    path.write_text(text)
    digest = hashlib.sha256(text.encode() + msgspec.json.encode(parameters, order="deterministic")).hexdigest()
    return path, parameters, digest[:32]


def _configured(environment: Mapping[str, str]) -> Configuration:
    for name in ("RECOMMENDER_CONFIG", "RECOMMENDER_PROJECT"):
        if not environment.get(name):
            raise InputError(f"{name} is missing in the function's environment")
    return configuration.load(environment["RECOMMENDER_CONFIG"], environment["RECOMMENDER_PROJECT"])
