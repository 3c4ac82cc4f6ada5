"""The gate: whether a candidate may serve, judged on held-back decisions that neither policy was trained on."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import Evaluation, PolicyCard, SlateValue, Verdict
from orchestration import held_back
from orchestration.held_back import HeldBack, Judged, Log
from orchestration.slate_values import slate_value
from predictor import policy as serving
from trainer import off_policy
from trainer.intervals import Interval
from trainer.reliability import Weights
from trainer.support import difference_support, observed_support

# With fewer different observations than this, choosing the same arm for all of them may be right.
MIN_OBSERVATIONS_FOR_CONSTANT_ACTION = 50
STANDARD_ERRORS = 1.96  # on either side: 95% of a normal distribution
# An interval from a smaller sample, or with a mean weight further from 1, is not reliable: see trainer.off_policy.
MIN_EFFECTIVE_SAMPLE_SIZE = 20.0
MAX_MEAN_WEIGHT_ERROR = 0.5
# A candidate is not even tried if the model of what serves expects it to lose more than this share of the mean absolute
# reward. In trials on four seeds of the built-in ratings at 20, 100 and 500 actions, candidates that were as good as the
# champion lost at most 15% by that model, and those that were 50% worse at least 33%. Good updates of a champion that has
# learned from few decisions lost up to 22%.
MAX_EXPECTED_LOSS = 0.3


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on a candidate, whether it is promoted, and the reason in words."""

    verdict: Verdict
    promoted: bool
    reason: str
    evaluation: Evaluation | None  # of the candidate, on decisions neither policy was trained on
    gain: float | None = None  # candidate minus champion, reward per decision
    gain_low: float | None = None
    gain_high: float | None = None
    must_be_confirmed: bool = False  # it may be tried beside the champion, and serve in its place once it is confirmed


class Entry(NamedTuple):
    """How a candidate comes in: what it is called, and what it may do while the comparison is undecided."""

    name: str
    passes: bool
    must_be_confirmed: bool = False


FIRST = Entry("first policy", True)
OWN_UPDATE = Entry("own next update", True)
TRIED = Entry("another algorithm or setting, to be tried beside the champion", True, must_be_confirmed=True)
OTHER = Entry("not the champion's own next update", False)


def evaluate(
    store: Path,
    windows: Path,
    candidate: str,
    champion: str | None,
    *,
    anchor: str | None = None,
    tried: bool = False,
    log: Log | None = None,
) -> GateResult:
    """Compares `candidate` with what serves on the held-back decisions of the newest window.

    Both are judged by switch-DR, the doubly robust estimate that relies on the reward model alone where weights are
    large (Wang et al., 2017). The reward model is the champion's, which was fitted without those decisions; the
    probabilities are those of the explorer that serves. Where the candidate takes actions that the champion hardly ever
    takes, the log holds no evidence: there the interval is widened by the uncertainty of the champion's model.

    better     the interval of the gain lies above 0: the candidate is promoted
    worse      the interval lies below 0, or scores or probabilities are not sane, or the model of what serves expects a
               loss of more than `MAX_EXPECTED_LOSS`: the candidate is refused
    undecided  the candidate is promoted only if it is the champion's next update (same settings, more data), or if it is
               tried beside the champion

    Args:
      store: the policy store that holds both policies.
      windows: the folder of training windows.
      candidate: a version.
      champion: a version; None while no policy serves yet. One that has learned nothing yet counts as none.
      anchor: the version to compare with, if the champion is on probation.
      log: the tables, from which it knows which decisions were made for one viewer; without, it takes all for different ones.
      tried: whether a promoted candidate gets a share of the decisions first, by which it is judged.

    Raises InputError when the champion or the window cannot be read.
    """
    try:
        new = serving.load(store / candidate)
    except InputError as error:
        return GateResult(verdict="worse", promoted=False, reason=f"sanity check failed: {error}", evaluation=None)
    old = held_back.seen_as(serving.load(store / (anchor or champion)), new.card) if champion is not None else None
    decisions = held_back.read(store, windows, new.card, old.card if old is not None else None, log)
    if old is not None and not old.card.trained_on:
        old = None  # it has learned nothing, so it has no model to judge by
    how = FIRST if champion is None or old is None else entry(new.card, serving.read_card(store / champion), tried)
    if (fault := _insane(new, decisions.decisions.observation)) is not None:
        return GateResult(verdict="worse", promoted=False, reason=f"sanity check failed: {fault}", evaluation=None)
    if not len(decisions.decisions.action):
        return _result("undecided", "no decisions were held back", how)
    return judge_alone(new, decisions) if old is None else compare(new, old, decisions, how)


