"""The watch over a trial: whether a candidate's decisions earn as much as the anchor's, from the log alone.

Two policies share the decisions: which of them makes one depends on the decision's id alone. So the log is one of a policy
that mixes both, with a known probability of each action,

    e(a) = (1 - share) candidate(a) + share anchor(a)

where `share` is the anchor's. Each decision gives a doubly robust difference of the two policies' values (Dudík, Langford
and Li 2011), with q the anchor's reward model, which was fitted without it and does not favour the candidate:

    d = sum_a (candidate(a) - anchor(a)) q(a) + (candidate(a') - anchor(a')) / e(a') * (r - q(a'))

for the action a' that was taken. A weight is at most the inverse of the smaller share, and q and r - q are clipped to what
they were before the trial (`Scale`), so d lies in a known range. A confidence sequence over d may be looked at after every
window.

Where both policies choose alike, d is 0. It is blind to a fault that comes with the version and not with its choices, such
as a page that shows the new version's choices wrongly. So a detector of sudden faults (`trainer.sequential`) watches the
difference between the two shares of decisions instead, each weighted by the inverse of its share, with the same model.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import msgspec
import numpy as np
from msgspec import Meta

from contracts.errors import InputError
from contracts.policies import AnchorShare
from contracts.records import PolicyVersion
from predictor.policy import Policy, in_common, same_items
from trainer.sequential import ConfidenceSequence, FaultDetector, confidence_sequence

# The probability that a trial ends with a wrong verdict, half of it on either side.
ERROR = 0.05
# Decisions between two false alarms of the fault detector are at least the inverse of this.
FAULT_ERROR = 1e-6
# Where the bounds of the gain can lie, as shares of the mean absolute reward; the margin and 0 are added.
GRID = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
# Of the sum of absolute residuals before the trial, how much clipping may take. A narrower range makes faster bets.
CLIPPED_SHARE = 0.01
EQUAL_SHARE = 0.5  # at which a trial needs the fewest decisions

Outcome = Literal["on probation", "confirmed", "rolled back"]


class Caution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How new versions are tried."""

    anchor_share: AnchorShare = 0.1
    margin: Annotated[
        float,
        Meta(
            gt=0,
            le=0.5,
            description="a new version is confirmed once it is not worse than the last confirmed one by more than this "
            "share of the mean absolute reward",
        ),
    ] = 0.02


