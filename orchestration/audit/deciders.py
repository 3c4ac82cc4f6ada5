"""The policies that decided, loaded from a policy store to replay what they did."""

from pathlib import Path

import numpy as np

from contracts import policies, policy_arrays
from orchestration import policy_store
from orchestration.audit.evidence import Decider
from predictor import live as live_versions
from predictor import policy as serving


def load_decider(store: Path, version: str, live: Path | None = None) -> Decider | None:
    """What decided under `version`; None for a version that the store does not have. Raises InputError for a broken one.

    A live version is made again from the files that are kept in the folder `live`, see `predictor.live`; None if one of
    them is gone.

    The predictions of a version that never was the champion are not trusted: a bad candidate of a canary is no fault of
    the log. So it counts as knowing no arm.
    """
    champions = {past.version for past in policy_store.history(store)}
    base, sequence = policies.split_version(version)
    trusted = not champions or base in champions
    if sequence is not None:
        found = live_versions.load(store, live, version) if live is not None else None
        return None if found is None else Decider(found[0], found[1] if trusted else np.zeros_like(found[1]))
    folder = store / version
    if not (folder / policies.CARD_NAME).is_file():
        return None
    return read_decider(folder, trusted)


def read_decider(folder: Path, trusted: bool) -> Decider:
    """What decided, from the folder of its policy; one that is not `trusted` counts as knowing no arm."""
    policy = serving.load(folder)
    if not trusted:
        return Decider(policy, np.zeros(policy.card.num_actions))
    if policy_arrays.exist(folder):
        return Decider(policy, policy_arrays.read(folder, policy.card).num_samples)
    return Decider(policy, np.full(policy.card.num_actions, np.inf))  # its SavedModel does not say
