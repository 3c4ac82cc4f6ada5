"""Configurations: where the pipelines run and with which parameters. One TOML file each, in `orchestration/configs/`.

    backend = "gcp"              local, emulators or gcp
    [cloud]                      only with backend gcp: project, location, bucket, images, …
    [shared]                     parameters of every pipeline that has one of that name
    [bootstrap] [retrain] [tune] parameters of one pipeline

`orchestration.pipelines.parameters` lists the parameters and checks them against the pipelines. Pipelines can cost money,
so no environment is the default: every command requires `--config`.
"""

import re
import tomllib
import zoneinfo
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.errors import InputError
from orchestration.cloud.target import VertexTarget

FOLDER = Path(__file__).parents[1] / "configs"
PIPELINES = ("bootstrap", "retrain", "tune")
EMULATED_WAREHOUSE = "bigquery:local-emulators.bandit"
EMULATED_WATERMARK = "ingest.json"  # below the root: what the streaming job has stored
# Minute, hour, day, month and weekday of a cron line, each with its smallest and largest number.
CRON_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_CRON = re.compile(r"(?:(?:CRON_)?TZ=(?P<zone>\S+)\s)?.+")
_CRON_PART = r"(\*|\d+(-\d+)?|[A-Za-z]{3}(-[A-Za-z]{3})?)(/[1-9]\d*)?"
_CRON_FIELD = re.compile(rf"{_CRON_PART}(,{_CRON_PART})*")

Value = str | int | float | bool | list[float] | dict[str, str | int | float | bool]
Part = Literal["pipelines", "dataflow", "trainer", "predictor"]  # each runs as its own service account
NotEmpty = Annotated[str, Meta(min_length=1)]


