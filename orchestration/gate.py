"""The steps of near-continuous training that are our own, as plain functions: evaluate, roll out, roll back.

A policy store is a folder of policies. `champion.json` names the one that serves, `history.jsonl` every one that did.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import Evaluation, PolicyCard, Verdict
from predictor import policy as serving
from trainer import dataset, off_policy

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch  # TensorFlow: only judging needs it, rolling out does not

# With fewer observations than this, choosing the same movie for all of them may well be right.
MIN_OBSERVATIONS_FOR_CONSTANT_ACTION = 50
STANDARD_ERRORS = 1.96  # on either side: 95% of a normal distribution
# Below this, or with the mean weight further from 1, the interval says little: see trainer.off_policy.
MIN_EFFECTIVE_SAMPLE_SIZE = 20.0
MAX_MEAN_WEIGHT_ERROR = 0.5


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a candidate, and why."""

    verdict: Verdict
    promoted: bool
    reason: str
    evaluation: Evaluation | None  # of the candidate, on decisions neither policy was trained on
    gain: float | None = None  # candidate minus champion, reward a decision
    gain_low: float | None = None
    gain_high: float | None = None


def evaluate(store: Path, windows: Path, candidate: str, champion: str | None) -> GateResult:
    """Compares `candidate` with `champion` on the held-back decisions of the newest window.

    Both are judged by the doubly robust estimate that switches to the model alone where weights are large (switch-DR,
    Wang et al., 2017), with the champion's reward model, which was fitted without those decisions, and with the
    probabilities of the very explorer that serves. Where the candidate would take actions that the champion hardly ever
    takes, the log has no say; there the interval is widened by what the champion's model does not know about them.

    Better: the interval of the gain lies above 0. Worse: below; refused. Undecided: promoted only as the champion's own
    next update. A candidate whose scores or probabilities are not sane is refused whatever the estimate.

    Raises InputError when the champion or the window cannot be read.
    """
    try:
        new = serving.load(store / candidate)
    except InputError as error:
        return GateResult(verdict="worse", promoted=False, reason=f"sanity check failed: {error}", evaluation=None)
    old = serving.load(store / champion) if champion is not None else None
    decisions = held_back(windows, new.card)
    if (fault := _insane(new, decisions.observation)) is not None:
        return GateResult(verdict="worse", promoted=False, reason=f"sanity check failed: {fault}", evaluation=None)
    if not len(decisions.action):
        return _result("undecided", "no decisions were held back", new.card, old)
    return _judge_first(new, decisions) if old is None else _compare(new, old, decisions)


def _judge_first(policy: serving.Policy, decisions: "TrajectoryBatch") -> GateResult:
    """The first policy has none to be compared with, and no model but its own, which thinks too well of what it chooses.

    The log corrects that (doubly robust) where enough of it did what the policy would do. Where it did not, the estimate
    is the model's, and the interval is widened by what the model does not know.
    """
    rows = np.arange(len(decisions.action))
    probabilities = policy.probabilities(decisions.observation)
    mean, std = policy.scores(decisions.observation)
    estimates = off_policy.estimate(
        decisions.reward,
        decisions.propensity,
        probabilities[rows, decisions.action],
        q_logged=mean[rows, decisions.action],
        q_target=(probabilities * mean).sum(axis=1),
    )
    reason = "there was no champion yet"
    if (doubt := _doubt("policy", estimates.weights)) is None:
        return _result("undecided", reason, policy.card, None, _evaluation("dr", estimates))
    unknown = STANDARD_ERRORS * float((probabilities * std).sum(axis=1).mean())
    return _result("undecided", f"{reason}, {doubt}", policy.card, None, _evaluation("switch_dr", estimates, unknown))


def _compare(new: serving.Policy, old: serving.Policy, decisions: "TrajectoryBatch") -> GateResult:
    """Candidate and champion on the same decisions, by the champion's model: the candidate has no say in it."""
    rows = np.arange(len(decisions.action))
    new_probabilities, old_probabilities = (policy.probabilities(decisions.observation) for policy in (new, old))
    mean, std = old.scores(decisions.observation)
    q_logged, q_candidate = mean[rows, decisions.action], (new_probabilities * mean).sum(axis=1)
    estimates = off_policy.estimate(
        decisions.reward,
        decisions.propensity,
        new_probabilities[rows, decisions.action],
        q_logged=q_logged,
        q_target=q_candidate,
    )
    gain = off_policy.gain(
        decisions.reward,
        decisions.propensity,
        new_probabilities[rows, decisions.action],
        old_probabilities[rows, decisions.action],
        q_logged=q_logged,
        q_candidate=q_candidate,
        q_champion=(old_probabilities * mean).sum(axis=1),
    )
    untried = new_probabilities * (old_probabilities < 1 / len(rows))  # expected less than once in such a log
    unknown = STANDARD_ERRORS * float((untried * std).sum(axis=1).mean())
    value, low, high = gain.gain.value, gain.gain.low - unknown, gain.gain.high + unknown
    doubt = _doubt("candidate", gain.candidate) or _doubt("champion", gain.champion)
    verdict: Verdict = "undecided"
    if high < 0 and gain.champion.effective_sample_size >= MIN_EFFECTIVE_SAMPLE_SIZE:
        verdict = "worse"
    elif low > 0 and doubt is None:
        verdict = "better"
    reason = f"{verdict}: gain {value:+.3f} [{low:+.3f}, {high:+.3f}] on {len(rows)} decisions"
    if (share := float(untried.sum(axis=1).mean())) > 0.01:
        reason += f", {share:.0%} of its choices untried by the champion"
    if verdict == "undecided" and doubt is not None:
        reason += f", {doubt}"
    evaluation = _evaluation("switch_dr", estimates, unknown)
    return _result(verdict, reason, new.card, old, evaluation, off_policy.Interval(value, low, high))


