"""The embedded event log: writes decisions and rewards to disk without delaying any answer.

`append` puts events into a bounded buffer and returns. One background thread writes them, in batches, to segments as
`contracts.event_segments` describes them, and seals a segment by time, by size and on `close`. Sealing calls fsync.

Guaranteed: an event is in the log once, or counted as dropped. After SIGKILL at most the events of the last
`flush_seconds` are missing (those still in the buffer); after a power cut, those of the segment that was open.
On overload (a buffer that is full because the disk is slow or full) new events are dropped and counted.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from contracts import event_segments
from contracts.errors import InputError, OperationError

_log = logging.getLogger(__name__)

_DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_RETRY_SECONDS = (0.05, 2.0)  # the first wait after a failed write, doubled up to the last


@dataclass(frozen=True)
class Counters:
    """What became of the events so far: `logged = delivered + dropped + pending`."""

    logged: int
    delivered: int
    dropped: int
    pending: int
    retried: int  # writes that failed and were tried again


def make_folder(folder: Path) -> None:
    """Creates the folder of an event log if it is missing.

    Raises InputError if it cannot be created or written to, OperationError if the disk is full or fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = OperationError if error.errno in _DISK_FAILURES else InputError
        raise kind(f"events: cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"events: the folder {folder} cannot be written to")


class EventLog:
    """Writes events to a folder of segments; one writer thread, any number of callers."""

    def __init__(
        self,
        folder: Path,
        writer: str,
        segment_seconds: float = 0.5,
        segment_bytes: int = 64 * 2**20,
        buffer_bytes: int = 64 * 2**20,
        flush_seconds: float = 0.02,
    ) -> None:
        """Opens the log and starts its writer.

        Args:
          folder: created if missing.
          writer: unique among those that write to `folder`; letters, digits, `_`, `.`, `-`.
          segment_seconds: a segment is sealed this long after it was opened, traffic or not.
          segment_bytes: or when it has grown to this.
          buffer_bytes: the most that waits in memory; what does not fit is dropped and counted.
          flush_seconds: how long events are gathered before they are written.

        Raises:
          InputError: the folder cannot be made or written to.
          OperationError: the disk is full or fails.
        """
        self._folder = folder
        self._writer = writer
        self._segment_seconds = segment_seconds
        self._segment_bytes = segment_bytes
        self._buffer_bytes = buffer_bytes
        self._flush_seconds = flush_seconds

        self._lock = threading.Lock()  # guards the buffer and the counters
        self._buffer: list[bytes] = []
        self._waiting_bytes = self._waiting_events = 0
        self._logged = self._delivered = self._dropped = self._retried = 0
        self._something_to_do = threading.Event()
        self._closing = threading.Event()

        self._segment: FileIO | None = None
        self._segment_path = Path()
        self._segment_size = 0
        self._seal_at = 0.0
        self._segments_opened = 0
        make_folder(folder)
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def append(self, lines: bytes, count: int) -> bool:
        """Takes `count` events, a line each with its line break; false when the buffer has no room for them all.

        Those are dropped and counted. Never waits for the disk. Raises ValueError after `close`.
        """
        with self._lock:
            if self._closing.is_set():
                raise ValueError("the event log is closed")
            self._logged += count
            accepted = self._waiting_bytes + len(lines) <= self._buffer_bytes
            if accepted:
                self._buffer.append(lines)
                self._waiting_bytes += len(lines)
                self._waiting_events += count
            else:
                self._dropped += count
        if not self._something_to_do.is_set():
            self._something_to_do.set()
        return accepted

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes of events would be taken now."""
        return self._waiting_bytes + size <= self._buffer_bytes

    def counters(self) -> Counters:
        """A consistent look at the counters."""
        with self._lock:
            pending = self._logged - self._delivered - self._dropped
            return Counters(self._logged, self._delivered, self._dropped, pending, self._retried)

    def close(self, timeout_seconds: float = 10.0) -> Counters:
        """Writes what waits, seals the open segment and stops. What cannot be written in time counts as dropped."""
        with self._lock:
            self._closing.set()
        self._something_to_do.set()
        self._thread.join(timeout_seconds)
        with self._lock:
            if self._thread.is_alive():
                self._dropped = self._logged - self._delivered
        return self.counters()

    def _run(self) -> None:
        while True:
            if self._something_to_do.wait(self._until_seal()):
                self._closing.wait(self._flush_seconds)  # gather, so that writes are few and large
            closing = self._closing.is_set()
            with self._lock:
                batch, self._buffer = self._buffer, []
                count, self._waiting_events = self._waiting_events, 0
                if not batch:
                    # Not earlier: to wake this thread costs the caller more than all else that `append` does.
                    self._something_to_do.clear()
            if batch:
                data = b"".join(batch)
                self._write(data)
                with self._lock:
                    self._delivered += count
                    self._waiting_bytes -= len(data)
            if self._segment and (
                closing or time.monotonic() >= self._seal_at or self._segment_size >= self._segment_bytes
            ):
                self._persistently(self._seal)
            if closing and not self._buffer:
                return

    def _until_seal(self) -> float | None:
        return max(0.0, self._seal_at - time.monotonic()) if self._segment else None

    def _write(self, data: bytes) -> None:
        def attempt() -> None:
            if self._segment is None:
                self._open()
            assert self._segment is not None
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._segment.fileno(), data[written:])
            except OSError:
                # No half event, and none twice when it is tried again.
                self._segment.seek(self._segment.truncate(self._segment_size))
                if self._segment_size:
                    self._seal()  # to be read, published and removed, which may be what makes room
                raise
            self._segment_size += len(data)

        self._persistently(attempt)

    def _persistently(self, attempt: Callable[[], None]) -> None:
        """Tries until it works: a full disk costs events only once the buffer is full as well."""
        wait, longest = _RETRY_SECONDS
        while True:
            try:
                return attempt()
            except OSError as error:
                with self._lock:
                    self._retried += 1
                _log.error("event log: %s: %s; trying again in %.2f s", self._segment_path, error.strerror, wait)
                time.sleep(wait)
                wait = min(2 * wait, longest)

    def _open(self) -> None:
        self._segments_opened += 1
        writer = f"{self._writer}-{self._segments_opened:06d}"
        name = event_segments.segment_name(datetime.now(UTC), writer)
        self._folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted
        # A draft's name until it is locked, so that no other process takes it for abandoned.
        draft = self._folder / f".{name}.draft"
        segment = draft.open("x+b", buffering=0)
        fcntl.flock(segment, fcntl.LOCK_EX)
        self._segment_path = draft.rename(self._folder / f"{name}{event_segments.OPEN_SUFFIX}")
        self._segment, self._segment_size = segment, 0
        self._seal_at = time.monotonic() + self._segment_seconds

    def _seal(self) -> None:
        assert self._segment is not None
        if not self._segment_path.exists():
            self._recover()
        os.fsync(self._segment.fileno())
        event_segments.seal(self._segment_path)  # under the lock, so that no other process takes it for abandoned
        self._segment.close()
        self._segment = None

    def _recover(self) -> None:
        """Writes the segment again when its folder was deleted: the file that is still open has what was in it."""
        lost, size = self._segment, self._segment_size
        assert lost is not None
        _log.error("event log: %s was deleted; its events are written again", self._segment_path)
        self._open()
        assert self._segment is not None
        try:
            self._segment_size = os.sendfile(self._segment.fileno(), lost.fileno(), 0, size)
            if self._segment_size < size:
                raise OSError(errno.ENOSPC, "not all was written")
        except OSError:
            self._segment.close()
            self._segment_path.unlink(missing_ok=True)
            self._segment, self._segment_size = lost, size
            raise
        lost.close()
