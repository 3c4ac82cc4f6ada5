"""Refusals and outages of the service are two kinds of error."""

import pytest
import requests
from google.api_core import exceptions
from google.auth import exceptions as auth_exceptions

from contracts.errors import InputError, OperationError
from orchestration.cloud.vertex import resource_id, service_errors
from orchestration.cloud.vertex_jobs import VertexJobs


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.InvalidArgument("no such machine"), InputError),
        (exceptions.NotFound("no such model"), InputError),
        (exceptions.PermissionDenied("not yours"), InputError),
        (auth_exceptions.DefaultCredentialsError("log in first"), InputError),
        (exceptions.ServiceUnavailable("try again"), OperationError),
        (exceptions.InternalServerError("sorry"), OperationError),
        (exceptions.GatewayTimeout("slow"), OperationError),
        (exceptions.TooManyRequests("quota"), OperationError),
        (auth_exceptions.TransportError("no network"), OperationError),
        (requests.ConnectionError("no route"), OperationError),
    ],
)
def test_what_the_service_refuses_is_input_and_an_outage_is_not(error, kind):
    with pytest.raises(kind, match=r"^Vertex AI: ") as raised, service_errors():
        raise error
    assert type(raised.value) is kind


def test_a_bug_stays_a_bug():
    with pytest.raises(KeyError), service_errors():
        raise KeyError("name")


def test_an_outage_of_the_real_sdk_is_a_failed_operation(environment, monkeypatch):
    jobs = VertexJobs(environment.target)

    def fail(*_: object) -> None:
        raise exceptions.InternalServerError("the region is down")

    monkeypatch.setattr(environment.fake, "answer", fail)
    with pytest.raises(OperationError, match=r"Vertex AI: 500 .*the region is down"):
        jobs.runs("retrain")


def test_ids_are_as_the_service_takes_them():
    assert resource_id("Bandit_dev") == "bandit-dev"
    assert len(resource_id("a" * 99)) == 63
