"""Points the Google Cloud clients of this process at emulators.

`redirect` sets the environment variable that Pub/Sub's clients and Beam read, and replaces the functions of
`beam_jobs.bigquery` that create clients, because no variable redirects those.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple


class BigQueryEndpoint(NamedTuple):
    """The two addresses of a BigQuery emulator."""

    rest: str  # http://127.0.0.1:…
    grpc: str  # 127.0.0.1:…, the Storage Read and Write APIs


@contextlib.contextmanager
def redirect(pubsub: str | None = None, bigquery: BigQueryEndpoint | None = None) -> Iterator[None]:
    """Points the clients of the given services at emulators until the block ends.

    Args:
      pubsub: `host:port` of the Pub/Sub emulator.
      bigquery: addresses of the BigQuery emulator.
    """
    with contextlib.ExitStack() as stack:
        if pubsub:
            stack.enter_context(_environment("PUBSUB_EMULATOR_HOST", pubsub))
        if bigquery:
            stack.enter_context(_redirected_bigquery(bigquery))
        yield


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _redirected_bigquery(endpoint: BigQueryEndpoint) -> Iterator[None]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery as api

    from beam_jobs import bigquery as ours

    anonymous: Any = AnonymousCredentials  # has no types
    before = ours.client, ours.read_client, ours.write_client
    ours.client = lambda project: api.Client(
        project=project, credentials=anonymous(), client_options={"api_endpoint": endpoint.rest}
    )
    ours.read_client = lambda: _read_client(endpoint.grpc)
    ours.write_client = lambda: _write_client(endpoint.grpc)
    try:
        yield
    finally:
        ours.client, ours.read_client, ours.write_client = before


def _read_client(host: str) -> Any:
    import grpc
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    unlimited = [("grpc.max_receive_message_length", -1)]
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=grpc.insecure_channel(host, unlimited)))


def _write_client(host: str) -> Any:
    import grpc
    from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
    from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

    unlimited = [("grpc.max_send_message_length", -1)]
    return BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=grpc.insecure_channel(host, unlimited)))