class Cloud(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Google Cloud as `infra/` sets it up. `project` may be empty in the file and given by `--project`."""

    project: Annotated[str, Meta(pattern=r"^([a-z][a-z0-9.:-]*[a-z0-9])?$")] = ""
    location: Annotated[str, Meta(pattern=r"^[a-z]+-[a-z]+[0-9]+$")]
    # Terraform's variable `name`. It begins the names of bucket, data set, topic, images and accounts, of endpoint and
    # model, and of schedules and runs, so that environments can share a project.
    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{1,17}[a-z0-9]$")]
    image_tag: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
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
        return f"{self.location}-docker.pkg.dev/{self.project}/{self.name}/{name}:{self.image_tag}"

    def account(self, part: Part) -> str:
        """The service account that a part runs as."""
        return f"{self.name}-{part}@{self.project}.iam.gserviceaccount.com"

    @property
    def bucket(self) -> str:
        """The bucket's name, without gs://. It holds windows, policies, templates and the pipelines' own files."""
        return f"{self.project}-{self.name}"

    @property
    def root_uri(self) -> str:
        """`gs://bucket`."""
        return f"gs://{self.bucket}"

    @property
    def root(self) -> str:
        """The bucket as a folder: jobs on Vertex AI find it mounted there."""
        return f"/gcs/{self.bucket}"

    @property
    def warehouse(self) -> str:
        """The BigQuery data set, in the form of the Beam jobs' flag."""
        return f"bigquery:{self.project}.{self.name.replace('-', '_')}"

    @property
    def watermark(self) -> str:
        """The subscription that the streaming job reads, in the form of the export's flag."""
        return f"pubsub:projects/{self.project}/subscriptions/{self.name}-ingest"

    @property
    def topic(self) -> str:
        """The Pub/Sub topic to which the predictors publish."""
        return f"projects/{self.project}/topics/{self.name}-events"

    @property
    def subnetwork(self) -> str:
        """Where Dataflow's workers run, without public addresses."""
        return f"regions/{self.location}/subnetworks/{self.name}"

    @property
    def template_folder(self) -> str:
        """Where the flex templates' container specs are."""
        return f"{self.root_uri}/templates"

    @property
    def target(self) -> VertexTarget:
        """The environment as the clients of Vertex AI take it."""
        return VertexTarget(
            project=self.project,
            location=self.location,
            name=self.name,
            policies=f"{self.root_uri}/policies",
            image=self.image("predictor"),
            topic=self.topic,
            machine_type=self.machine_type,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            service_account=self.account("predictor"),
            pipelines_account=self.account("pipelines"),
            staging_bucket=self.root_uri,
            api_endpoint=self.api_endpoint,
        )


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One environment."""

    name: str
    backend: Literal["local", "emulators", "gcp"]
    cloud: Cloud | None
    shared: dict[str, Value]
    own: dict[str, dict[str, Value]]  # by pipeline

    @property
    def warehouse(self) -> str:
        """The BigQuery data set, in the form of the Beam jobs' flag; empty: the embedded warehouse below the root."""
        if self.cloud is not None:
            return self.cloud.warehouse
        return EMULATED_WAREHOUSE if self.backend == "emulators" else ""

    @property
    def watermark(self) -> str:
        """What the export job waits for: a subscription, or a file below the root; empty without such a job."""
        if self.cloud is not None:
            return self.cloud.watermark
        return EMULATED_WATERMARK if self.backend == "emulators" else ""

    def needed_cloud(self) -> Cloud:
        """The cloud settings. Raises InputError if the backend is not gcp, or the project is missing."""
        if self.cloud is None:
            raise InputError(f"{self.name} is not on Google Cloud (its backend is {self.backend})")
        if not self.cloud.project:
            raise InputError(f"cloud.project is missing in {self.name}: set it there, or by --project")
        return self.cloud


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    backend: Literal["local", "emulators", "gcp"]
    cloud: Cloud | None = None
    shared: dict[str, Value] = {}
    bootstrap: dict[str, Value] = {}
    retrain: dict[str, Value] = {}
    tune: dict[str, Value] = {}


def names() -> list[str]:
    """The names of the configurations that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str, project: str = "") -> Configuration:
    """The configuration `name`: one that comes with the project, or the path of a TOML file.

    Args:
      name: `local`, `emulators`, `dev`, `prod`, or a path.
      project: takes the place of `cloud.project`.

    Raises:
      InputError: the file does not exist or is not TOML, or a field is unknown, missing or wrong.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"--config: one of {', '.join(names())}, or a TOML file, got {name!r}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    try:
        file = msgspec.convert(data, _File)
    except msgspec.ValidationError as error:
        fact, _, path_in_file = str(error).partition(" - at ")
        field = path_in_file.strip("`").removeprefix("$.") or "file"
        raise InputError(f"{path.name}: {field}: {fact}{_given(data, field, fact)}") from None
    if (file.backend == "gcp") != (file.cloud is not None):
        raise InputError(
            f"{path.name}: [cloud]: required with backend gcp and refused with any other, got backend {file.backend}"
        )
    cloud = file.cloud
    if cloud is not None:
        _check_replicas_and_cron(path.name, cloud)
        if project:
            cloud = _in_project(cloud, project)
    own = {pipeline: getattr(file, pipeline) for pipeline in PIPELINES}
    return Configuration(name=path.name, backend=file.backend, cloud=cloud, shared=file.shared, own=own)


def _given(data: Any, field: str, fact: str) -> str:
    """`, got <value>` for the file's value of `field`; empty for a table, or if `fact` has the value already."""
    for key in field.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return "" if data is None or isinstance(data, dict) or repr(data) in fact else f", got {data!r}"


def _check_replicas_and_cron(name: str, cloud: Cloud) -> None:
    if cloud.max_replicas < cloud.min_replicas:
        raise InputError(
            f"{name}: cloud.max_replicas: {cloud.min_replicas} (min_replicas) or more, got {cloud.max_replicas}"
        )
    zone, fields = _CRON.fullmatch(cloud.cron), cloud.cron.split()
    if zone is None or len(fields) != (6 if zone["zone"] else 5):
        raise InputError(
            f"{name}: cloud.cron: five fields, after an optional TZ=<zone>, such as 'TZ=Europe/Rome 0 * * * *', "
            f"got {cloud.cron!r}"
        )
    for (field, smallest, largest), text in zip(CRON_FIELDS, fields[-5:], strict=True):
        numbers = [int(number) for number in re.findall(r"(?<![/\d])\d+", text)]
        if not _CRON_FIELD.fullmatch(text) or not all(smallest <= number <= largest for number in numbers):
            raise InputError(
                f"{name}: cloud.cron: {field}: numbers from {smallest} to {largest}, *, or names, got {text!r}"
            )
    if zone["zone"] and zone["zone"] not in zoneinfo.available_timezones():
        raise InputError(f"{name}: cloud.cron: a time zone of the IANA database, got {zone['zone']!r}")


def _in_project(cloud: Cloud, project: str) -> Cloud:
    try:
        return msgspec.convert(msgspec.to_builtins(cloud) | {"project": project}, Cloud)
    except msgspec.ValidationError:
        raise InputError(f"--project: the id of a Google Cloud project, got {project!r}") from None
