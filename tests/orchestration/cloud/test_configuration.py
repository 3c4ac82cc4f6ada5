from pathlib import Path

import pytest

from contracts.errors import InputError
from orchestration.cloud import configuration

CLOUD = Path(configuration.FOLDER / "dev.toml").read_text()


def test_the_configurations_that_come_with_the_project():
    assert configuration.names() == ["dev", "emulators", "local", "prod"]
    assert {name: configuration.load(name).backend for name in configuration.names()} == {
        "dev": "gcp",
        "emulators": "emulators",
        "local": "local",
        "prod": "gcp",
    }


def test_none_of_them_has_a_project_so_that_no_run_costs_money_by_accident():
    for name in ("dev", "prod"):
        loaded = configuration.load(name)
        with pytest.raises(
            InputError, match=rf"cloud.project is missing in {name}.toml: set it there, or by --project"
        ):
            loaded.needed_cloud()
        assert configuration.load(name, "films").needed_cloud().project == "films"
    with pytest.raises(InputError, match=r"local.toml is not on Google Cloud \(its backend is local\)"):
        configuration.load("local", "films").needed_cloud()


def test_what_a_cloud_environment_derives():
    cloud = configuration.load("prod", "films").needed_cloud()
    assert cloud.image("predictor") == "europe-west1-docker.pkg.dev/films/bandit/predictor:stable"
    assert cloud.root_uri == "gs://films-bandit"
    assert cloud.root == "/gcs/films-bandit"
    assert cloud.warehouse == "bigquery:films.bandit"
    assert cloud.topic == "projects/films/topics/bandit-events"
    assert cloud.account("trainer") == "bandit-trainer@films.iam.gserviceaccount.com"


BAD_NAME = "c.toml: cloud.name: Expected `str` matching regex '^[a-z][a-z0-9-]{1,17}[a-z0-9]$', got 'Bandit'"
FIVE_FIELDS = ": five fields, after an optional TZ=<zone>, such as 'TZ=Europe/Rome 0 * * * *', got "
CRON = [
    ("hourly", FIVE_FIELDS + "'hourly'"),
    ("0 * * * * *", FIVE_FIELDS + "'0 * * * * *'"),
    ("TZ=Etc/UTC 0 * * *", FIVE_FIELDS + "'TZ=Etc/UTC 0 * * *'"),
    ("61 * * * *", ": minute: numbers from 0 to 59, *, or names, got '61'"),
    ("0 5-24 * * *", ": hour: numbers from 0 to 23, *, or names, got '5-24'"),
    ("*/0 * * * *", ": minute: numbers from 0 to 59, *, or names, got '*/0'"),
    ("0 0 0 * *", ": day: numbers from 1 to 31, *, or names, got '0'"),
    ("TZ=Etc/Rome 0 * * * *", ": a time zone of the IANA database, got 'Etc/Rome'"),
]


@pytest.mark.parametrize("cron", ["0 * * * *", "CRON_TZ=Europe/Rome */5,30 8-18/2 1 JAN-MAR MON", "0 0 * * 7"])
def test_cron_lines_as_vertex_takes_them(tmp_path, cron):
    path = tmp_path / "c.toml"
    path.write_text(CLOUD.replace("TZ=Etc/UTC */30 * * * *", cron))
    assert configuration.load(str(path), "films").needed_cloud().cron == cron


@pytest.mark.parametrize("project", ["My Project", "-", "gs://films"])
def test_a_project_that_cannot_be_one(project):
    with pytest.raises(InputError, match="--project: the id of a Google Cloud project, got "):
        configuration.load("dev", project)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend = 'moon'", "c.toml: backend: Invalid enum value 'moon'"),
        ("backend = 'local'\n[shered]\na = 1", "c.toml: file: Object contains unknown field `shered`"),
        ("backend = 'gcp'", "c.toml: [cloud]: required with backend gcp and refused with any other, got backend gcp"),
        (
            CLOUD.replace("gcp", "local"),
            "c.toml: [cloud]: required with backend gcp and refused with any other, got backend local",
        ),
        (
            CLOUD.replace("max_workers = 2", ""),
            "c.toml: cloud: Object missing required field `max_workers`",
        ),
        (CLOUD.replace("max_workers = 2", "max_workers = 0"), "c.toml: cloud.max_workers: Expected `int` >= 1, got 0"),
        (CLOUD.replace('"bandit-dev"', '"Bandit"'), BAD_NAME),
        (
            CLOUD.replace("machine_type", "min_replicas = 3\nmax_replicas = 2\nmachine_type", 1),
            "c.toml: cloud.max_replicas: 3 (min_replicas) or more, got 2",
        ),
        *((CLOUD.replace("TZ=Etc/UTC */30 * * * *", cron), f"c.toml: cloud.cron{message}") for cron, message in CRON),
        ("backend =", "c.toml: Invalid value (at end of document)"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        configuration.load(str(path))
    assert str(raised.value).removeprefix(f"{tmp_path}/") == message or str(raised.value) == message


def test_a_configuration_that_there_is_not():
    with pytest.raises(InputError, match="--config: one of dev, emulators, local, prod, or a TOML file, got 'test'"):
        configuration.load("test")
