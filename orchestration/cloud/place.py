"""Where the policies serve on Vertex AI. Apart from `orchestration.cloud.vertex`, whose SDK takes seconds to import."""

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One environment's endpoint, and how policies are deployed to it."""

    project: str
    location: str
    endpoint: str  # display name of the one endpoint, and of the one parent model
    policies: str  # the policy store, gs://…/policies
    image: str  # of the predictor
    topic: str  # to which it publishes its events; none when empty
    machine_type: str
    min_replicas: int = 1
    max_replicas: int = 1
    service_account: str = ""  # of the replicas; the project's default one when empty
    pipelines_account: str = ""  # of pipeline runs
    staging_bucket: str = ""
    events: str = "/events"  # where the predictor keeps events until they are published
    api_endpoint: str = ""  # when it is not Google's own
