"""Keys that clients send in the header x-api-key, read from a file that may change while the server runs."""

import hmac
import logging
import time
from pathlib import Path

from contracts.errors import InputError

HEADER = b"x-api-key"

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # how often a changed file is looked for, at most


class Keys:
    """The keys in a file, one per line; each of them is accepted.

    To rotate a key, add the new one as another line, change the clients, then remove the old line. A changed file is
    read again within a second. If the changed file cannot be read or is empty, the keys stay as they were.
    """

    def __init__(self, flag: str, path: Path) -> None:
        """Raises InputError that names `flag` if the file cannot be read or has no key."""
        self._flag = flag
        self._path = path
        self._changed = self._stamp()
        self._keys = self._read()
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def admit(self, given: bytes) -> bool:
        """Whether `given` is one of the keys; it takes the same time for each wrong key of one length."""
        self._look()
        matches = [hmac.compare_digest(given, key) for key in self._keys]  # all of them, whichever matches
        return any(matches)

    def _look(self) -> None:
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if (stamp := self._stamp()) == self._changed:
            return
        self._changed = stamp
        try:
            self._keys = self._read()
        except InputError as error:
            _log.warning("%s; the keys stay as they were", error)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _read(self) -> list[bytes]:
        try:
            lines = self._path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{self._flag}: cannot read {self._path}") from None
        keys = [line.strip().encode() for line in lines if line.strip()]
        if not keys:
            raise InputError(f"{self._flag}: {self._path} is empty")
        return keys
