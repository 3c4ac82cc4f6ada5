"""The storage of the loop's events and tables: files, or the emulators of Pub/Sub and BigQuery.

The jobs, the predictor and the trainer are the same in both; a backend carries events from the predictor's log to the
tables that the export reads, and knows when they are there.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from beam_jobs import ingest_events, warehouse
from beam_jobs.closing import wait_until_complete
from beam_jobs.payloads import DecisionShape
from beam_jobs.places import Dataset, parse_dataset
from beam_jobs.warehouses import BigQueryWarehouse, EmbeddedWarehouse, Warehouse
from contracts import schemas, watermarks
from contracts.command_line import say
from contracts.watermarks import TwoStages, WaitSettings, Watermark
from orchestration import ingestion
from orchestration.cloud.configuration import EMULATED_WAREHOUSE
from orchestration.loop.run_folder import RunFolder
from orchestration.processes import Child

SEGMENT_SECONDS = 0.2


class Backend(Protocol):
    """Carries events from the predictor's log to the tables that the export reads."""

    source: Warehouse  # what the export reads
    predictor_flags: list[str]

    def deliver(self) -> None:
        """Carries the events that are in the log while no predictor runs."""

    def live_sums(self) -> list[str]:
        """The program that makes provisional sums, and its flags for what it reads: every event from now on."""

    def advance(self, moment: datetime) -> Watermark:
        """The watermark of the tables, after what can be done for it to reach `moment` without waiting."""

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
        yield EmulatedBackend(folder, dataset, servers.TOPIC, job)


class EmbeddedBackend:
    """A batch job ingests segments of the event log into Parquet files."""

    def __init__(self, folder: RunFolder, shape: DecisionShape) -> None:
        self._folder = folder
        self._shape = shape
        self.source: Warehouse = EmbeddedWarehouse(folder.warehouse)
        self.predictor_flags: list[str] = []

    def deliver(self) -> None:
        """Does nothing: ingestion reads the log."""

    def live_sums(self) -> list[str]:
        """The job, which reads the log."""
        return ["beam_jobs.learn_live", "--events", str(self._folder.events)]

    def advance(self, moment: datetime) -> Watermark:
        """Ingests the log once it is sealed up to `moment`."""
        return ingestion.advance(self._folder.events, self.source, moment, self._ingest)

    def _ingest(self) -> None:
        ingest_events.ingest(self._folder.events, self.source, self._shape)

    def finish(self) -> None:
        """Ingests the segments that the predictor sealed when it stopped; seals what a killed one left first."""
        self._ingest()


class EmulatedBackend:
    """The predictor publishes to Pub/Sub; the streaming job writes BigQuery."""

    def __init__(self, folder: RunFolder, dataset: Dataset, topic: str, job: Child) -> None:
        self._folder = folder
        self._dataset = dataset
        self._topic = topic
        self._job = job
        self._stages = TwoStages()
        self.source: Warehouse = BigQueryWarehouse(dataset)
        # A segment is published once it is sealed, and what is learned live should not wait for that.
        self.predictor_flags = ["--topic", topic, "--segment-seconds", str(SEGMENT_SECONDS)]

    def live_sums(self) -> list[str]:
        """The job, with a subscription of its own."""
        from orchestration.emulators import servers

        servers.subscribe_live()
        return ["orchestration.emulators.learn_live", "--events", f"pubsub:{servers.LIVE_SUBSCRIPTION}"]

    def deliver(self) -> None:
        """Publishes the events in the log, and waits until they are stored."""
        command = [sys.executable, "-m", "predictor.publisher", "--events", str(self._folder.events)]
        subprocess.run([*command, "--topic", self._topic], stdin=subprocess.DEVNULL, check=True)
        now = datetime.now(UTC)
        wait_until_complete(lambda: self.advance(now), now, WaitSettings(), say, give_up=True)

    def advance(self, moment: datetime) -> Watermark:
        """Of the publisher's spool and of the streaming job, which work without help. The job must not have ended."""
        self._job.check()
        spool = watermarks.of_segments(self._folder.events, frozenset)  # a published segment is removed
        status = self._folder.ingest_status
        return self._stages.add(spool, watermarks.decode(status.read_bytes(), str(status)))

    def finish(self) -> None:
        """Copies the tables into the run's folder, so that the report can be made without the emulators."""
        from beam_jobs import bigquery

        self.deliver()  # what the predictor's publisher could not publish in time
        warehouse.create(self._folder.warehouse)
        today = datetime.now(UTC)
        for table in schemas.TABLES:
            rows = bigquery.read_all(self._dataset, table, today - timedelta(days=2), today + timedelta(days=2))
            for batch in rows.combine_chunks().to_batches():
                warehouse.write(self._folder.warehouse, table, "bigquery", batch)