def judge_alone(policy: serving.Policy, everything: HeldBack) -> GateResult:
    """The estimated value of a policy that is compared with none, such as the first one.

    The only reward model is the policy's, which overrates the actions that it chooses. The doubly robust estimate
    corrects this where the log holds enough decisions like the policy's. Where it does not, the estimate is the
    model's, and the interval is widened by the model's uncertainty.
    """
    judged = everything.judged_by([policy], policy.card.num_actions)
    decisions = judged.decisions
    if not len(decisions.action):
        return _result("undecided", "it offers none of the arms that were on offer", FIRST)
    rows = np.arange(len(decisions.action))
    probabilities = policy.probabilities(decisions.observation, judged.offered)
    mean, std = policy.scores(decisions.observation)
    chosen = probabilities[rows, decisions.action]
    estimates = off_policy.estimate(
        decisions.reward,
        decisions.propensity,
        chosen,
        q_logged=mean[rows, decisions.action],
        q_target=(probabilities * mean).sum(axis=1),
        support=observed_support(chosen / decisions.propensity),
        clusters=judged.clusters,
    )
    slate = slate_value(judged, chosen, mean[rows, decisions.action], (probabilities * mean).sum(axis=1))
    reason = "nothing that has learned served before" + _left_out(judged)
    if (doubt := _doubt("policy", estimates.weights)) is None:
        return _result("undecided", reason, FIRST, _evaluation("dr", estimates, slate=slate))
    unknown = STANDARD_ERRORS * float((probabilities * std).sum(axis=1).mean())
    return _result("undecided", f"{reason}, {doubt}", FIRST, _evaluation("switch_dr", estimates, unknown, slate))


def compare(new: serving.Policy, old: serving.Policy, everything: HeldBack, how: Entry) -> GateResult:
    """Candidate and champion on the same decisions, by the champion's reward model, which does not favour the candidate.

    Both choose among the arms that were on offer in each decision. When one of them knows more arms, both are restricted
    to the arms that both know: the champion's model has no value for the others.
    """
    arms = min(new.card.num_actions, old.card.num_actions)
    judged = everything.judged_by([new, old], arms)
    scope = _scope(new.card.num_actions, old.card.num_actions) + _left_out(judged)
    decisions = judged.decisions
    if not len(decisions.action):
        return _result("undecided", _nothing_in_common([new, old], everything, arms), how)
    new_probabilities, old_probabilities = (
        _probabilities(policy, decisions.observation, judged.offered) for policy in (new, old)
    )
    mean, std = (scores[:, :arms] for scores in old.scores(decisions.observation))
    rows, known = np.arange(len(decisions.action)), decisions.action < arms
    actions = np.where(known, decisions.action, 0)

    def of_logged(values: np.ndarray) -> np.ndarray:
        """[N, arms] -> [N], for the logged action; 0 for an action that is not among the arms."""
        return np.where(known, values[rows, actions], 0.0)

    q_logged, q_candidate = of_logged(mean), (new_probabilities * mean).sum(axis=1)
    chosen, chosen_before = of_logged(new_probabilities), of_logged(old_probabilities)
    estimates = off_policy.estimate(
        decisions.reward,
        decisions.propensity,
        chosen,
        q_logged=q_logged,
        q_target=q_candidate,
        support=observed_support(chosen / decisions.propensity),
        clusters=judged.clusters,
    )
    gain = off_policy.gain(
        decisions.reward,
        decisions.propensity,
        chosen,
        chosen_before,
        model=off_policy.Model(q_logged, q_candidate, (old_probabilities * mean).sum(axis=1)),
        support=difference_support(
            new_probabilities, old_probabilities, (chosen - chosen_before) / decisions.propensity
        ),
        clusters=judged.clusters,
    )
    untried = new_probabilities * (old_probabilities < 1 / len(rows))  # expected less than once in such a log
    unknown = STANDARD_ERRORS * float((untried * std).sum(axis=1).mean())
    interval = Interval(gain.gain.value, gain.gain.low - unknown, gain.gain.high + unknown)
    verdict, doubt = _verdict(interval, gain)
    overrated = chosen_before / decisions.propensity * (q_logged - decisions.reward)
    expected_loss = (old_probabilities * mean).sum(axis=1) - q_candidate
    feared = _feared_loss(expected_loss, overrated, decisions.reward)
    # Decisions that show a gain weigh more than what a model expects, which may be wrong itself.
    verdict = "worse" if feared is not None and verdict != "better" else verdict
    reason = f"{verdict}: {_shown(interval, len(rows), feared, float(untried.sum(axis=1).mean()))}"
    if verdict == "undecided" and doubt is not None:
        reason += f", {doubt}"
    slate = slate_value(judged, chosen, q_logged, q_candidate)
    return _result(verdict, reason + scope, how, _evaluation("switch_dr", estimates, unknown, slate), interval)


