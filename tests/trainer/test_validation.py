import re
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from contracts.errors import InputError
from contracts.items import Item
from contracts.offers import Offers
from contracts.trajectories import TrajectoryBatch
from contracts.windows import MANIFEST_NAME, encode_manifest
from tests.windows import consecutive_windows, sha256_of, write_window
from trainer import training, validation

NUM_ACTIONS, DIM = 5, 3
(WINDOW,) = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 1)


def trajectories(count, seed=0, propensity=1 / NUM_ACTIONS):
    rng = np.random.default_rng(seed)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, DIM)).astype(np.float32),
        action=rng.integers(0, NUM_ACTIONS, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=np.full(count, propensity, np.float32),
        defaulted=np.zeros(count, bool),
    )


def settings(folder):
    return training.Settings(
        windows=folder,
        policies=folder / "policies",
        num_actions=NUM_ACTIONS,
        catalogue=[Item(action=k, item_id=str(k)) for k in range(NUM_ACTIONS)],
    )


def test_a_window_that_is_right_is_counted(tmp_path):
    train, holdback = trajectories(300), trajectories(40, 1)
    window = write_window(tmp_path, WINDOW, train, holdback)
    found = validation.validate(window, NUM_ACTIONS)
    assert (found.records, found.defaulted) == (340, 0)
    assert found.mean_reward == pytest.approx(np.concatenate([train.reward, holdback.reward]).mean(), rel=1e-5)
    assert found.mean_uniform_weight == pytest.approx(1)
    assert validation.validate(window, NUM_ACTIONS, ("holdback",)).records == 40


def example(**changes):
    features = {
        "observation": ("float_list", [1.0, 2.0, 3.0]),
        "action": ("int64_list", [4]),
        "reward": ("float_list", [0.5]),
        "propensity": ("float_list", [0.2]),
        "defaulted": ("int64_list", [0]),
    } | changes
    message = tf.train.Example()
    for name, feature in features.items():
        if feature is not None:
            getattr(message.features.feature[name], feature[0]).value.extend(feature[1])
    return message.SerializeToString(deterministic=True)


