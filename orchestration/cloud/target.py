"""Which endpoint on Vertex AI a command changes, and how policies are deployed to it.

Imports no Google library, so that steps can decode a target without the seconds that the SDK takes to import.
"""

import msgspec

from contracts.errors import InputError


class VertexTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One environment on Vertex AI. `name` separates it from the other environments of the same project."""

    project: str
    location: str
    name: str  # display name of the endpoint and of the parent model; schedules, runs and job ids begin with it
    policies: str  # the policy store, gs://…/policies
    image: str  # of the predictor
    topic: str  # of Pub/Sub, to which the predictor publishes its events; empty: it publishes none
    machine_type: str
    min_replicas: int = 1
    max_replicas: int = 1
    service_account: str = ""  # of the replicas; empty: the project's default one
    pipelines_account: str = ""  # of pipeline runs
    staging_bucket: str = ""
    events: str = "/events"  # where the predictor keeps events until they are published
    api_endpoint: str = ""  # in place of Google's own address


def decode_target(text: str) -> VertexTarget:
    """The inverse of `msgspec.json.encode`. Raises InputError if `text` is not the JSON of a target."""
    try:
        return msgspec.json.decode(text, type=VertexTarget)
    except msgspec.DecodeError as error:
        raise InputError(f"vertex: a VertexTarget as JSON, got {text!r:.200}: {error}") from None
