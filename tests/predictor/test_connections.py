import contextlib
import http.client
import json
import re
import resource
import socket
import time

import psutil
import pytest

from predictor import connections
from tests.linear_policies import write_policy
from tests.servers import predictor

BODY = b'{"instances":[{"observation":[1,2,3]}]}'
REQUEST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("connections") / "v1"
    write_policy(folder)
    return folder


@pytest.fixture(scope="module")
def server(policy, tmp_path_factory):
    """One that gives its clients a second."""
    with predictor(policy, tmp_path_factory.mktemp("served") / "events", "--body-seconds", "1") as running:
        yield running


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def everything(connection):
    """What comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def ask(connection, request=REQUEST):
    """A prediction, whole; `request` is what is still to be sent of it."""
    connection.sendall(request)
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.status == 200
    response.read()


def refusal(received):
    """Status and reason of the one answer in `received`."""
    head, body = received.split(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize("what", [b"a" * 1_000_000, b"a: b\r\n" * 100_000])
def test_a_head_without_end_is_cut_off_and_takes_no_memory(server, what):
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with connect(server) as connection, pytest.raises(OSError, match=r"reset|pipe"):
        connection.sendall(b"POST /predict HTTP/1.1\r\nx: ")
        for _ in range(50):
            connection.sendall(what)
    assert process.memory_info().rss - before < 20e6


def test_a_head_that_is_too_long_is_refused_with_the_reason(server):
    with connect(server) as connection:
        connection.sendall((b"GET /health HTTP/1.1\r\n" + b"x: a\r\n" * 20_000)[:65_537])
        assert refusal(everything(connection)) == (431, "headers: must be at most 65536 bytes")


def drip(connection, begin, drop):
    """Sends `begin`, then `drop` after `drop`, until something comes back; that, or nothing when it is closed."""
    connection.sendall(begin)
    connection.settimeout(0.05)
    while True:
        with contextlib.suppress(TimeoutError):
            return connection.recv(65536)
        with contextlib.suppress(OSError):
            connection.send(drop)


def test_a_slow_head_is_refused_however_it_drips(server):
    late = (408, "headers: must arrive within 1 seconds")
    with connect(server) as silent, connect(server) as half, connect(server) as second:
        half.sendall(b"POST /pre")
        ask(second)  # the second head of a connection is no better off than the first
        assert refusal(drip(second, b"GET / HTTP/1.1\r\na: ", b"a")) == late
        assert refusal(everything(half)) == late
        assert everything(silent) == b""
    with connect(server) as breaks:
        ask(breaks)
        assert refusal(drip(breaks, b"\r\n", b"\r\n")) == late


def test_a_slow_body_is_refused_however_it_drips(server):
    late = (408, "body: must arrive within 1 seconds")
    begin = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
    with connect(server) as silent, connect(server) as second:
        silent.sendall(begin)
        ask(second)  # the second body of a connection is no better off than the first
        assert refusal(drip(second, begin, b" ") + everything(second)) == late
        assert refusal(everything(silent)) == late
    with connect(server) as behind:
        behind.sendall(REQUEST + begin)
        answered, refused = everything(behind).split(b"HTTP/1.1 ")[1:]
        assert answered.startswith(b"200 ")
        assert refusal(b"HTTP/1.1 " + refused) == late
    assert b'predictor_requests_total{route="/predict",status="408"} 3.0' in server.read("/metrics")


def test_a_body_that_comes_in_pieces_is_taken(server):
    with connect(server) as connection:
        for piece in (REQUEST[:-20], REQUEST[-20:-5]):
            connection.sendall(piece)
            time.sleep(0.1)
        ask(connection, REQUEST[-5:])
        time.sleep(1.5)  # nothing is owed any more
        ask(connection)


def test_an_idle_connection_is_kept_once_it_has_asked(server):
    with connect(server) as kept, connect(server) as silent:
        ask(kept)
        assert everything(silent) == b""  # closed after its second, and so would be the other
        ask(kept)


def test_what_is_not_http_is_refused_with_the_reason(server):
    for data, reason in [
        (b"\x16\x03\x01\x02\x00", "not a request in HTTP/1.1: Invalid method encountered"),
        (REQUEST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), "not a request in HTTP/1.1: "),
        (REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), "not a request in HTTP/1.1: "),
    ]:
        with connect(server) as connection:
            connection.sendall(data)
            status, given = refusal(everything(connection))
            assert status == 400
            assert given.startswith(reason)
    assert "WARNING" not in server.stderr()  # or a flood would fill the log
    assert b'predictor_requests_total{route="other",status="400"}' in server.read("/metrics")


def test_pipelined_requests_are_answered_in_order_and_not_without_end(server):
    with connect(server) as connection:
        connection.sendall(REQUEST * 50)
        received = b""
        while received.count(b"decision_id") < 50:
            received += connection.recv(65536)
        numbers = [int(number, 16) for number in re.findall(rb"x-request-id: \w+-(\w+)", received)]
        assert numbers == sorted(numbers)
    with connect(server) as connection:
        connection.sendall(REQUEST * 500)
        reason = "not a request in HTTP/1.1: more than 100 requests wait on this connection"
        assert refusal(everything(connection)) == (400, reason)


def test_answers_that_nobody_takes_hold_up_nobody(server):
    body = json.dumps({"instances": [{"observation": [1, 2, 3]}] * 1000}).encode()
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with connect(server) as connection:
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(request)
        deadline = time.monotonic() + 30
        while b"predictor_in_flight 0.0" not in server.read("/metrics"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_body_that_was_answered_before_its_end_is_not_waited_for(policy, tmp_path):
    (tmp_path / "key").write_text("secret")
    with (
        predictor(
            policy, tmp_path / "events", "--body-seconds", "1", "--api-key-file", str(tmp_path / "key")
        ) as server,
        connect(server) as connection,
    ):
        connection.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{")
        assert refusal(everything(connection)) == (401, "x-api-key: is missing or wrong")


def test_a_new_connection_takes_the_place_of_the_longest_idle_one(policy, tmp_path):
    with predictor(policy, tmp_path / "events", "--max-connections", "3") as server, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(server)) for _ in range(3))
        for connection in (first, second, third, first):  # now the second has been idle longest
            ask(connection)
        ask(stack.enter_context(connect(server)))
        assert everything(second) == b""
        ask(first)
        ask(third)
        metrics = server.read("/metrics")  # on a connection of its own, in the place of another
        assert re.search(rb"predictor_replaced_connections_total [2-9]", metrics)


def test_connections_in_use_are_not_replaced(policy, tmp_path):
    begin = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
    with predictor(policy, tmp_path / "events", "--max-connections", "3") as server, contextlib.ExitStack() as stack:
        used = [stack.enter_context(connect(server)) for _ in range(3)]
        for connection in used:
            connection.sendall(begin)
        with connect(server) as another:
            assert refusal(everything(another)) == (503, "3 connections are in use already")


def test_idle_connections_keep_no_probe_out(policy, tmp_path):
    """Twice as many connections as there may be ask once and stay."""
    with predictor(policy, tmp_path / "events", "--max-connections", "50") as server, contextlib.ExitStack() as stack:
        for _ in range(100):
            ask(stack.enter_context(connect(server)))
        assert server.get("/health").status == 200


def test_operations_have_a_port_and_connections_of_their_own(policy, tmp_path):
    flags = ("--operations-port", "0", "--max-connections", "1")
    with predictor(policy, tmp_path / "events", *flags) as server, connect(server) as only:
        begin = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
        only.sendall(begin)
        operations = server.operations()
        assert operations.get("/health").body["status"] == "ok"
        assert b"predictor_in_flight" in operations.read("/metrics")
        assert operations.post("/predict", BODY).status == 404
    with predictor(policy, tmp_path / "more", "--operations-port", "0") as server:
        assert server.get("/metrics").status == server.get("/openapi.json").status == server.get("/docs").status == 404
        assert server.get("/health").status == server.post("/predict", BODY).status == 200


def test_files_are_left_for_what_is_no_connection():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert connections.limit(1.0, 1000).connections == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1128
        assert connections.limit(1.0, hard).connections == hard - 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("offer", [UPGRADE, UPGRADE.replace(b"h2c", b"websocket"), UPGRADE.upper()])
def test_an_offer_of_another_protocol_is_not_taken(server, offer):
    """As Java's client makes it with every first request, and curl with --http2."""
    offering = REQUEST.replace(b"Host: x\r\n", b"Host: x\r\n" + offer)
    with connect(server) as connection:
        ask(connection, offering)
        ask(connection)  # and it goes on
        for byte in offering[:-1]:
            connection.sendall(bytes([byte]))
        ask(connection, offering[-1:])
        connection.sendall(offering * 3 + REQUEST.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
        answers = everything(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:4] for answer in answers] == [b"200 "] * 4


@pytest.mark.parametrize("where", [b"x:80", b"http://x/predict", b"*"])
@pytest.mark.parametrize("offer", [b"", UPGRADE])
def test_a_tunnel_is_refused(server, where, offer):
    with connect(server) as connection:
        connection.sendall(b"CONNECT " + where + b" HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n" + REQUEST)
        status, _ = refusal(everything(connection))
        assert status == 400


def test_many_offers_at_once_are_refused(server):
    offering = REQUEST.replace(b"Host: x\r\n", b"Host: x\r\n" + UPGRADE)
    with connect(server) as connection:
        connection.sendall(offering * 500)  # fewer than the buffers between hold
        assert b"more than 100 requests wait on this connection" in everything(connection)
    with connect(server) as connection:
        ask(connection)