def _result(
    verdict: Verdict,
    reason: str,
    candidate: PolicyCard,
    champion: serving.Policy | None,
    evaluation: Evaluation | None = None,
    gain: off_policy.Interval | None = None,
) -> GateResult:
    promoted = verdict == "better"
    if verdict == "undecided":
        promoted = champion is None or _is_own_update(candidate, champion.card)
        if champion is None:
            reason = f"first policy: {reason}"
        elif promoted:
            reason = f"own next update, {reason}"
        else:
            reason = f"not the champion's own next update, {reason}"
    value, low, high = gain or (None, None, None)
    return GateResult(
        verdict=verdict,
        promoted=promoted,
        reason=reason,
        evaluation=evaluation,
        gain=value,
        gain_low=low,
        gain_high=high,
    )


def _is_own_update(candidate: PolicyCard, champion: PolicyCard) -> bool:
    """Same algorithm and settings, more data."""
    return (
        candidate.parent == champion.version
        and candidate.algorithm == champion.algorithm
        and candidate.hyperparameters == champion.hyperparameters
        and candidate.exploration == champion.exploration
    )


def _insane(policy: serving.Policy, observations: np.ndarray) -> str | None:
    mean, std = policy.scores(observations)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        return "scores are not finite"
    probabilities = policy.probabilities(observations)
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(axis=1), 1):
        return "probabilities do not sum to 1"
    best = np.unique(mean.argmax(axis=1))
    if len(observations) >= MIN_OBSERVATIONS_FOR_CONSTANT_ACTION and len(best) == 1:
        return f"action {best[0]} looks best for all of {len(observations)} observations"
    return None


def _doubt(role: str, weights: off_policy.Weights) -> str | None:
    """Why an interval from these weights should not be believed, if there is a reason."""
    if weights.effective_sample_size < MIN_EFFECTIVE_SAMPLE_SIZE:
        return (
            f"the {role}'s effective sample size is {weights.effective_sample_size:.1f} (largest weight"
            f" {weights.largest_weight:.1f})"
        )
    if abs(weights.mean_weight - 1) > MAX_MEAN_WEIGHT_ERROR:
        return (
            f"the {role}'s mean weight is {weights.mean_weight:.2f}, not near 1 (largest {weights.largest_weight:.0f})"
        )
    return None


def _evaluation(
    estimator: Literal["dr", "switch_dr"], estimates: off_policy.Estimates, unknown: float = 0.0
) -> Evaluation:
    """The estimate for the policy's card; `unknown` (reward a decision) widens its interval on either side."""
    interval = getattr(estimates, estimator)
    return Evaluation(
        estimator=estimator,
        value=interval.value,
        low=interval.low - unknown,
        high=interval.high + unknown,
        effective_sample_size=estimates.effective_sample_size,
        decisions=estimates.decisions,
    )


def held_back(windows: Path, card: PolicyCard) -> "TrajectoryBatch":
    """The decisions on which the policy is judged: the holdback of the newest window that it was trained on.

    Raises InputError when that window is not there.
    """
    from contracts.trajectories import TrajectoryBatch

    newest = max(trained.window.start for trained in card.trained_on)
    for window in dataset.ready_windows(windows):
        if window.start == newest:
            batches = [_no_decisions(card.observation_dim), *dataset.read(window, "holdback", card.num_actions)]
            return TrajectoryBatch(*map(np.concatenate, zip(*batches, strict=True)))
    raise InputError(f"{windows} has no window that starts at {newest.isoformat()}")


def _no_decisions(observation_dim: int) -> "TrajectoryBatch":
    from contracts.trajectories import TrajectoryBatch

    return TrajectoryBatch(
        observation=np.zeros((0, observation_dim), np.float32),
        action=np.zeros(0, np.int32),
        reward=np.zeros(0, np.float32),
        propensity=np.zeros(0, np.float32),
        defaulted=np.zeros(0, bool),
    )
