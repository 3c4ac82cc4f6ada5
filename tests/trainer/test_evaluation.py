import json
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts import policy_arrays
from contracts.errors import InputError
from contracts.items import Item
from contracts.offers import Offers
from contracts.policy_arrays import PolicyArrays, Scorer
from contracts.trajectories import TrajectoryBatch
from tests.windows import consecutive_windows, write_window
from trainer import evaluation, task, training

NUM_ACTIONS, DIM = 4, 3
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 3)
TASTE = np.random.default_rng(0).normal(size=(NUM_ACTIONS, DIM))


def trajectories(count, seed):
    """Uniform decisions on rewards that are linear."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, DIM)).astype(np.float32)
    action = rng.integers(0, NUM_ACTIONS, count).astype(np.int32)
    return TrajectoryBatch(
        observation=observation,
        action=action,
        reward=(np.einsum("nd,nd->n", observation, TASTE[action]) + rng.normal(size=count)).astype(np.float32),
        propensity=np.full(count, 1 / NUM_ACTIONS, np.float32),
        defaulted=np.zeros(count, bool),
    )


@pytest.fixture
def settings(tmp_path):
    for index, window in enumerate(WINDOWS):
        write_window(tmp_path / "windows", window, trajectories(400, index), trajectories(100, 10 + index))
    return training.Settings(
        windows=tmp_path / "windows",
        policies=tmp_path / "policies",
        num_actions=NUM_ACTIONS,
        catalogue=[Item(action=k, item_id=str(k)) for k in range(NUM_ACTIONS)],
    )


def truth(scorer):
    contexts = np.random.default_rng(99).normal(size=(100_000, DIM)).astype(np.float32)
    best = scorer.means(contexts).argmax(axis=1)
    return np.einsum("nd,nd->n", contexts, TASTE[best]).mean()


def test_the_newest_window_is_held_out_and_the_estimate_is_of_what_the_policy_would_earn(settings):
    measured = evaluation.measure(settings)
    assert {trained.window for trained in measured.card.trained_on} == set(WINDOWS[:2])
    assert measured.estimates.decisions == 500
    card = measured.card
    expected = truth(Scorer(policy_arrays.read(settings.policies / card.version, card)))
    assert measured.estimates.dr.low < expected < measured.estimates.dr.high
    assert measured.estimates.weights.mean_weight == pytest.approx(1, abs=0.2)


def test_a_worse_policy_is_measured_as_worse_whatever_it_thinks_of_itself(settings):
    batches = [trajectories(4000, 50)]
    covariance = np.tile(np.eye(DIM), (NUM_ACTIONS, 1, 1))
    good, bad = (Scorer(PolicyArrays.linear(theta, covariance, np.ones(NUM_ACTIONS))) for theta in (TASTE, -10 * TASTE))
    estimates = {
        name: evaluation.estimate(scorer, good, batches, settings.catalogue)
        for name, scorer in (("good", good), ("bad", bad))
    }
    assert estimates["bad"].dr.high < 0 < estimates["good"].dr.low
    assert estimates["bad"].dr.value == pytest.approx(truth(bad), abs=0.1)


def offered(batch, seed):
    """The batch as if only two arms had been on offer in each decision, the logged one among them."""
    rng = np.random.default_rng(seed)
    other = (batch.action + rng.integers(1, NUM_ACTIONS, len(batch.action))) % NUM_ACTIONS
    return batch._replace(
        candidates=Offers.of(np.stack([batch.action, other], axis=1).tolist()),
        propensity=np.full(len(batch.action), 0.5, np.float32),
    )


def test_a_policy_is_judged_by_the_best_of_what_was_on_offer(settings):
    batch = offered(trajectories(20_000, 60), 61)
    scorer = Scorer(PolicyArrays.linear(TASTE, np.tile(np.eye(DIM), (NUM_ACTIONS, 1, 1)), np.ones(NUM_ACTIONS)))
    found = evaluation.estimate(scorer, scorer, [batch], settings.catalogue)
    values = np.where(batch.offers.mask(NUM_ACTIONS), scorer.means(batch.observation), -np.inf)
    assert found.weights.mean_weight == pytest.approx(1, abs=0.03)
    assert found.snips.low < values.max(axis=1).mean() < found.snips.high
    everything = evaluation.estimate(scorer, scorer, [batch._replace(candidates=None)], settings.catalogue)
    assert everything.weights.mean_weight < 0.6  # most decisions did not offer the best of all


def test_a_masked_movie_is_not_on_offer(settings):
    catalogue = [
        msgspec.structs.replace(movie, status="masked" if movie.action else "active") for movie in settings.catalogue
    ]
    batch = trajectories(2000, 62)
    scorer = Scorer(PolicyArrays.linear(TASTE, np.tile(np.eye(DIM), (NUM_ACTIONS, 1, 1)), np.ones(NUM_ACTIONS)))
    found = evaluation.estimate(scorer, scorer, [batch], catalogue)
    assert found.dm.value == pytest.approx(scorer.means(batch.observation)[:, 0].mean())
    listed = batch._replace(candidates=Offers.of(np.maximum(batch.action, 1)[:, np.newaxis].tolist()))
    with pytest.raises(InputError, match="catalogue: an item that was on offer must be active"):
        evaluation.estimate(scorer, scorer, [listed], catalogue)


def test_there_must_be_a_window_to_hold_out(settings):
    with pytest.raises(InputError, match="at least 2 ready windows are needed, one held out, found 1"):
        evaluation.measure(msgspec.structs.replace(settings, only=[WINDOWS[0].start]))
    write_window(settings.windows, WINDOWS[2], trajectories(0, 0))
    with pytest.raises(InputError, match=r"window=20260101T000200.* is to be held out, but holds no interactions"):
        evaluation.measure(settings)


def command(settings, *more):
    path = settings.windows.parent / "catalogue.json"
    path.write_bytes(msgspec.json.encode(settings.catalogue))
    paths = ["--windows", settings.windows, "--policies", settings.policies, "--catalogue", path]
    return [*map(str, paths), "--num-actions", str(NUM_ACTIONS), *more]


def test_a_trial_reports_its_metric_as_vertex_reads_it(settings, tmp_path, monkeypatch, capsys):
    path = tmp_path / "hypertune" / "output.metrics"
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(path))
    monkeypatch.setenv("CLOUD_ML_TRIAL_ID", "7")
    for tikhonov in ("0.1", "1000"):
        assert task.main(command(settings, "--report-metric", "--tikhonov", tikhonov)) == 0
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first.keys() == {"timestamp", "trial", "reward", "global_step", "checkpoint_path"}
    assert (first["trial"], first["global_step"], first["checkpoint_path"]) == ("7", "0", "")
    measured = evaluation.measure(msgspec.structs.replace(settings, hyperparameters={"tikhonov": 0.1}))
    assert float(first["reward"]) == measured.estimates.dr.value > float(second["reward"])
    assert " reward " in capsys.readouterr().out
