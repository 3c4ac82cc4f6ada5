"""Azure Personalizer's Rank, Reward and Activate, single and multi-slot, over the predictor's own routes.

A Rank is a decision, a multi-slot Rank a slate. A client that works with Personalizer works with these routes if its
endpoint is this server (`predictor.personalizer` says what bodies mean). Events are found by their id alone, so any server of
several can take a Reward, with one exception: which slots a deferred multi-slot event has is known to the server that ranked
it, which therefore has to activate it.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from contracts.errors import InputError
from contracts.records import Decision, RewardEvent, StatusEvent
from predictor import bodies, deciding, personalizer
from predictor.line_up import LineUp
from predictor.personalizer import (
    ErrorResponse,
    MultiSlotRankRequest,
    MultiSlotRankResponse,
    MultiSlotRewardRequest,
    PersonalizerError,
    RankedSlot,
    RankRequest,
    RankResponse,
    RewardRequest,
)
from predictor.policy import Policy
from predictor.routes import Routes

DEFERRED_KEPT = 100_000  # multi-slot events that may still be activated
_CODES = {400: "BadArgument", 404: "EventNotFound", 413: "RequestTooLarge", 429: "TooManyRequests"}

T = TypeVar("T", bound=msgspec.Struct)
_Route = Callable[..., Awaitable[Response]]


class PersonalizerRoutes:
    """One method per route."""

    def __init__(self, routes: Routes, behaviour: Literal["online", "apprentice"]) -> None:
        """With `apprentice`, Rank answers the application's own choice: the first action that is not excluded."""
        self._routes = routes
        self._apprentice = behaviour == "apprentice"
        self._slots: OrderedDict[str, list[str]] = OrderedDict()  # of deferred multi-slot events

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes, with and without a version of the API in their paths."""
        for prefix in (personalizer.PREFIX, f"{personalizer.PREFIX}/{{version}}"):
            for path, answer in (
                ("/rank", self.rank),
                ("/events/{event_id:path}/reward", self.reward),
                ("/events/{event_id:path}/activate", self.activate),
                ("/multislot/rank", self.rank_slots),
                ("/multislot/events/{event_id:path}/reward", self.reward_slots),
                ("/multislot/events/{event_id:path}/activate", self.activate_slots),
            ):
                app.post(prefix + path, include_in_schema=False)(_answered(answer))

    async def rank(self, request: Request) -> Response:
        """Decides for one event."""
        asked = await self._decoded(request, RankRequest)
        line_up = self._routes.line_up()
        event_id, offered = asked.event_id or _new_id(), personalizer.offered(asked)
        candidates = offered[:1] if self._apprentice else offered
        instance = personalizer.instance(asked, line_up.serving, event_id, candidates)
        _, [[decision]] = await self._routes.decide([instance], 1)
        policy = _decider(decision, line_up, self._routes.line_up())
        chances = personalizer.probabilities(decision, policy)
        chosen = personalizer.item_id(decision.action, policy)
        ranked = personalizer.ranking(asked, chosen, offered, chances)
        return bodies.answer(RankResponse(ranked, event_id, chosen), 201)

    async def rank_slots(self, request: Request) -> Response:
        """Decides for each slot of an event, among the actions that the slots before it left."""
        asked = await self._decoded(request, MultiSlotRankRequest)
        slots = [slot.id for slot in asked.slots]
        if self._apprentice:
            raise InputError("slots: apprentice mode ranks one slot per event, got a multi-slot event")
        if len(set(slots)) != len(slots):
            raise InputError(f"slots: ids must differ, got {slots}"[:200])
        if excluding := next((slot for slot in asked.slots if slot.excluded_actions), None):
            raise InputError(
                f"slots.excludedActions: none expected, as all slots have the same actions, got some in slot"
                f" {excluding.id!r:.80}"
            )
        policy, event_id = self._routes.line_up().serving, asked.event_id or _new_id()
        instance = personalizer.instance(asked, policy, event_id, personalizer.offered(asked))
        card, [slate] = await self._routes.decide([instance], len(slots))
        if asked.defer_activation:
            self._slots[event_id] = slots
            if len(self._slots) > DEFERRED_KEPT:
                self._slots.popitem(last=False)
        chosen = [card.catalogue[one.action].item_id if card.catalogue else str(one.action) for one in slate]
        ranked = [RankedSlot(slot, action) for slot, action in zip(slots, chosen, strict=True)]
        return bodies.answer(MultiSlotRankResponse(ranked, event_id), 201)

    async def reward(self, request: Request, event_id: str) -> Response:
        """Logs the reward of an event."""
        sent = await self._decoded(request, RewardRequest)
        return await self._logged([_reward(personalizer.decision_id(event_id), sent.value)])

    async def reward_slots(self, request: Request, event_id: str) -> Response:
        """Logs the rewards of slots of an event."""
        sent = await self._decoded(request, MultiSlotRewardRequest)
        return await self._logged(
            [_reward(personalizer.decision_id(event_id, one.slot_id), one.value) for one in sent.reward]
        )

    async def activate(self, _: Request, event_id: str) -> Response:
        """Logs that an event was shown."""
        return await self._logged([_activated(personalizer.decision_id(event_id))])

    async def activate_slots(self, _: Request, event_id: str) -> Response:
        """Logs that all slots of an event were shown."""
        if (slots := self._slots.get(event_id)) is None:
            raise HTTPException(
                404, f"eventId: a deferred multi-slot event of this server expected, got {event_id!r:.80}"
            )
        return await self._logged([_activated(personalizer.decision_id(event_id, slot)) for slot in slots])

    async def _decoded(self, request: Request, kind: type[T]) -> T:
        return bodies.decode(msgspec.json.Decoder(kind), await self._routes.body(request))

    async def _logged(self, events: list[RewardEvent | StatusEvent]) -> Response:
        await self._routes.log(events)
        return Response(status_code=204)


def _answered(answer: _Route) -> _Route:
    """The route, with refusals in the form that Personalizer's clients read."""

    async def route(request: Request) -> Response:
        named = {name: value for name, value in request.path_params.items() if name != "version"}
        try:
            return await answer(request, **named)
        except InputError as error:
            status, reason, headers = 400, str(error), None
        except HTTPException as error:
            status, reason, headers = error.status_code, str(error.detail), error.headers
        code = _CODES.get(status, "BadRequest" if status < 500 else "InternalServerError")
        return bodies.answer(ErrorResponse(PersonalizerError(code, _in_their_words(reason))), status, headers)

    return route


