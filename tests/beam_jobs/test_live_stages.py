from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_jobs import live_stages
from beam_jobs.live_events import Arrivals
from beam_jobs.live_join import Arrived
from beam_jobs.live_stages import ParseArrivals, Parsed
from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.payloads import PayloadBatch
from contracts import live_emissions
from contracts.live_emissions import SUMS_FOLDER, Emission
from tests.live_logs import faulty_log, live_job, payload, plan

START = datetime(2026, 1, 1, tzinfo=UTC)


def arrivals(payloads: list[bytes]) -> Arrivals:
    batch = PayloadBatch("b", payloads, ["s"] * len(payloads), [START] * len(payloads))
    return Arrivals([batch], START, len(payloads), True)


@pytest.mark.parametrize("buckets", [1, 5])
def test_every_payload_is_a_row_of_its_bucket_or_counted(tmp_path: Path, buckets: int) -> None:
    events = faulty_log(START, seed=1, size=60)
    payloads = [*map(payload, events), b"not an event", payload(events[0]).replace(b'"action":', b'"action":9')]

    def check_rows(rows: list[tuple[int, Arrived]]) -> None:
        assert len(rows) == buckets
        tables = [pa.Table.from_batches([getattr(one, name) for _, one in rows]) for name in Arrived._fields]
        assert sum(table.num_rows for table in tables) == len(events)
        places: dict[str, set[int]] = {}
        for bucket, one in rows:
            for batch in one:
                for identity in batch.column("decision_id").to_pylist():
                    places.setdefault(identity, set()).add(bucket)
        assert all(len(found) == 1 for found in places.values())

    def check_progress(found: list[tuple[int, live_stages.Progress]]) -> None:
        assert [(key, one.dead_letters, one.events_read, one.caught_up) for key, one in found] == [
            (0, 2, len(payloads), True)
        ]

    first = next(number for number, event in enumerate(events) if payload(event).startswith(b'{"kind":"decision"'))
    payloads[-1] = payload(events[first]).replace(b'"action":', b'"action":9')
    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        created = pipeline | beam.Create([arrivals(payloads)])
        parsed: Parsed = created | ParseArrivals(live_job(tmp_path, plan(START), buckets))
        assert_that(parsed.rows, check_rows, "rows")
        assert_that(parsed.progress, check_progress, "progress")


def emission(sequence: int) -> Emission:
    return Emission(
        sequence=sequence,
        snapshot=True,
        emitted_at=START + timedelta(seconds=sequence),
        complete_until=None,
        observation_dim=3,
        num_actions=4,
        events=0,
        dead_letters=0,
        healed=0,
        windows=[],
    )


def test_files_of_emissions_are_numbered_and_removed(tmp_path: Path) -> None:
    live = str(tmp_path)
    assert live_stages.newest_sequence(live) == 0
    for sequence in (3, 4, 11):
        live_stages.write(live, emission(sequence))
    (tmp_path / SUMS_FOLDER / "000000000099.msgpack.unfinished").write_bytes(b"")
    assert live_stages.newest_sequence(live) == 11
    live_stages.remove_old(live, 4)
    assert live_emissions.sequences(tmp_path / SUMS_FOLDER) == [4, 11]
