"""A root whose policies serve on the local Vertex AI, for the tests of the tasks."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from contracts.policies import PolicyCard
from orchestration.cloud.target import VertexTarget
from orchestration.cloud.vertex_endpoint import VertexEndpoint
from orchestration.gate import GateResult
from orchestration.pipelines import rollout_tasks
from orchestration.pipelines.plan import Plan, WindowGrid
from orchestration.places import Places
from orchestration.policy_store import champion
from tests.linear_policies import write_policy
from tests.local_vertex.server import LocalVertex

SETTINGS = WindowGrid(missing_reward="drop")
PASSED = msgspec.json.encode(
    GateResult(verdict="better", promoted=True, reason="better: gain +1", evaluation=None)
).decode()


class Environment:
    """A root whose policies serve on the local Vertex AI: `old` is the champion, `new` the candidate."""

    def __init__(self, folder: Path, fake: LocalVertex, url: str) -> None:
        self.root = folder / "bucket" / "recommender"
        self.places = Places(self.root)
        self.fake = fake
        target = VertexTarget(
            project="films",
            location="europe-west1",
            name="recommender",
            policies="gs://bucket/recommender/policies",
            image="predictor:1",
            topic="",
            machine_type="n1-standard-2",
            events=str(self.places.events),
            api_endpoint=url,
        )
        self.target = msgspec.json.encode(target).decode()
        self.endpoint = VertexEndpoint(target)
        self.old, self.new = self.policy("old", 1), self.policy("new", 2)
        self.places.catalogue.write_bytes(msgspec.json.encode(self.old.catalogue))
        plan = Plan(root=str(self.root), run_id="run", champion=None, windows=[], settings=SETTINGS)
        first = msgspec.json.encode(plan).decode()
        rollout_tasks.register(first, "old", PASSED, self.target)
        rollout_tasks.promote(first, "old", PASSED, "", self.target)
        self.plan = msgspec.json.encode(msgspec.structs.replace(plan, champion="old")).decode()

    def policy(self, version: str, seed: int) -> PolicyCard:
        return write_policy(self.places.policies / version, seed=seed)

    def split(self) -> dict[str, int]:
        return {one.version: one.traffic for one in self.endpoint.deployed() if one.traffic}

    def serving(self) -> tuple[str, str | None]:
        """Champion and candidate by the store."""
        found = champion(self.places.policies)
        assert found is not None
        return found.version, found.candidate

    def try_out(self) -> str:
        # 60 decisions take seconds; on a slow machine they may take minutes.
        return rollout_tasks.try_out(
            self.plan, "new", {"share": 0.5, "decisions": 60, "seconds": 240.0}, "", self.target
        )

    @contextmanager
    def viewers(self, reward_of_new: float) -> Iterator[None]:
        """Viewers call the endpoint, and reward every policy with 3, the candidate with `reward_of_new`."""
        enough = threading.Event()

        def watch() -> None:
            while not enough.wait(0.1):
                instances = [{"observation": [0.1, 0.2, 0.3]} for _ in range(2)]
                for _ in range(3):
                    shown = self.endpoint.predict(instances)
                    rewards = [
                        {
                            "decision_id": one["decision_id"],
                            "reward": (reward_of_new if one["policy_version"] == "new" else 3.0) + index,
                        }
                        for index, one in enumerate(shown)
                    ]
                    url = next(iter(self.fake.predictors.values())).url
                    body = json.dumps({"rewards": rewards}).encode()
                    urllib.request.urlopen(
                        urllib.request.Request(f"{url}/rewards", body, {"content-type": "application/json"}), timeout=60
                    ).close()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()
