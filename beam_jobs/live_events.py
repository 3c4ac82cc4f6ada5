"""The events that the live job reads: a folder of segments that grows, or a Pub/Sub subscription.

Beam has no source that follows a folder on its local streaming runner (periodic and unbounded Python sources do not run
there). `FollowSegments` is one, for that runner alone: it reads the lines that were added, sealed or not, about ten times
per second. Its watermark is the time up to which the folder has been read completely.
"""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.runners.direct.transform_evaluator import TransformEvaluatorRegistry, _TransformEvaluator
from apache_beam.runners.direct.util import TransformResult
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from beam_jobs.ingest_events import read_lines
from beam_jobs.payloads import BYTES_PER_BATCH, MAX_EVENT_BYTES, PayloadBatch
from contracts.event_segments import OPEN_SUFFIX, SEALED_SUFFIX, is_segment, opened_at, stem

# One poll reads at most this much, so that a job that starts on a long log reads it in bounded memory.
BYTES_PER_POLL = 4 * BYTES_PER_BATCH
_RESOLUTION_NANOSECONDS = 50_000_000


class Arrivals(NamedTuple):
    """Events as they came, and how far the source has been read."""

    batches: list[PayloadBatch]
    complete_until: datetime | None  # all events logged before this time are in these arrivals or earlier ones
    events_read: int | None  # in these arrivals and all earlier ones; None where several workers read
    caught_up: bool  # whether nothing that was there is left to read


class SegmentTail:
    """Reads what is added to a folder of segments, each line once."""

    def __init__(self, folder: Path, since: datetime, bytes_per_poll: int = BYTES_PER_POLL) -> None:
        """Begins with the segments that were written to at `since` or later."""
        self._folder = folder
        self._since = since.timestamp()
        self._bytes_per_poll = bytes_per_poll
        self._read: dict[str, int] = {}  # bytes read of a segment, by its stem
        self._finished: set[str] = set()  # names of the sealed segments of which nothing is left to read
        self._segments: list[Path] = []  # those that may have lines to read, oldest first
        self._listed: int | None = None  # when the folder had changed last as it was listed, in nanoseconds
        self._batches = 0
        self._events = 0

    def poll(self) -> Arrivals:
        """The lines that were added since the last poll, oldest segment first.

        The last line of an open segment is read once its line end is there.
        """
        complete_until, left = datetime.now(UTC), self._bytes_per_poll
        batches: list[PayloadBatch] = []
        ended: set[Path] = set()
        caught_up = True
        self._list()
        for path in self._segments:
            added = self._added(path, left) if left > 0 else _Added(b"", ended=False, more=True)
            left -= len(added.data)
            batches += self._batched(path, added.data)
            if added.ended:
                ended.add(path)
                self._finished.add(path.name)
                self._read.pop(stem(path.name), None)
            if added.more:
                complete_until, caught_up = min(complete_until, opened_at(path)), False
        self._segments = [path for path in self._segments if path not in ended]
        self._events += sum(len(batch.payloads) for batch in batches)
        return Arrivals(batches, complete_until, self._events, caught_up)

    def _list(self) -> None:
        """Lists the folder if it has changed: a log of a day has many segments, and few of them are new."""
        changed = self._folder.stat().st_mtime_ns
        if changed == self._listed:
            return
        # Another change within the resolution of the file system's clock would not show: list once more after that.
        self._listed = changed if time.time_ns() - changed > _RESOLUTION_NANOSECONDS else None
        paths: dict[str, Path] = {}
        # Sorted, the name of an open segment comes after that of the same one sealed: sealed while the folder was listed.
        for name in sorted(os.listdir(self._folder), reverse=True):  # noqa: PTH208
            if name in self._finished or not name.endswith((OPEN_SUFFIX, SEALED_SUFFIX)) or not is_segment(name):
                continue
            paths[stem(name)] = self._folder / name
        self._segments = [paths[key] for key in sorted(paths)]

    def _added(self, path: Path, limit: int) -> "_Added":
        """Whole lines that were added to a segment."""
        sealed = path.name.endswith(SEALED_SUFFIX)
        begin = self._read.get(stem(path.name), 0)
        limit = max(limit, 2 * MAX_EVENT_BYTES)
        try:
            with path.open("rb") as file:
                if begin == 0 and os.fstat(file.fileno()).st_mtime < self._since:
                    return _Added(b"", ended=sealed, more=False)
                file.seek(begin)
                data = file.read(limit)
        except FileNotFoundError:
            self._listed = None  # sealed since it was listed: it has another name now
            return _Added(b"", ended=False, more=True)
        more = len(data) == limit
        if more or not sealed:
            data = data[: data.rfind(b"\n") + 1] or data[: limit if more else 0]
        self._read[stem(path.name)] = begin + len(data)
        return _Added(data, ended=sealed and not more, more=more)

    def _batched(self, path: Path, data: bytes) -> Iterator[PayloadBatch]:
        opened = opened_at(path)
        for payloads in read_lines(BytesIO(data)):
            self._batches += 1
            name = f"{stem(path.name)}-{self._batches:08d}"
            yield PayloadBatch(name, payloads, [name] * len(payloads), [opened] * len(payloads))


class _Added(NamedTuple):
    """What was added to a segment; `ended`: it will have no more; `more`: not all of it was read."""

    data: bytes
    ended: bool
    more: bool


class FollowSegments(beam.PTransform):
    """PBegin -> PCollection[Arrivals] of a folder, without end. Runs on Beam's local streaming runner alone."""

    def __init__(self, folder: Path, since: datetime, poll_seconds: float) -> None:
        super().__init__()
        self.tail = SegmentTail(folder, since)
        self.poll_seconds = poll_seconds

    def get_windowing(self, _: Any) -> Windowing:
        """All in one window."""
        return Windowing(GlobalWindows())

    def expand(self, begin: PBegin) -> Any:
        """A root that the runner evaluates."""
        return PCollection(begin.pipeline, is_bounded=False)


class _FollowSegmentsEvaluator(_TransformEvaluator):
    """How the local runner reads `FollowSegments`: one poll per bundle, and then another one."""

    def start_bundle(self) -> None:
        """Nothing to prepare."""

    def process_element(self, element: Any) -> None:
        """A root has no input."""

    def finish_bundle(self) -> TransformResult:
        """Waits, polls, and asks to be called again."""
        transform = self._applied_ptransform.transform
        time.sleep(transform.poll_seconds)
        arrivals = transform.tail.poll()
        watermark = Timestamp.from_utc_datetime(arrivals.complete_until)
        bundle = self._evaluation_context.create_bundle(next(iter(self._outputs)))
        bundle.output(GlobalWindows.windowed_value(arrivals, timestamp=watermark))
        again = self._evaluation_context.create_bundle(PBegin(transform.pipeline))
        return TransformResult(self, [bundle], [again], None, {None: watermark})


# The runner has no public way to add a source.
TransformEvaluatorRegistry._test_evaluators_overrides[FollowSegments] = _FollowSegmentsEvaluator


class SubscriptionArrivals(beam.PTransform):
    """PCollection[PayloadBatch] of a subscription -> PCollection[Arrivals].

    `complete_until` is the latest time at which a message of the batch was published: messages may come in another order,
    so windows can seem complete while some of their events are on the way. What they miss is healed by the record.
    """

    def expand(self, batches: Any) -> Any:
        """One element per batch."""
        return batches | beam.Map(lambda batch: Arrivals([batch], max(batch.received_at), None, True))
