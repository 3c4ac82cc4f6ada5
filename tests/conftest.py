"""Fixtures that several test modules share."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before any test imports TensorFlow.
from contracts.errors import InputError, OperationError

if TYPE_CHECKING:
    from beam_jobs.places import Dataset
    from orchestration.emulators.redirect import BigQueryEndpoint
    from tests.streaming_jobs import Queue

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
    from orchestration.emulators.redirect import redirect

    try:
        servers.pubsub_program()
    except InputError as error:
        pytest.skip(str(error))
    with (
        servers.pubsub_emulator(tmp_path_factory.mktemp("pubsub")) as host,
        redirect(pubsub=host),
    ):
        yield host


@pytest.fixture(scope="session")
def emulators_environment() -> Path:
    """The emulators' own environment, made if need be."""
    from orchestration.emulators import servers

    try:
        servers.install()
    except OperationError as error:
        pytest.skip(str(error))
    return servers.ENVIRONMENT


@pytest.fixture(scope="session")
def bigquery_endpoint(
    emulators_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["BigQueryEndpoint"]:
    """A BigQuery emulator, which `beam_jobs.bigquery` is pointed at."""
    from orchestration.emulators import servers
    from orchestration.emulators.redirect import redirect

    with (
        servers.bigquery_emulator(tmp_path_factory.mktemp("bigquery"), emulators_environment) as endpoint,
        redirect(bigquery=endpoint),
    ):
        yield endpoint


@pytest.fixture
def dataset(bigquery_endpoint: "BigQueryEndpoint") -> "Dataset":
    """A data set of its own, with the tables in it."""
    from beam_jobs import bigquery
    from beam_jobs.places import Dataset

    made = Dataset("local-test", f"bandit_{next(_numbers)}")
    client = bigquery.client(made.project)
    client.create_dataset(made.name)
    client.close()
    bigquery.ensure_tables(made, expiry_days=30)
    return made


@pytest.fixture
def queue(pubsub_host: str) -> Iterator["Queue"]:
    """A topic of the Pub/Sub emulator with one subscription."""
    from google.cloud import pubsub_v1

    from tests.streaming_jobs import PROJECT, Queue

    name = f"events-{next(_numbers)}"
    made = Queue(f"projects/{PROJECT}/topics/{name}", f"projects/{PROJECT}/subscriptions/{name}")
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=made.topic)
        subscriber.create_subscription(name=made.subscription, topic=made.topic, ack_deadline_seconds=30)
        yield made
        subscriber.delete_subscription(subscription=made.subscription)
        publisher.delete_topic(topic=made.topic)
