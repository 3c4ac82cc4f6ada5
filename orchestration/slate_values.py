"""What a policy would earn with a whole slate, on held-back slates: the cascade's doubly robust estimate.

The gate's estimate is per decision, over all places alike. Which items stand at the later places depends on what was
chosen for the earlier ones, so a decision's weight alone gives a slate another value than it has (`trainer.slates`). A
slate's weight at a place is the product up to there. The reward of a place may depend on the places above it.
"""

from collections.abc import Iterator

import numpy as np

from contracts.policies import SlateValue
from orchestration.held_back import Judged
from trainer.slates import GROUPS, SlateSums


def slate_value(judged: Judged, chosen: np.ndarray, q_logged: np.ndarray, q_target: np.ndarray) -> SlateValue | None:
    """The value of a slate of the policy, the sum of its rewards; None if no whole slate was held back.

    Slates of which a place is missing, because a policy that is judged had nothing to choose there, are left out.

    Args:
      judged: [N] decisions.
      chosen: [N], the policy's probability of each action.
      q_logged: [N], a reward model's value of each action.
      q_target: [N], what the model expects of the policy.
    """
    if judged.decisions.slate_id is None or judged.clusters is None:
        return None
    decisions = judged.decisions
    viewers, numbers = np.unique(judged.clusters, return_inverse=True)
    groups = min(GROUPS, len(viewers))
    group = (np.random.default_rng(0).permutation(len(viewers)) % groups)[numbers]
    sums, slates = SlateSums.zeros(groups), 0
    for rows in _whole_slates(judged):
        sums.add(
            group[rows[:, 0]],
            decisions.reward[rows].astype(np.float64),
            decisions.propensity[rows].astype(np.float64),
            chosen[rows],
            model=(q_logged[rows], q_target[rows]),
        )
        slates += len(rows)
    if not slates:
        return None
    found = sums.estimates(with_model=True).cascade_dr
    assert found is not None
    return SlateValue(
        estimator="cascade_dr",
        value=found.value,
        low=found.low,
        high=found.high,
        slates=slates,
        reliable=found.reliable,
        reason=found.reason,
    )


def _whole_slates(judged: Judged) -> Iterator[np.ndarray]:
    """The rows [S, P] of the slates with all of their places, in the order of the places, for each number P of places."""
    ids, places = judged.decisions.slate_id, judged.decisions.place
    assert ids is not None and places is not None
    rows = np.flatnonzero(ids != b"")
    rows = rows[np.lexsort((places[rows], ids[rows]))]
    _, begins, sizes = np.unique(ids[rows], return_index=True, return_counts=True)
    for size in np.unique(sizes).tolist():
        found = rows[begins[sizes == size, np.newaxis] + np.arange(size)]
        whole = (places[found] == np.arange(size)).all(axis=1)
        if whole.any():
            yield found[whole]
