from pathlib import Path

import pytest

from contracts.errors import InputError
from orchestration import configuration

CLOUD = Path(configuration.FOLDER / "dev.toml").read_text()


def test_the_configurations_that_come_with_the_project():
    assert configuration.names() == ["dev", "emulators", "local", "prod"]
    assert {name: configuration.load(name).backend for name in configuration.names()} == {
        "dev": "gcp",
        "emulators": "emulators",
        "local": "local",
        "prod": "gcp",
    }


def test_none_of_them_names_a_project_so_that_nobody_pays_by_accident():
    for name in ("dev", "prod"):
        loaded = configuration.load(name)
        with pytest.raises(InputError, match=rf"cloud.project is missing in {name}.toml: name it there, or with"):
            loaded.needed_cloud()
        assert configuration.load(name, "films").needed_cloud().project == "films"
    with pytest.raises(InputError, match=r"local.toml is not on Google Cloud \(its backend is local\)"):
        configuration.load("local", "films").needed_cloud()


def test_what_a_cloud_environment_derives():
    cloud = configuration.load("prod", "films").needed_cloud()
    assert cloud.image("predictor") == "europe-west1-docker.pkg.dev/films/recommender/predictor:stable"
    assert cloud.root_uri == "gs://movie-recommender-prod/recommender"
    assert cloud.root == "/gcs/movie-recommender-prod/recommender"
    assert cloud.warehouse == "bigquery:films.recommender"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend = 'moon'", "c.toml: backend: Invalid enum value 'moon'"),
        ("backend = 'local'\n[shered]\na = 1", "c.toml: file: Object contains unknown field `shered`"),
        ("backend = 'gcp'", "c.toml: [cloud] is for backend gcp alone, and needed there; backend is gcp"),
        (CLOUD.replace("gcp", "local"), "c.toml: [cloud] is for backend gcp alone, and needed there; backend is local"),
        (
            CLOUD.replace('bucket = "movie-recommender-dev"', ""),
            "c.toml: cloud: Object missing required field `bucket`",
        ),
        (CLOUD.replace("max_workers = 2", "max_workers = 0"), "c.toml: cloud.max_workers: Expected `int` >= 1"),
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
    with pytest.raises(InputError, match="no configuration 'test'; there are: dev, emulators, local, prod"):
        configuration.load("test")
