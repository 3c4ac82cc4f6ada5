"""The streaming `ingest_events` against emulators, as a process of its own; the loop starts it.

    python -m orchestration.emulators.ingest --events pubsub:projects/P/subscriptions/S --warehouse bigquery:P.DATASET \\
        --pubsub HOST:PORT --bigquery-rest http://HOST:PORT --bigquery-grpc HOST:PORT --status FILE

Messages are acknowledged once they are stored. How many have been is written to `--status`, again and again. Ends on
SIGTERM, and with the error when the job fails.
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

from beam_jobs import bigquery, ingest_events, pubsub
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import add_shape_flags, shape_from
from contracts.command_line import FlagParser
from contracts.errors import InputError
from orchestration.emulators import servers
from orchestration.places import replace_file

STATUS_SECONDS = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; 0 after SIGTERM, 2 after wrong input."""
    parser = FlagParser(
        prog="python -m orchestration.emulators.ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, text in (
        ("events", "subscription, as pubsub:projects/P/subscriptions/S"),
        ("warehouse", "dataset, as bigquery:P.DATASET"),
        ("pubsub", "host:port of the Pub/Sub emulator"),
        ("bigquery-rest", "URL of the BigQuery emulator"),
        ("bigquery-grpc", "host:port of its Storage API"),
        ("status", "file to write the number of stored messages to"),
    ):
        parser.add_argument(f"--{name}", required=True, help=text)
    add_shape_flags(parser)
    try:
        arguments = parser.parse_args(argv)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        endpoint = servers.BigQueryEndpoint(arguments.bigquery_rest, arguments.bigquery_grpc)
        with servers.redirect(arguments.pubsub, endpoint), servers.ReliableReader() as reader:
            _run(arguments, reader)
    except InputError as error:
        sys.stderr.write(f"emulated_ingest: error: {error}\n")
        return 2
    return 0


def _run(arguments: argparse.Namespace, reader: servers.ReliableReader) -> None:
    subscription, dataset = pubsub.parse_subscription(arguments.events), bigquery.parse_dataset(arguments.warehouse)
    pubsub.check_subscription(subscription)
    bigquery.ensure_tables(dataset, expiry_days=None)
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
    outputs = ingest_events.build_streaming_pipeline(pipeline, subscription, dataset, shape=shape_from(arguments))
    reader.acknowledge_stored(outputs)
    result = pipeline.run()
    threading.Thread(target=_write_status, args=(Path(arguments.status), reader), daemon=True).start()
    result.wait_until_finish()  # until SIGTERM: the subscription has no end


def _write_status(status: Path, reader: servers.ReliableReader) -> None:
    while True:
        replace_file(status, str(reader.stored).encode())
        time.sleep(STATUS_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
