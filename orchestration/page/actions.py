"""What a person can do on the page: look into a decision, be a viewer, roll back, hold and release."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from contracts.errors import InputError, OperationError
from contracts.records import utc_microseconds
from orchestration import policy_store
from orchestration.audit import guard
from orchestration.event_tail import find, moment_of
from orchestration.loop import truth
from orchestration.page.explain import Explainer, Explanation
from orchestration.page.sources import Sources
from orchestration.page.state import Rewarded
from orchestration.page.viewers import Audience, RewardFollower, Sent, curl
from predictor.messages import Instance, PredictRequest, PredictResponse, RewardsRequest, SentReward

REQUEST_TIMEOUT_SECONDS = 10.0
_REWARDS_WITHIN = timedelta(minutes=2)
ASKED_KEPT = 100


class Recommended(msgspec.Struct, frozen=True, kw_only=True):
    """What the predictor answered, and the requests with which a terminal would do the same."""

    decision_id: str
    item: str
    propensity: float
    policy_version: str
    decided_at: datetime
    curl: str
    curl_reward: str


class Actions:
    """Acts on what lies below the root of `sources`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._explainer = Explainer(sources.folder.policies, sources.folder.live)
        self._followed = RewardFollower(sources)
        self._asked: dict[str, str] = {}  # items by decision id
        self._audience: Audience | None = None

    def rewarded(self) -> list[Rewarded]:
        """What became of the rewards that were given here."""
        return self._followed.rewarded()

    def explain(self, decision_id: str) -> Explanation:
        """How a logged decision came about. Raises InputError for one that is not in the log, or cannot be replayed."""
        try:
            moment = moment_of(decision_id)
        except (ValueError, OverflowError, IndexError):
            raise InputError(f"decision_id: a UUIDv7 expected, got {decision_id[:80]!r}") from None
        logged = find(self._sources.folder.events, decision_id, moment, _REWARDS_WITHIN)
        if logged is None:
            raise InputError(f"decision_id: {decision_id[:80]} is not in the event log")
        return self._explainer.explain(logged.decision, logged.rewards)

    def viewers(self) -> dict[str, Any]:
        """The viewers that can be picked, and the items that a new one can rate."""
        catalogue = self._sources.catalogue()
        return {
            "user_ids": self._known_audience().user_ids(),
            "items": [item.name for item in catalogue],
        }

    def viewer(self, user_id: int) -> dict[str, Any]:
        """What policies see of a viewer. Raises InputError for an unknown one."""
        return {"observation": self._known_audience().observation(user_id)}

    def make_viewer(self, ratings: dict[int, float]) -> dict[str, Any]:
        """What policies would see of a viewer with these ratings. Raises InputError for an unknown item."""
        return {"observation": self._known_audience().observation_of(ratings)}

    def recommend(self, observation: list[float], user_id: str | None) -> Recommended:
        """What the policy that serves chooses. Raises InputError when the predictor refuses, OperationError without one."""
        request = PredictRequest([Instance(observation, self._user_of(observation, user_id))])
        answer = msgspec.json.decode(self._post("/predict", request), type=PredictResponse).predictions[0]
        item = answer.title or answer.item_id or f"item {answer.action}"
        self._asked[answer.decision_id] = item
        if len(self._asked) > ASKED_KEPT:
            self._asked.pop(next(iter(self._asked)))
        reward = RewardsRequest([SentReward(answer.decision_id, 4.0)])
        return Recommended(
            decision_id=answer.decision_id,
            item=item,
            propensity=answer.propensity,
            policy_version=answer.policy_version,
            decided_at=moment_of(answer.decision_id),
            curl=curl(self._predictor(), "/predict", request),
            curl_reward=curl(self._predictor(), "/rewards", reward),
        )

    def reward(self, decision_id: str, reward: float) -> dict[str, Any]:
        """Rewards a recommendation of this page. Raises InputError for another one."""
        item = self._asked.get(decision_id)
        if item is None:
            raise InputError("decision_id: one that was recommended on this page expected")
        sent_at = datetime.now(UTC)
        with self._written_down(decision_id, reward, sent_at):
            self._post("/rewards", RewardsRequest([SentReward(decision_id, reward, sent_at)]))
        self._followed.add(Sent(decision_id=decision_id, item=item, reward=reward, sent_at=sent_at))
        return {"accepted": 1}

    def roll_back(self, reason: str) -> dict[str, Any]:
        """Makes the version before serve again. Raises InputError when there is none."""
        champion = policy_store.roll_back(self._sources.folder.policies, f"by hand: {reason}", datetime.now(UTC))
        return {"serves": champion.version}

    def hold(self, reason: str) -> dict[str, Any]:
        """Stops training and promotion. Raises InputError when they are held already."""
        return {"held": guard.hold(self._sources.folder, f"by hand: {reason}", datetime.now(UTC)).held}

    def release(self, reason: str) -> dict[str, Any]:
        """Ends a hold. Raises InputError when nothing is held."""
        return {"held": guard.release(self._sources.folder, f"by hand: {reason}", datetime.now(UTC)).held}

    def _user_of(self, observation: list[float], user_id: str | None) -> str | None:
        """The user, unless it is a viewer of the run with another observation: its decisions would seem to be lost."""
        if user_id is None or not user_id.isdecimal() or self._sources.settings() is None:
            return user_id
        audience = self._known_audience()
        known = int(user_id) in audience.user_ids()
        return None if known and audience.observation(int(user_id)) != observation else user_id

    @contextlib.contextmanager
    def _written_down(self, decision_id: str, reward: float, sent_at: datetime) -> Iterator[None]:
        """Writes the reward into the truth, as every viewer does: in the report it would seem to be another's."""
        settings = self._sources.settings()
        if settings is None:
            yield
            return
        late = (sent_at - moment_of(decision_id)).total_seconds() > settings.reward_window_seconds
        occurred_at = utc_microseconds(sent_at)
        log = truth.TruthLog(self._sources.folder.truth / "page.jsonl")
        try:
            log.append([truth.OfferedReward(decision_id, reward, occurred_at)])
            yield
            now = datetime.now(UTC).timestamp()
            log.append([truth.SentReward(decision_id, reward, occurred_at, now, "late" if late else "")])
        finally:
            log.close()

    def _known_audience(self) -> Audience:
        if self._audience is None:
            settings = self._sources.settings()
            if settings is None:
                raise InputError("viewers: a run of the loop has them; here, give an observation")
            self._audience = Audience(settings)
        return self._audience

    def _predictor(self) -> str:
        running = self._sources.running()
        if running is None or running.predictor is None:
            raise OperationError("the predictor does not run")
        return running.predictor

    def _post(self, path: str, body: object) -> bytes:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self._predictor() + path, msgspec.json.encode(body), headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            raise InputError(f"the predictor: {error.read()[:500].decode(errors='replace')}") from None
        except OSError as error:
            raise OperationError(f"the predictor does not answer: {error}") from None