class Rows(NamedTuple):
    """Decisions with rewards, in their order."""

    observation: np.ndarray  # [N, D] float32
    candidates: Sequence[Sequence[int]]  # N lists of what was on offer, an empty one: everything
    action: np.ndarray  # [N]
    reward: np.ndarray  # [N]
    by_anchor: np.ndarray  # [N] bool: whether the anchor made it


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """What rewards were before the trial. `Evidence` clips to it, and states the margin in it."""

    low: float  # the smallest reward
    high: float
    residual: float  # where distances of rewards from what the anchor predicted are clipped
    unit: float  # the mean absolute reward


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a trial at one moment. Gains are in reward per decision."""

    version: PolicyVersion
    anchor: PolicyVersion
    anchor_share: float
    outcome: Outcome
    decisions: int  # by both, since the trial began
    gain: float | None  # the mean over the trial; None without decisions
    low: float
    high: float
    margin: float
    needed: (
        int | None
    )  # about how many more decisions would decide it; None where it is decided, or there is no estimate
    needed_at_equal_share: int | None  # the same if both made half of the decisions
    cost: float  # reward that was lost, so far, because the anchor made its share of the decisions; negative: won
    reason: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The differences so far, in the form that is stored between looks. Make one with `nothing_yet`."""

    anchor_share: float
    scale: Scale
    margin: float  # reward per decision
    sequence: ConfidenceSequence
    detector: FaultDetector
    clipped: float = 0.0  # what clipping the residuals took from the sum of the differences
    spread: float = 0.0  # sum over decisions of sum_a (candidate(a) - anchor(a))^2 / e(a)
    spread_at_equal_share: float = 0.0
    cost: float = 0.0  # sum of the differences, each times the anchor's share at the time

    def add(self, rows: Rows, candidate: Policy, anchor: Policy) -> Self:
        """The evidence with decisions that `candidate` and `anchor` made together, `anchor` its share of them."""
        rows = take(rows, np.flatnonzero(_choosable(rows, candidate, anchor)))
        if not len(rows.action):
            return self
        new, old, model = _side_by_side(rows, candidate, anchor)
        model = np.clip(model, self.scale.low, self.scale.high)
        difference, at = new - old, np.arange(len(rows.action))
        taken = _mixture(new, old, self.anchor_share)[at, rows.action]
        # An action that neither policy takes was not drawn from them: a log that is wrong, which the audit judges.
        possible = taken > 0
        weight = np.divide(difference[at, rows.action], taken, out=np.zeros(len(at)), where=possible)
        error = rows.reward - model[at, rows.action]
        residual = np.clip(error, -self.scale.residual, self.scale.residual)
        reach = max(self.scale.high - self.scale.low, self.scale.residual)  # beyond it, one reward could decide a trial
        taken_off = weight * (np.clip(error, -reach, reach) - residual)
        expected = (difference * model).sum(axis=1)
        side = np.where(rows.by_anchor, -1 / self.anchor_share, 1 / (1 - self.anchor_share))
        # Beyond the bounds by rounding alone.
        values, by_version = (
            np.clip((expected + one * residual)[possible], self.sequence.low, self.sequence.high)
            for one in (weight, side)
        )
        return msgspec.structs.replace(
            self,
            sequence=self.sequence.add(values),
            detector=self.detector.add(by_version),
            clipped=self.clipped + float(taken_off.sum()),
            cost=self.cost + self.anchor_share * float(values.sum()),
            spread=self.spread + _spread(new, old, self.anchor_share),
            spread_at_equal_share=self.spread_at_equal_share + _spread(new, old, EQUAL_SHARE),
        )

    def may_have(self, anchor_share: float) -> bool:
        """Whether the trial can go on with this share of the anchor: `nothing_yet` had one that is as small in mind."""
        # 1 - 0.9 is less than 0.1 by rounding.
        return 0 < anchor_share < 1 and _reach(self.scale, anchor_share) <= self.sequence.high * (1 + 1e-9)

    def at_share(self, anchor_share: float) -> Self:
        """The evidence, which goes on with another share of the anchor. Raises InputError for one that it may not have."""
        if not self.may_have(anchor_share):
            raise InputError(
                f"anchor_share: must leave each policy the share that the trial began with, got {anchor_share}"
            )
        return msgspec.structs.replace(self, anchor_share=anchor_share)

    def look(self, version: str, anchor: str) -> Look:
        """The verdict that the evidence carries, and what would decide it where it carries none."""
        low, high = self.interval(ERROR)
        gain = self.sequence.mean if self.sequence.count else None
        of = f"over {self.sequence.count} decisions"
        shown = "" if gain is None else f"gain {gain:+.3f} [{low:+.3f}, {high:+.3f}] {of}"
        outcome: Outcome = "on probation"
        needed, at_equal_share = None, None
        if high <= 0:
            outcome, reason = "rolled back", f"earns less than the anchor: {shown}"
        elif self.detector.alarms(FAULT_ERROR):
            outcome, reason = "rolled back", f"rewards fell suddenly below the anchor's: {shown}"
        elif low >= -self.margin:
            outcome, reason = "confirmed", f"not worse than the anchor by more than {self.margin:.3f}: {shown}"
        else:
            needed = self._needed(1.0)
            at_equal_share = self._needed(self.spread_at_equal_share / self.spread if self.spread else 1.0)
            reason = f"{shown or 'no decisions yet'}; {_told(needed, min(self.anchor_share, 1 - self.anchor_share), at_equal_share)}"
        return Look(
            version=version,
            anchor=anchor,
            anchor_share=self.anchor_share,
            outcome=outcome,
            decisions=self.sequence.count,
            gain=gain,
            low=low,
            high=high,
            margin=self.margin,
            needed=needed,
            needed_at_equal_share=at_equal_share,
            cost=self.cost,
            reason=reason,
        )

    def interval(self, error: float) -> tuple[float, float]:
        """Bounds of the mean gain that hold at all looks together with a probability of at least 1 - `error`."""
        low, high = self.sequence.interval(error)
        return low + min(self._shift, 0.0), high + max(self._shift, 0.0)

    @property
    def _shift(self) -> float:
        """By how much clipping has moved the mean of the differences."""
        return self.clipped / self.sequence.count if self.sequence.count else 0.0

    def _needed(self, variance_ratio: float) -> int | None:
        """About how many more decisions would decide it either way; None if there is no estimate."""
        mean, worse, not_worse = self.sequence.mean, -max(self._shift, 0.0), -self.margin - min(self._shift, 0.0)
        ends = [bound for bound, nears in ((not_worse, mean > not_worse), (worse, mean < worse)) if nears]
        needed = min((self.sequence.still_needed(end, ERROR, variance_ratio) for end in ends), default=math.inf)
        return math.ceil(needed) if math.isfinite(needed) else None


def scale_of(rows: Rows, propensity: np.ndarray, candidate: Policy, anchor: Policy) -> Scale:
    """The scale of rewards before a trial.

    Args:
      rows: decisions before it, by any policy.
      propensity: [N], of their actions.
      candidate: will serve.
      anchor: will keep its share; the residuals are those of its model.

    Raises InputError where all rewards are alike: nothing can be judged by them.
    """
    if not len(rows.reward) or rows.reward.min() == rows.reward.max():
        raise InputError(f"rewards: must differ to be judged by, got {len(rows.reward)} alike")
    low, high, unit = float(rows.reward.min()), float(rows.reward.max()), float(np.abs(rows.reward).mean())
    keep = np.flatnonzero(_choosable(rows, candidate, anchor) & (rows.action < anchor.card.num_actions))
    rows, at = take(rows, keep), np.arange(len(keep))
    new, old, model = _side_by_side(rows, candidate, anchor)
    model = np.clip(model, low, high)
    residual = np.abs(rows.reward - model[at, rows.action])
    weight = (new + old)[at, rows.action] / propensity[keep]  # as in decisions of which each makes half
    return Scale(low=low, high=high, residual=_clip_at(residual, weight) or high - low, unit=unit)


