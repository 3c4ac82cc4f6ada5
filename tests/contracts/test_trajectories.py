import numpy as np
import pytest
import tensorflow as tf

from contracts import trajectories
from contracts.trajectories import TrajectoryBatch, decode, decode_rows, encode


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


def assert_equal(found, expected):
    for name in TrajectoryBatch._fields:
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.dtype == theirs.dtype, name
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_decode_is_the_inverse_of_encode():
    written = batch(num_actions=100_000)
    assert_equal(decode(list(encode(written)), 3), written)


def test_records_are_what_protobuf_writes():
    """Whatever the size of an action's varint, in the order of the rows."""
    actions = np.array([0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 1] * 3, np.int32)
    written = batch(count=len(actions), observation_dim=7)._replace(action=actions)
    for record, *row in zip(encode(written), *written, strict=True):
        observation, action, reward, propensity, defaulted = row
        assert record == example(
            observation=(FLOATS, observation.tolist()),
            action=(INTS, [int(action)]),
            reward=(FLOATS, [float(reward)]),
            propensity=(FLOATS, [float(propensity)]),
            defaulted=(INTS, [int(defaulted)]),
        )
    assert list(encode(batch(count=0))) == []


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
