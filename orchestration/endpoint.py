"""Which policy a predictor serves, and waiting until it serves a given one."""

import http.client
import urllib.request
from collections.abc import Callable

import msgspec

from contracts.errors import InputError, OperationError
from orchestration.processes import wait_until
from predictor.live import LiveStatus

SWAP_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 10.0


def wait_until_served(
    endpoint: str,
    version: str,
    timeout_seconds: float = SWAP_TIMEOUT_SECONDS,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Returns once the predictor at `endpoint` reports that it serves `version`.

    Args:
      endpoint: the predictor's URL.
      version: a policy version.
      timeout_seconds: how long to wait.
      check: called while waiting; raises an exception when waiting longer is pointless.

    Raises OperationError when the predictor serves another version or does not answer within the time-out, and
    InputError when `endpoint` is not a predictor.
    """
    problem: Exception | None = None

    def is_served() -> bool:
        nonlocal problem
        try:
            found = served(endpoint)
        except (InputError, OperationError) as error:  # it may answer in time
            problem = error
            return False
        problem = OperationError(
            f"endpoint: {endpoint} still serves {found} after {timeout_seconds:g} s, not {version}"
        )
        return found == version

    if not wait_until(is_served, timeout_seconds, check):
        assert problem is not None
        raise problem


def served(endpoint: str) -> str:
    """The version of the policy that the predictor at `endpoint` serves; the base where a live version decides.

    Raises OperationError when the predictor does not answer, or has no policy yet, and InputError when `endpoint` is not
    a predictor.
    """
    return _health(endpoint).policy_version


def live_status(endpoint: str) -> LiveStatus | None:
    """The state of live versions at the predictor; None if it follows none. Raises the errors of `served`."""
    return _health(endpoint).live


def _health(endpoint: str) -> "_Health":
    answer = b""
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_SECONDS) as response:
            answer = response.read()
        return msgspec.json.decode(answer, type=_Health)
    except msgspec.DecodeError:
        raise InputError(
            f"endpoint: {endpoint} is not a predictor: its /health answers {answer.decode(errors='replace')!r:.200}"
        ) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise InputError(f"endpoint: must be http://host:port, got {endpoint!r} ({error})") from None
    except (OSError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
        raise OperationError(f"endpoint: {endpoint} does not answer: {error}") from None


class _Health(msgspec.Struct):
    policy_version: str
    live: LiveStatus | None = None