WRONG = {
    "missing feature": (
        {"reward": None},
        r"records? 2( to \d)?: .*reward.*|record 2: reward must have 1 values, got 0",
    ),
    "unknown feature": ({"score": ("float_list", [1.0])}, "records 0 to 3: feature 'score' is not known"),
    "another type": (
        {"action": ("float_list", [4.0])},
        'records 0 to 3: Feature had wrong type.* for feature "action"',
    ),
    "a string": (
        {"propensity": ("bytes_list", [b"0.2"])},
        'records 0 to 3: Feature had wrong type.* for feature "propensity"',
    ),
    "another length": ({"observation": ("float_list", [1.0])}, "record 2: observation must have 3 values, got 1"),
    "two actions": ({"action": ("int64_list", [1, 2])}, "record 2: action must have 1 values, got 2"),
    "action out of range": ({"action": ("int64_list", [5])}, r"record 2: action must be in \[0, 5\), got 5"),
    "NaN reward": ({"reward": ("float_list", [float("nan")])}, "record 2: reward must be finite, got nan"),
    "propensity 0": ({"propensity": ("float_list", [0.0])}, r"record 2: propensity must be in \(0, 1\], got 0.0"),
    "propensity above 1": ({"propensity": ("float_list", [1.5])}, r"record 2: propensity must be in \(0, 1\], got 1.5"),
    "infinite observation": (
        {"observation": ("float_list", [1.0, float("inf"), 0.0])},
        "record 2: observation must be finite, got inf",
    ),
    "action not on offer": (
        {"candidates": ("int64_list", [0, 3])},
        "record 2: action must be one of candidates, got 4",
    ),
    "negative candidate": (
        {"candidates": ("int64_list", [4, -3])},
        r"record 2: candidates must be in \[0, 2147483647\], got -3",
    ),
    "place without slate": ({"place": ("int64_list", [1])}, "record 2: slate_id and place must be given together"),
    "two slates": ({"slate_id": ("bytes_list", [b"a", b"b"])}, "record 2: slate_id must have 1 values, got 2"),
    "slate of another type": (
        {"slate_id": ("int64_list", [3])},
        "feature 'slate_id' must be of type binary, got int64",
    ),
    "defaulted twice": ({"defaulted": ("int64_list", [2])}, "record 2: defaulted must be 0 or 1, got 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_record_that_is_wrong_is_refused_with_what_and_where(tmp_path, case):
    changes, message = WRONG[case]
    window = write_window(tmp_path, WINDOW, trajectories(4))
    path = window.folder / "part-train-00000.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in [example(), example(), example(**changes), example()]:
            writer.write(record)
    files = [msgspec.structs.replace(window.manifest.files[0], sha256=sha256_of(path), bytes=path.stat().st_size)]
    window = window._replace(manifest=msgspec.structs.replace(window.manifest, files=files))
    (window.folder / MANIFEST_NAME).write_bytes(encode_manifest(window.manifest))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*({message})") as error:
        validation.validate(window, NUM_ACTIONS)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=re.escape(str(path))):
        training.train(settings(tmp_path))
    assert not (tmp_path / "policies").exists()


def test_what_is_no_example_is_refused(tmp_path):
    window = write_window(tmp_path, WINDOW, trajectories(2))
    with pytest.raises(InputError, match=r"x: records 0 to 0: .*[Pp]arse"):
        validation._check("x", [b"\xff\xffnothing"], 0, DIM, validation._Totals(NUM_ACTIONS))
    with pytest.raises(InputError, match="feature 'reward' must be of type float, got int64"):
        records = [example(reward=("int64_list", [1]))]
        validation._check("x", records, 0, window.manifest.observation_dim, validation._Totals(NUM_ACTIONS))


COUNTS = {
    "do not add up": (
        {"decisions": 7},
        "7 decisions are not 10 with a reward, 0 defaulted, 0 dropped, 0 set aside, 0 not",
    ),
    "records": ({"decisions": 12, "rewards": 12}, "counts say 12 records, the files hold 10"),
    "defaulted": ({"rewards": 8, "defaulted": 2}, "counts say 2 defaulted, the files hold 0"),
}


@pytest.mark.parametrize("case", COUNTS)
def test_counts_that_are_wrong_are_refused(tmp_path, case):
    changes, message = COUNTS[case]
    window = write_window(tmp_path, WINDOW, trajectories(10))
    counts = msgspec.structs.replace(window.manifest.counts, **changes)
    wrong = window._replace(manifest=msgspec.structs.replace(window.manifest, counts=counts))
    with pytest.raises(InputError, match=message):
        validation.validate(wrong, NUM_ACTIONS)
    (window.folder / MANIFEST_NAME).write_bytes(encode_manifest(wrong.manifest))
    (later,) = consecutive_windows(WINDOW.end, 60, 1)
    write_window(tmp_path, later, trajectories(10))
    with pytest.raises(InputError, match=message):
        training.train(settings(tmp_path))
    assert not (tmp_path / "policies").exists()


def test_counts_of_the_newest_window_are_checked_though_its_holdback_is_not_read(tmp_path):
    window = write_window(tmp_path, WINDOW, trajectories(10), trajectories(5, 1))
    counts = msgspec.structs.replace(window.manifest.counts, decisions=16, rewards=16)
    manifest = msgspec.structs.replace(window.manifest, counts=counts)
    (window.folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    with pytest.raises(InputError, match=r"manifest.json: counts say 16 records, the files hold 15"):
        training.train(settings(tmp_path))


@pytest.mark.parametrize("place", [30, 60, 90])  # within the observation, a name, the reward
def test_a_corrupt_record_is_said_to_be_one_with_its_offset(tmp_path, place):
    window = write_window(tmp_path, WINDOW, trajectories(50))
    path = window.folder / "part-train-00000.tfrecord"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little") + 16
    data[3 * size + place] ^= 0xFF
    path.write_bytes(data)
    # A record is its length (8 bytes) with a checksum (4), then its data with another.
    message = f"^{re.escape(str(path))}: .*corrupted record at byte {3 * size + 12}$"
    for check in (lambda: validation.validate(window, NUM_ACTIONS), lambda: training.train(settings(tmp_path))):
        with pytest.raises(InputError, match=message):
            check()


def test_propensities_are_judged_by_what_was_on_offer(tmp_path):
    """A uniform choice among the 2 that were on offer: its propensities are right, and half of them are not."""
    batch = trajectories(500, propensity=0.5)
    slate_id = np.array([b"018f0000-0000-7000-8000-000000000000"] * 500)
    batch = batch._replace(
        candidates=Offers.of([[action, (action + 1) % NUM_ACTIONS] for action in batch.action]),
        slate_id=slate_id,
        place=np.ones(500, np.int32),
    )
    window = write_window(tmp_path, WINDOW, batch)
    assert validation.validate(window, NUM_ACTIONS).mean_uniform_weight == pytest.approx(1)
    window = write_window(tmp_path, WINDOW, batch._replace(propensity=np.full(500, 0.25, np.float32)))
    with pytest.raises(InputError, match="propensities are too small"):
        validation.validate(window, NUM_ACTIONS)


def test_propensities_that_cannot_be_are_refused(tmp_path):
    """A uniform choice among 5 that says it had a chance of 1 in 10."""
    window = write_window(tmp_path, WINDOW, trajectories(500, propensity=0.1))
    with pytest.raises(InputError, match=r"propensities are too small .* K of 5 arms .* is 2.000 on average"):
        validation.validate(window, NUM_ACTIONS)


def test_a_policy_that_explores_rarely_or_never_is_not_refused(tmp_path):
    rng = np.random.default_rng(0)
    explored = rng.random(2000) < 0.05
    batch = trajectories(2000)
    action = np.where(explored, rng.integers(0, NUM_ACTIONS, 2000), 0).astype(np.int32)
    for propensity in (np.where(action == 0, 0.96, 0.01), np.ones(2000)):
        window = write_window(tmp_path, WINDOW, batch._replace(action=action, propensity=propensity.astype(np.float32)))
        assert validation.validate(window, NUM_ACTIONS).mean_uniform_weight < 1.2


def test_the_command_line_has_a_line_for_each_window(tmp_path, capsys):
    write_window(tmp_path, WINDOW, trajectories(100))
    assert validation.main(["--windows", str(tmp_path), "--num-actions", "5"]) == 0
    assert "window=20260101T000000.000000Z: 100 records, 0 defaulted, mean reward" in capsys.readouterr().out
    assert validation.main(["--windows", str(tmp_path), "--num-actions", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trainer.validation: error: ") and error.count("\n") == 1
