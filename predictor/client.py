"""A typed client for applications: asks for actions and sends their rewards.

    with Client("http://localhost:8080") as client:
        prediction = client.predict([Instance([0.1, -0.4, …], user_id="u17")])[0]
        client.reward(prediction.decision_id, 4.5)

It imports no heavy library. A client has one connection, so give each thread its own client.
"""

import http.client
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from contracts.errors import InputError
from predictor.messages import (
    Instance,
    Parameters,
    Prediction,
    PredictRequest,
    PredictResponse,
    Refusal,
    RewardsRequest,
    RewardsResponse,
    SentReward,
    StatusesRequest,
    StatusesResponse,
)

T = TypeVar("T")

_AGAIN = (429, 503)  # the server took nothing


class RefusedError(Exception):
    """The server refused the request, and would refuse it again. `status` is the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


class UnavailableError(Exception):
    """The server did not answer within the client's attempts."""


class Client:
    """Talks to one predictor.

    A prediction is requested again only if the server made none: no connection, an idle connection that was closed, a
    server that is busy or not ready. Otherwise the log would hold a decision that no user saw. A reward is sent again
    whenever its arrival is uncertain: copies have the same time, by which the join recognises them.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 10.0,
        attempts: int = 5,
        api_key: str | None = None,
        predict_route: str = "/predict",
    ) -> None:
        """Raises InputError for a url that is not `http(s)://host[:port]`; connects with the first request."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"url: must be http://host:port, got {url!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_seconds)
        self._attempts = attempts
        self._predict_route = predict_route
        self._headers = {"content-type": "application/json"} | ({"x-api-key": api_key} if api_key else {})

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next request would open another."""
        self._connection.close()

    def predict(self, instances: Sequence[Instance], slate_size: int = 1) -> list[Prediction]:
        """One prediction per instance, in order.

        Raises:
          RefusedError: the request is wrong; the message says why.
          UnavailableError: no server answered, it stayed too busy, or the connection was lost during the answer.
        """
        parameters = Parameters(slate_size) if slate_size != 1 else None
        body = msgspec.json.encode(PredictRequest(list(instances), parameters))
        return self._post(self._predict_route, body, PredictResponse, safe_to_repeat=False).predictions

    def reward(self, decision_id: str, reward: float, occurred_at: datetime | None = None) -> None:
        """Sends the reward of a decision, which occurred at `occurred_at`, or now. Same errors as `predict`."""
        self.rewards([SentReward(decision_id, reward, occurred_at)])

    def rewards(self, rewards: Sequence[SentReward]) -> int:
        """Sends many rewards and returns their number. Same errors as `predict`."""
        now = datetime.now(UTC)  # fixed once, so that a copy has the same time
        timed = [msgspec.structs.replace(reward, occurred_at=reward.occurred_at or now) for reward in rewards]
        body = msgspec.json.encode(RewardsRequest(timed))
        return self._post("/rewards", body, RewardsResponse, safe_to_repeat=True).accepted

    def activate(self, decision_ids: Sequence[str], occurred_at: datetime | None = None) -> int:
        """Says that deferred decisions were shown, at `occurred_at` or now. Returns their number. Same errors as `predict`."""
        return self._statuses("/activate", decision_ids, occurred_at)

    def cancel(self, decision_ids: Sequence[str], occurred_at: datetime | None = None) -> int:
        """Says that decisions must not count. Returns their number. Same errors as `predict`."""
        return self._statuses("/cancel", decision_ids, occurred_at)

    def _statuses(self, route: str, decision_ids: Sequence[str], occurred_at: datetime | None) -> int:
        body = msgspec.json.encode(StatusesRequest(list(decision_ids), occurred_at or datetime.now(UTC)))
        return self._post(route, body, StatusesResponse, safe_to_repeat=True).accepted

    def _post(self, route: str, body: bytes, answer: type[T], safe_to_repeat: bool) -> T:
        problem = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, 5.0))
            kept = self._connection.sock is not None
            try:
                if not kept:
                    self._connection.connect()
            except OSError as error:
                problem = f"cannot connect: {error}"
                continue
            try:
                self._connection.request("POST", route, body, self._headers)
                response = self._connection.getresponse()
                data = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                problem = f"the connection was lost: {error!r}"
                # A kept connection that ends without a byte was closed while idle, or by a server that stops.
                if not safe_to_repeat and not (kept and isinstance(error, ConnectionError)):
                    break
                continue
            if response.status in _AGAIN:
                problem = f"{response.status}: {_reason(data)}"
                continue
            if response.status >= 400:
                raise RefusedError(response.status, _reason(data))
            return msgspec.json.decode(data, type=answer)
        raise UnavailableError(problem)


def _reason(data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=Refusal).error
    except msgspec.DecodeError:
        return data[:200].decode("latin-1")
