"""The connection to Vertex AI that the three clients share: registry, endpoint and jobs."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import requests  # type: ignore[import-untyped]
from google.api_core import exceptions
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

from contracts.errors import InputError, OperationError
from orchestration.cloud.target import VertexTarget

# What the service answers if another client changed the resource in between.
CHANGED_MEANWHILE = (exceptions.NotFound, exceptions.BadRequest, exceptions.Conflict)


def connect(target: VertexTarget) -> None:
    """Points the SDK at the project and location of `target`. Raises InputError if there are no credentials."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("google.cloud.aiplatform"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the SDK logs every call at INFO
    with service_errors():
        if target.api_endpoint:
            aiplatform.init(
                project=target.project,
                location=target.location,
                staging_bucket=target.staging_bucket or None,
                api_endpoint=target.api_endpoint,
                api_transport="rest",
                credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            )
        else:
            aiplatform.init(
                project=target.project, location=target.location, staging_bucket=target.staging_bucket or None
            )


@contextmanager
def service_errors() -> Iterator[None]:
    """Turns an error of the service into one line: InputError if it refused the request, OperationError if it failed."""
    try:
        yield
    except (exceptions.GoogleAPICallError, auth_exceptions.GoogleAuthError, requests.RequestException) as error:
        kind = InputError if _refused(error) else OperationError
        raise kind(f"Vertex AI: {' '.join(str(error).split())}") from error


def resource_id(name: str) -> str:
    """`name` in the form that Vertex AI takes for ids of models and endpoints."""
    return re.sub(r"[^a-z0-9-]", "-", name.lower())[:63].strip("-")


def _refused(error: Exception) -> bool:
    """Whether the same request would be refused again. Quotas, time-outs and outages pass."""
    if isinstance(error, auth_exceptions.DefaultCredentialsError):
        return True
    return isinstance(error, exceptions.ClientError) and error.code not in (408, 429)
