"""The watermark that an export waits for, from where `--watermark` says.

    FOLDER                                  an event log on this machine, ingested into a warehouse in a folder
    FILE, or gs://BUCKET/FILE               a watermark as the ingest job publishes it (`contracts.watermarks`)
    pubsub:projects/P/subscriptions/NAME    the subscription that the ingest job reads: the age of its oldest message that
                                            is not acknowledged, from Cloud Monitoring

Cloud Monitoring is a few minutes behind, and so are windows that wait for it. It knows nothing of events that the
predictors still spool, and Dataflow acknowledges a message before its row is stored: `--settle-seconds` is for those.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from beam_jobs import pubsub
from beam_jobs.files import path_is_local, read
from beam_jobs.places import SUBSCRIPTION_PREFIX, explained
from beam_jobs.warehouses import Warehouse
from contracts import watermarks
from contracts.watermarks import BEGINNING, Watermark

AGE_METRIC = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
LOOK_BACK = timedelta(minutes=15)
TIMEOUT_SECONDS = 30.0


def open_watermark(text: str, source: Warehouse) -> Callable[[], Watermark]:
    """How to read the watermark that `--watermark` names. Raises InputError, then or at a call, when it cannot be read."""
    if text.startswith(SUBSCRIPTION_PREFIX):
        from google.cloud import monitoring_v3

        subscription = pubsub.parse_subscription(text, "--watermark")
        with explained("--watermark", f"subscription {subscription}"):
            client = monitoring_v3.MetricServiceClient()
        return lambda: of_subscription(client, subscription)
    if path_is_local(text) and Path(text).is_dir():
        return lambda: watermarks.of_segments(Path(text), source.ingested)
    return lambda: _of_file(text)


def of_subscription(client: Any, subscription: str) -> Watermark:
    """Every message that was published to `projects/P/subscriptions/NAME` before it is acknowledged.

    Args:
      client: a `monitoring_v3.MetricServiceClient`.
      subscription: its full name.

    Raises InputError or OperationError when Cloud Monitoring refuses or does not answer.
    """
    from google.cloud import monitoring_v3

    now = datetime.now(UTC)
    project, _, name = subscription.partition("/subscriptions/")
    request = monitoring_v3.ListTimeSeriesRequest(
        name=project,
        filter=f'metric.type = "{AGE_METRIC}" AND resource.labels.subscription_id = "{name}"',
        interval=monitoring_v3.TimeInterval(start_time=now - LOOK_BACK, end_time=now),
        view=monitoring_v3.ListTimeSeriesRequest.TimeSeriesView.FULL,
    )
    with explained("--watermark", f"the metric of subscription {subscription}"):
        series = list(client.list_time_series(request=request, timeout=TIMEOUT_SECONDS))
    points = [point for one in series for point in one.points]
    if not points:
        minutes = LOOK_BACK.total_seconds() / 60
        return Watermark(
            complete_until=BEGINNING, at=now, held_by=f"{name}: no metric in the last {minutes:.0f} minutes"
        )
    last = max(points, key=lambda point: point.interval.end_time)
    seen_at = datetime.fromtimestamp(last.interval.end_time.timestamp(), UTC)
    age = last.value.int64_value
    held_by = (
        f"{name}: a message of {age} s is not acknowledged" if age else f"{name}: its metric of {seen_at:%H:%M:%S}"
    )
    return Watermark(complete_until=seen_at - timedelta(seconds=age), at=now, held_by=held_by)


def _of_file(path: str) -> Watermark:
    if (data := read(path)) is None:
        return Watermark(complete_until=BEGINNING, at=datetime.now(UTC), held_by=f"{path}, which is not written yet")
    return watermarks.decode(data, path)
