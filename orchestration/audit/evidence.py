"""What one window of the log shows, as sums: everything that the checks look at, small enough to keep for each window.

Evidence of parts of a window adds up, so that a large log can be summed by a Beam job. The decisions are replayed by the
versions that they name; a version that is gone leaves its decisions unreplayed.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.policies import base_of
from predictor import exploration
from predictor.policy import Policy

DELAY_BINS = 50  # of equal width, from the decision to the end of the reward window
# Edges of the propensity bins: fine where explorers put their mass.
PROPENSITY_EDGES = (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.9, 0.99, 1.0)
# A prediction counts where the version learned from at least so many decisions for the arm. Elsewhere the model says little,
# and its errors say little about the log.
KNOWN_SAMPLES = 50
UUID_TOLERANCE_MILLISECONDS = 1000
ORDER_TOLERANCE_MILLISECONDS = 1  # an id that is further off may sort before an earlier one
RELATIVE_TOLERANCE = 1e-9  # of a replayed propensity: a log in float64 keeps more digits than that
# Predictions are counted in bins of 1/64 of a power of two, so that the bins of two windows or workers are the same.
BINS_PER_OCTAVE = 64
EXPONENTS = (-30, 40)


class Decider(NamedTuple):
    """A version that made decisions."""

    policy: Policy
    num_samples: np.ndarray  # [K] decisions that it learned from, by arm


LoadDecider = Callable[[str], Decider | None]


class Sums(msgspec.Struct, kw_only=True):
    """Sums that add up field by field; lists are padded to the longer one, as arms may be added between windows."""

    def merge(self, other: Self) -> Self:
        """The sums of both."""
        return type(self)(**{name: _plus(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__})


class VersionEvidence(Sums):
    """Of the decisions that one version made."""

    decisions: int = 0
    rewarded: int = 0
    replayed: int = 0
    propensity_differs: int = 0
    action_differs: int = 0
    # Of decisions with an answer, on arms that the version knew: prediction m, reward r, residual r - m.
    judged: int = 0
    predicted: float = 0.0
    predicted_squares: float = 0.0
    reward: float = 0.0
    reward_squares: float = 0.0
    products: float = 0.0  # of prediction and reward
    residual_fourth_powers: float = 0.0
    # By bin of the prediction (`prediction_bins`): decisions, and sums of predictions, rewards, squared residuals.
    calibration: dict[str, list[float]] = {}


class ShareEvidence(Sums):
    """Of the decisions made while one version took a share beside another (`orchestration.audit.shares`)."""

    decisions: int = 0
    taken: int = 0  # whose ids fall to the version beside
    expected: float = 0.0  # how many should, by the pointer
    compared: int = 0  # that one of the two versions made
    wrong_beside: int = 0  # that the version beside made, though the id falls to the other
    wrong_serving: int = 0  # the other way around


class Evidence(Sums):
    """Of all decisions of a window."""

    decisions: int = 0
    duplicates: int = 0
    conflicting: int = 0  # ids under which different decisions were logged
    out_of_order: int = 0  # decisions whose id was made at another millisecond than `decided_at`
    rewarded: int = 0
    early_rewards: int = 0  # that occurred before their decision
    late_rewards: int = 0
    times_differ: int = 0  # decisions whose id was made at another time than `decided_at`
    versions: dict[str, VersionEvidence] = {}
    shares: dict[str, ShareEvidence] = {}
    # By action [K]: how often it was taken, how often the replayed probabilities say, and how often it was rewarded.
    taken: list[float] = []
    taken_in_replay: list[float] = []
    expected: list[float] = []
    rewarded_by_action: list[float] = []
    # By propensity bin.
    propensity_decisions: list[float] = []
    propensity_rewarded: list[float] = []
    delays: list[float] = []  # [DELAY_BINS], of rewards in time
    # Over the decisions that were replayed: 1 / propensity, its square, and the arms on offer.
    inverse_propensity: float = 0.0
    inverse_propensity_squares: float = 0.0
    on_offer: float = 0.0
    # Over the same decisions: X, which is whether the most probable arm was taken, less its probability p; and
    # (X^2 + 2 p (1 - p)) / 3, by which X is bounded (Delyon, "Exponential inequalities for sums of weakly dependent
    # variables", 2009).
    bet: float = 0.0
    bet_variance: float = 0.0
    observation: list[float] = []  # [D] sums
    observation_squares: list[float] = []


def gather(
    interactions: pa.RecordBatch, reward_window_seconds: float, load: LoadDecider, silence_counts: bool = False
) -> Evidence:
    """The evidence of joined decisions (columns of `contracts.records.Interaction`; `defaulted` marks silence).

    Args:
      interactions: decisions of the window, of one observation length.
      reward_window_seconds: how long rewards were waited for.
      load: what decided under a version; None for a version that cannot be replayed.
      silence_counts: whether silence is an answer, worth the default reward; otherwise it says nothing.
    """
    found = Evidence(decisions=interactions.num_rows)
    if not interactions.num_rows:
        return found
    names = np.array(interactions.column("policy_version").to_pylist())
    action = interactions.column("action").to_numpy().astype(np.int64)
    propensity = interactions.column("propensity").to_numpy()
    rewarded = ~interactions.column("defaulted").to_numpy(zero_copy_only=False)
    answered = np.ones_like(rewarded) if silence_counts else rewarded
    observation = np.array(interactions.column("observation").to_pylist(), np.float32)
    arms = int(action.max()) + 1
    found.taken = np.bincount(action, minlength=arms).astype(float).tolist()
    found.rewarded_by_action = np.bincount(action, rewarded, arms).tolist()
    found.rewarded = int(rewarded.sum())
    bins = np.clip(np.searchsorted(PROPENSITY_EDGES, propensity, "left") - 1, 0, len(PROPENSITY_EDGES) - 2)
    found.propensity_decisions = np.bincount(bins, minlength=len(PROPENSITY_EDGES) - 1).astype(float).tolist()
    found.propensity_rewarded = np.bincount(bins, rewarded, len(PROPENSITY_EDGES) - 1).tolist()
    found.delays = _delays(interactions, rewarded, reward_window_seconds)
    off = _milliseconds_off(interactions)
    found.times_differ = int((off > UUID_TOLERANCE_MILLISECONDS).sum())
    found.out_of_order = int((off > ORDER_TOLERANCE_MILLISECONDS).sum())
    found.observation = observation.sum(axis=0, dtype=np.float64).tolist()
    found.observation_squares = (observation.astype(np.float64) ** 2).sum(axis=0).tolist()
    for version in np.unique(names).tolist():
        rows = np.flatnonzero(names == version)
        found = found.merge(
            _of_version(interactions.take(pa.array(rows)), observation[rows], answered[rows], load(version))
        )
    return found


def _of_version(
    interactions: pa.RecordBatch, observation: np.ndarray, answered: np.ndarray, decider: Decider | None
) -> Evidence:
    """What only the version that decided can tell: replayed probabilities and predictions."""
    version = interactions.column("policy_version")[0].as_py()
    silent = pc.sum(interactions.column("defaulted")).as_py()
    own = VersionEvidence(decisions=interactions.num_rows, rewarded=interactions.num_rows - int(silent))
    found = Evidence(versions={base_of(version): own})
    if decider is None or decider.policy.card.observation_dim != observation.shape[1]:
        return found
    policy = decider.policy
    action = interactions.column("action").to_numpy().astype(np.int64)
    rows = np.arange(len(action))
    candidates = interactions.column("candidates").to_pylist()
    inside = action < policy.card.num_actions
    possible = np.array([policy.can_choose(on_offer) for on_offer in candidates])
    candidates = [on_offer if row else [] for on_offer, row in zip(candidates, possible, strict=True)]
    probabilities = policy.probabilities(observation, candidates)
    inside &= possible
    known_action = np.where(inside, action, 0)
    replayed = np.where(inside, probabilities[rows, known_action], 0.0)
    drawn = exploration.draw(probabilities, interactions.column("decision_id").to_pylist(), version)
    logged = interactions.column("propensity").to_numpy()
    own.replayed = len(rows)
    own.propensity_differs = int((np.abs(replayed - logged) > RELATIVE_TOLERANCE * logged).sum())
    own.action_differs = int(((drawn != action) | ~possible).sum())
    found.inverse_propensity, found.inverse_propensity_squares = float((1 / logged).sum()), float((1 / logged**2).sum())
    found.on_offer = float((probabilities > 0).sum())
    found.bet, found.bet_variance = _bet(probabilities, action)
    found.expected = probabilities.sum(axis=0).tolist()
    found.taken_in_replay = np.bincount(action, minlength=policy.card.num_actions).astype(float).tolist()
    mean, _ = policy.scores(observation)
    knows = inside & answered & (decider.num_samples[known_action] >= KNOWN_SAMPLES)
    m = mean[rows, known_action][knows]
    r = interactions.column("reward").to_numpy()[knows]
    own.judged = int(knows.sum())
    own.predicted, own.predicted_squares = float(m.sum()), float(m @ m)
    own.reward, own.reward_squares, own.products = float(r.sum()), float(r @ r), float(m @ r)
    own.residual_fourth_powers = float(((r - m) ** 4).sum())
    own.calibration = calibration_sums(m, r)
    return found


def prediction_bins(predicted: np.ndarray) -> np.ndarray:
    """[N] -> [N] int64: the bins of predictions, in their order."""
    mantissa, exponent = np.frexp(np.clip(np.abs(predicted), 2.0 ** EXPONENTS[0], 2.0 ** EXPONENTS[1]))
    within = np.clip(((mantissa - 0.5) * 2 * BINS_PER_OCTAVE).astype(np.int64), 0, BINS_PER_OCTAVE - 1)
    size = (exponent - EXPONENTS[0] + 1) * BINS_PER_OCTAVE + within
    return np.where(predicted < 0, -size, size)


def calibration_sums(predicted: np.ndarray, reward: np.ndarray) -> dict[str, list[float]]:
    """By bin of the prediction: decisions, and sums of predictions, rewards and squared residuals."""
    bins, place = np.unique(prediction_bins(predicted), return_inverse=True)
    sums = [
        np.bincount(place, values, len(bins))
        for values in (np.ones_like(predicted), predicted, reward, (reward - predicted) ** 2)
    ]
    return dict(zip(map(str, bins.tolist()), np.stack(sums, axis=1).tolist(), strict=True))


def _bet(probabilities: np.ndarray, action: np.ndarray) -> tuple[float, float]:
    best = probabilities.argmax(axis=1)
    p = probabilities[np.arange(len(best)), best]
    x = (action == best) - p
    return float(x.sum()), float((x @ x + 2 * (p * (1 - p)).sum()) / 3)


def _delays(interactions: pa.RecordBatch, rewarded: np.ndarray, reward_window_seconds: float) -> list[float]:
    decided = interactions.column("decided_at").cast(pa.int64()).to_numpy()[rewarded]
    occurred = interactions.column("rewarded_at").cast(pa.int64()).filter(pa.array(rewarded)).to_numpy()
    share = (occurred - decided) / 1e6 / reward_window_seconds
    counts, _ = np.histogram(np.clip(share, 0, 1), DELAY_BINS, (0.0, 1.0))
    return counts.astype(float).tolist()


def _milliseconds_off(interactions: pa.RecordBatch) -> np.ndarray:
    """[N]: between the time in a decision's id (UUIDv7: 48 bits of milliseconds first) and `decided_at`."""
    made = np.array([int(text[:8] + text[9:13], 16) for text in interactions.column("decision_id").to_pylist()])
    decided = interactions.column("decided_at").cast(pa.int64()).to_numpy() // 1000
    return np.asarray(np.abs(made - decided))


def _plus(one: object, other: object) -> object:
    match one, other:
        case dict(), dict():
            merged = dict(one)
            for name, value in other.items():
                merged[name] = _plus(merged[name], value) if name in merged else value
            return merged
        case Sums(), Sums():
            return one.merge(other)
        case list(), list():
            return [mine + theirs for mine, theirs in zip_longest(one, other, fillvalue=0.0)]
        case ((int() | float()), (int() | float())):
            return one + other
        case _:
            raise TypeError(f"cannot add {type(one).__name__} and {type(other).__name__}")
