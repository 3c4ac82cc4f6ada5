"""A root whose policies serve on the local Vertex AI, for the tests of the tasks."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np

from beam_jobs import generate_movielens, tables, warehouse
from contracts import policies
from contracts.policies import PolicyCard, TrainedWindow
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS
from contracts.windows import TrainingWindow
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
UNDECIDED = msgspec.json.encode(
    GateResult(verdict="undecided", promoted=True, reason="another setting", evaluation=None, must_be_confirmed=True)
).decode()
START = datetime(2026, 1, 1, tzinfo=UTC)
TRAINED = TrainingWindow(START, START + timedelta(seconds=5))
CANARY = {"share": 0.5, "decisions": 400, "seconds": 240.0, "anchor_share": 0.5, "margin": 0.1}


def write_decisions(places: Places, window: TrainingWindow, count: int = 400) -> None:
    """Stores decisions of a uniform policy over five arms in `window`, with rewards from 1 to 5."""
    rng = np.random.default_rng(0)
    length = round((window.end - window.start).total_seconds() * 1e6)
    decided_at = round(window.start.timestamp() * 1e6) + np.sort(rng.integers(0, length, count))
    ids = generate_movielens.uuid7(decided_at, rng).astype("U36").tolist()
    decisions, rewards = [], []
    for one, moment in zip(ids, decided_at.tolist(), strict=True):
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment)
        action = int(rng.integers(5))
        decisions.append(
            Decision(
                decision_id=one,
                decided_at=at,
                policy_version="uniform",
                observation=rng.normal(size=3).tolist(),
                action=action,
                propensity=0.2,
            )
        )
        rewards.append(RewardEvent(decision_id=one, occurred_at=at, reward=1.0 + action))
    warehouse.create(places.warehouse)
    for table, records in ((DECISIONS, decisions), (REWARDS, rewards)):
        warehouse.write(places.warehouse, table, "before", tables.record_batch(table, records))


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
        write_decisions(self.places, TRAINED)
        self.places.catalogue.write_bytes(msgspec.json.encode(self.old.catalogue))
        plan = Plan(root=str(self.root), run_id="run", champion=None, windows=[], settings=SETTINGS)
        first = msgspec.json.encode(plan).decode()
        rollout_tasks.register(first, "old", PASSED, self.target)
        rollout_tasks.promote(first, "old", PASSED, CANARY, "", "", self.target)
        self.plan = msgspec.json.encode(msgspec.structs.replace(plan, champion="old")).decode()

    def policy(self, version: str, seed: int) -> PolicyCard:
        folder = self.places.policies / version
        trained = [TrainedWindow(window=TRAINED, split="train", records=400)]
        card = msgspec.structs.replace(write_policy(folder, seed=seed), trained_on=trained)
        (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
        return card

    def split(self) -> dict[str, int]:
        return {one.version: one.traffic for one in self.endpoint.deployed() if one.traffic}

    def serving(self) -> tuple[str, str | None]:
        """Champion and candidate by the store."""
        found = champion(self.places.policies)
        assert found is not None
        return found.version, found.candidate

    def try_out(self, result: str = PASSED, **canary: float) -> str:
        # Hundreds of decisions take seconds; on a slow machine they may take minutes.
        return rollout_tasks.try_out(self.plan, "new", result, CANARY | canary, "", self.target)

    def promote(self, version: str = "new", endpoint: str = "", vertex: str | None = None) -> None:
        target = self.target if vertex is None else vertex
        rollout_tasks.promote(self.plan, version, PASSED, CANARY, "", endpoint, target)

    @contextmanager
    def viewers(self, reward_of_new: float) -> Iterator[None]:
        """Viewers call the endpoint, and reward every policy with 3, the candidate with `reward_of_new`."""
        enough = threading.Event()
        rng = np.random.default_rng(1)

        def watch() -> None:
            while not enough.wait(0.1):
                instances = [{"observation": rng.normal(size=3).tolist()} for _ in range(4)]
                for _ in range(3):
                    shown = self.endpoint.predict(instances)
                    rewards = [
                        {
                            "decision_id": one["decision_id"],
                            "reward": (reward_of_new if one["policy_version"] == "new" else 3.0) + index / 4,
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
