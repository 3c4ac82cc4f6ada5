"""What starts a retraining in the cloud: the schedule, a new training window, or a person. The same window, once.

A Cloud Function takes Eventarc's event of a new object in the bucket; where that is the manifest of a window, it submits
the retraining under a job id made from the window, so an event that comes twice starts nothing twice:

    gcloud functions deploy retrain --gen2 --runtime=python311 --entry-point=retrain_on_manifest \\
        --trigger-event-filters=type=google.cloud.storage.object.v1.finalized --trigger-event-filters=bucket=BUCKET \\
        --set-env-vars=RECOMMENDER_CONFIG=prod,RECOMMENDER_PROJECT=PROJECT --source=.

`main.py` of the function is one line: `from orchestration.triggers import retrain_on_manifest`. Elsewhere it is the same
with `functions-framework --target retrain_on_manifest --signature-type cloudevent`.
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
from orchestration import configuration
from orchestration.configuration import Cloud, Configuration

FINALIZED = "google.cloud.storage.object.v1.finalized"
_MANIFEST = re.compile(rf"(?P<folder>.+)/windows/window=(?P<window>[0-9TZ.]+)/{re.escape(MANIFEST_NAME)}")


class CloudEvent(Protocol):
    """As functions-framework gives it: attributes by key, and the data."""

    data: Any

    def __getitem__(self, attribute: str) -> Any: ...


def retrain_on_manifest(event: CloudEvent) -> str:
    """The function's entry point: submits a retraining for a new manifest, and says what it did.

    Raises InputError when the environment names no configuration, or the event is not one of Cloud Storage.
    """
    return on_manifest(event, _configured(os.environ))


def on_manifest(event: CloudEvent, loaded: Configuration) -> str:
    """What becomes of `event` in the environment `loaded`. Raises InputError."""
    cloud = loaded.needed_cloud()
    if event["type"] != FINALIZED:
        raise InputError(f"event: {FINALIZED} expected, got {event['type']!r}")
    name, bucket = event.data.get("name", ""), event.data.get("bucket", "")
    if bucket != cloud.bucket or (window := window_of(name, cloud)) is None:
        return f"gs://{bucket}/{name} is not the manifest of a training window of {loaded.name}: nothing to do"
    return submit("retrain", loaded, {}, job_id=job_id("retrain", window))


def window_of(name: str, cloud: Cloud) -> str | None:
    """The window whose manifest the object `name` is: its start, as its folder says it. None for any other object."""
    match = _MANIFEST.fullmatch(name)
    return match["window"] if match and match["folder"] == cloud.folder else None


def job_id(pipeline: str, text: str) -> str:
    """`retrain-20260101t000000-000000z`: as Vertex AI takes ids of pipeline jobs, the same for the same window."""
    return re.sub(r"[^a-z0-9-]", "-", f"{pipeline}-{text}".lower())[:128]


def submit(pipeline: str, loaded: Configuration, given: dict[str, str], job_id: str) -> str:
    """Compiles a pipeline and runs it on Vertex AI. Says what it did. Raises InputError."""
    cloud = loaded.needed_cloud()
    from orchestration import pipelines
    from orchestration.vertex import Vertex

    with tempfile.TemporaryDirectory() as folder:
        yaml, parameters, _ = _prepare(pipeline, loaded, given, Path(folder))
        vertex = Vertex(pipelines.place(cloud))
        return vertex.submit(pipeline, yaml, job_id, parameters, f"{cloud.root_uri}/pipelines")


def schedule(pipeline: str, loaded: Configuration, given: dict[str, str]) -> str:
    """Creates or updates the schedule of a pipeline, as the environment's cron line says. Raises InputError."""
    cloud = loaded.needed_cloud()
    from orchestration import pipelines
    from orchestration.vertex import Vertex

    with tempfile.TemporaryDirectory() as folder:
        yaml, parameters, digest = _prepare(pipeline, loaded, given, Path(folder))
        vertex = Vertex(pipelines.place(cloud))
        return vertex.schedule(pipeline, yaml, parameters, f"{cloud.root_uri}/pipelines", cloud.cron, digest)


def _prepare(
    pipeline: str, loaded: Configuration, given: dict[str, str], folder: Path
) -> tuple[Path, dict[str, Any], str]:
    """The compiled pipeline, its parameters, and a digest of both."""
    from orchestration import pipelines

    built = pipelines.build(pipeline, loaded)
    parameters = pipelines.parameters(pipeline, loaded, given, built)
    text = pipelines.compiled(built)
    path = folder / f"{pipeline}.yaml"
    path.write_text(text)
    digest = hashlib.sha256(text.encode() + msgspec.json.encode(parameters, order="deterministic")).hexdigest()
    return path, parameters, digest[:32]


def _configured(environment: Mapping[str, str]) -> Configuration:
    for name in ("RECOMMENDER_CONFIG", "RECOMMENDER_PROJECT"):
        if not environment.get(name):
            raise InputError(f"{name} is missing in the function's environment")
    return configuration.load(environment["RECOMMENDER_CONFIG"], environment["RECOMMENDER_PROJECT"])
