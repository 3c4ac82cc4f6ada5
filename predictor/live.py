"""Live versions in the predictor: follows `<live>/versions/`, and applies what changed to the policy that serves.

A version is applied to a copy of what scoring reads, so the requests in hand keep theirs. The base serves wherever there
is no live version of it that may serve: before the first one, while the guard holds live learning, after a file that
cannot be read, when no new version has come for `live_age_seconds`, and when the version is refused.

Each version is judged before it serves, by the model of the anchor, or of the base where there is no anchor, on the
observations of the last requests: it is refused if that model expects it to lose more than `max_live_loss`, see
`expected_loss`. The base serves until there are enough observations to judge on.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from contracts import live_versions, policy_arrays
from contracts.errors import InputError, OperationError
from contracts.live_versions import CONTROL_NAME, VERSIONS_NAME, Kind, LiveVersion
from contracts.policies import CARD_NAME, split_version
from contracts.policy_arrays import Scorer
from predictor import policy as policy_files
from predictor.policy import Policy
from predictor.storage import Bucket, Disk

_log = logging.getLogger(__name__)

JUDGED_ON = 64  # observations, the newest
_MIN_JUDGED_ON = 8
# How far the judge's model may be off before a loss counts. Its standard deviations are those for rewards with a noise of
# variance 1, and the loss is a mean over many observations.
_STANDARD_DEVIATIONS = 0.5
_LOOK_SECONDS = 1.0  # without the next delta for so long, a snapshot is looked for


class LiveServing(msgspec.Struct, frozen=True, kw_only=True):
    """How live versions serve; each field is a flag. The bounds are declared here alone."""

    live_age_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="live: the base serves when no new version has come for so long")
    ] = 10.0
    base_share: Annotated[
        float,
        Meta(
            ge=0,
            le=0.5,
            description="live: share of the decisions that the base keeps, by which live versions are watched",
        ),
    ] = 0.05
    max_live_loss: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="live: a version does not serve if the anchor's (or base's) model expects it to lose more than"
            " this share of the range of expected rewards",
        ),
    ] = 0.05


class LiveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What /health shows of live versions."""

    version: str | None  # the one that decides; None while the base does
    sequence: int  # of the last version applied; 0: none
    age_seconds: float | None  # since it came
    applied: int  # versions, since the server started
    refused: int  # of those, since the server started
    expected_loss: float | None  # of the version that was judged last, as a share of the range of expected rewards
    error: str | None  # why no live version decides


