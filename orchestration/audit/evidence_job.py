"""The evidence of a window that is too large for one process, summed by a Beam job from the rows of the warehouse.

Rows are split into buckets by a hash of `decision_id`. A worker joins the decisions of a bucket with their rewards, replays
them, and sums up what they show; the sums of the buckets add up. The result equals that of one process, except for the
order in which numbers are added.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import apache_beam as beam
import msgspec
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_jobs import options
from beam_jobs.files import path_is_local, publish, read
from beam_jobs.reward_join import NamedRows, tables_by_name
from beam_jobs.tables import ObservationDim, record_schema
from beam_jobs.warehouses import Warehouse
from beam_jobs.window_rows import ReadWindowRows, row_ranges
from contracts.errors import InputError
from contracts.policies import CARD_NAME
from contracts.records import Interaction
from orchestration.audit.deciders import load_decider, read_decider
from orchestration.audit.evidence import Decider, Evidence
from orchestration.audit.window_evidence import Gathered, Question, gather_window
from predictor import storage

DECISIONS_PER_BUCKET = 50_000
EVIDENCE_NAME, SAMPLE_NAME = "evidence.json", "sample.arrow"


class Policies(NamedTuple):
    """Where a worker finds what decided. `champions`: the versions whose predictions are trusted; all if there are none."""

    store: str  # a folder that the worker has, or gs://BUCKET/FOLDER
    champions: frozenset[str]
    live: Path | None = None  # where the files of live versions are kept, beside a store in a folder


class GatherBucketFn(beam.DoFn):
    """(bucket, its NamedRows) -> Evidence. Also writes the decisions of the first bucket to `sample`."""

    def __init__(self, question: Question, policies: Policies, sample: str) -> None:
        self._question = question
        self._policies = policies
        self._sample = sample

    def setup(self) -> None:
        """Opens the policy store."""
        self._place = storage.place(self._policies.store)
        self._load = lru_cache(maxsize=16)(self._decider)

    def teardown(self) -> None:
        """Removes copies of policies."""
        self._place.close()

    def process(self, element: tuple[int, Iterable[NamedRows]]) -> Iterator[Evidence]:
        """Joins and replays one bucket."""
        bucket, rows = element
        evidence, interactions = gather_window(tables_by_name(rows), self._question, self._load)
        if bucket == 0:
            publish(self._sample, [_encode(interactions)])
        yield evidence

    def _decider(self, version: str) -> Decider | None:
        store, champions, live = self._policies
        if path_is_local(store):
            return load_decider(Path(store), version, live)
        if not self._place.has(f"{version}/{CARD_NAME}"):
            return None  # gone, or a live version, whose files are not in the store
        return read_decider(self._place.folder(version), not champions or version in champions)


def build_pipeline(
    pipeline: beam.Pipeline,
    source: Warehouse,
    question: Question,
    gather: GatherBucketFn,
    num_buckets: int,
    output: str,
) -> beam.PCollection[None]:
    """The job for one window: writes its evidence to `output`."""
    return (
        pipeline
        | "ReadWindowRows" >> ReadWindowRows(source, row_ranges(question.window, question.settings), num_buckets)
        | "ByBucket" >> beam.GroupByKey()
        | "GatherBucket" >> beam.ParDo(gather)
        | "AddUp" >> beam.CombineGlobally(add_up)
        | "Write" >> beam.Map(lambda evidence: publish(output, [msgspec.json.encode(evidence)]))
    )


def add_up(parts: Any) -> Evidence:
    """The evidence of all parts; of no part, none."""
    total = Evidence()
    for part in parts:
        total = total.merge(part)
    return total


def gather(
    source: Warehouse,
    policies: Policies,
    question: Question,
    dims: Sequence[ObservationDim],
    pipeline_options: PipelineOptions,
) -> Gathered:
    """The evidence of the question's window, and a random sample of its decisions: those of one bucket.

    Args:
      source: the tables.
      policies: the policy store as the workers see it.
      question: the window, and how its decisions are looked at.
      dims: the lengths of its observations, which say how many decisions there are.
      pipeline_options: Beam's; without a runner, the local one.

    Raises InputError and OperationError as the export does.
    """
    num_buckets = max(1, -(-sum(dim.decisions for dim in dims) // DECISIONS_PER_BUCKET))
    with tempfile.TemporaryDirectory() as scratch:
        remote = pipeline_options.view_as(GoogleCloudOptions).temp_location
        folder = FileSystems.join(remote, f"audit-{uuid4().hex}") if remote else scratch
        if remote and "://" not in remote:
            raise InputError(f"--beam: temp_location must be in a bucket, got {remote!r}")
        sample, output = (FileSystems.join(folder, name) for name in (SAMPLE_NAME, EVIDENCE_NAME))
        step = GatherBucketFn(question, policies, sample)
        beam_options = options.local_by_default(pipeline_options)
        with options.job_errors(), beam.Pipeline(options=beam_options) as pipeline:
            build_pipeline(pipeline, source, question, step, num_buckets, output)
        evidence = msgspec.json.decode(read(output) or b"{}", type=Evidence)
        rows = read(sample)
        if remote:
            FileSystems.delete([folder])
    return Gathered(evidence, _decode(rows) if rows else pa.RecordBatch.from_pylist([], record_schema(Interaction)))


def _encode(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue().to_pybytes())


def _decode(data: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
