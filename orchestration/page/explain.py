"""Why a decision fell as it did: every arm's score and probability, the draw replayed, and what each feature contributed."""

from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from contracts import policy_arrays
from contracts.errors import InputError
from contracts.policies import CARD_NAME, PolicyCard, split_version
from contracts.records import Decision, RewardEvent
from orchestration import policy_store
from predictor import deciding
from predictor import live as live_versions
from predictor import policy as serving
from predictor.policy import BASELINE_VERSION, Policy

ARMS_SHOWN = 200


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy thought of one arm. The standard deviation is 0 where it does not estimate its uncertainty."""

    action: int
    item: str
    expected_reward: float
    standard_deviation: float
    probability: float
    offered: bool


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """What one feature added to the expected reward of the chosen arm: its value times the arm's weight."""

    feature: str
    value: float
    weight: float
    added: float


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision, and how it came about.

    `contributions` add up to the expected reward of the chosen arm, for linear policies exactly; `why_not` says why there
    are none. `replayed_*` are computed again from the logged observation: the same figures as logged, or the log is wrong.
    """

    decision: Decision
    item: str
    rewards: list[RewardEvent]
    algorithm: str
    exploration: str
    trained_windows: int
    trained_records: int
    arms: list[Arm]
    arms_left_out: int
    replayed_action: int
    replayed_propensity: float
    contributions: list[Contribution]
    why_not: str | None


class Explainer:
    """Explains decisions by the policies of one store, and by live versions made again from the files in `live`."""

    def __init__(self, store: Path, live: Path) -> None:
        self._store = store
        self._live = live
        self._load = lru_cache(maxsize=8)(self._loaded)

    def explain(self, decision: Decision, rewards: list[RewardEvent]) -> Explanation:
        """How `decision` came about. Raises InputError when the store does not have its version, or cannot read it."""
        policy = self._load(decision.policy_version)
        card = policy.card
        if len(decision.observation) != card.observation_dim:
            got = f"got {len(decision.observation)}"
            raise InputError(f"observation: {card.version} takes {card.observation_dim} numbers, {got}")
        observation = np.array([decision.observation], np.float32)
        mean, std = policy.scores(observation)
        probabilities = policy.probabilities(observation, [decision.candidates])[0]
        order = np.lexsort((-mean[0], -probabilities))
        shown = [int(action) for action in order[:ARMS_SHOWN]]
        [action], [propensity] = deciding.replay(policy, [decision])
        contributions, why_not = self._contributions(policy, decision)
        return Explanation(
            decision=decision,
            item=item_name(card, decision.action),
            rewards=rewards,
            algorithm=card.algorithm,
            exploration=card.exploration.strategy,
            trained_windows=len({trained.window for trained in card.trained_on}),
            trained_records=sum(trained.records for trained in card.trained_on),
            arms=[
                Arm(
                    action=arm,
                    item=item_name(card, arm),
                    expected_reward=float(mean[0, arm]),
                    standard_deviation=float(std[0, arm]),
                    probability=float(probabilities[arm]),
                    offered=_offered(policy, decision, arm),
                )
                for arm in shown
            ],
            arms_left_out=len(order) - len(shown),
            replayed_action=action,
            replayed_propensity=propensity,
            contributions=contributions,
            why_not=why_not,
        )

    def _contributions(self, policy: Policy, decision: Decision) -> tuple[list[Contribution], str | None]:
        if policy.card.version == BASELINE_VERSION:
            return [], "the baseline chooses uniformly: no feature matters"
        base, _ = split_version(decision.policy_version)
        folder = self._store / base
        if not policy_arrays.exist(folder):
            return [], "the policy is a SavedModel, which does not say what it looked at"
        if policy_arrays.read(folder, serving.read_card(folder)).layers:
            return [], "the policy has a network between features and score, so no feature has a share of its own"
        # The score is linear in the observation, so the score of a feature alone is its weight.
        weights = policy.scores(np.eye(policy.card.observation_dim, dtype=np.float32))[0][:, decision.action]
        values = np.array(decision.observation, np.float32).astype(np.float64)
        spec = policy.card.features
        names = spec.places if spec is not None else [f"x{index}" for index in range(len(values))]
        return [
            Contribution(feature=name, value=value, weight=weight, added=value * weight)
            for name, value, weight in zip(names, values.tolist(), weights.tolist(), strict=True)
        ], None

    def _loaded(self, version: str) -> Policy:
        base, sequence = split_version(version)
        if Path(base).name == base and (self._store / base / CARD_NAME).is_file():
            if sequence is None:
                return serving.load(self._store / base)
            if (found := live_versions.load(self._store, self._live, version)) is not None:
                return found[0]
            raise InputError(f"policy_version: the files of the live version {version} are gone")
        champion = policy_store.champion(self._store)
        if version == BASELINE_VERSION and champion is not None:
            return serving.baseline(serving.read_card(self._store / champion.version))
        raise InputError(f"policy_version: one of the store expected, got {version}")


def item_name(card: PolicyCard, action: int) -> str:
    """What an action stands for, in words where the catalogue has them."""
    if action >= len(card.catalogue):
        return f"item {action}"
    return card.catalogue[action].name


def _offered(policy: Policy, decision: Decision, arm: int) -> bool:
    active = policy.active is None or bool(policy.active[arm])
    return active and (not decision.candidates or arm in decision.candidates)
