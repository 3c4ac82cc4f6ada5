"""Ingests the event log below a root into its warehouse, setting aside what no policy could be trained on."""

from typing import TYPE_CHECKING

from orchestration import policy_store
from orchestration.places import Places
from predictor import policy as serving

if TYPE_CHECKING:
    from beam_jobs.payloads import IngestCounts


def ingest(places: Places, observation_dim: int | None = None) -> "IngestCounts":
    """Ingests what is new in the event log, and says what it held.

    A decision for no movie of the catalogue, or with an observation of another length than `observation_dim` (None: than
    the champion takes), could not be trained on and becomes a dead letter.
    """
    from beam_jobs import ingest_events
    from beam_jobs.payloads import DecisionShape
    from trainer import task

    champion = policy_store.champion(places.policies)
    if observation_dim is None and champion is not None:
        observation_dim = serving.read_card(places.policies / champion.version).observation_dim
    shape = DecisionShape(observation_dim, len(task.read_catalogue(places.catalogue)))
    return ingest_events.ingest(places.events, places.warehouse, shape)
