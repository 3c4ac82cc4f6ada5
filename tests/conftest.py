"""Fixtures that several test modules share."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before any test imports TensorFlow.
from contracts.errors import InputError

if TYPE_CHECKING:
    from beam_jobs.bigquery import Dataset
    from orchestration.emulators.servers import BigQueryEndpoint

_numbers = itertools.count()
MOVIELENS_100K = Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-100k"


@pytest.fixture(scope="session")
def movielens_100k() -> Path:
    """The folder of MovieLens 100K, which may not be redistributed and so is not part of this repository."""
    if not (MOVIELENS_100K / "u.data").is_file():
        pytest.skip(f"no local copy of MovieLens 100K at {MOVIELENS_100K}")
    return MOVIELENS_100K


@pytest.fixture(scope="session")
def pubsub_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of Google's Pub/Sub emulator, which this process's clients are pointed at."""
    from orchestration.emulators import servers

    try:
        servers.pubsub_program()
    except InputError as error:
        pytest.skip(str(error))
    with (
        servers.pubsub_emulator(tmp_path_factory.mktemp("pubsub")) as host,
        servers.redirect(pubsub=host),
    ):
        yield host


@pytest.fixture(scope="session")
def emulators_environment() -> Path:
    """The emulators' own environment, made if need be."""
    from orchestration.emulators import servers

    try:
        servers.install()
    except InputError as error:
        pytest.skip(str(error))
    return servers.ENVIRONMENT


@pytest.fixture(scope="session")
def bigquery_endpoint(
    emulators_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["BigQueryEndpoint"]:
    """A BigQuery emulator, which `beam_jobs.bigquery` is pointed at."""
    from orchestration.emulators import servers

    with (
        servers.bigquery_emulator(tmp_path_factory.mktemp("bigquery"), emulators_environment) as endpoint,
        servers.redirect(bigquery=endpoint),
    ):
        yield endpoint


@pytest.fixture
def dataset(bigquery_endpoint: "BigQueryEndpoint") -> "Dataset":
    """A data set of its own, with the tables in it."""
    from beam_jobs import bigquery

    made = bigquery.Dataset("local-test", f"bandit_{next(_numbers)}")
    client = bigquery.client(made.project)
    client.create_dataset(made.name)
    client.close()
    bigquery.ensure_tables(made, expiry_days=30)
    return made