def _shown(gain: Interval, decisions: int, feared: float | None, untried: float) -> str:
    """The facts of a comparison; `untried`: share of the candidate's choices that what serves hardly ever tried."""
    text = f"gain {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {decisions} decisions"
    if feared is not None:
        text += f", and a loss of at least {feared:.3f} by the model of what serves"
    return text if untried <= 0.01 else f"{text}, {untried:.0%} of its choices untried by the champion"


def _shown_slate(slate: SlateValue) -> str:
    """The part of the reason about whole slates."""
    doubt = "" if slate.reliable else f", {slate.reason}"
    return (
        f"; a slate of it earns {slate.value:.3f} [{slate.low:.3f}, {slate.high:.3f}] on {slate.slates} slates{doubt}"
    )


def _feared_loss(losses: np.ndarray, overrated: np.ndarray, rewards: np.ndarray) -> float | None:
    """The loss per decision that the model of what serves expects of a candidate at least, if it is too large to try it.

    It is the lower end of a 95% interval. What serves chooses what its model overrates (the winner's curse), so the model
    alone would see a loss in anything else: what it overrates is subtracted. The candidate's choices may never have been
    tried, so for them there is nothing but the model. A model that has seen little underrates all choices, as its
    coefficients are shrunk; that is not added to the loss, because it holds for the candidate's choices as well.

    Args:
      losses: [N], the model's values of what serves less those of the candidate.
      overrated: [N], how much the model overrates what serves, doubly robust.
      rewards: [N].
    """
    if overrated.mean() > 0:
        losses = losses - overrated
    loss = float(losses.mean() - STANDARD_ERRORS * losses.std() / math.sqrt(len(losses)))
    return loss if loss > MAX_EXPECTED_LOSS * float(np.abs(rewards).mean()) else None


def _nothing_in_common(policies: Sequence[serving.Policy], everything: HeldBack, arms: int) -> str:
    """Why no decision offered something to each of the policies."""
    for policy in policies:
        if not len(everything.judged_by([policy], arms).decisions.action):
            return f"undecided: {policy.card.version} offers none of the {arms} arms that both policies know"
    return "undecided: no decision offered an arm of each policy"