class LiveVersions:
    """The newest live version of a base; used by one thread at a time."""

    def __init__(self, place: Disk | Bucket, settings: LiveServing) -> None:
        """Reads nothing yet.

        Args:
          place: the folder `<live>`.
          settings: how long a version may serve.
        """
        self._place = place
        self._settings = settings
        self._base: Policy | None = None
        self._policy: Policy | None = None
        self._sequence = 0
        self._came_at = self._looked_at = -float("inf")  # by the monotonic clock
        self._applied = self._refused = 0
        self._recent: deque[list[float]] = deque(maxlen=JUDGED_ON)
        self._judged: Policy | None = None  # the version that `_loss` is of
        self._loss: float | None = None
        self._error: str | None = None
        self._too_old = False  # whether the newest snapshot was published before the last release
        self.anchor_alone = False  # whether the guard lets the anchor decide in the place of the base, too

    @property
    def base_share(self) -> float:
        """The share of the decisions that the base keeps."""
        return self._settings.base_share

    def observe(self, observations: Iterable[list[float]]) -> None:
        """Remembers the newest observations. May be called from another thread than the rest."""
        self._recent.extend(observations)

    def refresh(self, base: Policy, judge: Policy) -> Policy | None:
        """The live version that decides in the place of `base`; None while the base does.

        A file that cannot be read is logged, and is no exception.

        Args:
          base: the policy of the store that serves.
          judge: whose model judges a version before it serves.
        """
        if base is not self._base:
            self._forget()
            self._base = base
        try:
            error = self._follow(base)
        except (InputError, OperationError) as caught:
            self._forget()  # the next snapshot begins again
            error = str(caught)
        if error is None and self._policy is not None:
            age = time.monotonic() - self._came_at
            if age > self._settings.live_age_seconds:
                error = f"no live version for {age:.0f} s"
            else:
                error = self._judge(self._policy, judge)
        if error is not None and (self._error is None or _kind(error) != _kind(self._error)):
            _log.warning("%s serves without what was learned live: %s", base.card.version, error)
        self._error = error
        return self._policy if error is None else None

    def _judge(self, version: Policy, judge: Policy) -> str | None:
        """Why the version may not serve, if it may not."""
        if version is not self._judged:
            observations = np.array(list(self._recent), np.float32)
            if len(observations) < _MIN_JUDGED_ON:
                return f"too few observations to judge a version on: {len(observations)} of {_MIN_JUDGED_ON}"
            self._loss, self._judged = expected_loss(version, judge, observations), version
            self._refused += self._loss > self._settings.max_live_loss
        if self._loss is not None and self._loss > self._settings.max_live_loss:
            return (
                f"refused: {judge.card.version} expects a loss of {self._loss:.2f} of the range of rewards, above"
                f" {self._settings.max_live_loss:g}"
            )
        return None

    def status(self) -> LiveStatus:
        """What became of live versions so far."""
        policy = self._policy if self._error is None else None
        return LiveStatus(
            version=policy.card.version if policy else None,
            sequence=self._sequence,
            age_seconds=time.monotonic() - self._came_at if self._sequence else None,
            applied=self._applied,
            refused=self._refused,
            expected_loss=self._loss,
            error=self._error,
        )

    def _follow(self, base: Policy) -> str | None:
        """Applies what came. Returns why the base must decide, if it must."""
        not_before, self.anchor_alone = datetime.fromtimestamp(0, UTC), False
        if self._place.has(CONTROL_NAME):
            control = live_versions.decode_control(self._place.read(CONTROL_NAME), f"{self._place}/{CONTROL_NAME}")
            if control.held:
                self.anchor_alone = control.anchor_alone
                self._forget()
                return f"held: {control.reason}"
            not_before = control.changed_at  # what was learned before a release may be what was held
        scorer = base.scorer
        if not (isinstance(scorer, Scorer) and scorer.estimates_uncertainty):
            return "the policy has no arrays to which live versions could be applied"
        if self._policy is None:
            self._begin(base, scorer, not_before)
        while self._policy is not None and (name := self._next()) is not None:
            self._apply(self._read(name), base)
        now = time.monotonic()
        if self._policy is not None and now - max(self._came_at, self._looked_at) > _LOOK_SECONDS:
            self._looked_at = now
            self._begin(base, scorer, not_before)
        if self._policy is None and self._too_old:
            return f"no version since the release: {not_before.isoformat()}"
        return None

    def _next(self) -> str | None:
        name = live_versions.file_name(self._sequence + 1, "delta")
        return name if self._place.has(f"{VERSIONS_NAME}/{name}") else None

    def _begin(self, base: Policy, scorer: Scorer, not_before: datetime) -> None:
        """Applies the newest snapshot of the base, if it is newer than what is known."""
        files = live_versions.listed(self._place.names(VERSIONS_NAME))
        newest = max((sequence for sequence, kind in files if kind == "snapshot"), default=0)
        if newest <= self._sequence:
            return
        version = self._read(live_versions.file_name(newest, "snapshot"))
        self._too_old = version.published_at < not_before
        if version.base == base.card.version and not self._too_old:
            late = (datetime.now(UTC) - version.published_at).total_seconds()
            self._set(version, base, scorer)
            self._came_at -= max(late, 0.0)  # the server may have started long after it

    def _read(self, name: str) -> LiveVersion:
        where = f"{VERSIONS_NAME}/{name}"
        return live_versions.decode(self._place.read(where), f"{self._place}/{where}")

    def _apply(self, version: LiveVersion, base: Policy) -> None:
        """Applies the next delta. One of another base ends this chain: its trainer follows a pointer that is newer."""
        assert self._policy is not None and isinstance(self._policy.scorer, Scorer)
        if version.base != base.card.version:
            raise InputError(f"{version.version}: the live trainer has another base than {base.card.version}")
        self._set(version, base, self._policy.scorer)

    def _set(self, version: LiveVersion, base: Policy, scorer: Scorer) -> None:
        self._policy = apply(version, base, scorer)
        self._sequence = version.sequence
        self._came_at = time.monotonic()
        self._applied += 1

    def _forget(self) -> None:
        self._policy, self._sequence = None, 0
        self._came_at = self._looked_at = -float("inf")


