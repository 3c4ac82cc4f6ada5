"""The routes of the server, over one explicit state."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import PolicyCard
from contracts.records import Decision, RewardEvent, Status, StatusEvent, encoder
from predictor import bodies, deciding, openapi
from predictor import metrics as metrics_text
from predictor.batcher import Batcher
from predictor.follower import PolicyFollower
from predictor.line_up import LineUp
from predictor.logs import Logs
from predictor.messages import (
    Instance,
    Prediction,
    PredictRequest,
    PredictResponse,
    Refusal,
    RewardsRequest,
    RewardsResponse,
    Slot,
    StatusesRequest,
    StatusesResponse,
)
from predictor.metrics import Metrics
from predictor.settings import Settings

REWARDS_ROUTE, ACTIVATE_ROUTE, CANCEL_ROUTE, METRICS_ROUTE = "/rewards", "/activate", "/cancel", "/metrics"
FEEDBACK_ROUTES = (REWARDS_ROUTE, ACTIVATE_ROUTE, CANCEL_ROUTE)  # what came of decisions
DOCS_ROUTES = ("/docs", "/docs/oauth2-redirect", "/openapi.json")

# BigQuery's daily partitions accept rows of about ten years back and one ahead; a time further off is a mistake anyway.
_OLDEST, _NEWEST = timedelta(days=-5 * 365), timedelta(days=1)
_ROOM_POLL_SECONDS = 0.005

_predict_decoder = msgspec.json.Decoder(PredictRequest)
_rewards_decoder = msgspec.json.Decoder(RewardsRequest)
_statuses_decoder = msgspec.json.Decoder(StatusesRequest)


@dataclass(frozen=True)
class State:
    """What the routes of one server work on."""

    settings: Settings
    follower: PolicyFollower
    logs: Logs
    metrics: Metrics
    batcher: Batcher


class Routes:
    """One method per route."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._limits = state.settings.limits

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes, with their documentation."""
        settings = self._state.settings
        app.post(settings.predict_route, **openapi.predict_route())(self.predict)
        app.post(REWARDS_ROUTE, **openapi.rewards_route())(self.rewards)
        app.post(ACTIVATE_ROUTE, **openapi.activate_route())(self.activate)
        app.post(CANCEL_ROUTE, **openapi.cancel_route())(self.cancel)
        app.get(settings.health_route, **openapi.health_route())(self.health)
        app.get(METRICS_ROUTE, **openapi.metrics_route())(self.prometheus)
        for route, answer in ((settings.health_route, self.health), (METRICS_ROUTE, self.prometheus)):
            app.head(route, include_in_schema=False)(answer)
        app.exception_handler(HTTPException)(refuse)
        app.exception_handler(Exception)(crash)

    async def predict(self, request: Request) -> Response:
        """Decides for each instance and logs the decisions."""
        asked = bodies.decode(_predict_decoder, await self.body(request))
        card, slates = await self.decide(asked.instances, asked.parameters.slate_size if asked.parameters else 1)
        return bodies.answer(PredictResponse([_prediction(slate, card.catalogue) for slate in slates]))

    async def body(self, request: Request) -> bytes:
        """The body of a request. Raises HTTPException as `bodies.read` does."""
        return await bodies.read(request, self._limits.max_body_bytes, self._limits.body_seconds)

    def line_up(self) -> LineUp:
        """The policies that decide now. Raises HTTPException 503 while there are none."""
        if (line_up := self._state.follower.line_up) is None:
            raise HTTPException(503, "no policy is loaded yet")
        return line_up

    async def decide(self, instances: Sequence[Instance], slate_size: int) -> tuple[PolicyCard, list[list[Decision]]]:
        """The card of the policy that serves, and a slate of logged decisions for each instance.

        Raises HTTPException: 400 for what cannot be decided, 413, 429 or 503 for what cannot be decided now.
        """
        limits = self._limits
        if len(instances) * slate_size > limits.max_instances:
            at_most = f"instances: must be at most {limits.max_instances} (times slate_size)"
            raise HTTPException(400, f"{at_most}, got {len(instances) * slate_size}")
        size = deciding.logged_bytes(instances, slate_size, self.line_up())
        if limits.on_overload == "block":
            await self._wait_for_room(size)
        try:
            return await self._state.batcher.decide(instances, slate_size, size)
        except InputError as error:
            raise HTTPException(400, str(error)) from None

    async def rewards(self, request: Request) -> Response:
        """Logs rewards."""
        sent = bodies.decode(_rewards_decoder, await self.body(request)).rewards
        now = datetime.now(UTC)
        await self.log(
            [
                RewardEvent(
                    decision_id=reward.decision_id,
                    occurred_at=_occurred(reward.occurred_at, now, f"rewards[{number}].occurred_at"),
                    reward=reward.reward,
                )
                for number, reward in enumerate(sent)
            ]
        )
        return bodies.answer(RewardsResponse(len(sent)), 202)

    async def activate(self, request: Request) -> Response:
        """Logs that decisions were shown."""
        return await self._statuses(request, "activated")

    async def cancel(self, request: Request) -> Response:
        """Logs that decisions must not count."""
        return await self._statuses(request, "cancelled")

    async def _statuses(self, request: Request, status: Status) -> Response:
        sent = bodies.decode(_statuses_decoder, await self.body(request))
        occurred_at = _occurred(sent.occurred_at, datetime.now(UTC), "occurred_at")
        await self.log(
            [StatusEvent(decision_id=one, occurred_at=occurred_at, status=status) for one in sent.decision_ids]
        )
        return bodies.answer(StatusesResponse(len(sent.decision_ids)), 202)

    async def log(self, events: Sequence[RewardEvent | StatusEvent]) -> None:
        """Logs and counts events. Raises HTTPException 413 or 429 if there is no room for them."""
        lines = encoder.encode_lines(events)
        # The client can send these events again, so they are refused rather than dropped.
        await self._wait_for_room(len(lines))
        self._state.logs.events.append(lines, len(events))
        for event in events:
            if isinstance(event, StatusEvent):
                self._state.metrics.statuses[event.status] += 1
            else:
                self._state.metrics.rewards += 1

    async def health(self, request: Request) -> Response:
        """What serves, and what became of the events; 503 until a policy serves.

        If operations have keys, a request without one learns the status alone.
        """
        follower, logs, line_up = self._state.follower, self._state.logs, self._state.follower.line_up
        status = "loading" if line_up is None else "degraded" if follower.load_error else "ok"
        keys = self._state.settings.operations_keys
        if keys is not None and not keys.admit(request.headers.get("x-api-key", "").encode()):
            return bodies.answer({"status": status}, 200 if line_up else 503)
        return bodies.answer(
            {
                "status": status,
                "policy_version": line_up.serving.card.version if line_up else None,
                "candidate": line_up.candidate.card.version if line_up and line_up.candidate else None,
                "candidate_share": line_up.candidate_share if line_up else 0.0,
                "shadow": line_up.shadow.card.version if line_up and line_up.shadow else None,
                "anchor": line_up.anchor.card.version if line_up and line_up.anchor else None,
                "anchor_share": line_up.anchor_share if line_up else 0.0,
                "live": follower.live.status() if follower.live else None,
                "swapped_at": follower.swapped_at,
                "swaps": follower.swaps,
                "fallbacks": self._state.metrics.fallbacks,
                "load_error": follower.load_error,
                "events": logs.events.counters(),
                "shadows": logs.shadows.counters(),
                "published": logs.publisher.status() if logs.publisher else None,
            },
            200 if line_up else 503,
        )

    async def prometheus(self) -> Response:
        """The metrics in Prometheus' text format."""
        follower, logs = self._state.follower, self._state.logs
        published = logs.publisher.status() if logs.publisher else None
        degraded = follower.load_error is not None
        text = metrics_text.render(
            self._state.metrics,
            logs.events.counters(),
            follower.swaps,
            degraded,
            published,
            follower.line_up,
            follower.live.status() if follower.live else None,
        )
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _wait_for_room(self, size: int) -> None:
        """Returns once the event log has room for `size` bytes beside those reserved for the requests in hand.

        Raises HTTPException: 413 for more than the whole buffer, 429 if there is no room (with `--on-overload block`:
        not within `body_seconds`).
        """
        if size > self._limits.buffer_bytes:
            reason = f"body: its events may take {size} bytes, the event log's buffer has {self._limits.buffer_bytes}"
            raise HTTPException(413, f"{reason}; send it in parts")
        now = asyncio.get_running_loop().time
        deadline = now() + self._limits.body_seconds
        while not self._state.logs.events.has_room(self._state.batcher.expected_bytes + size):
            if self._limits.on_overload == "drop" or now() > deadline:
                raise HTTPException(429, "the event log is full, try again later", {"retry-after": "1"})
            await asyncio.sleep(_ROOM_POLL_SECONDS)


