"""Sums the sufficient statistics of linear policies with Beam, for windows that are too large for one machine.

    python -m trainer.task … --beam-options="--runner=DataflowRunner --project=… --region=… --temp_location=gs://…"

The combiner accumulates whole batches and merges by addition, so a runner may split the work in any way. The result
equals that of one machine except for rounding, since floats are added in another order.
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from contracts.trajectories import TrajectoryBatch
from contracts.windows import WindowFile
from trainer import checkpoint, dataset
from trainer.contexts import project
from trainer.linear import SufficientStatistics
from trainer.mounts import unmounted


class WeightedFile(NamedTuple):
    """A file of a window to train on, and the weight of each interaction in it."""

    path: str
    file: WindowFile
    observation_dim: int
    num_actions: int
    weight: float
    others: tuple[int, ...]  # actions that stood for other items then, see `trainer.arms.own`
    taken: tuple[int, ...]  # what the policy takes of its observations, see `trainer.contexts.places`


class WeightedBatch(NamedTuple):
    """Interactions of the same weight."""

    batch: TrajectoryBatch
    weight: float


class ReadFileFn(beam.DoFn):
    """Reads a file of a window, with all checks of `dataset.read_file`: a wrong file fails the pipeline."""

    def process(self, element: WeightedFile) -> Iterator[WeightedBatch]:
        """Outputs one element per batch."""
        path, file, observation_dim, num_actions, weight, others, taken = element
        for batch in dataset.read_file(path, file, observation_dim, num_actions, open_file=_open):
            own = batch.take(~np.isin(batch.action, others)) if others else batch
            yield WeightedBatch(own._replace(observation=project(own.observation, np.array(taken))), weight)


class SufficientStatisticsFn(beam.CombineFn):
    """WeightedBatch -> the SufficientStatistics of all batches."""

    def __init__(self, num_actions: int, observation_dim: int) -> None:
        self._shape = num_actions, observation_dim

    def create_accumulator(self) -> SufficientStatistics:
        """Statistics without evidence."""
        return SufficientStatistics.zeros(*self._shape)

    def add_input(self, accumulator: SufficientStatistics, element: WeightedBatch) -> SufficientStatistics:
        """Adds a batch."""
        batch = element.batch
        accumulator.add(batch.observation, batch.action, batch.reward, element.weight)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[SufficientStatistics]) -> SufficientStatistics:
        """Adds up the statistics."""
        total = self.create_accumulator()
        for accumulator in accumulators:
            total.merge(accumulator)
        return total

    def extract_output(self, accumulator: SufficientStatistics) -> SufficientStatistics:
        """The statistics themselves."""
        return accumulator


class WriteStatisticsFn(beam.DoFn):
    """Writes the statistics to a file. A worker that retries writes the same bytes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: SufficientStatistics) -> Iterator[None]:
        """Outputs nothing."""
        with FileSystems.create(unmounted(self._path)) as stream:
            stream.write(checkpoint.encode(element))
        yield from ()


def sum_files(
    files: list[WeightedFile], num_actions: int, observation_dim: int, output: str, options: list[str]
) -> None:
    """Sums the statistics of the files on the runner that the pipeline options name, and writes them to `output`.

    One file is the unit of work. Raises the exceptions of the pipeline.
    """
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        (
            pipeline
            | "Files" >> beam.Create(files)
            | "SpreadFiles" >> beam.Reshuffle()
            | "ReadFile" >> beam.ParDo(ReadFileFn())
            | "SumStatistics" >> beam.CombineGlobally(SufficientStatisticsFn(num_actions, observation_dim))
            | "WriteStatistics" >> beam.ParDo(WriteStatisticsFn(output))
        )


def _open(path: str) -> BinaryIO:
    stream: BinaryIO = FileSystems.open(unmounted(path))
    return stream
