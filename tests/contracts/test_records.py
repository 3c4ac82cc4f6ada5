import re
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from contracts.records import (
    Decision,
    RewardEvent,
    StatusEvent,
    describe_error,
    encoder,
    event_decoder,
    utc_microseconds,
)

ID = "018f0000-0000-7000-8000-000000000000"
DECISION = {
    "kind": "decision",
    "decision_id": ID,
    "decided_at": "2026-01-01T00:00:00.000001Z",
    "policy_version": "uniform",
    "observation": [0.5, -1.0],
    "action": 3,
    "propensity": 0.01,
}
STATUS = {"kind": "status", "decision_id": ID, "occurred_at": "2026-01-01T00:00:01Z", "status": "activated"}
REWARD = {"kind": "reward", "decision_id": ID, "occurred_at": "2026-01-01T00:00:01Z", "reward": 4.5}


def test_events_survive_the_way_through_json():
    for fields, record in ((DECISION, Decision), (REWARD, RewardEvent), (STATUS, StatusEvent)):
        event = event_decoder.decode(msgspec.json.encode(fields))
        assert type(event) is record
        assert event_decoder.decode(encoder.encode(event)) == event


def test_what_a_decision_does_not_have_takes_no_bytes():
    for more in ({}, {"candidates": [3, 5], "user_id": "u1", "slate_id": ID, "place": 2}, {"deferred": True}):
        event = event_decoder.decode(msgspec.json.encode(DECISION | more))
        assert msgspec.json.decode(encoder.encode(event)) == DECISION | more


def test_microseconds_are_kept_and_offsets_are_understood():
    event = event_decoder.decode(msgspec.json.encode(DECISION))
    assert utc_microseconds(event.decided_at) == 1767225600_000_001
    shifted = datetime(2026, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert utc_microseconds(shifted) == utc_microseconds(datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match="time zone"):
        utc_microseconds(datetime(2026, 1, 1))  # noqa: DTZ001 (a naive one is what is tested)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": 0}, r"propensity: Expected `float` >= 1.17.*, got 0 \(decision_id=018f"),
        ({"propensity": 1.5}, r"propensity: Expected `float` <= 1.0, got 1.5 \(decision_id=018f"),
        ({"propensity": 1e-320}, r"propensity: .*, got 1e-320"),
        ({"observation": []}, r"observation: Expected `array` of length >= 1, got \[\]"),
        ({"observation": [1, "x"]}, r"observation\[1\]: Expected `float`, got `str`, got 'x'"),
        ({"observation": [1e39]}, r"observation\[0\]: Expected `float` <= 3.4.*, got 1e\+39"),
        ({"action": -1}, r"action: Expected `int` >= 0, got -1"),
        ({"action": 2**31}, r"action: Expected `int` <= 2147483647, got 2147483648"),
        ({"action": 1, "candidates": [2, 3]}, r"action must be one of candidates, got 1"),
        ({"slate_id": ID}, r"slate_id and place must be given together, got 018f.* and None \(decision_id=018f"),
        ({"place": 1}, r"slate_id and place must be given together, got None and 1"),
        ({"slate_id": ID, "place": 1000}, r"place: Expected `int` <= 999, got 1000"),
        ({"slate_id": "s", "place": 0}, r"slate_id: Expected `str` of length >= 36, got 's'"),
        (
            {"decision_id": ID.replace("-7", "-4")},
            r"decision_id: Expected `str` matching regex .*, got '018f0000-0000-4",
        ),
        (
            {"decided_at": "2026-01-01T00:00:00"},
            r"decided_at: Expected `datetime` with a timezone component, got '2026",
        ),
        ({"decided_at": 5}, r"decided_at: Expected `datetime`, got `int`, got 5"),
        ({"policy_version": ""}, r"policy_version: Expected `str` of length >= 1, got ''"),
        ({"kind": "prize"}, r"kind: Invalid value 'prize', got 'prize'"),
    ],
)
def test_a_wrong_value_is_refused_with_field_fact_and_value(change, message):
    payload = msgspec.json.encode(DECISION | change)
    with pytest.raises(msgspec.ValidationError) as caught:
        event_decoder.decode(payload)
    line = describe_error(caught.value, payload)
    assert "\n" not in line

    assert re.search(message, line), line


@pytest.mark.parametrize(
    "payload", [b"", b"nope", b"\xff\xfe", b'{"kind":"reward",', b"[]", b"null", b'"x"', b"[" * 10_000]
)
def test_what_is_not_an_event_is_refused(payload):
    with pytest.raises(msgspec.DecodeError) as caught:
        event_decoder.decode(payload)
    assert "\n" not in describe_error(caught.value, payload)


@pytest.mark.parametrize(
    ("payload", "begin"),
    [
        (b'{"kind":"' + b"A" * 1_000_000 + b'"}', "kind: Invalid value 'AAAA"),
        (b'{"kind":"a\\nb\\u0000c"}', "kind: Invalid value 'a b c', got "),
        (b'{"kind":"reward","decision_id":"a\\nb\\u2028c"}', "decision_id: Expected `str` of length >= 36, got "),
        (b'{"kind":"decision","decision_id":"' + b"A" * 1_000_000 + b'"}', "decision_id: Expected `str` of length <="),
    ],
)
def test_whatever_was_sent_its_description_is_one_short_line(payload, begin):
    with pytest.raises(msgspec.ValidationError) as caught:
        event_decoder.decode(payload)
    line = describe_error(caught.value, payload)
    assert line.startswith(begin)
    assert line.isprintable()
    assert len(line) <= 500


def test_an_id_with_a_newline_after_it_is_no_id():
    payload = msgspec.json.encode(DECISION | {"decision_id": DECISION["decision_id"] + "\n"})
    with pytest.raises(msgspec.ValidationError, match="length <= 36"):
        event_decoder.decode(payload)


def test_an_unknown_status_is_refused():
    payload = msgspec.json.encode(STATUS | {"status": "shown"})
    with pytest.raises(msgspec.ValidationError) as caught:
        event_decoder.decode(payload)
    assert describe_error(caught.value, payload).startswith("status: Invalid enum value 'shown', got 'shown'")


def test_a_missing_field_is_named():
    payload = msgspec.json.encode({name: value for name, value in DECISION.items() if name != "action"})
    with pytest.raises(msgspec.ValidationError) as caught:
        event_decoder.decode(payload)
    assert "`action`" in describe_error(caught.value, payload)
