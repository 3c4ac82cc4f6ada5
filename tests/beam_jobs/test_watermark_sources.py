"""What `--watermark` names: an event log, a file of the ingest job, or a subscription's age in Cloud Monitoring."""

from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud import monitoring_v3
from google.cloud.monitoring_v3.services.metric_service.transports import MetricServiceGrpcTransport

from beam_jobs import export_trajectories, warehouse
from beam_jobs.payloads import IngestCounts
from beam_jobs.warehouses import EmbeddedWarehouse
from beam_jobs.watermark_sources import AGE_METRIC, of_subscription, open_watermark
from contracts import watermarks
from contracts.errors import InputError, OperationError
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.watermarks import BEGINNING, Watermark

START = datetime(2026, 1, 1, tzinfo=UTC)
SUBSCRIPTION = "projects/my-project/subscriptions/bandit-ingest"


def test_an_event_log_is_complete_until_its_oldest_segment_that_is_not_ingested(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    source = EmbeddedWarehouse(tmp_path / "warehouse")
    source.create()
    read = open_watermark(str(events), source)
    assert read().held_by == ""
    name = segment_name(START, "predictor")
    (events / f"{name}{SEALED_SUFFIX}").write_bytes(b"{}\n")
    assert read().complete_until == START
    source.note_ingested(name, IngestCounts(events=1, dead_letters=1))
    assert read().complete_until > START


def test_a_file_holds_what_the_ingest_job_wrote_last(tmp_path: Path) -> None:
    path = tmp_path / "ingest.json"
    read = open_watermark(str(path), EmbeddedWarehouse(tmp_path))
    assert read().complete_until == BEGINNING
    assert read().held_by == f"{path}, which is not written yet"
    mark = Watermark(complete_until=START, at=START, held_by="messages")
    path.write_bytes(watermarks.encode(mark))
    assert read() == mark
    path.write_bytes(b"{}")
    with pytest.raises(InputError, match=f"^{path}: not a watermark"):
        read()


class Monitoring:
    """Cloud Monitoring's gRPC service: answers with its points, or refuses."""

    def __init__(self) -> None:
        self.points: list[tuple[datetime, int]] = []
        self.refusal: grpc.StatusCode | None = None
        self.requests: list[monitoring_v3.ListTimeSeriesRequest] = []

    def list_time_series(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        if self.refusal is not None:
            context.abort(self.refusal, "not for you")
        points = [
            monitoring_v3.Point(
                interval=monitoring_v3.TimeInterval(end_time=moment),
                value=monitoring_v3.TypedValue(int64_value=age),
            )
            for moment, age in self.points
        ]
        return monitoring_v3.ListTimeSeriesResponse(time_series=[monitoring_v3.TimeSeries(points=points)])


@pytest.fixture
def monitoring() -> Iterator[tuple[Monitoring, monitoring_v3.MetricServiceClient]]:
    service = Monitoring()
    handler = grpc.unary_unary_rpc_method_handler(
        service.list_time_series,
        request_deserializer=monitoring_v3.ListTimeSeriesRequest.deserialize,
        response_serializer=monitoring_v3.ListTimeSeriesResponse.serialize,
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handlers = {"ListTimeSeries": handler}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("google.monitoring.v3.MetricService", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, monitoring_v3.MetricServiceClient(transport=MetricServiceGrpcTransport(channel=channel))
    server.stop(None)


def test_a_subscription_is_complete_until_its_oldest_message_at_its_newest_point(monitoring: Any) -> None:
    service, client = monitoring
    now = datetime.now(UTC).replace(microsecond=0)
    service.points = [(now - timedelta(seconds=120), 90), (now - timedelta(seconds=60), 31)]
    mark = of_subscription(client, SUBSCRIPTION)
    assert mark.complete_until == now - timedelta(seconds=91)
    assert mark.held_by == "bandit-ingest: a message of 31 s is not acknowledged"
    [request] = service.requests
    assert request.name == "projects/my-project"
    assert request.filter == f'metric.type = "{AGE_METRIC}" AND resource.labels.subscription_id = "bandit-ingest"'
    assert timedelta(0) < request.interval.end_time - request.interval.start_time <= timedelta(minutes=15)


def test_an_idle_subscription_holds_nothing_but_the_age_of_the_metric(monitoring: Any) -> None:
    service, client = monitoring
    seen_at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=60)
    service.points = [(seen_at, 0)]
    assert of_subscription(client, SUBSCRIPTION).complete_until == seen_at


def test_without_a_metric_nothing_is_known(monitoring: Any) -> None:
    _, client = monitoring
    mark = of_subscription(client, SUBSCRIPTION)
    assert (mark.complete_until, mark.held_by) == (BEGINNING, "bandit-ingest: no metric in the last 15 minutes")


@pytest.mark.parametrize(
    ("refusal", "error", "line"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, InputError, "--watermark: no permission for the metric of subscription"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, OperationError, "--watermark: no answer about the metric of subscription"),
    ],
)
def test_a_refusal_is_one_line(monitoring: Any, refusal: Any, error: type[Exception], line: str) -> None:
    service, client = monitoring
    service.refusal = refusal
    with pytest.raises(error, match=f"^{line}"):
        of_subscription(client, SUBSCRIPTION)


def test_the_export_job_waits_for_it_and_fails_rather_than_export_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse.create(tmp_path / "warehouse")
    status = tmp_path / "ingest.json"
    status.write_bytes(watermarks.encode(Watermark(complete_until=START, at=START, held_by="the ingest job")))
    flags = ["--warehouse", str(tmp_path / "warehouse"), "--windows", str(tmp_path / "windows")]
    flags += ["--start", START.isoformat(), "--window-seconds", "5", "--watermark", str(status)]
    flags += ["--watermark-limit-seconds", "0.2"]
    assert export_trajectories.main(flags) == 3
    line = (
        "failed: the watermark is behind for more than 0.2 s: events before 2026-01-01 00:02:05.000 are complete until"
    )
    assert f"{line} 2026-01-01 00:00:00.000; held by the ingest job" in capsys.readouterr().err
    assert not list((tmp_path / "windows").glob("window=*"))
    status.write_bytes(watermarks.encode(Watermark(complete_until=START + timedelta(hours=1), at=START)))
    assert export_trajectories.main(flags) == 0


@pytest.mark.parametrize("text", ["pubsub:my-subscription", "pubsub:projects/p/topics/t"])
def test_another_name_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--watermark: pubsub:projects/PROJECT/subscriptions/NAME expected, got"):
        open_watermark(text, EmbeddedWarehouse(tmp_path))
