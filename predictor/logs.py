"""The event logs of one server, and the publisher that empties them to a topic."""

import logging
import os

from predictor.event_log import EventLog
from predictor.publisher import PublisherProcess
from predictor.settings import Settings

_log = logging.getLogger(__name__)


class Logs:
    """Events (decisions and rewards), shadow decisions, and the optional publisher."""

    def __init__(self, settings: Settings) -> None:
        """Raises InputError for a folder that cannot be written to, OperationError if the disk fails."""
        limits, writer = settings.limits, f"predictor-{os.getpid()}"
        self.events = EventLog(settings.events, writer, limits.segment_seconds, buffer_bytes=limits.buffer_bytes)
        self.shadows = EventLog(settings.events / "shadow", writer, buffer_bytes=limits.buffer_bytes)
        self.publisher = (
            PublisherProcess(settings.events, settings.topic, limits.drain_seconds) if settings.topic else None
        )

    def close(self) -> None:
        """Seals the logs, then gives the publisher `drain_seconds`; what is not published stays on the disk."""
        counters = self.events.close()
        self.shadows.close()
        if counters.dropped:
            _log.error("the event log dropped %d of %d events", counters.dropped, counters.logged)
        if self.publisher:
            self.publisher.stop()
