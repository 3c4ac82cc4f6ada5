"""The steps of near-continuous training that are our own, as plain functions: evaluate, roll out, roll back.

A policy store is a folder of policies. `champion.json` names the one that serves, `history.jsonl` every one that did.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Champion, Evaluation, PolicyCard, Verdict
from orchestration import plan
from predictor import policy as serving
from trainer import dataset, off_policy

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch  # TensorFlow: only judging needs it, rolling out does not

HISTORY_NAME = "history.jsonl"
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
    rows = np.arange(len(decisions.action))
    if not len(rows):
        return _result("undecided", "no decisions were held back", new.card, old)
    rewards, propensities = decisions.reward.astype(np.float64), decisions.propensity.astype(np.float64)
    new_probabilities = new.probabilities(decisions.observation)
    # Either reward model is fair: neither was fitted to these decisions. The champion's gives the candidate no say in it.
    mean, std = (old or new).scores(decisions.observation)
    q_logged, q_candidate = mean[rows, decisions.action], (new_probabilities * mean).sum(axis=1)
    estimates = off_policy.estimate(
        rewards,
        propensities,
        new_probabilities[rows, decisions.action],
        q_logged=q_logged,
        q_target=q_candidate,
    )
    # The first policy is judged with its own model, which thinks too well of what it chooses: the log must correct that,
    # and a first log is uniform enough to. Later, one rare decision with a weight of thousands would drown the others.
    name, estimate = ("dr", estimates.dr) if old is None else ("switch_dr", estimates.switch_dr)
    assert estimate is not None  # there is a reward model
    evaluation = Evaluation(
        estimator=name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        effective_sample_size=estimates.effective_sample_size,
        decisions=len(rows),
    )
    if old is None:
        return _result("undecided", "there was no champion yet", new.card, None, evaluation)

    old_probabilities = old.probabilities(decisions.observation)
    gain = off_policy.gain(
        rewards,
        propensities,
        new_probabilities[rows, decisions.action],
        old_probabilities[rows, decisions.action],
        q_logged=q_logged,
        q_candidate=q_candidate,
        q_champion=(old_probabilities * mean).sum(axis=1),
    )
    untried = new_probabilities * (old_probabilities < 1 / len(rows))  # expected less than once in such a log
    unknown = STANDARD_ERRORS * float((untried * std).sum(axis=1).mean())
    value, low, high = gain.gain.value, gain.gain.low - unknown, gain.gain.high + unknown
    doubt = _doubt(gain)
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
    evaluation = msgspec.structs.replace(evaluation, low=evaluation.low - unknown, high=evaluation.high + unknown)
    return _result(verdict, reason, new.card, old, evaluation, off_policy.Interval(value, low, high))


def roll_out(store: Path, version: str, reason: str, now: datetime) -> Champion:
    """Makes `version` the champion; the one before stays the way back. Does nothing when it is the champion already.

    Raises InputError when the store has no such version.
    """
    if not (store / version / policies.CARD_NAME).is_file():
        raise InputError(f"{store} has no policy {version!r}; it has: {', '.join(versions(store)) or 'none'}")
    before = plan.champion(store)
    if before is not None and before.version == version:
        _remember(store, before)  # who made it the champion may have been killed before that
        return before
    after = Champion(version=version, previous=before.version if before else None, promoted_at=now, reason=reason)
    plan.replace_file(store / policies.CHAMPION_NAME, policies.encode_json(after))
    _remember(store, after)
    return after


def roll_back(store: Path, reason: str, now: datetime) -> Champion:
    """Makes the champion before this one serve again, in one step. Raises InputError when there was none."""
    current = plan.champion(store)
    if current is None or current.previous is None:
        raise InputError(f"{store} has no earlier champion to go back to")
    return roll_out(store, current.previous, reason, now)


def history(store: Path) -> list[Champion]:
    """Every champion there was, oldest first."""
    path = store / HISTORY_NAME
    if not path.is_file():
        return []
    return [policies.decode_champion(line, str(path)) for line in path.read_bytes().splitlines()]


def versions(store: Path) -> list[str]:
    """The versions in the store, by name."""
    return sorted(path.parent.name for path in store.glob(f"*/{policies.CARD_NAME}"))


def _remember(store: Path, current: Champion) -> None:
    """Adds a champion to the history, unless it ends with it."""
    if [(past.version, past.promoted_at) for past in history(store)[-1:]] != [(current.version, current.promoted_at)]:
        alone = msgspec.structs.replace(current, candidate=None, candidate_share=0.0, mode="canary")
        with (store / HISTORY_NAME).open("ab") as file:
            file.write(msgspec.json.encode(alone) + b"\n")


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


def _doubt(gain: off_policy.Gain) -> str | None:
    """Why the interval should not be believed, if there is a reason."""
    for role, weights in (("candidate", gain.candidate), ("champion", gain.champion)):
        if weights.effective_sample_size < MIN_EFFECTIVE_SAMPLE_SIZE:
            return (
                f"the {role}'s effective sample size is {weights.effective_sample_size:.1f} (largest weight"
                f" {weights.largest_weight:.1f})"
            )
        if abs(weights.mean_weight - 1) > MAX_MEAN_WEIGHT_ERROR:
            return f"the {role}'s mean weight is {weights.mean_weight:.2f}, not near 1 (largest {weights.largest_weight:.0f})"
    return None


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
