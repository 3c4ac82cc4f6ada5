"""A store of policies and the local Vertex AI on which they serve, for the tests of the cloud's clients."""

import json
from pathlib import Path

from contracts.policies import PolicyCard
from orchestration.cloud.target import VertexTarget
from orchestration.cloud.vertex_endpoint import VertexEndpoint
from orchestration.cloud.vertex_models import CHAMPION, PREVIOUS
from tests.linear_policies import write_policy
from tests.local_vertex.server import LocalVertex


class Environment:
    """One environment of project `films`, named `recommender`."""

    def __init__(self, folder: Path, fake: LocalVertex, url: str) -> None:
        self.fake = fake
        self.store = folder / "bucket" / "policies"
        self.target = VertexTarget(
            project="films",
            location="europe-west1",
            name="recommender",
            policies="gs://bucket/policies",
            image="europe-west1-docker.pkg.dev/films/recommender/predictor:1",
            topic="",
            machine_type="n1-standard-2",
            api_endpoint=url,
            events=str(folder / "events"),
        )
        self.endpoint = VertexEndpoint(self.target)
        self.models = self.endpoint.models

    def policy(self, number: int) -> PolicyCard:
        """Writes a policy into the store."""
        return write_policy(self.store / f"lin_ucb-20260101T00000{number}.000000Z-abc", seed=number)

    def split(self) -> dict[str, int]:
        """Percent of the traffic, by version."""
        return {one.version: one.traffic for one in self.endpoint.deployed()}

    def roles(self) -> dict[str, str]:
        """By the registry's aliases alone."""
        return {
            role: json.loads(model.version_description)["version"]
            for model in self.fake.models["recommender"].values()
            for role in (CHAMPION, PREVIOUS)
            if role in model.version_aliases
        }
