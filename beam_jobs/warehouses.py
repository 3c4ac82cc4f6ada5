"""The two warehouses, behind the one interface that the jobs use: embedded in a folder, or on BigQuery.

A new warehouse is a module that writes and reads its tables, a class here that has the methods of `Warehouse`, and its
case in `open_warehouse`.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import apache_beam as beam
import msgspec
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import bigquery, bigquery_sinks, warehouse
from beam_jobs.files import path_is_local, publish
from beam_jobs.payloads import IngestCounts
from beam_jobs.places import BIGQUERY_PREFIX, Dataset, check_folder, parse_dataset
from beam_jobs.tables import ObservationDim, RowsPart, TableRows
from contracts.errors import InputError
from contracts.schemas import Table

# The DoFn that writes a table: TableRows -> (name, IngestCounts of the rows stored); on the output `refused`, TableRows
# of dead letters for the rows that the table refuses.
Sink: TypeAlias = Callable[[Table], beam.DoFn]
WRITE_METHODS = tuple(bigquery_sinks.SINKS)
STREAMING_WRITE_METHOD, BATCH_WRITE_METHOD = "streaming_inserts", "file_loads"


class Warehouse(Protocol):
    """The tables of `contracts.schemas`, in one place. Pickled to workers.

    Every method raises InputError when there are no tables or they may not be used, and OperationError when the place
    does not answer. Times are `[start, end)` on a table's partition column.
    """

    def create(self, expiry_days: float | None = None) -> None:
        """Creates the tables that do not exist; their partitions expire after `expiry_days`."""

    def check(self) -> None:
        """Raises InputError when the tables are not usable."""

    def sink(self, write_method: str | None = None, *, streaming: bool = False) -> Sink:
        """How rows are written: by the method of that name, or the default of a batch or streaming job."""

    def parts(
        self, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
    ) -> Sequence[RowsPart]:
        """A read of the named columns (None: all), as parts that workers can read side by side."""

    def observation_dims(self, start: datetime, end: datetime) -> list[ObservationDim]:
        """The lengths of the observations decided in the range, the most frequent first."""

    def locked(self) -> AbstractContextManager[None]:
        """Held by a process that changes the tables and needs no other one to do so meanwhile."""

    def ingested(self) -> set[str]:
        """Names of the segments that `note_ingested` has noted."""

    def note_ingested(self, segment: str, counts: IngestCounts) -> None:
        """Notes that all of a segment is stored, where segments are to be ingested once."""

    def remove_dead_letters(self, keys: Set[str], start: datetime, end: datetime) -> bool:
        """Removes the dead letters with those keys (`tables.dead_letter_key`); False when they can't be removed yet."""


def open_warehouse(text: str, pipeline_options: PipelineOptions) -> Warehouse:
    """The warehouse that `--warehouse` names: a folder of this machine, or `bigquery:PROJECT.DATASET`.

    Raises InputError for anything else, and for a folder when the job runs on Dataflow.
    """
    if text.startswith(BIGQUERY_PREFIX):
        return BigQueryWarehouse(parse_dataset(text))
    if not path_is_local(text):
        raise InputError(f"--warehouse: a folder of this machine or bigquery:PROJECT.DATASET expected, got {text!r}")
    check_folder("--warehouse", text, pipeline_options)
    return EmbeddedWarehouse(Path(text))


