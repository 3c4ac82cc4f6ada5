"""Paths of Cloud Storage in a Vertex AI job, which mounts the bucket `gs://<bucket>` as the folder `/gcs/<bucket>`."""

from pathlib import Path

_URI, _FOLDER = "gs://", "/gcs/"


def mounted(path: str) -> Path:
    """The folder where a job finds a `gs://` path; any other path as it is."""
    return Path(_FOLDER) / path.removeprefix(_URI) if path.startswith(_URI) else Path(path)


def unmounted(path: str) -> str:
    """The `gs://` path of a mounted one, for Beam's workers, which mount no buckets; any other path as it is."""
    return f"{_URI}{path.removeprefix(_FOLDER)}" if path.startswith(_FOLDER) else path
