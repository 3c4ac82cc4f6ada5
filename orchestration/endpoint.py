"""What a predictor says it serves, and waiting until that is a given policy."""

import http.client
import time
import urllib.request

import msgspec

from contracts.errors import InputError

SWAP_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 10.0


def wait_until_served(endpoint: str, version: str) -> None:
    """Returns once the predictor at `endpoint` says that it serves `version`. Raises InputError when it does not."""
    deadline = time.monotonic() + SWAP_TIMEOUT_SECONDS
    while True:
        try:
            if (found := served(endpoint)) == version:
                return
            problem = InputError(
                f"endpoint: {endpoint} still serves {found} after {SWAP_TIMEOUT_SECONDS:g} s, not {version}"
            )
        except InputError as error:  # it may be back in time
            problem = error
        if time.monotonic() > deadline:
            raise problem
        time.sleep(0.05)


def served(endpoint: str) -> str:
    """The policy that the predictor at `endpoint` says it serves. Raises InputError when it is gone, or is none."""
    answer = b""
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_SECONDS) as response:
            answer = response.read()
        return msgspec.json.decode(answer, type=_Health).policy_version
    except msgspec.DecodeError:
        raise InputError(f"endpoint: {endpoint} is no predictor: its /health says {answer.decode()!r:.200}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and HTTPError are OSErrors
        raise InputError(f"endpoint: {endpoint} is gone: {error}") from None


class _Health(msgspec.Struct):
    policy_version: str