def _kind(error: str) -> str:
    """The part of an error that does not change from one version to the next."""
    return error.partition(":")[0]


def expected_loss(version: Policy, judge: Policy, observations: np.ndarray) -> float:
    """How much less reward the judge's model expects of the version's best arms than of its own, at least.

    From the difference of the two arms half a standard deviation is subtracted, because a model overrates the arms that
    it prefers: to it, a version that learned more looks a little worse. The loss is a share of the mean difference of the
    best and the worst arm on offer, by the judge's model; 0 where all arms look alike.

    Args:
      version: a live version.
      judge: the anchor or the base.
      observations: [B, D] float32.
    """
    mean, std = judge.scores(observations)
    own, _ = version.scores(observations)
    if judge.active is not None:
        mean, std, own = mean[:, judge.active], std[:, judge.active], own[:, judge.active]
    rows = np.arange(len(mean))
    before, after = mean.argmax(axis=1), own.argmax(axis=1)
    unsure = _STANDARD_DEVIATIONS * np.hypot(std[rows, before], std[rows, after])
    loss = np.where(before == after, 0.0, mean[rows, before] - mean[rows, after] - unsure).mean()
    spread = float((mean.max(axis=1) - mean.min(axis=1)).mean())
    return max(float(loss), 0.0) / spread if spread else 0.0


def apply(version: LiveVersion, base: Policy, scorer: Scorer) -> Policy:
    """The live version, from the scorer of the version before it (a snapshot: of the base).

    Raises InputError if the version is of another shape than the base.
    """
    if (version.num_actions, version.width) != scorer.shape:
        wanted, found = scorer.shape, (version.num_actions, version.width)
        raise InputError(f"{version.version}: must have the shape {wanted} of {base.card.version}, got {found}")
    policy = Policy(msgspec.structs.replace(base.card, version=version.version), scorer.changed(version.changes))
    for name in ("active", "new", "on_offer", "action_of"):  # they depend on the base's card alone
        policy.__dict__[name] = getattr(base, name)
    return policy


def load(store: Path, live: Path, version: str) -> tuple[Policy, np.ndarray] | None:
    """A live version from the kept files, and the [K] interactions with each arm that it learned from.

    None if the base or one of the files on the way is gone, or if `version` is not the name of a live version. Raises
    InputError for a broken file.
    """
    base_version, sequence = split_version(version)
    folder, versions = store / base_version, live / VERSIONS_NAME
    if sequence is None or not ((folder / CARD_NAME).is_file() and versions.is_dir()):
        return None
    files = set(live_versions.listed([path.name for path in versions.iterdir()]))
    start = max((number for number, kind in files if kind == "snapshot" and number <= sequence), default=None)
    if start is None:
        return None
    steps: list[tuple[int, Kind]] = [(start, "snapshot")]
    steps += [(number, "delta") for number in range(start + 1, sequence + 1)]
    if not files.issuperset(steps):
        return None
    card = policy_files.read_card(folder)
    arrays = policy_arrays.read(folder, card)
    for step in steps:
        found = live_versions.read(versions / live_versions.file_name(*step))
        if found.base != base_version:
            return None
        arrays = arrays.changed(found.changes)
    return Policy(msgspec.structs.replace(card, version=version), Scorer(arrays)), arrays.num_samples
