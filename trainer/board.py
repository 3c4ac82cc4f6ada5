"""What TensorBoard shows of a training: one point per policy, at the number of windows that it was trained on.

data/reward, data/defaulted_share      mean reward of the newest window's holdback, and share of defaulted rewards
model/loss                             mean squared error on decisions that were not trained on
model/calibration_error                how far predicted from observed reward, over tenths of the predictions
estimate/snips, low, high, effective_sample_size      of always taking the best action (trainer.evaluation)
arms/coverage, arms/effective_number   share of the actions ever taken, and exp(entropy) of their shares
"""

from pathlib import Path

import numpy as np

from contracts.policies import PolicyCard
from contracts.policy_arrays import PolicyArrays, Scorer
from trainer import dataset, evaluation
from trainer.dataset import ReadyWindow

PREDICTION_BINS = 10


def scalars(card: PolicyCard, arrays: PolicyArrays, newest: ReadyWindow) -> dict[str, float]:
    """The figures by name; those on unseen decisions are missing when the newest window holds none back."""
    samples = arrays.num_samples / max(float(arrays.num_samples.sum()), 1e-12)
    positive = samples[samples > 0]
    figures = {
        "arms/coverage": float(np.mean(arrays.num_samples > 0)),
        "arms/effective_number": float(np.exp(-(positive * np.log(positive)).sum())),
    }
    counts = newest.manifest.counts
    if kept := counts.rewards + counts.defaulted:
        figures["data/defaulted_share"] = counts.defaulted / kept
    from contracts import trajectories

    held_back = list(dataset.read(newest, "holdback", card.num_actions))
    if not held_back:
        return figures
    batch = trajectories.join(held_back)
    rows = np.arange(len(batch.action))
    scorer = Scorer(arrays)
    predicted = scorer.means(batch.observation)[rows, batch.action]
    estimates = evaluation.estimate(scorer, scorer, [batch], card.catalogue)
    figures |= {
        "data/reward": float(batch.reward.mean()),
        "model/loss": float(np.mean((predicted - batch.reward) ** 2)),
        "model/calibration_error": calibration_error(predicted, batch.reward),
        "estimate/effective_sample_size": estimates.effective_sample_size,
    }
    snips = estimates.snips
    if np.isfinite([snips.value, snips.low, snips.high]).all():
        figures |= {"estimate/snips": snips.value, "estimate/low": snips.low, "estimate/high": snips.high}
        figures["estimate/reliable"] = float(snips.reliable)
    return figures


def calibration_error(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Mean distance of mean prediction and mean observation over tenths of the predictions, [N] each."""
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(PREDICTION_BINS, len(predicted)))
    gaps = [abs(float(predicted[rows].mean() - observed[rows].mean())) for rows in bins]
    return float(np.average(gaps, weights=[len(rows) for rows in bins]))


def write(folder: Path, card: PolicyCard, arrays: PolicyArrays, newest: ReadyWindow) -> None:
    """Adds the policy's point to the TensorBoard logs in `folder`."""
    import tensorflow as tf

    step = len({trained.window.start for trained in card.trained_on})
    with tf.summary.create_file_writer(str(folder)).as_default(step=step):
        for name, value in scalars(card, arrays, newest).items():
            tf.summary.scalar(name, value)
        tf.summary.histogram("arms/samples", arrays.num_samples)
        tf.summary.text("policy", card.version)
