"""Live learning from a Pub/Sub subscription, against the record of the same events."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import learn_live
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from contracts.live_emissions import SUMS_FOLDER, Reader
from orchestration.emulators.reliable_reader import ReliableReader
from tests.beam_jobs.test_learn_live import assert_equal, export_all, learned, make_folders
from tests.live_logs import faulty_log, follow_until, live_job, payload, plan, write_segment
from tests.streaming_jobs import Queue, publish


def test_messages_are_learned_as_the_record_will_hold_them(tmp_path: Path, queue: Queue) -> None:
    """The topic is quiet after the last message, so the timer makes the last emissions."""
    make_folders(tmp_path)
    how = plan(datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=20))
    lines = list(map(payload, faulty_log(how.origin, 9, 150)))
    publish(queue.topic, lines)
    write_segment(tmp_path / "events", lines, 1)  # for the record alone
    job = live_job(tmp_path, how, buckets=2)
    with ReliableReader():
        pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
        learn_live.build_pipeline(learn_live.read_subscription(pipeline, queue.subscription, None), job)
        result = pipeline.run()
        try:
            reader = follow_until(
                Reader(tmp_path / "live" / SUMS_FOLDER),
                lambda it: it.latest is not None and it.latest.events >= len(lines),
            )
        finally:
            result.cancel()
    assert reader.latest is not None
    assert reader.latest.complete_until is not None
    assert_equal(learned(reader, how), export_all(tmp_path, how))
