"""The policies that decided, loaded from a policy store to replay what they did."""

from pathlib import Path

import numpy as np

from contracts import policies, policy_arrays
from orchestration import policy_store
from orchestration.audit.evidence import Decider
from predictor import policy as serving


def load_decider(store: Path, version: str) -> Decider | None:
    """What decided under `version`; None for a version that the store does not have. Raises InputError for a broken one.

    The predictions of a version that never was the champion are not trusted: a bad candidate of a canary is no fault of
    the log. So it counts as knowing no arm.
    """
    folder = store / version
    if not (folder / policies.CARD_NAME).is_file():
        return None
    champions = {past.version for past in policy_store.history(store)}
    return read_decider(folder, trusted=not champions or version in champions)


def read_decider(folder: Path, trusted: bool) -> Decider:
    """What decided, from the folder of its policy; one that is not `trusted` counts as knowing no arm."""
    policy = serving.load(folder)
    if not trusted:
        return Decider(policy, np.zeros(policy.card.num_actions))
    if policy_arrays.exist(folder):
        return Decider(policy, policy_arrays.read(folder, policy.card).num_samples)
    return Decider(policy, np.full(policy.card.num_actions, np.inf))  # its SavedModel does not say
