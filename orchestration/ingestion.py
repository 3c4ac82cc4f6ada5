"""The embedded event log on its way into the warehouse: waiting until it is sealed, and ingesting it."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import OperationError
from contracts.event_segments import open_segments, opened_at, seal_abandoned
from orchestration import policy_store
from orchestration.places import Places
from orchestration.processes import sleep_until, wait_until
from predictor import policy as serving

if TYPE_CHECKING:
    from beam_jobs.payloads import IngestCounts

SEAL_TIMEOUT_SECONDS = 60.0


def wait_until_sealed(events: Path, moment: datetime, check: Callable[[], None] = lambda: None) -> None:
    """Returns at `moment` or later, when every event written to the log in `events` before it is in a sealed segment.

    Segments that a killed writer left open are sealed first. `check` is called while waiting; it raises an exception
    when waiting longer is pointless. Raises OperationError when a writer does not seal its segment in time.
    """
    sleep_until(moment, check)
    seal_abandoned(events)

    def sealed() -> bool:
        return not any(opened_at(segment) < moment for segment in open_segments(events))

    if not wait_until(sealed, SEAL_TIMEOUT_SECONDS, check):
        raise OperationError(f"the event log in {events} was not sealed within {SEAL_TIMEOUT_SECONDS:g} s")


def ingest(places: Places, observation_dim: int | None = None) -> "IngestCounts":
    """Ingests the new segments of the event log into the warehouse, and returns the counts of what they held.

    A decision becomes a dead letter when no policy could be trained on it: its action is not in the catalogue, or its
    observation does not have `observation_dim` elements (None: as many as the champion takes).
    """
    from beam_jobs import ingest_events
    from beam_jobs.payloads import DecisionShape
    from beam_jobs.warehouses import EmbeddedWarehouse
    from trainer import arms

    champion = policy_store.champion(places.policies)
    if observation_dim is None and champion is not None:
        observation_dim = serving.read_card(places.policies / champion.version).observation_dim
    shape = DecisionShape(observation_dim, len(arms.read_catalogue(places.catalogue)))
    return ingest_events.ingest(places.events, EmbeddedWarehouse(places.warehouse), shape)