def _occurred(moment: datetime | None, now: datetime, field: str) -> datetime:
    """When an event occurred. Raises HTTPException 400 that names `field` for a time that must be a mistake."""
    if moment is not None and not now + _OLDEST <= moment <= now + _NEWEST:
        allowed = "must be of the last five years, and at most a day ahead"
        raise HTTPException(400, f"{field}: {allowed}, got {moment.isoformat()}")
    return moment or now


async def refuse(_: Request, error: HTTPException) -> Response:
    """The answer to a request that was refused."""
    return bodies.answer(Refusal(str(error.detail)), error.status_code, error.headers)


async def crash(_: Request, error: Exception) -> Response:
    """The answer to a request that met a bug; the log has its traceback."""
    return bodies.answer(Refusal("the server failed; the reason is in its log"), 500)


def _prediction(slate: list[Decision], catalogue: list[Item]) -> Prediction:
    first = slate[0]
    item_id, title = _item(first, catalogue)
    return Prediction(
        decision_id=first.decision_id,
        action=first.action,
        propensity=first.propensity,
        policy_version=first.policy_version,
        item_id=item_id,
        title=title,
        slate=[_slot(decision, catalogue) for decision in slate] if len(slate) > 1 else [],
        slate_propensity=math.prod(decision.propensity for decision in slate) if len(slate) > 1 else None,
    )


def _slot(decision: Decision, catalogue: list[Item]) -> Slot:
    item_id, title = _item(decision, catalogue)
    return Slot(
        decision_id=decision.decision_id,
        action=decision.action,
        propensity=decision.propensity,
        item_id=item_id,
        title=title,
    )


def _item(decision: Decision, catalogue: list[Item]) -> tuple[str | None, str | None]:
    if not catalogue:
        return None, None
    item = catalogue[decision.action]
    return item.item_id, item.title
