"""Reads policies from a folder on the disk or in Cloud Storage; from there it copies the files that serving needs.

Either folder is one policy or a policy store.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contracts import policies
from contracts.errors import InputError, OperationError

SCHEME = "gs://"
_RETRY_SECONDS = 5.0  # then it is an error; the follower tries again anyway


def place(source: Path | str) -> "Disk | Bucket":
    """`source` is a path, or `gs://bucket/folder`."""
    if isinstance(source, str) and source.startswith(SCHEME):
        return Bucket(source)
    return Disk(Path(source))


@dataclass(frozen=True)
class Disk:
    """A folder on the disk."""

    path: Path
    poll_seconds = 0.0

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether there is a file `name`."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """The file `name`. Raises InputError."""
        path = self.path / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None

    def names(self, folder: str) -> list[str]:
        """The names of the files in the sub-folder `folder`; none if there is no such folder. Raises InputError."""
        path = self.path / folder
        try:
            return [entry.name for entry in path.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None

    def folder(self, name: str = "") -> Path:
        """The policy in the sub-folder `name`, or in this folder itself; it may turn out not to be one."""
        return self.path / name

    def keep(self, names: Collection[str]) -> None:
        """Does nothing: a folder on the disk is not copied."""

    def close(self) -> None:
        """Does nothing: no connection is held."""


class Bucket:
    """A folder in Cloud Storage. One thread at a time."""

    poll_seconds = 0.5  # each read of the pointer is a billed request

    def __init__(self, uri: str) -> None:
        """Makes no request yet.

        Args:
          uri: `gs://bucket/folder`.
        """
        self._uri = uri.rstrip("/")
        self._bucket, _, folder = self._uri.removeprefix(SCHEME).partition("/")
        self._prefix = f"{folder}/" if folder else ""
        self._copies: dict[
            str, tuple[dict[str, int], Path]
        ] = {}  # per policy, the generations of its objects and the folder of the copy

    def __str__(self) -> str:
        return self._uri

    def has(self, name: str) -> bool:
        """Whether there is an object `name`. Raises InputError without the bucket, OperationError if it cannot be read."""
        with self._readable():
            blobs = self._client.list_blobs(self._bucket, prefix=self._prefix + name, max_results=1, retry=self._retry)
            return any(blob.name == self._prefix + name for blob in blobs)

    def read(self, name: str) -> bytes:
        """The object `name`. Raises InputError if it is missing, OperationError if it cannot be read."""
        with self._readable(f"/{name}"):
            blob = self._client.bucket(self._bucket).blob(self._prefix + name)
            return bytes(blob.download_as_bytes(timeout=_RETRY_SECONDS, retry=self._retry))

    def names(self, folder: str) -> list[str]:
        """The names of the objects in the sub-folder `folder`. Raises InputError or OperationError as `read` does."""
        prefix = f"{self._prefix}{folder}/"
        with self._readable(f"/{folder}"):
            blobs = self._client.list_blobs(self._bucket, prefix=prefix, delimiter="/", retry=self._retry)
            return [blob.name.removeprefix(prefix) for blob in blobs]

    def folder(self, name: str = "") -> Path:
        """A copy on the disk of the policy in the sub-folder `name`, or in this folder itself, without its checkpoint.

        The copy is complete, and made again only if the objects have changed. Raises InputError if they are no policy,
        OperationError if they cannot be read.
        """
        prefix = f"{self._prefix}{name}/" if name else self._prefix
        with self._readable(f"/{name}" if name else ""):
            blobs = {
                blob.name.removeprefix(prefix): blob
                for blob in self._client.list_blobs(self._bucket, prefix=prefix, retry=self._retry)
                if _serves(blob.name.removeprefix(prefix))
            }
            if policies.CARD_NAME not in blobs:
                raise InputError(f"policy: {SCHEME}{self._bucket}/{prefix} is not a policy (it has no policy.json)")
            objects = {relative: blob.generation for relative, blob in blobs.items()}
            found, path = self._copies.get(name, (None, Path()))
            if found != objects:
                path = self._copy(blobs)
                self._forget(name)
                self._copies[name] = objects, path
        return path

    def keep(self, names: Collection[str]) -> None:
        """Removes the copies of all but `names`."""
        for name in self._copies.keys() - set(names):
            self._forget(name)

    def close(self) -> None:
        """Removes all copies and ends the connection."""
        self.keep([])
        self._client.close()

    def _forget(self, name: str) -> None:
        if name in self._copies:
            shutil.rmtree(self._copies.pop(name)[1])

    def _copy(self, blobs: dict[str, Any]) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="policy-"))
        try:
            for relative, blob in blobs.items():
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(target, retry=self._retry)
        except BaseException:
            shutil.rmtree(folder)
            raise
        return folder

    @cached_property
    def _client(self) -> Any:
        from google.cloud import storage

        return storage.Client()

    @cached_property
    def _retry(self) -> Any:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)

    @contextlib.contextmanager
    def _readable(self, name: str = "") -> Iterator[None]:
        from google.api_core.exceptions import GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError

        try:
            yield
        except (GoogleAPIError, GoogleAuthError, OSError) as error:
            kind = InputError if isinstance(error, NotFound) else OperationError
            reason = " ".join(str(error).split())
            raise kind(f"policy: cannot read {self._uri}{name}: {reason}") from None


def _serves(relative: str) -> bool:
    parts = relative.split("/")
    return parts[0] != policies.CHECKPOINT_NAME and parts[-1] != "" and ".." not in parts
