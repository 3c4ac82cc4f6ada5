"""The watch over live versions while they serve, from the log alone: is what they learned from true, and do they earn it?

Each decision with its reward is looked at once, as it comes, in three ways:

    gain       live versions against the anchor, by the doubly robust difference of `orchestration.watch`: a betting
               confidence sequence. It alarms once live versions are shown to earn less.
    fall       the difference between the two shares of decisions, by a detector of sudden faults. It sees a fault that
               comes with live versions and not with their choices.
    surprise   the squared distance between a reward and what the base expected, as a multiple of what it was in the newest
               windows that the base was trained on, in decisions that were held back from it. A detector alarms when its
               mean rises above `SURPRISE`. It sees rewards that no longer mean what they did: a live version that learns
               from them may look good by the same rewards.

The anchor is the last confirmed version where one is beside the champion, and otherwise the base, which keeps a share of
the decisions for this. The base was trained on audited windows alone, so it does not learn what is planted in the feed.

The first two bets begin anew when the anchor's share changes, or when the scale of rewards is known much better.
"""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Self

import msgspec
import numpy as np
from msgspec import Meta

from contracts.errors import InputError
from orchestration import watch
from orchestration.watch import Evidence, Rows
from predictor.policy import Policy
from trainer.sequential import FaultDetector

# The mean of the squared distances at which it is surprised, in multiples of what they were.
SURPRISE = 2.0
# One decision counts at most as this many, so that no single reward alarms.
MAX_SURPRISE = 10.0
MAX_VARIANCE = 1.0  # of the base's expectation, in variances of the rewards' noise
MARGIN = 0.02  # as in `watch.Caution`
REFERENCE_DECISIONS = 1000  # that were held back, the newest
MIN_REFERENCE = 50
# The scale is renewed once the distances that rewards may have are below this share of what they were.
NARROWER = 0.8


class LiveCaution(msgspec.Struct, frozen=True, kw_only=True):
    """When live versions are stopped; each field is a flag. The bounds are declared here alone."""

    watch_error: Annotated[
        float,
        Meta(
            gt=0,
            le=0.05,
            description="probability that live learning is ever held because live versions seem to earn less than the"
            " anchor, though they do not",
        ),
    ] = 0.001
    alarm_error: Annotated[
        float,
        Meta(
            gt=0,
            le=0.01,
            description="inverse of the decisions between two false alarms, at least, of sudden faults in live versions"
            " and in rewards",
        ),
    ] = 1e-7


class Alarm(NamedTuple):
    """Why live versions should not serve."""

    reason: str
    of_versions: bool  # they earn less than the anchor; otherwise the rewards are in doubt


SURPRISED = "rewards are far from what the base expects of them, further than in the windows that it was trained on"


class Decided(NamedTuple):
    """Decisions with rewards, in the order in which the rewards came. Row i of each column is one decision."""

    rows: Rows
    propensity: np.ndarray  # [N], of the action
    decided_at: np.ndarray  # [N] microseconds since the epoch
    held_back: np.ndarray  # [N] bool: never trained on before it has judged
    live: Sequence[str | None]  # N live versions that decided, or would have; None where there was none


class Surprise(msgspec.Struct, frozen=True, kw_only=True):
    """How far rewards are from what the base expected, against what that was. Make one with `surprise_of`."""

    expected: float  # the mean squared distance in the reference, each divided by 1 + the model's variance
    detector: FaultDetector = FaultDetector(mean=-SURPRISE, low=-MAX_SURPRISE, high=0.0)
    decisions: int = 0
    total: float = 0.0

    def add(self, rows: Rows, base: Policy) -> Self:
        """With more decisions."""
        values = np.minimum(distances(rows, base) / self.expected, MAX_SURPRISE)
        return msgspec.structs.replace(
            self,
            detector=self.detector.add(-values),
            decisions=self.decisions + len(values),
            total=self.total + float(values.sum()),
        )


def distances(rows: Rows, base: Policy) -> np.ndarray:
    """[n] squared distances of rewards from what `base` expected, as multiples of what its own uncertainty adds.

    A ridge model is wrong by noise of variance s² and by its coefficients, of variance s² std². Decisions are left out on
    arms that the base does not have, and where it is less sure than the rewards are: new items would look like a fault.
    """
    there = np.flatnonzero(rows.action < base.card.num_actions)
    mean, std = base.scores(rows.observation[there])
    at, action = np.arange(len(there)), rows.action[there]
    variance = std[at, action] ** 2
    distance = (rows.reward[there] - mean[at, action]) ** 2 / (1 + variance)
    return np.asarray(distance[variance <= MAX_VARIANCE])


