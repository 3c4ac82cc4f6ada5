"""Clients of this process are pointed at emulators for as long as a block lasts, and as before afterwards."""

import os

import pytest

from beam_jobs import bigquery
from orchestration.emulators.redirect import BigQueryEndpoint, redirect

ENDPOINT = BigQueryEndpoint("http://127.0.0.1:1", "127.0.0.1:2")


def test_variables_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "before")
    with pytest.raises(ZeroDivisionError), redirect(pubsub="127.0.0.1:1"):
        assert os.environ["PUBSUB_EMULATOR_HOST"] == "127.0.0.1:1"
        raise ZeroDivisionError
    assert os.environ["PUBSUB_EMULATOR_HOST"] == "before"
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    with redirect(pubsub="127.0.0.1:1"):
        pass
    assert "PUBSUB_EMULATOR_HOST" not in os.environ


def test_bigquery_clients_go_to_the_emulator_and_back() -> None:
    before = bigquery.client, bigquery.read_client, bigquery.write_client
    with redirect(bigquery=ENDPOINT):
        client = bigquery.client("some-project")
        assert (client.project, client._connection.API_BASE_URL) == ("some-project", ENDPOINT.rest)
        client.close()
        assert bigquery.client is not before[0]
    assert (bigquery.client, bigquery.read_client, bigquery.write_client) == before


def test_only_what_is_given_is_redirected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    before = bigquery.client
    with redirect():
        assert "PUBSUB_EMULATOR_HOST" not in os.environ
        assert bigquery.client is before
