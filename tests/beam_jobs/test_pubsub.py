"""Batches of messages; reading from a subscription is in tests/end_to_end/test_ingest_on_emulators.py."""

from datetime import UTC, datetime

import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.utils.timestamp import Timestamp

from beam_jobs import pubsub
from beam_jobs.payloads import PayloadBatch
from beam_jobs.tables import TableRows, record_batch
from contracts.errors import InputError
from contracts.records import DeadLetter
from contracts.schemas import DEAD_LETTERS

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["pubsub:projects/my-project/subscriptions/sub", "projects/my-project/subscriptions/s-u"]
)
def test_a_subscription_has_a_project(text: str) -> None:
    assert pubsub.parse_subscription(text) == text.removeprefix("pubsub:")


@pytest.mark.parametrize(
    "text", ["pubsub:sub", "pubsub:projects/p/subscriptions/-", "pubsub:projects/my-project/topics/t"]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--events: pubsub:projects/PROJECT/subscriptions/NAME expected"):
        pubsub.parse_subscription(text)


def test_a_topic_name_is_checked_before_the_service_is_asked() -> None:
    with pytest.raises(InputError, match="--dead-letter-topic: projects/PROJECT/topics/NAME expected, got 'letters'"):
        pubsub.check_topic("letters")


def batches(messages: list[PubsubMessage]) -> list[tuple[PayloadBatch, Timestamp | None]]:
    """The batches of one bundle; the last has the timestamp that the bundle's end gives it."""
    fn = pubsub.BatchMessagesFn()
    fn.start_bundle()
    found: list[tuple[PayloadBatch, Timestamp | None]] = []
    for second, message in enumerate(messages):
        found += [(batch, None) for batch in fn.process(message, Timestamp(100 - second))]
    return found + [(value.value, value.timestamp) for value in fn.finish_bundle()]


def message(number: int, data: bytes = b"x") -> PubsubMessage:
    return PubsubMessage(data, {}, message_id=str(number), publish_time=START)


def test_a_bundle_is_one_batch_with_its_earliest_timestamp() -> None:
    [(batch, moment)] = batches([message(number) for number in range(3)])
    assert (batch.payloads, batch.sources, batch.received_at) == ([b"x"] * 3, ["0", "1", "2"], [START] * 3)
    assert moment == Timestamp(98)
    assert batches([]) == []


def test_a_batch_has_the_same_name_at_each_delivery() -> None:
    [(first, _)], [(again, _)], [(other, _)] = (
        batches([message(1), message(2)]),
        batches([message(1), message(2)]),
        batches([message(1), message(3)]),
    )
    assert first.name == again.name != other.name


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "EVENTS_PER_BATCH", 2)
    assert [len(batch.payloads) for batch, _ in batches([message(number) for number in range(5)])] == [2, 2, 1]
    monkeypatch.setattr(pubsub, "EVENTS_PER_BATCH", 100)
    monkeypatch.setattr(pubsub, "BYTES_PER_BATCH", 10)
    sizes = [batch.payloads for batch, _ in batches([message(1, b"y" * 9), message(2), message(3)])]
    assert sizes == [[b"y" * 9, b"x"], [b"x"]]


def test_a_message_without_id_is_named_by_its_data() -> None:
    [(one, _)] = batches([PubsubMessage(b"a", {}), PubsubMessage(b"b", {})])
    assert one.sources[0] != one.sources[1]
    assert one.received_at == [datetime.fromtimestamp(seconds, UTC) for seconds in (100, 99)]


def test_a_dead_letter_as_a_message() -> None:
    letter = DeadLetter(
        payload=b"\xff", error_type="E", error_message="é" * 1_000, stage="parse", failed_at=START, source=None
    )
    [made] = pubsub.dead_letter_messages(TableRows("b", record_batch(DEAD_LETTERS, [letter])))
    assert made.data == b"\xff"
    assert made.attributes == {
        "error_type": "E",
        "error_message": "é" * 512,  # 1,024 bytes, which is all that Pub/Sub takes
        "stage": "parse",
        "failed_at": START.isoformat(),
        "source": "",
    }
