"""Which policies serve: reads the pointer of a policy store, loads what it names, and swaps to it while requests go on.

A swap replaces `PolicyFollower.line_up` as a whole. A request reads it once, so it never mixes two line-ups.
"""

import asyncio
import dataclasses
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import numpy as np

from contracts import policies
from contracts.errors import InputError, OperationError
from predictor import policy as policy_files
from predictor import storage
from predictor.deciding import choose
from predictor.line_up import LineUp, check_alike
from predictor.live import LiveVersions
from predictor.policy import Policy

_log = logging.getLogger(__name__)

_WARM_UP = str(UUID(int=0))  # the id of the decision with which a policy is tried out; it is not logged
_WITHDRAWN_SECONDS = 1.0
_RETRY_SECONDS = 1.0  # a policy that does not load may still be being copied


class PolicyFollower:
    """The current line-up, kept up to date with a policy store.

    `source` is one policy, which then serves until the process ends, or a policy store, whose `champion.json` is
    followed. If a store's champion does not load at the start, the version before it serves, or else the baseline. If a
    later one does not load, the current line-up goes on serving. If only one of a version on probation and its anchor
    loads, that one takes all decisions. `load_error` holds the reason until a load succeeds.

    With `live`, the newest live version of the policy that serves decides in its place, see `predictor.live`. After an alarm
    the anchor, where there is one, makes all decisions.
    """

    def __init__(self, source: Path | str, baseline: Path | None = None, live: LiveVersions | None = None) -> None:
        """Looks at `source`; loads nothing yet.

        Args:
          source: a folder, or `gs://bucket/folder`.
          baseline: the folder of the declared safe policy; None for uniform over the arms on offer.
          live: the live versions to follow, if any.

        Raises:
          InputError: `source` is neither a policy nor a policy store.
          OperationError: the bucket cannot be reached.
        """
        self.line_up: LineUp | None = None
        self.swapped_at: datetime | None = None
        self.swaps = 0
        self.load_error: str | None = None
        self._place = storage.place(source)
        self._baseline_folder = baseline
        self.live = live
        self._loaded: policies.Champion | None = None
        self._withdrawn: frozenset[str] = frozenset()
        self._next_look = 0.0  # at which items were withdrawn, by the monotonic clock
        self._followed = not self._place.has(policies.CARD_NAME)
        if self._followed and not self._place.has(policies.CHAMPION_NAME):
            raise InputError(
                f"policy: {source} is neither a policy (it has no {policies.CARD_NAME}) "
                f"nor a policy store (it has no {policies.CHAMPION_NAME})"
            )

    def start(self) -> None:
        """Loads the first line-up. Raises InputError or OperationError if not even the baseline can serve."""
        try:
            self.refresh()
        except (InputError, OperationError) as error:
            if not self._followed:
                raise
            if self.line_up is None:
                self._fall_back(error)
            else:  # of a version on probation and its anchor, one loads
                self.load_error = str(error)
                _log.error("%s serves alone: %s", self.line_up.serving.card.version, error)

    def refresh(self) -> None:
        """Loads what the pointer names and swaps to it, unless it serves already.

        Each new policy makes one trial decision first. Raises InputError or OperationError if one does not load; the
        current line-up then goes on serving, or that of a version on probation and its anchor which loads. Live versions
        are followed in either case.
        """
        self._refresh_withdrawn()
        try:
            self._refresh_policies()
        finally:
            self._refresh_live()

    def _refresh_withdrawn(self) -> None:
        """Reads which items were masked or retired since the policy was trained, once a second at most."""
        if not self._followed or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _WITHDRAWN_SECONDS
        try:
            data = self._place.read(policies.WITHDRAWN_NAME)
        except InputError:  # there is no such list
            data = b"[]"
        self._withdrawn = policies.decode_withdrawn(data, f"{self._place}/{policies.WITHDRAWN_NAME}")
        if self.line_up is not None and self.line_up.withdrawn != self._withdrawn:
            self.line_up = dataclasses.replace(self.line_up, withdrawn=self._withdrawn)

    def _refresh_live(self) -> None:
        if self.live is not None and (line_up := self.line_up) is not None:
            live = self.live.refresh(line_up.serving, line_up.anchor or line_up.serving)
            share = self.live.base_share if live is not None else 0.0
            anchor_share = line_up.anchor_share
            if line_up.anchor is not None and self._loaded is not None:
                anchor_share = 1.0 if self.live.anchor_alone else self._loaded.anchor_share
            if live is not line_up.live or anchor_share != line_up.anchor_share:
                self.line_up = dataclasses.replace(line_up, live=live, base_share=share, anchor_share=anchor_share)

    def _refresh_policies(self) -> None:
        if not self._followed:
            if self.line_up is None:
                champion = _load(self._place.folder())
                self._swap(LineUp(champion, self._baseline(champion)))
            return
        pointer = self._read_pointer()
        if pointer != self._loaded:
            line_up, missing = self._assemble(pointer)
            if (
                self.line_up is None
                or missing is None
                or line_up.deciding != dataclasses.replace(self.line_up, live=None).deciding
            ):
                self._swap(line_up)
            if missing is not None:
                raise missing
            self._loaded = pointer
        self.load_error = None

    async def follow(self, poll_seconds: float) -> None:
        """Refreshes every `poll_seconds` until cancelled. A failure is logged and shown in `load_error`, and tried again."""
        wait = poll_seconds = max(poll_seconds, self._place.poll_seconds)
        while self._followed or self.live is not None:
            await asyncio.sleep(wait)
            wait = poll_seconds
            try:
                await asyncio.to_thread(self.refresh)
            except (InputError, OperationError) as error:
                if self.load_error != str(error):
                    _log.error("the current policy goes on serving: %s", error)
                self.load_error, wait = str(error), max(poll_seconds, _RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 - a bug in loading must not end serving
                _log.exception("the current policy goes on serving")
                self.load_error, wait = repr(error), max(poll_seconds, _RETRY_SECONDS)

    def close(self) -> None:
        """Removes the policies that were copied to the disk. The line-up in memory can still serve."""
        self._place.close()

    def _swap(self, line_up: LineUp) -> None:
        self.swaps += self.line_up is not None
        self.line_up = dataclasses.replace(line_up, withdrawn=self._withdrawn)
        self.swapped_at = datetime.now(UTC)
        if self._followed:
            self._place.keep([policy.card.version for policy in line_up])

    def _assemble(self, pointer: policies.Champion) -> tuple[LineUp, InputError | OperationError | None]:
        """The line-up that the pointer names, and why a part of it is missing, if one is."""
        if pointer.anchor is not None:
            return self._assemble_probation(pointer.version, pointer.anchor, pointer.anchor_share)
        return self._assemble_trial(pointer), None

    def _assemble_probation(
        self, version: str, anchor_version: str, share: float
    ) -> tuple[LineUp, InputError | OperationError | None]:
        """The version on probation and its anchor; one of them alone if the other does not load."""
        try:
            anchor = self._version(anchor_version)
        except (InputError, OperationError) as error:
            serving = self._version(version)
            return LineUp(serving, self._baseline(serving)), error
        try:
            serving = self._version(version)
            check_alike(serving, anchor)
        except (InputError, OperationError) as error:
            return LineUp(anchor, self._baseline(anchor)), error
        return LineUp(serving, self._baseline(serving), anchor=anchor, anchor_share=share), None

    def _assemble_trial(self, pointer: policies.Champion) -> LineUp:
        serving = self._version(pointer.version)
        baseline = self._baseline(serving)
        candidate = None
        if pointer.candidate is not None and pointer.mode != "apprentice":
            candidate = self._version(pointer.candidate)
            check_alike(candidate, serving)
        match pointer.mode:
            case "apprentice":
                return LineUp(baseline, baseline, shadow=serving)
            case "shadow":
                return LineUp(serving, baseline, shadow=candidate)
            case "canary":
                return LineUp(serving, baseline, candidate, pointer.candidate_share if candidate else 0.0)
            case _:
                raise InputError(
                    f"champion.mode: must be canary, shadow, apprentice or probation, got {pointer.mode!r}"
                )

    def _version(self, version: str) -> Policy:
        """The policy of the store with this version, loaded unless it serves already."""
        for policy in self.line_up or ():
            if policy.card.version == version:
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
        check_alike(baseline, policy)
        if policy_files.in_common(baseline, policy) is not None:
            # It must be able to decide whatever is on offer.
            _log.warning("the baseline %s knows other items: uniform choice steps in", baseline.card.version)
            return policy_files.baseline(policy.card)
        return baseline

    def _fall_back(self, error: InputError | OperationError) -> None:
        """Serves the version before the champion, or else the baseline. Raises `error` if neither can be loaded."""
        try:
            pointer = self._read_pointer()
        except (InputError, OperationError):
            raise error from None
        if pointer.previous is not None:
            try:
                previous = self._version(pointer.previous)
                self._swap(LineUp(previous, self._baseline(previous)))
            except (InputError, OperationError) as another:
                _log.error("the version before the champion does not load either: %s", another)
        if self.line_up is None:
            try:
                card = policy_files.read_card(self._place.folder(pointer.version))
            except (InputError, OperationError):
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
    """The policy in `folder`, after one trial decision: it shows that the policy works, and later ones are faster.

    Raises InputError.
    """
    policy = policy_files.load(folder)
    try:
        choose(policy, np.zeros((1, policy.card.observation_dim), np.float32), [[]], [_WARM_UP])
    except ValueError as error:
        raise InputError(f"{folder}: does not decide: {error}") from None
    return policy