def _probabilities(policy: serving.Policy, observations: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """[N, arms]: the policy's probabilities when of its arms only those `offered` [N, arms] are on offer."""
    arms = offered.shape[1]
    mask = np.zeros((len(offered), policy.card.num_actions), bool)
    mask[:, :arms] = offered
    return policy.probabilities(observations, mask)[:, :arms]


def _left_out(judged: Judged) -> str:
    """The part of the reason about decisions that do not judge, if there are any."""
    return f", {judged.left_out} decisions left out that offered no arm of a policy" if judged.left_out else ""


def _scope(candidate_arms: int, champion_arms: int) -> str:
    """The end of the reason: on which arms the policies were compared, if not on all."""
    arms, more = min(candidate_arms, champion_arms), candidate_arms - champion_arms
    if not more:
        return ""
    return f", compared over the {arms} arms both know; " + (f"{more} new" if more > 0 else f"{-more} fewer")


def _verdict(interval: Interval, gain: off_policy.Gain) -> tuple[Verdict, str | None]:
    """The verdict, and why the interval should not be believed, if there is a reason."""
    doubt = _doubt("candidate", gain.candidate) or _doubt("champion", gain.champion) or gain.gain.reason
    if interval.high < 0 and gain.champion.effective_sample_size >= MIN_EFFECTIVE_SAMPLE_SIZE:
        return "worse", doubt
    if interval.low > 0 and doubt is None:
        return "better", None
    return "undecided", doubt


def _result(
    verdict: Verdict,
    reason: str,
    how: Entry,
    evaluation: Evaluation | None = None,
    gain: Interval | None = None,
) -> GateResult:
    match verdict:
        case "better":
            promoted = True
        case "worse":
            promoted = False
        case "undecided":
            promoted = how.passes
            reason = f"{how.name}{': ' if how is FIRST else ', '}{reason}"
        case _:
            assert_never(verdict)
    if evaluation is not None and evaluation.slate is not None:
        reason += _shown_slate(evaluation.slate)
    value, low, high = (gain.value, gain.low, gain.high) if gain is not None else (None, None, None)
    return GateResult(
        verdict=verdict,
        promoted=promoted,
        reason=reason,
        evaluation=evaluation,
        gain=value,
        gain_low=low,
        gain_high=high,
        must_be_confirmed=promoted and verdict == "undecided" and how.must_be_confirmed,
    )


def entry(candidate: PolicyCard, champion: PolicyCard, tried: bool) -> Entry:
    """How a candidate comes in. An own update continues the champion's training with the same algorithm and settings."""
    own = (
        candidate.parent == champion.version
        and candidate.algorithm == champion.algorithm
        and candidate.hyperparameters == champion.hyperparameters
        and candidate.exploration == champion.exploration
    )
    return OWN_UPDATE if own else TRIED if tried else OTHER


def _insane(policy: serving.Policy, observations: np.ndarray) -> str | None:
    """What is wrong with the policy's scores and probabilities on these observations; None when nothing is."""
    mean, std = policy.scores(observations)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        return "scores are not finite"
    probabilities = policy.probabilities(observations)
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(axis=1), 1):
        return "probabilities do not sum to 1"
    choosable = np.ones(policy.card.num_actions, bool) if policy.active is None else policy.active.copy()
    if policy.new is not None and (choosable & ~policy.new).any():
        choosable &= ~policy.new  # the model does not choose new items
    best = np.unique(np.where(choosable, mean, -np.inf).argmax(axis=1))
    if len(best) == 1 and len(np.unique(observations, axis=0)) >= MIN_OBSERVATIONS_FOR_CONSTANT_ACTION:
        return f"action {best[0]} looks best for all of {len(observations)} observations"
    return None


def _doubt(role: str, weights: Weights) -> str | None:
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
    estimator: Literal["dr", "switch_dr"],
    estimates: off_policy.Estimates,
    unknown: float = 0.0,
    slate: SlateValue | None = None,
) -> Evaluation:
    """The estimate for the policy's card; `unknown` (reward per decision) widens its interval on either side."""
    interval = getattr(estimates, estimator)
    return Evaluation(
        estimator=estimator,
        value=interval.value,
        low=interval.low - unknown,
        high=interval.high + unknown,
        effective_sample_size=estimates.effective_sample_size,
        decisions=estimates.decisions,
        reliable=interval.reliable,
        reason=interval.reason,
        slate=slate,
    )