class LiveEvidence:
    """What the log says about live versions so far."""

    def __init__(self, caution: LiveCaution) -> None:
        """Nothing yet."""
        self._caution = caution
        self._reference: deque[tuple[int, np.ndarray, Sequence[int], int, float, float]] = deque(
            maxlen=REFERENCE_DECISIONS
        )
        self.evidence: Evidence | None = None  # None: there is no scale yet
        self.surprise: Surprise | None = None

    def again(self) -> "LiveEvidence":
        """Nothing yet, but with what was held back."""
        other = LiveEvidence(self._caution)
        other._reference = self._reference
        return other

    def remember(self, decided: Decided) -> None:
        """Keeps what was held back: bases that come will be compared with it."""
        for i in np.flatnonzero(decided.held_back).tolist():
            rows = decided.rows
            self._reference.append(
                (
                    int(decided.decided_at[i]),
                    rows.observation[i],
                    rows.candidates[i],
                    int(rows.action[i]),
                    float(rows.reward[i]),
                    float(decided.propensity[i]),
                )
            )

    def begin(self, base: Policy, anchor: Policy, share: float) -> None:
        """Takes a new base, a new anchor, or another share of the anchor."""
        if base.card.trained_on:
            until = max(trained.window.end for trained in base.card.trained_on).timestamp() * 1e6
            self._take_reference(base, anchor, share, [one for one in self._reference if one[0] < until])
        if self.evidence is not None and self.evidence.anchor_share != share:
            self.evidence = watch.nothing_yet(self.evidence.scale, share, MARGIN)

    def _take_reference(
        self,
        base: Policy,
        anchor: Policy,
        share: float,
        found: Sequence[tuple[int, np.ndarray, Sequence[int], int, float, float]],
    ) -> None:
        if len(found) < MIN_REFERENCE:
            return
        _, observation, candidates, action, reward, propensity = zip(*found, strict=True)
        rows = Rows(np.array(observation), candidates, np.array(action), np.array(reward), np.zeros(len(found), bool))
        known = distances(rows, base)
        if len(known) >= MIN_REFERENCE and (expected := float(known.mean())):
            kept = self.surprise or Surprise(expected=expected)
            self.surprise = msgspec.structs.replace(kept, expected=expected)
        try:
            scale = watch.scale_of(rows, np.array(propensity), base, anchor)
        except InputError:
            return  # all rewards are alike
        if self.evidence is None or scale.residual < NARROWER * self.evidence.scale.residual:
            self.evidence = watch.nothing_yet(scale, share, MARGIN)

    def add(self, decided: Decided, base: Policy, anchor: Policy, live: dict[str, Policy]) -> None:
        """Takes in decisions that were made while `base` was the champion.

        Args:
          decided: the decisions.
          base: the champion.
          anchor: what keeps a share of the decisions.
          live: the live versions that are known, by name; decisions of others say nothing about the gain.
        """
        self.remember(decided)
        if self.surprise is not None:
            self.surprise = self.surprise.add(decided.rows, base)
        if self.evidence is None:
            return
        names = np.array([name or "" for name in decided.live])
        for name in dict.fromkeys(decided.live):  # in their order
            if name is not None and name in live:
                rows = watch.take(decided.rows, np.flatnonzero(names == name))
                self.evidence = self.evidence.add(rows, live[name], anchor)

    def alarm(self) -> Alarm | None:
        """Why live versions should not serve; None while there is no reason."""
        if self.surprise is not None and self.surprise.detector.alarms(self._caution.alarm_error):
            return Alarm(SURPRISED, of_versions=False)
        why = self._worse()
        return Alarm(why, of_versions=True) if why is not None else None

    def _worse(self) -> str | None:
        """Why live versions seem to earn less than the anchor; None while they do not."""
        if self.evidence is None:
            return None
        if self.evidence.detector.alarms(self._caution.alarm_error):
            return "rewards of live versions fell suddenly below the anchor's"
        _, high = self.evidence.interval(self._caution.watch_error)
        if high <= 0:
            gain, count = self.evidence.sequence.mean, self.evidence.sequence.count
            return f"live versions earn less than the anchor: gain {gain:+.3f}, at most {high:+.3f}, over {count} decisions"
        return None
