"""The sums that training and evaluation need, as Beam combiners, for windows and logs too large for one machine.

    python -m trainer.task … --beam-options="--runner=DataflowRunner --project=… --region=… --temp_location=gs://…"

Both accumulate whole batches and merge by adding up, so that a runner may split the work as it likes: what comes out are
the numbers of one machine, but for the order in which floats are added.
"""

import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from contracts.trajectories import TrajectoryBatch
from contracts.windows import WindowFile
from trainer import dataset, off_policy
from trainer.linear import SufficientStatistics


class WeightedFile(NamedTuple):
    """A file of a window to be trained on, and what an interaction in it counts."""

    path: str
    file: WindowFile
    observation_dim: int
    num_actions: int
    weight: float


class WeightedBatch(NamedTuple):
    """Interactions that count `weight` each."""

    batch: TrajectoryBatch
    weight: float


class LoggedDecisions(NamedTuple):
    """Decisions for `off_policy.Sums.add`, `[N]` each; `group` from `off_policy.group_of`."""

    group: np.ndarray
    rewards: np.ndarray
    propensities: np.ndarray
    target_probabilities: np.ndarray
    q_logged: np.ndarray | None = None
    q_target: np.ndarray | None = None


class ReadFileFn(beam.DoFn):
    """Reads a file of a window, with all of `dataset.read_file`'s checks: a wrong one fails the pipeline."""

    def process(self, element: WeightedFile) -> Iterator[WeightedBatch]:
        """One element a batch."""
        path, file, observation_dim, num_actions, weight = element
        for batch in dataset.read_file(path, file, observation_dim, num_actions, open_file=_open):
            yield WeightedBatch(batch, weight)


class SufficientStatisticsFn(beam.CombineFn):
    """WeightedBatch -> SufficientStatistics of all of them."""

    def __init__(self, num_actions: int, observation_dim: int) -> None:
        self._shape = num_actions, observation_dim

    def create_accumulator(self) -> SufficientStatistics:
        """No evidence."""
        return SufficientStatistics.zeros(*self._shape)

    def add_input(self, accumulator: SufficientStatistics, element: WeightedBatch) -> SufficientStatistics:
        """A batch more."""
        batch = element.batch
        accumulator.add(batch.observation, batch.action, batch.reward, element.weight)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[SufficientStatistics]) -> SufficientStatistics:
        """All evidence."""
        total = self.create_accumulator()
        for accumulator in accumulators:
            total.merge(accumulator)
        return total

    def extract_output(self, accumulator: SufficientStatistics) -> SufficientStatistics:
        """The statistics themselves."""
        return accumulator


class EstimateFn(beam.CombineFn):
    """LoggedDecisions -> off_policy.Estimates of the target policy."""

    def __init__(self, with_model: bool, confidence: float = 0.95, seed: int = 0) -> None:
        self._told = with_model, confidence, seed

    def create_accumulator(self) -> off_policy.Sums:
        """No decisions."""
        return off_policy.Sums.zeros()

    def add_input(self, accumulator: off_policy.Sums, element: LoggedDecisions) -> off_policy.Sums:
        """Some decisions more."""
        accumulator.add(*element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[off_policy.Sums]) -> off_policy.Sums:
        """All decisions."""
        total = self.create_accumulator()
        for accumulator in accumulators:
            total.merge(accumulator)
        return total

    def extract_output(self, accumulator: off_policy.Sums) -> off_policy.Estimates:
        """The estimates, with their intervals."""
        return accumulator.estimates(*self._told)


class WriteStatisticsFn(beam.DoFn):
    """Writes the statistics to a file; a worker that does it again writes the same."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: SufficientStatistics) -> Iterator[None]:
        """Gives nothing on."""
        buffer = io.BytesIO()
        np.savez(buffer, a=element.a, b=element.b, n=element.n)
        with FileSystems.create(_beam_path(self._path)) as stream:
            stream.write(buffer.getvalue())
        yield from ()


def sum_files(
    files: list[WeightedFile], num_actions: int, observation_dim: int, output: str, options: list[str]
) -> None:
    """Sums up the statistics of the files on the runner that the pipeline options name, and writes them to `output`.

    One file is the unit of work. Raises what the pipeline raises.
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
    stream: BinaryIO = FileSystems.open(_beam_path(path))
    return stream


def _beam_path(path: str) -> str:
    # What a Vertex job has mounted under /gcs is not mounted on Beam's workers.
    return f"gs://{path.removeprefix('/gcs/')}" if path.startswith("/gcs/") else path
