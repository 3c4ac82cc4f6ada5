from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts.items import Item
from contracts.trajectories import TrajectoryBatch
from tests.windows import consecutive_windows, write_window
from trainer import checkpoint, training
from trainer.combiners import SufficientStatisticsFn, WeightedBatch
from trainer.linear import SufficientStatistics

RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 3)


def trajectories(count, seed=0, num_actions=5, observation_dim=3):
    rng = np.random.default_rng(seed)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, observation_dim)).astype(np.float32),
        action=rng.integers(0, num_actions, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=np.full(count, 1 / num_actions, np.float32),
        defaulted=np.zeros(count, bool),
    )


def combine_in_parts(combiner, elements, parts):
    """As a runner would: some elements in each of several accumulators, merged with an empty one among them."""
    accumulators = [combiner.create_accumulator() for _ in range(parts + 1)]
    for index, element in enumerate(elements):
        accumulators[index % parts] = combiner.add_input(accumulators[index % parts], element)
    return combiner.extract_output(combiner.merge_accumulators(accumulators))


@pytest.mark.parametrize("parts", [1, 3])
def test_statistics_combined_are_those_of_one_machine(parts):
    batches = [WeightedBatch(trajectories(40, seed), 0.5 if seed < 3 else 1.0) for seed in range(7)]
    whole = SufficientStatistics.zeros(5, 3)
    for batch, weight in batches:
        whole.add(batch.observation, batch.action, batch.reward, weight)
    combined = combine_in_parts(SufficientStatisticsFn(5, 3), batches, parts)
    np.testing.assert_allclose(combined.a, whole.a, rtol=1e-12)
    np.testing.assert_allclose(combined.b, whole.b, rtol=1e-12, atol=1e-12)
    assert combined.n.sum() == 3 * 20 + 4 * 40


@pytest.fixture
def settings(tmp_path):
    for index, window in enumerate(WINDOWS):
        write_window(tmp_path / "windows", window, trajectories(100, index), trajectories(20, 10 + index))
    return training.Settings(
        windows=tmp_path / "windows",
        policies=tmp_path / "policies",
        num_actions=5,
        # The last item came with the second window, at the action of another one.
        catalogue=[Item(action=k, item_id=str(k), since=WINDOWS[0].end if k == 4 else None) for k in range(5)],
        hyperparameters={"half_life": 2.0},
    )


def test_training_with_beam_gives_the_policy_of_one_machine(settings, tmp_path):
    here = training.train(settings)
    with_beam = msgspec.structs.replace(settings, policies=tmp_path / "with beam", beam_options=[RUNNER])
    assert training.train(with_beam) == here  # the same inputs, the same version
    ours, theirs = (checkpoint.read(store / here.version) for store in (settings.policies, with_beam.policies))
    for name in ("a", "b", "n"):
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), rtol=1e-12, atol=1e-12)
    assert [path.name for path in with_beam.policies.iterdir()] == [here.version]


def test_a_corrupt_file_fails_the_pipeline_and_nothing_is_left(settings):
    path = next(settings.windows.glob("*/part-train-*"))
    path.write_bytes(path.read_bytes()[:-5])
    with_beam = msgspec.structs.replace(settings, beam_options=[RUNNER])
    with pytest.raises(Exception, match=r"manifest says .* bytes, found .*: truncated record at byte"):
        training.train(with_beam)
    assert list(settings.policies.iterdir()) == []
