"""`canary`: looks a second at a canary that has lasted ten minutes, with 300,000 rewards behind it.

Reference: a look that reads all decisions and rewards since the canary began. Ours: a look that reads those of the last
second.
"""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from beam_jobs.generate_movielens import GeneratorSettings, generate
from beam_jobs.ingest_events import ingest
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from bench.measure import Result, compare, seconds
from contracts import items
from contracts.windows import WindowSettings
from orchestration.pipelines.canary_rewards import CanaryRewards
from orchestration.places import Places

DECISIONS = 300_000
LASTED = timedelta(minutes=10)
START = datetime(2026, 1, 1, tzinfo=UTC)
LOOK = timedelta(seconds=1)


def run() -> Result:
    """Both ways in turn, at the end of the ten minutes."""
    viewers = MovieLens.build(load_ratings("sample"), num_actions=100, rank=20, reward_noise=0.5, seed=0)
    with tempfile.TemporaryDirectory() as name:
        places = Places(Path(name))
        settings = GeneratorSettings(num_decisions=DECISIONS, start=START, window_seconds=LASTED.total_seconds())
        places.events.mkdir()
        places.catalogue.write_bytes(items.encode(viewers.catalogue))
        generate(viewers, settings, places.events)
        ingest(places.events, EmbeddedWarehouse(places.warehouse))
        return compare(
            reference=lambda: 1 / seconds(lambda: whole(places).read_until(START + LASTED)),
            ours=lambda: _looks_per_second(places),
            unit="looks/s",
        )


def whole(places: Places) -> CanaryRewards:
    """A reader that has read nothing yet."""
    return CanaryRewards(places, "", START, WindowSettings(reward_window_seconds=2.0))


def _looks_per_second(places: Places) -> float:
    rewards = whole(places)
    looks = 10
    rewards.read_until(START + LASTED - looks * LOOK)

    def look() -> None:
        for left in reversed(range(looks)):
            rewards.read_until(START + LASTED - left * LOOK)

    return looks / seconds(look)
