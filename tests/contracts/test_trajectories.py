import numpy as np
import pytest
import tensorflow as tf

from contracts import trajectories
from contracts.offers import Offers
from contracts.records import MAX_SLATE
from contracts.trajectories import TrajectoryBatch, decode, decode_rows, encode, join


def batch(count=200, num_actions=100, observation_dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, observation_dim)).astype(np.float32),
        action=rng.integers(0, num_actions, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=rng.uniform(0.01, 1, count).astype(np.float32),
        defaulted=rng.random(count) < 0.3,
    )


def rows_of(records):
    return np.stack([np.frombuffer(record, np.uint8) for record in records])


def with_offers(written, num_actions=300, seed=0):
    """The batch, with candidates and slates in some of its rows."""
    rng = np.random.default_rng(seed)
    count = len(written.action)
    slates = np.array([f"018f0000-0000-7000-8000-{number:012x}".encode() for number in rng.integers(0, 2**40, count)])
    in_slate = rng.random(count) < 0.5
    lists = [
        np.append(rng.integers(0, num_actions, rng.integers(1, 30)), action) if listed else []
        for action, listed in zip(written.action, rng.random(count) < 0.7, strict=True)
    ]
    return written._replace(
        candidates=Offers.of(lists),
        slate_id=np.where(in_slate, slates, b""),
        place=np.where(in_slate, rng.integers(0, MAX_SLATE, count), 0).astype(np.int32),
    )


