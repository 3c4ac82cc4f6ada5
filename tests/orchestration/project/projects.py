"""A small project, and traffic in its event log as a predictor would have written it."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.features import Category, FeatureSpec
from contracts.items import Item
from contracts.records import RewardEvent, encoder
from orchestration import policy_store
from orchestration.project import creation
from orchestration.project.folder import ProjectFolder
from predictor import deciding
from predictor import policy as serving
from predictor.line_up import LineUp
from predictor.messages import Instance

CATALOGUE = [Item(action=action, item_id=item_id) for action, item_id in enumerate("abc")]
SPEC = FeatureSpec(features=[Category(name="who", values=["x", "y", "z"], unseen="refuse")])
BEST = {"x": "a", "y": "b", "z": "c"}  # what each of them clicks on
WINDOW_SECONDS = 2.0
SETTINGS = f"""
[windows]
window_seconds = {WINDOW_SECONDS}
reward_window_seconds = 0.5
settle_seconds = 0.1
[exploration]
alpha = 0.2
[probation]
anchor_share = 0.2
"""


def make(folder: Path, settings: str = SETTINGS) -> ProjectFolder:
    """A project of three items in which silence counts as 0."""
    return creation.create(folder, CATALOGUE, SPEC, settings)


def traffic(
    folder: ProjectFolder, start: datetime, count: int = 600, clicks: Callable[[str, str], float] | None = None
) -> None:
    """Lets the champion decide `count` times within a window from `start`, and logs decisions and clicks."""
    champion = policy_store.champion(folder.policies)
    assert champion is not None
    policy = serving.load(folder.policies / champion.version)
    line_up = LineUp(policy, serving.baseline(policy.card))
    draw = random.Random(count)
    who = [draw.choice("xyz") for _ in range(count)]
    asked = deciding.check([Instance(context={"who": one}) for one in who], line_up)
    events: list[bytes] = []
    for number, (one, (made,)) in enumerate(zip(who, deciding.decide(line_up, asked).slates, strict=True)):
        at = start + timedelta(seconds=WINDOW_SECONDS * number / count)
        [decision_id] = deciding.new_decision_ids(int(at.timestamp() * 1000), 1)
        replayed = msgspec.structs.replace(made, decision_id=decision_id, decided_at=at)
        [action], [propensity] = deciding.replay(policy, [replayed])
        decision = msgspec.structs.replace(replayed, action=action, propensity=propensity)
        events.append(encoder.encode(decision))
        chance = clicks(one, CATALOGUE[action].item_id) if clicks else 0.8 * (BEST[one] == CATALOGUE[action].item_id)
        if draw.random() < chance:
            occurred_at = at + timedelta(seconds=0.1)
            events.append(encoder.encode(RewardEvent(decision_id=decision_id, occurred_at=occurred_at, reward=1.0)))
    path = folder.events / f"{segment_name(start, 'test')}{SEALED_SUFFIX}"
    path.write_bytes(b"\n".join(events) + b"\n")


def past(seconds: float) -> datetime:
    """A moment on the grid of windows that long ago, at least."""
    now = datetime.now(UTC).timestamp()
    return datetime.fromtimestamp((now - seconds) // WINDOW_SECONDS * WINDOW_SECONDS, UTC)