def _in_their_words(reason: str) -> str:
    """A refusal of the predict route with the names of the fields that this client sent."""
    for ours, theirs in (
        ("instances[0].context.", "contextFeatures."),
        ("instances[0].observation", "contextFeatures.observation"),
        ("instances[0].candidates", "actions"),
        ("parameters.slate_size", "slots"),
        ("instances[0]", "request"),
    ):
        reason = reason.replace(ours, theirs)
    return reason


def _decider(decision: Decision, *line_ups: LineUp) -> Policy:
    """The policy that made the decision: of the line-up before it or after it, as a swap may have come between."""
    for line_up in line_ups:
        for policy in (*line_up, line_up.live, line_up.baseline):
            if policy is not None and policy.card.version == decision.policy_version:
                return policy
    raise HTTPException(503, "the policies were swapped meanwhile, try again")


def _new_id() -> str:
    """A new event id, which is the id of its decision too."""
    return deciding.new_decision_ids(time.time_ns() // 1_000_000, 1)[0]


def _reward(decision_id: str, value: float) -> RewardEvent:
    return RewardEvent(decision_id=decision_id, occurred_at=datetime.now(UTC), reward=value)


def _activated(decision_id: str) -> StatusEvent:
    return StatusEvent(decision_id=decision_id, occurred_at=datetime.now(UTC), status="activated")
