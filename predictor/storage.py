"""Policies in Cloud Storage: copied to the disk to be loaded."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contracts import policies
from contracts.errors import InputError

SCHEME = "gs://"


@contextlib.contextmanager
def copied(uri: str) -> Iterator[Path]:
    """A copy of the policy folder `gs://bucket/folder`, while the block lasts.

    It has what serving needs. A store in Cloud Storage is not followed: there each version is deployed as a model of
    its own.

    Raises:
      InputError: the bucket or folder cannot be read, or is no policy.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    with tempfile.TemporaryDirectory(prefix="policy-") as name:
        folder = Path(name)
        try:
            with contextlib.closing(storage.Client()) as client:
                blobs = {blob.name.removeprefix(prefix): blob for blob in client.list_blobs(bucket, prefix=prefix)}
                if policies.CARD_NAME not in blobs:
                    raise InputError(f"policy: {uri} is not a policy (it has no {policies.CARD_NAME})")
                for relative, blob in blobs.items():
                    parts = relative.split("/")
                    if parts[0] == policies.CHECKPOINT_NAME or parts[-1] == "" or ".." in parts:
                        continue
                    target = folder.joinpath(*parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    blob.download_to_filename(target)
        except (GoogleAPIError, GoogleAuthError, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"policy: cannot read {uri}: {reason}") from None
        yield folder
