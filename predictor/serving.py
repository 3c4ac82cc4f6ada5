"""Decisions: which policy decides, what it decides, and the swap to the next champion.

`Champion.line_up` is one value that holds every policy a request may need. A request takes it once and uses it to the
end, so a swap never splits a request and no decision is logged with another version than chose it.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np

from contracts import policies
from contracts.errors import InputError
from contracts.records import Action, Decision, DecisionId, PolicyVersion, Propensity, Timestamp
from predictor import exploration, storage
from predictor import policy as policy_files
from predictor.messages import Instance
from predictor.policy import Policy

_log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WARM_UP = str(UUID(int=0))  # the id of a decision that is nobody's
_RETRY_SECONDS = 1.0  # a champion that failed to load may just be being copied


class ShadowDecision(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="shadow"):
    """What a policy that does not serve would have done where another served. Logged apart from the events.

    `action` and `propensity` are its own; `propensity_of_served` is its probability of the action that was taken, which
    is what an off-policy estimate of it asks for.
    """

    decision_id: DecisionId
    decided_at: Timestamp
    policy_version: PolicyVersion
    action: Action
    propensity: Propensity
    served_action: Action
    propensity_of_served: float


@dataclass(frozen=True)
class LineUp:
    """Who serves, who is tried out, and who steps in."""

    serving: Policy
    baseline: Policy
    candidate: Policy | None = None  # takes `candidate_share` of the decisions
    candidate_share: float = 0.0
    shadow: Policy | None = None  # scored and logged, never served


@dataclass(frozen=True)
class Decided:
    """What a request leads to. `slates[i]` holds the decisions for instance i, one a place."""

    slates: list[list[Decision]]
    shadows: list[ShadowDecision] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # why the baseline stepped in


def check(instances: Sequence[Instance], line_up: LineUp, slate_size: int = 1) -> None:
    """Raises InputError that names the instance and the field: a wrong length, an arm that there is not or that is not
    on offer, one twice, a slate of more arms than there are."""
    observation_dim, active = line_up.serving.card.observation_dim, line_up.serving.active
    for i, instance in enumerate(instances):
        if (length := len(instance.observation)) != observation_dim:
            raise InputError(f"instances[{i}].observation: must have {observation_dim} numbers, got {length}")
        if instance.candidates or slate_size > 1:
            _check_offer(i, instance.candidates, line_up.serving.card.num_actions, active, slate_size)


def _check_offer(i: int, candidates: list[int], num_actions: int, active: np.ndarray | None, slate_size: int) -> None:
    if candidates:
        if (largest := max(candidates)) >= num_actions:
            raise InputError(f"instances[{i}].candidates: must be below {num_actions}, got {largest}")
        if len(set(candidates)) != len(candidates):
            raise InputError(f"instances[{i}].candidates: must differ, got one twice")
    on_offer = len(candidates) or num_actions
    if active is not None:
        on_offer = int(active[candidates or slice(None)].sum())
        if not on_offer:
            raise InputError(f"instances[{i}].candidates: must have one of a movie that is on offer, got none")
    if slate_size > on_offer:
        raise InputError(
            f"parameters.slate_size: must be at most the {on_offer} arms of instances[{i}], got {slate_size}"
        )


def decide(line_up: LineUp, instances: Sequence[Instance], slate_size: int = 1) -> Decided:
    """A decision for each instance (for a slate: one a place), all at one moment.

    A place of a slate is a decision of its own among the arms that the places before it left, so its propensity is
    exact whatever the explorer, and the slate's is the product. A policy that fails leaves its instances to the
    baseline. The instances are ones that `check` has nothing against.
    """
    card = line_up.serving.card
    now_microseconds = time.time_ns() // 1000
    decided_at = _EPOCH + timedelta(microseconds=now_microseconds)
    decided = Decided([[] for _ in instances])
    observations = np.array([instance.observation for instance in instances], np.float32)
    candidates = [instance.candidates for instance in instances]
    active = line_up.serving.active
    all_on_offer = range(card.num_actions) if active is None else np.flatnonzero(active).tolist()
    shares: list[tuple[Policy, list[int]]] = []
    for place in range(slate_size):
        decision_ids = new_decision_ids(now_microseconds // 1000, len(instances))
        if place:
            for i, slate in enumerate(decided.slates):
                candidates[i] = [action for action in candidates[i] or all_on_offer if action != slate[-1].action]
        else:
            shares = _shares(line_up, decision_ids)
        for policy, rows in shares:
            if len(shares) == 1:
                chosen = _choose_or_fall_back(policy, observations, candidates, decision_ids, line_up, decided)
            else:
                offered = [candidates[i] for i in rows]
                ids = [decision_ids[i] for i in rows]
                chosen = _choose_or_fall_back(policy, observations[rows], offered, ids, line_up, decided)
            version, actions, propensities = chosen
            for i, action, propensity in zip(rows, actions, propensities, strict=True):
                instance = instances[i]
                decision = Decision(
                    decision_id=decision_ids[i],
                    decided_at=decided_at,
                    policy_version=version,
                    user_id=instance.user_id,
                    observation=instance.observation,
                    candidates=candidates[i],
                    action=action,
                    propensity=propensity,
                )
                decided.slates[i].append(decision)
        if line_up.shadow is not None:
            _score_in_shadow(line_up.shadow, observations, [slate[-1] for slate in decided.slates], decided)
    return decided


def _choose_or_fall_back(
    policy: Policy,
    observations: np.ndarray,
    candidates: Sequence[Sequence[int]],
    decision_ids: list[str],
    line_up: LineUp,
    decided: Decided,
) -> tuple[str, list[int], list[float]]:
    """The version that chose, what, and how probable that was."""
    try:
        return policy.card.version, *choose(policy, observations, candidates, decision_ids)
    except Exception as error:  # noqa: BLE001 - whatever a policy does, its instances are answered
        _log.exception("policy %s does not decide; the baseline does", policy.card.version)
        decided.failures.append(f"{policy.card.version}: {error}")
    baseline = line_up.baseline
    return baseline.card.version, *choose(baseline, observations, candidates, decision_ids)


def choose(
    policy: Policy, observations: np.ndarray, candidates: Sequence[Sequence[int]], decision_ids: list[str]
) -> tuple[list[int], list[float]]:
    """Actions and their propensities for observations [B, D] float32. The same for the same ids."""
    probabilities = policy.probabilities(observations, candidates)
    actions = exploration.draw(probabilities, decision_ids, policy.card.version)
    return actions.tolist(), probabilities[np.arange(len(actions)), actions].tolist()


def replay(policy: Policy, decisions: Sequence[Decision]) -> tuple[list[int], list[float]]:
    """The actions and propensities of logged decisions, chosen again by the policy that chose them."""
    observations = np.array([decision.observation for decision in decisions], np.float32)
    return choose(
        policy,
        observations,
        [decision.candidates for decision in decisions],
        [decision.decision_id for decision in decisions],
    )


def takes_candidate(decision_ids: Sequence[str], line_up: LineUp) -> np.ndarray:
    """Whether the candidate decides, [B] bool; by the ids of the decisions (a slate's first), so it can be told
    afterwards."""
    return exploration.uniforms("\0candidate", decision_ids) < line_up.candidate_share


def new_decision_ids(now_milliseconds: int, count: int) -> list[str]:
    """UUIDv7 (RFC 9562): 48 bits of time, the rest random. They sort by time to the millisecond."""
    moment = f"{now_milliseconds:012x}"
    prefix = f"{moment[:8]}-{moment[8:]}-7"
    digits = os.urandom(10 * count).hex()  # the system's, which cannot be guessed; 20 digits an id, 19 are used
    return [
        f"{prefix}{digits[i : i + 3]}-{_VARIANT[digits[i + 3]]}{digits[i + 4 : i + 7]}-{digits[i + 7 : i + 19]}"
        for i in range(0, len(digits), 20)
    ]


# The fourth digit of the random ones, its upper two bits set to 10.
_VARIANT = {f"{digit:x}": f"{8 + digit % 4:x}" for digit in range(16)}


def _shares(line_up: LineUp, decision_ids: Sequence[str]) -> list[tuple[Policy, list[int]]]:
    """The rows that each policy decides."""
    if line_up.candidate is None:
        return [(line_up.serving, list(range(len(decision_ids))))]
    takes = takes_candidate(decision_ids, line_up)
    rows = (np.flatnonzero(takes == whose).tolist() for whose in (False, True))
    return [share for share in zip((line_up.serving, line_up.candidate), rows, strict=True) if share[1]]


def _score_in_shadow(shadow: Policy, observations: np.ndarray, served: list[Decision], decided: Decided) -> None:
    try:
        probabilities = shadow.probabilities(observations, [decision.candidates for decision in served])
    except Exception as error:  # noqa: BLE001 - a shadow harms nobody
        _log.exception("policy %s does not decide in the shadow", shadow.card.version)
        decided.failures.append(f"{shadow.card.version}: {error}")
        return
    actions = exploration.draw(probabilities, [decision.decision_id for decision in served], shadow.card.version)
    for row, (decision, action) in enumerate(zip(served, actions.tolist(), strict=True)):
        decided.shadows.append(
            ShadowDecision(
                decision_id=decision.decision_id,
                decided_at=decision.decided_at,
                policy_version=shadow.card.version,
                action=action,
                propensity=float(probabilities[row, action]),
                served_action=decision.action,
                propensity_of_served=float(probabilities[row, decision.action]),
            )
        )


class Champion:
    """The policies that serve, and where the next ones come from.

    `source` is a policy folder (served for good) or a policy store, whose `champion.json` is followed. When a store's
    champion does not load at first, the version before it serves, or else the baseline; later on, the old line-up goes on
    serving. Either way `load_error` says so until it loads.
    """

    def __init__(self, source: Path | str, baseline: Path | None = None) -> None:
        """Raises InputError when `source` is neither; nothing is loaded yet.

        Args:
          source: where the policies are: a folder, or `gs://bucket/folder`.
          baseline: the folder of the declared safe policy; None for uniform over what is on offer.
        """
        self.line_up: LineUp | None = None
        self.swapped_at: datetime | None = None
        self.swaps = 0
        self.load_error: str | None = None
        self._place = storage.place(source)
        self._baseline_folder = baseline
        self._loaded: policies.Champion | None = None
        self._followed = not self._place.has(policies.CARD_NAME)
        if self._followed and not self._place.has(policies.CHAMPION_NAME):
            raise InputError(
                f"policy: {source} is neither a policy (it has no {policies.CARD_NAME}) "
                f"nor a policy store (it has no {policies.CHAMPION_NAME})"
            )

    def start(self) -> None:
        """The first load. Raises InputError when there is nothing to serve, not even a baseline."""
        try:
            self.refresh()
        except InputError as error:
            if not self._followed:
                raise
            self._fall_back(error)

    def refresh(self) -> None:
        """Loads what is to serve now, unless it serves already; tries it out, and only then lets it serve.

        Raises InputError, and the old line-up goes on serving, when that fails.
        """
        if not self._followed:
            if self.line_up is None:
                champion = _load(self._place.folder())
                self._swap(LineUp(champion, self._baseline(champion)))
            return
        pointer = self._read_pointer()
        if pointer != self._loaded:
            self._swap(self._assemble(pointer))
            self._loaded = pointer
        self.load_error = None

    async def follow(self, poll_seconds: float) -> None:
        """Swaps to each new champion, until cancelled. One that does not load leaves the old one serving."""
        wait = poll_seconds = max(poll_seconds, self._place.poll_seconds)
        while self._followed:
            await asyncio.sleep(wait)
            wait = poll_seconds
            try:
                await asyncio.to_thread(self.refresh)
            except InputError as error:
                if self.load_error != str(error):
                    _log.error("kept the policy that serves: %s", error)
                self.load_error, wait = str(error), max(poll_seconds, _RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the next policy, this one serves on
                _log.exception("kept the policy that serves")
                self.load_error, wait = repr(error), max(poll_seconds, _RETRY_SECONDS)

    def close(self) -> None:
        """Removes what was copied to be loaded; what serves goes on."""
        self._place.close()

    def _swap(self, line_up: LineUp) -> None:
        self.swaps += self.line_up is not None
        self.line_up, self.swapped_at = line_up, datetime.now(UTC)
        if self._followed:
            serving = (line_up.serving, line_up.candidate, line_up.shadow)
            self._place.keep([policy.card.version for policy in serving if policy])

    def _assemble(self, pointer: policies.Champion) -> LineUp:
        serving = self._version(pointer.version)
        baseline = self._baseline(serving)
        if pointer.mode == "apprentice":
            return LineUp(baseline, baseline, shadow=serving)
        if pointer.candidate is None:
            return LineUp(serving, baseline)
        candidate = self._version(pointer.candidate)
        _check_alike(candidate, serving)
        if pointer.mode == "shadow":
            return LineUp(serving, baseline, shadow=candidate)
        return LineUp(serving, baseline, candidate, pointer.candidate_share)

    def _version(self, version: str) -> Policy:
        """A policy of the store; one that serves already is not loaded again."""
        line_up = self.line_up
        for policy in (line_up.serving, line_up.candidate, line_up.shadow) if line_up else ():
            if policy is not None and policy.card.version == version:
                return policy
        folder = self._place.folder(version)
        policy = _load(folder)
        if policy.card.version != version:
            raise InputError(f"{folder / policies.CARD_NAME}: must be of version {version}, got {policy.card.version}")
        return policy

    def _baseline(self, policy: Policy) -> Policy:
        if self._baseline_folder is None:
            return policy_files.baseline(policy.card)
        baseline = _load(self._baseline_folder)
        _check_alike(baseline, policy)
        return baseline

    def _fall_back(self, error: InputError) -> None:
        """Something to serve although the champion does not load. Raises `error` when there is nothing."""
        try:
            pointer = self._read_pointer()
        except InputError:
            raise error from None
        if pointer.previous is not None:
            try:
                previous = self._version(pointer.previous)
                self._swap(LineUp(previous, self._baseline(previous)))
            except InputError as another:
                _log.error("the version before the champion does not load either: %s", another)
        if self.line_up is None:
            try:
                card = policy_files.read_card(self._place.folder(pointer.version))
            except InputError:
                raise error from None
            baseline = policy_files.baseline(card)
            self._swap(LineUp(baseline, baseline))
        self.load_error = str(error)
        assert self.line_up is not None
        _log.error("%s serves instead of the champion: %s", self.line_up.serving.card.version, error)

    def _read_pointer(self) -> policies.Champion:
        return policies.decode_champion(
            self._place.read(policies.CHAMPION_NAME), f"{self._place}/{policies.CHAMPION_NAME}"
        )


def _load(folder: Path) -> Policy:
    """A policy that has decided once: the first call of anything is its slowest, and one that cannot is found out."""
    policy = policy_files.load(folder)
    try:
        choose(policy, np.zeros((1, policy.card.observation_dim), np.float32), [[]], [_WARM_UP])
    except ValueError as error:
        raise InputError(f"{folder}: does not decide: {error}") from None
    return policy


def _check_alike(candidate: Policy, champion: Policy) -> None:
    for name in ("observation_dim", "num_actions"):
        ours, theirs = getattr(candidate.card, name), getattr(champion.card, name)
        if ours != theirs:
            raise InputError(
                f"{candidate.card.version}: {name} must be {theirs} as in {champion.card.version}, got {ours}"
            )
