"""Locations as flags name them (folders, buckets, BigQuery datasets), and Google Cloud's refusals as one line.

A location is parsed here; `beam_jobs.warehouses` opens the tables that are there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import google.auth
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError

from beam_jobs.files import path_is_local
from beam_jobs.options import is_dataflow
from contracts.errors import InputError, OperationError
from contracts.records import one_line
from contracts.schemas import Table

BIGQUERY_PREFIX = "bigquery:"
SUBSCRIPTION_PREFIX = "pubsub:"
DATASET = r"([a-z][a-z0-9.:-]*[a-z0-9])\.([A-Za-z0-9_]+)"


class Dataset(NamedTuple):
    """A BigQuery dataset."""

    project: str
    name: str

    def table(self, table: Table) -> str:
        """`project.dataset.table`."""
        return f"{self.project}.{self.name}.{table.name}"


def parse_dataset(text: str) -> Dataset:
    """The dataset of `bigquery:PROJECT.DATASET`. Raises InputError."""
    match = re.fullmatch(DATASET, text.removeprefix(BIGQUERY_PREFIX))
    if not match:
        raise InputError(f"--warehouse: bigquery:PROJECT.DATASET expected, got {text!r}")
    return Dataset(match[1], match[2])


def check_folder(flag: str, folder: str, pipeline_options: PipelineOptions) -> None:
    """Raises InputError for a folder or bucket that the job's runner cannot use."""
    if path_is_local(folder):
        if is_dataflow(pipeline_options):
            raise InputError(f"{flag}: Dataflow cannot use a folder of this machine, got {folder!r}")
        return
    try:
        FileSystems.get_filesystem(folder)
    except ValueError:
        raise InputError(f"{flag}: a folder or gs://BUCKET/FOLDER expected, got {folder!r}") from None
    if folder.startswith("gs://") and not pipeline_options.view_as(GoogleCloudOptions).no_auth:
        with explained(flag, folder):
            google.auth.default()  # without credentials Beam goes on, and retries for minutes


@contextmanager
def explained(flag: str, resource: str) -> Iterator[None]:
    """Turns Google Cloud's refusals about `resource` ("table p.d.t") into errors of one line; other errors pass.

    Raises InputError when the resource does not exist, or the caller has no permission or no valid credentials;
    OperationError when the service does not answer.
    """
    try:
        yield
    except exceptions.NotFound:
        raise InputError(f"{flag}: {resource} does not exist") from None
    except exceptions.Forbidden as error:
        raise InputError(f"{flag}: no permission for {resource}: {one_line(error.message, 200)}") from None
    except (GoogleAuthError, exceptions.Unauthorized) as error:
        raise InputError(f"{flag}: no valid credentials for {resource}: {one_line(str(error), 200)}") from None
    except (exceptions.RetryError, exceptions.ServiceUnavailable, exceptions.DeadlineExceeded) as error:
        raise OperationError(f"{flag}: no answer about {resource}: {one_line(str(error), 200)}") from None
