"""The storage of the loop's events and tables: files, or the emulators of Pub/Sub and BigQuery.

The jobs, the predictor and the trainer are the same in both; a backend carries events from the predictor's log to the
tables that the export reads, and knows when they are there.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from beam_jobs import ingest_events, warehouse
from beam_jobs.payloads import DecisionShape
from beam_jobs.places import Dataset, parse_dataset
from beam_jobs.warehouses import BigQueryWarehouse, EmbeddedWarehouse, Warehouse
from contracts import schemas
from contracts.errors import OperationError
from contracts.event_segments import open_segments, opened_at, sealed_segments
from orchestration.cloud.configuration import EMULATED_WAREHOUSE
from orchestration.ingestion import wait_until_sealed
from orchestration.loop.run_folder import RunFolder
from orchestration.processes import Child, wait_until
from predictor.publisher import STATUS_NAME, Status

ARRIVAL_TIMEOUT_SECONDS = 60.0


class Backend(Protocol):
    """Carries events from the predictor's log to the tables that the export reads."""

    source: Warehouse  # what the export reads
    predictor_flags: list[str]

    def deliver(self) -> None:
        """Carries the events that are in the log while no predictor runs."""

    def ingest_until(self, moment: datetime, check: Callable[[], None]) -> None:
        """Returns when every event logged before `moment` is in the tables; calls `check` while it waits."""

    def finish(self) -> None:
        """After the predictor has ended: stores every logged event in the tables of the run's folder."""


@contextlib.contextmanager
def open_backend(name: Literal["local", "emulators"], folder: RunFolder, shape: DecisionShape) -> Iterator[Backend]:
    """The backend of that name, up and ready. A decision that is not of that shape will be a dead letter.

    Raises InputError when an emulator is not installed or does not start.
    """
    if name == "local":
        yield EmbeddedBackend(folder, shape)
        return
    from orchestration.emulators import servers

    with servers.ingesting(folder.logs, folder.ingest_status, shape) as (_, job):
        dataset = parse_dataset(EMULATED_WAREHOUSE)
        yield EmulatedBackend(folder, dataset, servers.TOPIC, job, folder.ingest_status)


class EmbeddedBackend:
    """A batch job ingests segments of the event log into Parquet files."""

    def __init__(self, folder: RunFolder, shape: DecisionShape) -> None:
        self._folder = folder
        self._shape = shape
        self.source: Warehouse = EmbeddedWarehouse(folder.warehouse)
        self.predictor_flags: list[str] = []

    def deliver(self) -> None:
        """Does nothing: ingestion reads the log."""

    def ingest_until(self, moment: datetime, check: Callable[[], None]) -> None:
        """Waits until the segments are sealed, then ingests them."""
        wait_until_sealed(self._folder.events, moment, check)
        ingest_events.ingest(self._folder.events, self.source, self._shape)

    def finish(self) -> None:
        """Ingests the segments that the predictor sealed when it stopped; seals what a killed one left first."""
        ingest_events.ingest(self._folder.events, self.source, self._shape)


class EmulatedBackend:
    """The predictor publishes to Pub/Sub; the streaming job writes BigQuery."""

    def __init__(self, folder: RunFolder, dataset: Dataset, topic: str, job: Child, status: Path) -> None:
        self._folder = folder
        self._dataset = dataset
        self._topic = topic
        self._job = job
        self._status = status
        self._published_before = 0  # by publishers that have ended
        self.source: Warehouse = BigQueryWarehouse(dataset)
        self.predictor_flags = ["--topic", topic]

    def deliver(self) -> None:
        """Publishes the events in the log, and waits until they are stored."""
        command = [sys.executable, "-m", "predictor.publisher", "--events", str(self._folder.events)]
        subprocess.run([*command, "--topic", self._topic], stdin=subprocess.DEVNULL, check=True)
        self._published_before += self._published()
        (self._folder.events / STATUS_NAME).unlink()
        self._wait_until_stored(lambda: None)

    def ingest_until(self, moment: datetime, check: Callable[[], None]) -> None:
        """Waits until the segments are published, and the published events are stored."""

        def published() -> bool:
            segments = [*open_segments(self._folder.events), *sealed_segments(self._folder.events)]
            return not any(opened_at(segment) < moment for segment in segments)

        _wait(published, "published", check)
        self._wait_until_stored(check)

    def finish(self) -> None:
        """Copies the tables into the run's folder, so that the report can be made without the emulators."""
        from beam_jobs import bigquery

        self._wait_until_stored(lambda: None)
        warehouse.create(self._folder.warehouse)
        today = datetime.now(UTC)
        for table in schemas.TABLES:
            rows = bigquery.read_all(self._dataset, table, today - timedelta(days=2), today + timedelta(days=2))
            for batch in rows.combine_chunks().to_batches():
                warehouse.write(self._folder.warehouse, table, "bigquery", batch)

    def _wait_until_stored(self, check: Callable[[], None]) -> None:
        def check_all() -> None:
            self._job.check()
            check()

        _wait(lambda: self._stored() >= self._published_before + self._published(), "stored", check_all)

    def _published(self) -> int:
        path = self._folder.events / STATUS_NAME
        return msgspec.json.decode(path.read_bytes(), type=Status).published if path.is_file() else 0

    def _stored(self) -> int:
        return int(self._status.read_bytes()) if self._status.is_file() else 0


def _wait(done: Callable[[], bool], what: str, check: Callable[[], None]) -> None:
    if not wait_until(done, ARRIVAL_TIMEOUT_SECONDS, check):
        raise OperationError(f"the event log was not {what} within {ARRIVAL_TIMEOUT_SECONDS:g} s")
