"""Evidence of windows, made up."""

import numpy as np

from orchestration.audit.evidence import DELAY_BINS, Evidence, VersionEvidence, calibration_sums

ARMS, DECISIONS = 20, 1_000


def evidence(
    rng: np.random.Generator,
    *,
    scale: float = 1.0,
    permuted: float = 0.0,
    decisions: int = DECISIONS,
    noise: float = 0.5,
) -> Evidence:
    """A window of a policy that takes its favourite arm nine times in ten; rewards of 2 ± 1, predicted but for noise.

    `permuted` is the share of the rewards that are.
    """
    favourite = rng.integers(0, ARMS, decisions)
    explores = rng.random(decisions) < 0.1
    action = np.where(explores, rng.integers(0, ARMS, decisions), favourite)
    propensity = np.where(action == favourite, 0.9 + 0.1 / ARMS, 0.1 / ARMS)
    expected = np.bincount(favourite, minlength=ARMS) * 0.9 + 0.1 * decisions / ARMS
    rewarded = rng.random(decisions) < 0.9
    predicted = rng.normal(2, 1, decisions)
    reward = scale * (predicted + rng.normal(0, noise, decisions))
    chosen = rng.random(decisions) < permuted
    reward[chosen] = rng.permutation(reward[chosen])
    m, r = predicted[rewarded], reward[rewarded]
    best_is_taken = (action == favourite) - (0.9 + 0.1 / ARMS)
    return Evidence(
        decisions=decisions,
        bet=float(best_is_taken.sum()),
        bet_variance=float((best_is_taken**2).sum()),
        rewarded=int(rewarded.sum()),
        versions={
            "v": VersionEvidence(
                decisions=decisions,
                replayed=decisions,
                judged=len(r),
                predicted=float(m.sum()),
                predicted_squares=float(m @ m),
                reward=float(r.sum()),
                reward_squares=float(r @ r),
                products=float(m @ r),
                residual_fourth_powers=float(((r - m) ** 4).sum()),
                calibration=calibration_sums(m, r),
                rewarded=len(r),
            )
        },
        taken=np.bincount(action, minlength=ARMS).astype(float).tolist(),
        taken_in_replay=np.bincount(action, minlength=ARMS).astype(float).tolist(),
        expected=expected.tolist(),
        rewarded_by_action=np.bincount(action, rewarded, ARMS).tolist(),
        propensity_decisions=[float((propensity < 0.5).sum()), float((propensity > 0.5).sum())],
        propensity_rewarded=[float(rewarded[propensity < 0.5].sum()), float(rewarded[propensity > 0.5].sum())],
        delays=rng.multinomial(int(rewarded.sum()), np.full(DELAY_BINS, 1 / DELAY_BINS)).astype(float).tolist(),
        inverse_propensity=float((1 / propensity).sum()),
        inverse_propensity_squares=float((1 / propensity**2).sum()),
        on_offer=float(ARMS * decisions),
        observation=rng.normal(0, 1, (decisions, 3)).sum(axis=0).tolist(),
        observation_squares=[float(decisions)] * 3,
    )
