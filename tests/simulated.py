"""Events of simulated viewers, and what is stored of them; for several test modules."""

from datetime import UTC, datetime
from typing import Any

from beam_jobs import bigquery
from beam_jobs.generate_movielens import GeneratorSettings, ShardEncoder, simulate_shard
from beam_jobs.movielens import MovieLens
from beam_jobs.places import Dataset
from beam_jobs.ratings import load_ratings
from contracts.schemas import Table

START = datetime(2026, 1, 1, tzinfo=UTC)


def events(count: int) -> list[bytes]:
    """`count` decisions within 5 seconds from START, and their rewards, as JSON."""
    viewers = MovieLens.build(load_ratings("sample"), num_actions=20, rank=10, reward_noise=0.5, seed=0)
    settings = GeneratorSettings(num_decisions=count, start=START, decisions_per_shard=count)
    chunks = ShardEncoder(viewers).lines(simulate_shard(viewers, settings, 0))
    return [line for chunk in chunks for line in chunk.splitlines()]


def rows(dataset: Dataset, table: Table) -> list[dict[str, Any]]:
    """All rows of a BigQuery table, as often as they are there."""
    begin, end = datetime(2025, 12, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    return bigquery.read_all(dataset, table, begin, end).to_pylist()
