"""Where events, tables and windows are, as flags say it; and what Google Cloud answers to it, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import google.auth
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError

from beam_jobs.files import path_is_local
from beam_jobs.options import is_dataflow
from contracts.errors import InputError
from contracts.records import one_line

if TYPE_CHECKING:
    from beam_jobs.bigquery import Dataset

BIGQUERY_PREFIX = "bigquery:"
SUBSCRIPTION_PREFIX = "pubsub:"


def parse_warehouse(text: str, pipeline_options: PipelineOptions) -> "Path | Dataset":
    """`--warehouse`: a folder of this machine, or `bigquery:PROJECT.DATASET`. Raises InputError for anything else."""
    if text.startswith(BIGQUERY_PREFIX):
        from beam_jobs import bigquery

        return bigquery.parse_dataset(text)
    if not path_is_local(text):
        raise InputError(f"--warehouse: a folder of this machine or bigquery:PROJECT.DATASET expected, got {text!r}")
    check_folder("--warehouse", text, pipeline_options)
    return Path(text)


def check_folder(flag: str, folder: str, pipeline_options: PipelineOptions) -> None:
    """Raises InputError for a folder or bucket that a job cannot use where it is to run."""
    if path_is_local(folder):
        if is_dataflow(pipeline_options):
            raise InputError(f"{flag}: Dataflow has no folder of this machine, got {folder!r}")
        return
    try:
        FileSystems.get_filesystem(folder)
    except ValueError:
        raise InputError(f"{flag}: a folder or gs://BUCKET/FOLDER expected, got {folder!r}") from None
    if folder.startswith("gs://") and not pipeline_options.view_as(GoogleCloudOptions).no_auth:
        with explained(flag, folder):
            google.auth.default()  # Beam would go on without, and try again for minutes


@contextmanager
def explained(flag: str, thing: str) -> Iterator[None]:
    """What keeps a person from using `thing` of Google Cloud ("table p.d.t") becomes InputError; other errors stay."""
    try:
        yield
    except exceptions.NotFound:
        raise InputError(f"{flag}: there is no {thing}") from None
    except exceptions.Forbidden as error:
        raise InputError(f"{flag}: no permission for {thing}: {one_line(error.message, 200)}") from None
    except (GoogleAuthError, exceptions.Unauthorized) as error:
        raise InputError(f"{flag}: no valid credentials for {thing}: {one_line(str(error), 200)}") from None
    except (exceptions.RetryError, exceptions.ServiceUnavailable, exceptions.DeadlineExceeded) as error:
        raise InputError(f"{flag}: no answer about {thing}: {one_line(str(error), 200)}") from None
