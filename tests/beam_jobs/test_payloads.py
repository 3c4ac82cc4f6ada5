"""Parsing received events; what becomes of unreadable ones is also in test_ingest_events."""

from collections.abc import Sequence

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.payloads import (
    MAX_EVENT_BYTES,
    DecisionShape,
    IngestCounts,
    ParseEvents,
    ParseEventsFn,
    PayloadBatch,
    add_counts,
    add_shape_flags,
    readable,
    shape_from,
)
from beam_jobs.tables import TableRows
from contracts.command_line import FlagParser
from contracts.errors import InputError
from tests.beam_jobs.test_ingest_events import START, decision, decision_id, reward


def test_counters_add_up() -> None:
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"]))
    payloads = [decision(0), reward(0), reward(1), b"?"]
    batch = PayloadBatch("b", payloads, [f"s:{place}" for place in range(4)], [START] * 4)
    parsed = pipeline | beam.Create([batch]) | ParseEvents()

    def one_batch_of(count: int):  # type: ignore[no-untyped-def]
        def check(elements: list[TableRows]) -> None:
            assert [(rows.name, rows.rows.num_rows) for rows in elements] == [("b", count)]

        return check

    assert_that(parsed.decisions, one_batch_of(1), label="decisions")
    assert_that(parsed.rewards, one_batch_of(2), label="rewards")
    assert_that(parsed.dead_letters, one_batch_of(1), label="dead letters")
    result = pipeline.run()
    result.wait_until_finish()
    found = {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}
    assert {name: found[name] for name in ("events", "decisions", "rewards", "dead_letters")} == {
        "events": 4,
        "decisions": 1,
        "rewards": 2,
        "dead_letters": 1,
    }


def parsed(payloads: Sequence[bytes], shape: DecisionShape) -> dict[str, list[dict[str, object]]]:
    batch = PayloadBatch("b", list(payloads), [f"s:{place}" for place in range(len(payloads))], [START] * len(payloads))
    return {output.tag: output.value.rows.to_pylist() for output in ParseEventsFn(shape).process(batch)}


def test_each_event_becomes_one_row() -> None:
    found = parsed([decision(0), b"?", reward(0), decision(1)], DecisionShape())
    assert {name: len(rows) for name, rows in found.items()} == {"decisions": 2, "rewards": 1, "dead_letters": 1}
    [letter] = found["dead_letters"]
    assert (letter["payload"], letter["source"], letter["failed_at"]) == (b"?", "s:1", START)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (DecisionShape(2, 2), None),
        (DecisionShape(3), "observation: must have 3 numbers, got 2"),
        (DecisionShape(num_actions=1), "action: must be below 1, got 1"),
    ],
)
def test_a_decision_of_another_shape_is_a_dead_letter(shape: DecisionShape, message: str | None) -> None:
    assert readable(decision(0), shape) == (message is None)
    letters = parsed([decision(0)], shape).get("dead_letters", [])
    assert [letter["error_message"] for letter in letters] == (
        [f"{message} (decision_id={decision_id(0)})"] if message else []
    )


def test_only_the_beginning_of_an_event_too_long_is_kept() -> None:
    payload = b"[" * (MAX_EVENT_BYTES + 1)
    [letter] = parsed([payload], DecisionShape())["dead_letters"]
    assert letter["payload"] == payload[: 2**16]
    assert not readable(payload)


def flags() -> FlagParser:
    parser = FlagParser()
    add_shape_flags(parser)
    return parser


@pytest.mark.parametrize(
    "shape", [DecisionShape(), DecisionShape(2), DecisionShape(num_actions=3), DecisionShape(2, 3)]
)
def test_a_shape_survives_its_own_flags(shape: DecisionShape) -> None:
    assert shape_from(flags().parse_args(shape.flags())) == shape


def test_a_shape_holds_something() -> None:
    with pytest.raises(InputError, match="--num-actions: a whole number from 1 expected, got '0'"):
        flags().parse_args(["--num-actions", "0"])


def test_counts_add_up() -> None:
    counts = [IngestCounts(events=3, decisions=1, rewards=2), IngestCounts(events=1, dead_letters=1)]
    assert add_counts(counts) == IngestCounts(events=4, decisions=1, rewards=2, dead_letters=1)
    assert add_counts([]) == IngestCounts()
