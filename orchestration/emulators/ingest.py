"""Runs the streaming job `ingest_events` on this machine, from the Pub/Sub emulator into the BigQuery emulator.

    python -m orchestration.emulators.ingest --events pubsub:projects/P/subscriptions/S --warehouse bigquery:P.DATASET \\
        --pubsub HOST:PORT --bigquery-rest http://HOST:PORT --bigquery-grpc HOST:PORT --status FILE

The loop and `python -m orchestration.emulators up` start it as a process. It acknowledges a message when its rows are
stored, and writes its watermark (`contracts.watermarks`) to `--status` ten times per second. It ends on SIGTERM with exit code
0, and with a traceback when the job fails.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import ingest_events, pubsub
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import add_shape_flags, shape_from
from beam_jobs.places import parse_dataset
from beam_jobs.warehouses import BigQueryWarehouse
from contracts import watermarks
from contracts.command_line import FlagParser, run_main
from orchestration.emulators.redirect import BigQueryEndpoint, redirect
from orchestration.emulators.reliable_reader import ReliableReader
from orchestration.places import replace_file

PROGRAM = "orchestration.emulators.ingest"
STATUS_SECONDS = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job until SIGTERM; returns the exit code."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    endpoint = BigQueryEndpoint(arguments.bigquery_rest, arguments.bigquery_grpc)
    with redirect(arguments.pubsub, endpoint), ReliableReader() as reader:
        _ingest(arguments, reader)


def _parser() -> FlagParser:
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    for name, text in (
        ("events", "subscription to read, as pubsub:projects/P/subscriptions/S"),
        ("warehouse", "data set to write, as bigquery:P.DATASET"),
        ("pubsub", "host:port of the Pub/Sub emulator"),
        ("bigquery-rest", "URL of the BigQuery emulator"),
        ("bigquery-grpc", "host:port of the BigQuery emulator's Storage API"),
        ("status", "file to write the watermark to: every message taken by Pub/Sub before it is stored"),
    ):
        parser.add_argument(f"--{name}", required=True, help=text)
    add_shape_flags(parser)
    return parser


def _ingest(arguments: argparse.Namespace, reader: ReliableReader) -> None:
    subscription, dataset = pubsub.parse_subscription(arguments.events), parse_dataset(arguments.warehouse)
    pubsub.check_subscription(subscription)
    destination = BigQueryWarehouse(dataset)
    destination.create()
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
    outputs = ingest_events.build_streaming_pipeline(
        pipeline, subscription, destination.sink(streaming=True), shape=shape_from(arguments)
    )
    reader.acknowledge_stored(outputs)
    result = pipeline.run()
    threading.Thread(target=_write_status, args=(Path(arguments.status), reader), daemon=True).start()
    result.wait_until_finish()  # returns only after an error: a subscription has no end


def _write_status(status: Path, reader: ReliableReader) -> None:
    while True:
        replace_file(status, watermarks.encode(reader.watermark()))
        time.sleep(STATUS_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
