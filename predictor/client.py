"""A typed client for applications: ask for actions, send back what came of them.

    with Client("http://localhost:8080") as client:
        prediction = client.predict([Instance([0.1, -0.4, …], user_id="u17")])[0]
        client.reward(prediction.decision_id, 4.5)

Needs nothing but this package's light ones. One client, one connection: give each thread its own.
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
)

T = TypeVar("T")

_AGAIN = (429, 503)  # nothing was taken


class RefusedError(Exception):
    """The server refused the request; sending the same again would change nothing. `status` is its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


class UnavailableError(Exception):
    """No answer within the attempts that the client makes."""


class Client:
    """Talks to one predictor.

    A prediction is asked for again only when there is none yet (no connection, an idle one that was closed, too busy,
    not ready): a second one would leave the first in the log as a decision that nobody saw. A reward is sent again whenever it is not
    certain that it arrived: copies of it are told apart from others by their time.
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
        """One prediction an instance, in order.

        Raises:
          RefusedError: the server says what is wrong with the request.
          UnavailableError: no server, or it stays too busy, or it was lost while it answered.
        """
        parameters = Parameters(slate_size) if slate_size != 1 else None
        body = msgspec.json.encode(PredictRequest(list(instances), parameters))
        return self._post(self._predict_route, body, PredictResponse, safe_to_repeat=False).predictions

    def reward(self, decision_id: str, reward: float, occurred_at: datetime | None = None) -> None:
        """Tells what came back for a decision; now, unless `occurred_at` says when. Same errors as `predict`."""
        self.rewards([SentReward(decision_id, reward, occurred_at)])

    def rewards(self, rewards: Sequence[SentReward]) -> int:
        """Many at once; returns how many were taken, which is all. Same errors as `predict`."""
        now = datetime.now(UTC)  # fixed here, so that a copy is known for one
        timed = [msgspec.structs.replace(reward, occurred_at=reward.occurred_at or now) for reward in rewards]
        body = msgspec.json.encode(RewardsRequest(timed))
        return self._post("/rewards", body, RewardsResponse, safe_to_repeat=True).accepted

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
                # A kept connection that ends without a byte is one that was closed while idle, or by a server that stops.
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
