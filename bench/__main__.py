"""Runs benchmarks, and writes their figures to `bench/results.json` and to the table in `bench/README.md`.

    python -m bench             run all of them
    python -m bench loop        run one; the figures of the others stay

Each benchmark runs a reference way and this project's way by turns and reports the ratio of each pair.
"""

import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"

# name: (module, function, what the reference way is, what ours is)
BENCHMARKS: dict[str, tuple[str, str, str, str]] = {
    "generator": ("bench.generator", "run", "a row at a time in a DoFn", "a shard at a time in a DoFn"),
    "export": ("bench.export", "run", "a record at a time: CoGroupByKey, WriteToTFRecord", "batches by hash bucket"),
    "ingest_batch": ("bench.ingest", "batch", "an event at a time", "batches of lines"),
    "ingest_streaming": (
        "bench.ingest",
        "streaming_bigquery",
        "Beam's own Pub/Sub reader, into the BigQuery emulator",
        "the reader of orchestration.emulators",
    ),
    "ingest_streaming_embedded": (
        "bench.ingest",
        "streaming_embedded",
        "Beam's own Pub/Sub reader, into Parquet",
        "the reader of orchestration.emulators",
    ),
    "ingest_memory": (
        "bench.ingest",
        "memory",
        "held after a tenth of 10 minutes at 500 events/s",
        "held at the end",
    ),
    "page": ("bench.page", "cost", "the live page at 400 decisions per second", "the same with 50 pages open"),
    "page_memory": (
        "bench.page",
        "memory",
        "held by the live page after 6 minutes at 400 decisions per second",
        "held after 60 minutes",
    ),
    "trainer_10k": (
        "bench.trainer",
        "trainer_10k",
        "TF-Agents' agent.train, eager, 8 records at a time",
        "sufficient statistics, artifact saved",
    ),
    "trainer_200k": (
        "bench.trainer",
        "trainer_200k",
        "bare numpy on arrays in memory",
        "from TFRecords, without saving",
    ),
    "trainer_1682_actions": (
        "bench.trainer",
        "trainer_1682_actions",
        "bare numpy on arrays in memory",
        "from TFRecords, 1,682 actions",
    ),
    "trainer_neural": (
        "bench.trainer",
        "trainer_neural",
        "TF-Agents' agent.train, eager, 8 records at a time",
        "compiled steps of 256, from TFRecords, held-out losses included",
    ),
    "trainer_retrain": (
        "bench.trainer",
        "trainer_retrain",
        "afresh on 101 windows",
        "on the new window, from the parent's checkpoint",
    ),
    "predictor_distinct": (
        "bench.predictor",
        "run",
        "a SavedModel called with lists, a client and .result() per request",
        "this server, event log on",
    ),
    "candidates": ("bench.candidates", "run", "200 candidates, all of a catalogue", "200 candidates out of 100,000"),
    "canary": (
        "bench.canary",
        "run",
        "all rewards of ten minutes, 300,000, at each look",
        "the rewards since the last look, a second ago",
    ),
    "loop": ("bench.loop", "run", "rewards of a random other user, as the demo's Logger pays them", "the loop"),
    "live_sums": (
        "bench.live_sums",
        "run",
        "open decisions as pickled objects",
        "learn_live: chunks of Arrow bytes, joined as the export does",
    ),
    "freshness": ("bench.freshness", "run", "a process for each step", "the loop"),
    "freshness_live": ("bench.live", "freshness", "the loop's policies", "its live versions, in the same runs"),
    "loop_live": ("bench.live", "regret", "the loop, by windows", "the loop, live"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the named benchmarks, all when none is named; returns the exit code."""
    return run_main("bench", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    names = _parser().parse_args(argv).names
    unknown = sorted(set(names) - BENCHMARKS.keys())
    if unknown:
        raise InputError(f"NAME: one of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names or BENCHMARKS:
        module, function, *_ = BENCHMARKS[name]
        print(f"{name} …", flush=True)
        result = getattr(importlib.import_module(module), function)()
        results[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}
        print(f"{name}: {_row(name, results[name])}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        README.write_text(_with_table(README.read_text(), results))


def _parser() -> FlagParser:
    parser = FlagParser(prog="python -m bench", documentation=__doc__)
    width = max(map(len, BENCHMARKS))
    table = "\n".join(
        f"  {name:{width}}  {ours}; reference: {theirs}" for name, (_, _, theirs, ours) in BENCHMARKS.items()
    )
    parser.epilog = f"{parser.epilog}\nBenchmarks:\n{table}"
    parser.add_argument("names", nargs="*", metavar="NAME", help="a benchmark of the list below (default: all)")
    return parser


def _with_table(text: str, results: dict[str, Any]) -> str:
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    rows = [_row(name, results[name]) for name in BENCHMARKS if name in results]
    columns = "| benchmark | reference | ours | unit | ratio (min–max of runs) |\n| --- | --- | --- | --- | --- |\n"
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    return f"{head}{BEGIN}Last written on {machine}.\n\n{columns}" + "\n".join(rows) + f"\n{END}{tail}"


def _row(name: str, result: dict[str, Any]) -> str:
    *_, theirs, ours = BENCHMARKS[name]
    return (
        f"| `{name}` | {theirs}: {result['reference']:,.4g} | {ours}: {result['ours']:,.4g} | {result['unit']} "
        f"| {result['ratio']:.3g} ({result['ratio_min']:.3g}–{result['ratio_max']:.3g}, {result['runs']} runs) |"
    )


if __name__ == "__main__":
    sys.exit(main())