def assert_equal(found, expected):
    for name in ("observation", "action", "reward", "propensity", "defaulted", "slate_id", "place"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype, name
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert (found.candidates is None) == (expected.candidates is None)
    assert found.offers.tolist() == expected.offers.tolist()
    assert found.offers.values.dtype == np.int32 and found.offers.lengths.dtype == np.int64


def test_decode_is_the_inverse_of_encode():
    written = batch(num_actions=100_000)
    assert_equal(decode(list(encode(written)), 3), written)


def test_records_are_what_protobuf_writes():
    """Whatever the size of an action's varint, in the order of the rows."""
    actions = np.array([0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 1] * 3, np.int32)
    written = batch(count=len(actions), observation_dim=7)._replace(action=actions)
    for record, *row in zip(encode(written), *written[:5], strict=True):
        observation, action, reward, propensity, defaulted = row
        assert record == example(
            observation=(FLOATS, observation.tolist()),
            action=(INTS, [int(action)]),
            reward=(FLOATS, [float(reward)]),
            propensity=(FLOATS, [float(propensity)]),
            defaulted=(INTS, [int(defaulted)]),
        )
    assert list(encode(batch(count=0))) == []


def test_records_with_offers_and_slates_are_what_protobuf_writes():
    written = with_offers(batch(num_actions=300))
    columns = (*written[:5], written.offers.tolist(), written.slate_id, written.place)
    for record, *row in zip(encode(written), *columns, strict=True):
        observation, action, reward, propensity, defaulted, candidates, slate_id, place = row
        features = {
            "observation": (FLOATS, observation.tolist()),
            "action": (INTS, [int(action)]),
            "reward": (FLOATS, [float(reward)]),
            "propensity": (FLOATS, [float(propensity)]),
            "defaulted": (INTS, [int(defaulted)]),
        }
        if candidates:
            features["candidates"] = (INTS, candidates)
        if slate_id:
            features |= {"slate_id": ("bytes_list", [bytes(slate_id)]), "place": (INTS, [int(place)])}
        assert record == example(**features)


@pytest.mark.parametrize("observation_dim", [1, 20, 4000])
@pytest.mark.parametrize("num_actions", [100, 300, 100_000, 2**31 - 1])
def test_offers_and_slates_are_decoded_by_place_as_parsing_does(monkeypatch, observation_dim, num_actions):
    written = with_offers(batch(num_actions=num_actions, observation_dim=observation_dim), num_actions)
    records = list(encode(written))
    assert_equal(decode(records, observation_dim), written)
    lengths = np.array([len(record) for record in records])
    monkeypatch.setattr(trajectories, "decode", None)  # not by the places of the values
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        found = decode_rows(rows_of([records[row] for row in rows]), observation_dim)
        expected = written.take(rows)
        if not expected.candidates.lengths.any():
            expected = expected._replace(candidates=None)
        if not (expected.slate_id != b"").any():
            expected = expected._replace(slate_id=None, place=None)
        assert_equal(found, expected)


def test_a_long_list_of_candidates_is_decoded_by_place(monkeypatch):
    written = batch(count=3)._replace(candidates=Offers.of([range(10_000)] * 3))
    monkeypatch.setattr(trajectories, "decode", None)
    records = list(encode(written))
    assert_equal(decode_rows(rows_of(records), 3), written)


def test_varints_that_are_none_are_parsed():
    """Candidates that end within a varint, or have one of more than five bytes, are no candidates of `encode`."""
    written = batch(count=2)._replace(candidates=Offers.of([[2, 1], [1, 2]]), action=np.array([2, 2], np.int32))
    right = list(encode(written))
    wrong = [right[0].replace(b"\x02\x01", b"\x02\x81"), right[1]]
    assert wrong[0] != right[0]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_rows(rows_of(wrong), 3)
    assert_equal(decode_rows(rows_of(right), 3), written)


def test_batches_are_joined_and_rows_taken_whatever_columns_they_have():
    plain, rich = batch(count=5), with_offers(batch(count=7, seed=1), seed=1)
    assert join([plain, plain]).candidates is None and join([plain, plain]).place is None
    both = join([plain, rich, plain])
    assert_equal(both.take(slice(5, 12)), rich)
    rows = np.array([11, 0, 6])
    assert both.take(rows).offers.tolist() == [rich.offers.tolist()[6], [], rich.offers.tolist()[1]]
    assert both.take(rows).slate_id.tolist() == [rich.slate_id[6], b"", rich.slate_id[1]]
    assert both.take(rows).place.tolist() == [rich.place[6], 0, rich.place[1]]


@pytest.mark.parametrize("observation_dim", [1, 20, 300])
@pytest.mark.parametrize(("low", "high"), [(0, 128), (128, 2**14), (2**14, 2**21), (2**28, 2**31 - 1)])
def test_records_of_one_length_are_decoded_as_parsing_does(monkeypatch, observation_dim, low, high):
    written = batch(observation_dim=observation_dim)
    actions = np.random.default_rng(1).integers(low, high, 200, endpoint=high == 2**31 - 1).astype(np.int32)
    written = written._replace(action=np.concatenate([[low, high - 1], actions[2:]]).astype(np.int32))
    records = list(encode(written))
    assert_equal(decode(records, observation_dim), written)

    def refuse(*_):
        raise AssertionError("not by the places of the values")

    monkeypatch.setattr(trajectories, "decode", refuse)
    assert_equal(decode_rows(rows_of(records), observation_dim), written)


def example(**features):
    message = tf.train.Example()
    for name, (kind, values) in features.items():
        getattr(message.features.feature[name], kind).value.extend(values)
    return message.SerializeToString(deterministic=True)


FLOATS, INTS = "float_list", "int64_list"
OTHER_FORMS = {
    "no defaulted": {
        "observation": (FLOATS, [1, 2, 3]),
        "action": (INTS, [4]),
        "reward": (FLOATS, [5]),
        "propensity": (FLOATS, [0.5]),
    },
    "one feature more": {
        "observation": (FLOATS, [1, 2, 3]),
        "action": (INTS, [4]),
        "reward": (FLOATS, [5]),
        "propensity": (FLOATS, [0.5]),
        "defaulted": (INTS, [0]),
        "year": (INTS, [1995]),
    },
    "another name of the same length": {
        "observation": (FLOATS, [1, 2, 3]),
        "action": (INTS, [4]),
        "reward": (FLOATS, [5]),
        "propensity": (FLOATS, [0.5]),
        "defaultee": (INTS, [1]),
    },
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_records_in_another_form_are_parsed(form):
    record = example(**OTHER_FORMS[form])
    found = decode_rows(rows_of([record, record]), 3)
    assert found.observation.tolist() == [[1, 2, 3]] * 2
    assert found.action.tolist() == [4, 4] and found.reward.tolist() == [5, 5] and not found.defaulted.any()


def test_features_in_another_order_are_parsed():
    right = OTHER_FORMS["no defaulted"] | {"defaulted": (INTS, [1])}
    entries = [
        tf.train.Example.FromString(example(**{name: value})).features.SerializeToString()
        for name, value in sorted(right.items(), reverse=True)
    ]
    record = (
        b"\x0a" + bytes([sum(map(len, entries)) | 0x80, 0]) + b"".join(entries)
    )  # the length as a varint of 2 bytes
    assert tf.train.Example.FromString(record) == tf.train.Example.FromString(example(**right))
    found = decode_rows(rows_of([record]), 3)
    assert (
        found.observation.tolist() == [[1, 2, 3]] and found.action.tolist() == [4] and found.defaulted.tolist() == [1]
    )


def test_a_record_of_another_dimension_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="observation"):
        decode_rows(rows_of(encode(batch(count=2, observation_dim=4))), 3)
