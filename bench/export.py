"""`export`: rows a second from the warehouse to TFRecords and manifest: read, join, encode, write.

Reference: the same join one record at a time, with Beam's `ReadFromParquet`, `CoGroupByKey` and `WriteToTFRecord`.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.export_trajectories import export
from beam_jobs.generate_movielens import GeneratorSettings, generate
from beam_jobs.ingest_events import ingest
from beam_jobs.movielens import MovieLens
from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from bench.measure import compare, seconds
from contracts.windows import TrainingWindow, WindowSettings

ROWS, MANY_ROWS = 200_000, 1_000_000
REFERENCE_ROWS = 10_000
START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))
REWARD_WINDOW = timedelta(seconds=2)


def key_by_decision(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(decision_id, row)."""
    return row["decision_id"], row


def to_example(element: tuple[str, dict[str, list[dict[str, Any]]]]) -> Iterator[bytes]:
    """One decision and its rewards -> one serialized Example."""
    _, rows = element
    for decision in rows["decisions"][:1]:
        in_time = [
            (reward["occurred_at"], reward["reward"])
            for reward in rows["rewards"]
            if decision["decided_at"] <= reward["occurred_at"] <= decision["decided_at"] + REWARD_WINDOW
        ]
        reward = min(in_time)[1] if in_time else 0.0
        floats = {"observation": decision["observation"], "reward": [reward], "propensity": [decision["propensity"]]}
        features = {
            name: tf.train.Feature(float_list=tf.train.FloatList(value=value)) for name, value in floats.items()
        }
        for name, value in {"action": decision["action"], "defaulted": int(not in_time)}.items():
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        yield tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def export_record_by_record(warehouse: Path, folder: Path) -> None:
    """The reference."""
    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        tables = {
            name: pipeline
            | f"Read_{name}" >> beam.io.ReadFromParquet(str(warehouse / name / "*" / "*.parquet"))
            | f"Key_{name}" >> beam.Map(key_by_decision)
            for name in ("decisions", "rewards")
        }
        (
            tables
            | beam.CoGroupByKey()
            | beam.FlatMap(to_example)
            | beam.io.WriteToTFRecord(str(folder / "part"), file_name_suffix=".tfrecord", num_shards=1)
        )


def run() -> dict[str, Any]:
    """Both ways in turn, after one small export that loads what is loaded late; then a window of a million rows.

    An export has a fixed cost, mostly that of building and starting a Beam job. The larger window shows what a row costs.
    `…_per_cpu_second` counts the time of all processors together, which is what one core would take.
    """
    viewers = MovieLens.build(load_ratings("sample"), num_actions=100, rank=20, reward_noise=0.5, seed=0)
    settings = WindowSettings(reward_window_seconds=REWARD_WINDOW.total_seconds())
    per_cpu_second: dict[int, list[float]] = {ROWS: [], MANY_ROWS: []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for rows in (MANY_ROWS, ROWS, REFERENCE_ROWS):
            generate(viewers, GeneratorSettings(num_decisions=rows, start=START), root / f"events-{rows}")
            ingest(root / f"events-{rows}", EmbeddedWarehouse(root / f"warehouse-{rows}"))
        export(EmbeddedWarehouse(root / f"warehouse-{REFERENCE_ROWS}"), root / "warm-up", WINDOW, settings)

        def by_record() -> None:
            export_record_by_record(root / f"warehouse-{REFERENCE_ROWS}", root / "reference")

        def by_bucket(rows: int) -> float:
            shutil.rmtree(root / "windows", ignore_errors=True)
            began, used = time.perf_counter(), time.process_time()
            manifest = export(EmbeddedWarehouse(root / f"warehouse-{rows}"), root / "windows", WINDOW, settings)
            per_cpu_second[rows].append(rows / (time.process_time() - used))
            taken = time.perf_counter() - began
            assert manifest.records("train", "holdback") == rows
            return rows / taken

        result = compare(
            reference=lambda: REFERENCE_ROWS / seconds(by_record), ours=lambda: by_bucket(ROWS), unit="rows/s"
        )
        of_many = [by_bucket(MANY_ROWS) for _ in range(3)]
    return dict(result) | {
        "ours_per_cpu_second": statistics.median(per_cpu_second[ROWS]),
        "ours_of_a_million": statistics.median(of_many),
        "ours_of_a_million_per_cpu_second": statistics.median(per_cpu_second[MANY_ROWS]),
    }