def _clip_at(residual: np.ndarray, weight: np.ndarray) -> float:
    """The smallest bound that takes at most `CLIPPED_SHARE` from the weighted sum of residuals; 0 without any.

    It adapts to the tail: about 2 standard deviations of noise that is normal, and nearly 1 for clicks, however rare.
    """
    order = np.argsort(-residual)
    falling, weight = residual[order], weight[order]
    if not (weight * falling).sum():
        return 0.0
    taken = np.cumsum(weight * falling) - np.cumsum(weight) * falling  # if clipped at each of them
    return float(falling[np.searchsorted(taken, CLIPPED_SHARE * (weight * falling).sum(), side="right") - 1])


def _choosable(rows: Rows, candidate: Policy, anchor: Policy) -> np.ndarray:
    """[N] bool: decisions in which both have an arm on offer."""
    common = in_common(candidate, anchor)
    if common is None:
        return np.array([candidate.can_choose(offer) and anchor.can_choose(offer) for offer in rows.candidates], bool)
    known = set(common)
    return np.array([bool(known.intersection(offer or common)) for offer in rows.candidates], bool)


def _side_by_side(rows: Rows, candidate: Policy, anchor: Policy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[N, K] each: the probabilities of candidate and anchor, and the anchor's expected rewards.

    K counts the actions of the policy that knows more. Where they offer other items, the anchor chooses from what both
    offer, as in the server (`LineUp.common`). A decision that the anchor made lists all of that even if everything was
    on offer. It has no model of an item that it does not know: 0 stands there, the prior of a linear policy.
    """
    common = in_common(candidate, anchor)
    if common is None:
        old, model = anchor.probabilities(rows.observation, rows.candidates), anchor.scores(rows.observation)[0]
        return candidate.probabilities(rows.observation, rows.candidates), old, model
    offers = [[] if list(offer) == common else list(offer) for offer in rows.candidates]
    known = set(common)
    within = [[action for action in offer or common if action in known] for offer in offers]
    more = max(candidate.card.num_actions, anchor.card.num_actions)
    new = candidate.probabilities(rows.observation, offers)
    old, model = anchor.probabilities(rows.observation, within), anchor.scores(rows.observation)[0].copy()
    same = same_items(candidate.card, anchor.card)
    model[:, len(same) :] = 0.0
    model[:, : len(same)][:, ~same] = 0.0
    return _widened(new, more), _widened(old, more), _widened(model, more)


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """[N, k] -> [N, width], with zeros on the right."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def nothing_yet(scale: Scale, anchor_share: float, margin: float, later_share: float | None = None) -> Evidence:
    """No decisions yet.

    Args:
      scale: of the rewards before.
      anchor_share: the anchor's share of the decisions.
      margin: as in `Caution`, a share of the mean absolute reward.
      later_share: with which the trial may go on (`Evidence.at_share`).

    Raises InputError unless both make some of the decisions.
    """
    for share in (anchor_share, later_share):
        if share is not None and not 0 < share < 1:
            raise InputError(f"anchor_share: must be above 0 and below 1 to watch by, got {share}")
    reach = max(_reach(scale, share) for share in (anchor_share, later_share) if share is not None)
    margin *= scale.unit
    grid = {0.0, -margin, *(sign * share * scale.unit for share in GRID for sign in (-1, 1))}
    means = sorted(mean for mean in grid if abs(mean) < reach)
    return Evidence(
        anchor_share=anchor_share,
        scale=scale,
        margin=margin,
        sequence=confidence_sequence(-reach, reach, means),
        detector=FaultDetector(mean=-margin, low=-reach, high=reach),
    )


def _reach(scale: Scale, anchor_share: float) -> float:
    """The largest difference that one decision can show."""
    return scale.high - scale.low + scale.residual / min(anchor_share, 1 - anchor_share)


def _mixture(candidate: np.ndarray, anchor: np.ndarray, share: float) -> np.ndarray:
    """[N, K]: the probability of each action when the anchor makes `share` of the decisions."""
    return (1 - share) * candidate + share * anchor


def _spread(candidate: np.ndarray, anchor: np.ndarray, share: float) -> float:
    """What the variance of the differences is proportional to, if all residuals have the same."""
    mixture = _mixture(candidate, anchor, share)
    return float(np.divide((candidate - anchor) ** 2, mixture, out=np.zeros_like(mixture), where=mixture > 0).sum())


def take(rows: Rows, at: np.ndarray) -> Rows:
    """The rows at the indexes `at`."""
    return Rows(
        rows.observation[at], [rows.candidates[i] for i in at], rows.action[at], rows.reward[at], rows.by_anchor[at]
    )


def _told(needed: int | None, share: float, at_equal_share: int | None) -> str:
    if needed is None:
        return "how many more decisions would decide it cannot be estimated yet"
    text = f"about {needed:,} more decisions at a share of {share:.0%} would decide it"
    return text if at_equal_share is None else f"{text}, or {at_equal_share:,} at {EQUAL_SHARE:.0%}"
