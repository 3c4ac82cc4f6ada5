"""Decides requests that arrive together in one pass.

The cost of a small prediction is mostly a fixed cost per pass: a pass over eight requests takes little longer than over
one. So all requests that the event loop has read when it starts to decide share a pass. No request waits for another to
arrive: a single one is decided one turn of the event loop later, and requests that were read during that turn join it.
Batching never changes a decision's probabilities.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.errors import InputError
from contracts.policies import PolicyCard
from contracts.records import Decision, encoder
from predictor import deciding
from predictor.deciding import Asked, Decided
from predictor.event_log import EventLog
from predictor.follower import PolicyFollower
from predictor.line_up import LineUp
from predictor.messages import Instance
from predictor.metrics import Metrics

# Scores per pass on the event loop, so that it stays responsive; a request for more is decided in a thread.
_LONG_WORK = 50_000

Slates = list[list[Decision]]


@dataclass(frozen=True, slots=True)
class _Request:
    instances: Sequence[Instance]
    slate_size: int
    work: int
    answer: "asyncio.Future[tuple[PolicyCard, Slates]]"


class Batcher:
    """Decides, logs and counts; used by the event loop alone."""

    def __init__(
        self,
        follower: PolicyFollower,
        events: EventLog,
        shadows: EventLog,
        metrics: Metrics,
        any_length: bool = False,
    ) -> None:
        """Nothing is decided yet; `any_length`: see `deciding.check`."""
        self._any_length = any_length
        self.expected_bytes = 0  # reserved in the event log for the requests in hand
        self._follower = follower
        self._events = events
        self._shadows = shadows
        self._metrics = metrics
        self._waiting: list[_Request] = []

    async def decide(self, instances: Sequence[Instance], slate_size: int, size: int) -> tuple[PolicyCard, Slates]:
        """The card of the policy that serves, and a slate of logged decisions for each instance.

        One line-up serves the whole request, even if a swap happens meanwhile. There must be one.

        Args:
          instances: of one request.
          slate_size: places per instance.
          size: at most how many bytes of events this leads to, see `deciding.logged_bytes`.

        Raises:
          InputError: see `deciding.check`.
        """
        self.expected_bytes += size
        try:
            line_up = self._line_up()
            work = slate_size * sum(line_up.serving.scored(len(instance.candidates)) for instance in instances)
            if work > _LONG_WORK:
                asked = deciding.check(instances, line_up, slate_size, self._any_length)
                decided = await asyncio.to_thread(deciding.decide, line_up, asked, slate_size)
                self._log(decided)
                return line_up.serving.card, decided.slates
            loop = asyncio.get_running_loop()
            request = _Request(instances, slate_size, work, loop.create_future())
            if not self._waiting:
                loop.call_soon(loop.call_soon, self._decide_waiting)  # a turn later
            self._waiting.append(request)
            return await request.answer
        finally:
            self.expected_bytes -= size

    def _line_up(self) -> LineUp:
        line_up = self._follower.line_up
        assert line_up is not None
        return line_up

    def _decide_waiting(self) -> None:
        requests = self._next_requests()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._decide_waiting)
        line_up = self._line_up()  # read once per pass
        batches: dict[int, list[tuple[_Request, list[Asked]]]] = {}
        for request in requests:
            try:
                asked = deciding.check(request.instances, line_up, request.slate_size, self._any_length)
            except InputError as error:
                _refuse(request, error)
            else:
                batches.setdefault(request.slate_size, []).append((request, asked))
        for slate_size, batch in batches.items():
            try:
                self._decide_together(line_up, batch, slate_size)
            except Exception as error:  # noqa: BLE001 - each waiting request raises it
                for request, _ in batch:
                    _refuse(request, error)

    def _next_requests(self) -> list[_Request]:
        work = count = 0
        while count < len(self._waiting) and work <= _LONG_WORK:
            work += self._waiting[count].work
            count += 1
        requests, self._waiting = self._waiting[:count], self._waiting[count:]
        return requests

    def _decide_together(self, line_up: LineUp, batch: list[tuple[_Request, list[Asked]]], slate_size: int) -> None:
        instances = [instance for _, asked in batch for instance in asked]
        decided = deciding.decide(line_up, instances, slate_size)
        if decided.failures and len(batch) > 1:
            # One request may have made the policy fail: decided one by one, only that one gets the baseline.
            for one in batch:
                self._decide_together(line_up, [one], slate_size)
            return
        self._log(decided)
        begin = 0
        for request, _ in batch:
            end = begin + len(request.instances)
            if not request.answer.done():  # it is cancelled when the server stops
                request.answer.set_result((line_up.serving.card, decided.slates[begin:end]))
            begin = end

    def _log(self, decided: Decided) -> None:
        decisions = [decision for slate in decided.slates for decision in slate]
        self._events.append(encoder.encode_lines(decisions), len(decisions))
        if decided.shadows:
            self._shadows.append(encoder.encode_lines(decided.shadows), len(decided.shadows))
        self._metrics.decided(decisions)
        if self._follower.live is not None:
            wanted = self._line_up().serving.card.observation_dim
            sent = (slate[0].observation for slate in decided.slates if slate)
            self._follower.live.observe(observation for observation in sent if len(observation) == wanted)
        self._metrics.shadows += len(decided.shadows)
        self._metrics.fallbacks += len(decided.failures)


def _refuse(request: _Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)
