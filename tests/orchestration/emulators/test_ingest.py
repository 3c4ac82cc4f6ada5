"""The streaming job as the loop starts it: a process that ends when the job fails."""

import sys
from pathlib import Path

import pytest

from beam_jobs import bigquery
from beam_jobs.places import Dataset
from contracts.errors import OperationError
from contracts.schemas import REWARDS
from orchestration.emulators.redirect import BigQueryEndpoint
from orchestration.processes import Child
from tests.simulated import events
from tests.streaming_jobs import PROJECT, Queue, publish, wait_until


def test_a_job_that_fails_ends_and_says_so(
    queue: Queue, dataset: Dataset, pubsub_host: str, bigquery_endpoint: BigQueryEndpoint, tmp_path: Path
) -> None:
    """Otherwise the loop would wait for events that the dead job never stores."""
    command = [sys.executable, "-m", "orchestration.emulators.ingest", "--events", f"pubsub:{queue.subscription}"]
    command += ["--warehouse", f"bigquery:{dataset.project}.{dataset.name}", "--status", str(tmp_path / "status")]
    command += ["--pubsub", pubsub_host, "--bigquery-rest", bigquery_endpoint.rest]
    command += ["--bigquery-grpc", bigquery_endpoint.grpc]
    with Child("ingest", command, tmp_path / "log") as child:
        wait_until(lambda: (tmp_path / "status").is_file())
        client = bigquery.client(PROJECT)
        client.delete_table(dataset.table(REWARDS))
        client.close()
        publish(queue.topic, events(10))
        wait_until(lambda: child.exit_code() is not None)
        with pytest.raises(OperationError, match=r"ingest ended with exit code 1: .*StoreEvents/Write_rewards"):
            child.check()
