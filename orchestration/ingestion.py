"""The embedded event log on its way into the warehouse: how far it has come, and ingesting it."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contracts import items, watermarks
from contracts.event_segments import seal_abandoned, sealed_segments, stem
from contracts.watermarks import Watermark
from orchestration.places import Places

if TYPE_CHECKING:
    from beam_jobs.payloads import IngestCounts
    from beam_jobs.warehouses import Warehouse


def advance(events: Path, source: "Warehouse", moment: datetime, ingest: Callable[[], object]) -> Watermark:
    """The watermark of the embedded tables, after what can be done for it to reach `moment` without waiting.

    Segments that a killed writer left open are sealed. Once every event that was written to the log in `events` before
    `moment` is in a sealed segment, `ingest` is called, which stores the sealed segments in `source`.
    """
    seal_abandoned(events)
    if (
        watermarks.of_segments(events, lambda: {stem(path.name) for path in sealed_segments(events)}).complete_until
        < moment
    ):
        return watermarks.of_segments(events, source.ingested)
    ingest()
    return watermarks.of_segments(events, source.ingested)


def ingest(places: Places, observation_dim: int | None = None) -> "IngestCounts":
    """Ingests the new segments of the event log into the warehouse, and returns the counts of what they held.

    A decision becomes a dead letter when no policy could be trained on it: its action is not in the catalogue, or its
    observation does not have `observation_dim` elements (None: any number, as the context may change).
    """
    from beam_jobs import ingest_events
    from beam_jobs.payloads import DecisionShape
    from beam_jobs.warehouses import EmbeddedWarehouse

    shape = DecisionShape(observation_dim, len(items.read(places.catalogue)))
    return ingest_events.ingest(places.events, EmbeddedWarehouse(places.warehouse), shape)
