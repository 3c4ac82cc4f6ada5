import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from contracts.errors import InputError, OperationError
from orchestration import endpoint
from orchestration.processes import free_port


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server whose /health gives one answer after the other, and the last one from then on; yields its URL."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(200 if answer else 503)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def health(version: str) -> bytes:
    return f'{{"policy_version": "{version}"}}'.encode()


def test_it_waits_while_the_predictor_loads_and_then_swaps():
    checks: list[int] = []
    with answering(b"", health("v1"), health("v2")) as url:
        endpoint.wait_until_served(url, "v2", 30, lambda: checks.append(1))
        assert endpoint.served(url + "/") == "v2"
    assert len(checks) == 2


def test_another_version_is_a_failed_operation_that_names_both():
    with answering(health("v1")) as url, pytest.raises(OperationError) as caught:
        endpoint.wait_until_served(url, "v2", 0.1)
    assert str(caught.value) == f"endpoint: {url} still serves v1 after 0.1 s, not v2"


def test_a_predictor_that_is_gone_is_a_failed_operation():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(OperationError, match=f"^endpoint: {url} does not answer: .*Connection refused"):
        endpoint.wait_until_served(url, "v2", 0.1)
    with answering(b"") as loading, pytest.raises(OperationError, match="does not answer: HTTP Error 503"):
        endpoint.served(loading)


def test_what_is_not_a_predictor_is_wrong_input():
    with answering(b"<html>") as url, pytest.raises(InputError, match=f"^endpoint: {url} is not a predictor: .*<html>"):
        endpoint.served(url)
    with pytest.raises(InputError, match="endpoint: must be http://host:port, got 'nowhere'"):
        endpoint.served("nowhere")


def test_waiting_ends_when_its_check_fails():
    def crashed() -> None:
        raise OperationError("predictor was ended by SIGKILL")

    with answering(health("v1")) as url, pytest.raises(OperationError, match="SIGKILL"):
        endpoint.wait_until_served(url, "v2", 600, crashed)