class EmbeddedWarehouse(NamedTuple):
    """Parquet files in a folder of this machine (`beam_jobs.warehouse`)."""

    folder: Path

    def create(self, expiry_days: float | None = None) -> None:
        """Creates the folders of the tables. Raises InputError for `expiry_days`: nothing expires in a folder."""
        if expiry_days is not None:
            raise InputError("--expiry-days: requires --warehouse bigquery:PROJECT.DATASET")
        warehouse.create(self.folder)

    def check(self) -> None:
        """Raises InputError when the folder has no tables."""
        warehouse.check(self.folder)

    def sink(self, write_method: str | None = None, *, streaming: bool = False) -> Sink:
        """Writes files. Raises InputError for a `write_method`, which are BigQuery's."""
        if write_method is not None:
            raise InputError("--write-method: requires --warehouse bigquery:PROJECT.DATASET")
        return self._sink

    def _sink(self, table: Table) -> beam.DoFn:
        return WriteFilesFn(self.folder, table)

    def parts(
        self, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
    ) -> Sequence[RowsPart]:
        """One part: DuckDB reads the range at once."""
        return [FileRows(self.folder, table, start, end, names)]

    def observation_dims(self, start: datetime, end: datetime) -> list[ObservationDim]:
        """The lengths of the observations decided in the range, the most frequent first."""
        return warehouse.observation_dims(self.folder, start, end)

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time; others wait."""
        return warehouse.locked(self.folder)

    def ingested(self) -> set[str]:
        """From the notes in the folder."""
        return {note.stem for note in (self.folder / warehouse.INGESTED_NAME).glob("*.json")}

    def note_ingested(self, segment: str, counts: IngestCounts) -> None:
        """Writes a note."""
        note = self.folder / warehouse.INGESTED_NAME / f"{segment}.json"
        publish(str(note), [msgspec.json.encode(counts) + b"\n"])

    def remove_dead_letters(self, keys: Set[str], start: datetime, end: datetime) -> bool:
        """Rewrites the files that hold them. The caller holds `locked`."""
        warehouse.remove_dead_letters(self.folder, keys, start, end)
        return True


class FileRows(NamedTuple):
    """A range of one table of the embedded warehouse."""

    folder: Path
    table: Table
    start: datetime
    end: datetime
    names: Sequence[str] | None

    def read(self) -> Iterator[pa.RecordBatch]:
        """Its rows. Raises InputError: the folder has no tables, or a file cannot be read."""
        yield from warehouse.read_all(*self).to_batches()


class WriteFilesFn(beam.DoFn):
    """TableRows -> (name, IngestCounts of the rows stored), in the embedded warehouse."""

    def __init__(self, folder: Path, table: Table) -> None:
        self._folder = folder
        self._table = table

    def process(self, element: TableRows) -> Iterator[tuple[str, IngestCounts]]:
        """Writes one batch."""
        warehouse.write(self._folder, self._table, element.name, element.rows)
        yield element.name, IngestCounts(**{self._table.name: element.rows.num_rows})


class BigQueryWarehouse(NamedTuple):
    """Tables in a BigQuery dataset (`beam_jobs.bigquery`)."""

    dataset: Dataset

    def create(self, expiry_days: float | None = None) -> None:
        """Creates the tables that do not exist; checks the schemas of the others."""
        bigquery.ensure_tables(self.dataset, expiry_days)

    def check(self) -> None:
        """Checks the schemas of the tables, and creates those that do not exist."""
        bigquery.ensure_tables(self.dataset, None)

    def sink(self, write_method: str | None = None, *, streaming: bool = False) -> Sink:
        """One of `bigquery_sinks.SINKS`. Raises InputError for load jobs in a streaming job."""
        if streaming and write_method == BATCH_WRITE_METHOD:
            raise InputError(f"--write-method: {write_method} requires a batch job, got a subscription")
        chosen = bigquery_sinks.SINKS[write_method or (STREAMING_WRITE_METHOD if streaming else BATCH_WRITE_METHOD)]
        return lambda table: chosen(self.dataset, table)

    def parts(
        self, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
    ) -> Sequence[RowsPart]:
        """The streams of one read session."""
        return bigquery.open_streams(self.dataset, table, start, end, names)

    def observation_dims(self, start: datetime, end: datetime) -> list[ObservationDim]:
        """The lengths of the observations decided in the range, the most frequent first."""
        return bigquery.observation_dims(self.dataset, start, end)

    def locked(self) -> AbstractContextManager[None]:
        """BigQuery's own transactions suffice."""
        return nullcontext()

    def ingested(self) -> set[str]:
        """None: BigQuery runs a load job once, by its id, so loading a segment again changes nothing."""
        return set()

    def note_ingested(self, segment: str, counts: IngestCounts) -> None:
        """Notes nothing, for the same reason."""

    def remove_dead_letters(self, keys: Set[str], start: datetime, end: datetime) -> bool:
        """One DELETE per 5,000 keys."""
        return bigquery.delete_dead_letters(self.dataset, sorted(keys), start, end)
