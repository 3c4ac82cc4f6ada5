"""Configurations: where the pipelines run and with which parameters. One TOML file each, in `orchestration/configs/`.

    backend = "gcp"              local, emulators or gcp
    [cloud]                      with gcp alone: project, location, bucket, images, …
    [shared]                     parameters of every pipeline that has one of that name
    [bootstrap] [retrain] [tune] parameters of one pipeline

The parameters are checked against the pipelines' own signatures (`orchestration.pipelines.check`). A pipeline that can
cost money is never given an environment by default: commands ask for `--config`.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.errors import InputError

FOLDER = Path(__file__).with_name("configs")
PIPELINES = ("bootstrap", "retrain", "tune")
EMULATED_WAREHOUSE = "bigquery:local-emulators.bandit"

Value = str | int | float | bool | list[float] | dict[str, str | int | float | bool]
NotEmpty = Annotated[str, Meta(min_length=1)]


class Cloud(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Google Cloud. `project` may be left empty in the file and named on the command line."""

    project: str = ""
    location: NotEmpty
    bucket: NotEmpty  # without gs://; holds windows, policies, templates and the pipelines' own files
    folder: NotEmpty  # within the bucket: the root of this environment
    dataset: NotEmpty  # of BigQuery
    service_account: str = ""  # the project's default one when empty
    repository: NotEmpty  # of Artifact Registry, holding the images orchestration and predictor
    image_tag: NotEmpty
    events_topic: NotEmpty  # of Pub/Sub, to which the predictors publish
    endpoint: NotEmpty  # display name of the one endpoint; the model's too
    machine_type: NotEmpty  # of a replica of the endpoint
    min_replicas: Annotated[int, Meta(ge=1)] = 1
    max_replicas: Annotated[int, Meta(ge=1)] = 1
    training_machine_type: NotEmpty
    parallel_trials: Annotated[int, Meta(ge=1)] = 2  # of a tuning job
    max_workers: Annotated[int, Meta(ge=1)]  # of a Dataflow job
    cron: NotEmpty  # of the retraining schedule, as "TZ=Europe/Rome 0 * * * *"
    api_endpoint: str = ""  # of Vertex AI, when it is not Google's own

    def image(self, name: str) -> str:
        """The image `name`, with its tag."""
        return f"{self.location}-docker.pkg.dev/{self.project}/{self.repository}/{name}:{self.image_tag}"

    @property
    def root_uri(self) -> str:
        """`gs://bucket/folder`."""
        return f"gs://{self.bucket}/{self.folder}"

    @property
    def root(self) -> str:
        """The same as the folder that jobs on Vertex AI find mounted."""
        return f"/gcs/{self.bucket}/{self.folder}"

    @property
    def warehouse(self) -> str:
        """As the Beam jobs take it."""
        return f"bigquery:{self.project}.{self.dataset}"

    @property
    def template_folder(self) -> str:
        """Where the flex templates' container specs are."""
        return f"gs://{self.bucket}/templates"


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One environment."""

    name: str
    backend: Literal["local", "emulators", "gcp"]
    cloud: Cloud | None
    shared: dict[str, Value]
    own: dict[str, dict[str, Value]]  # by pipeline

    @property
    def warehouse(self) -> str:
        """As the Beam jobs take it; empty for the embedded one, below the root."""
        if self.cloud is not None:
            return self.cloud.warehouse
        return EMULATED_WAREHOUSE if self.backend == "emulators" else ""

    def needed_cloud(self) -> Cloud:
        """The cloud, complete. Raises InputError when this is no cloud environment, or the project is missing."""
        if self.cloud is None:
            raise InputError(f"{self.name} is not on Google Cloud (its backend is {self.backend})")
        if not self.cloud.project:
            raise InputError(f"cloud.project is missing in {self.name}: name it there, or with --project")
        return self.cloud


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    backend: Literal["local", "emulators", "gcp"]
    cloud: Cloud | None = None
    shared: dict[str, Value] = {}
    bootstrap: dict[str, Value] = {}
    retrain: dict[str, Value] = {}
    tune: dict[str, Value] = {}


def names() -> list[str]:
    """The configurations that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str, project: str = "") -> Configuration:
    """The configuration `name`: one that comes with the project, or the path of a TOML file.

    Args:
      name: `local`, `emulators`, `dev`, `prod`, or a path.
      project: takes the place of `cloud.project`.

    Raises:
      InputError: there is none, or it is not TOML, or a field is unknown, missing or wrong.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"--config: no configuration {name!r}; there are: {', '.join(names())}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    try:
        file = msgspec.convert(data, _File)
    except msgspec.ValidationError as error:
        fact, _, place = str(error).partition(" - at ")
        raise InputError(f"{path.name}: {place.strip('`').removeprefix('$.') or 'file'}: {fact}") from None
    if (file.backend == "gcp") != (file.cloud is not None):
        raise InputError(f"{path.name}: [cloud] is for backend gcp alone, and needed there; backend is {file.backend}")
    cloud = msgspec.structs.replace(file.cloud, project=project) if file.cloud and project else file.cloud
    own = {pipeline: getattr(file, pipeline) for pipeline in PIPELINES}
    return Configuration(name=path.name, backend=file.backend, cloud=cloud, shared=file.shared, own=own)
