import concurrent.futures
import http.client
import json
import logging
import re
import socket
import sys
import time

import psutil
import pytest

from predictor.guard import JsonFormatter
from tests.linear_policies import write_policy
from tests.predictor.test_app import RIGHT, Load, logged, observe
from tests.servers import predictor


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard") / "v1"
    write_policy(folder)
    return folder


def address(server):
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def test_more_requests_at_a_time_than_may_be_are_turned_away(policy, tmp_path):
    with predictor(policy, tmp_path / "events", "--max-in-flight", "4", "--body-seconds", "3") as server:
        slow = [socket.create_connection(address(server)) for _ in range(4)]
        for connection in slow:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        while b"predictor_in_flight 4.0" not in server.read("/metrics"):
            time.sleep(0.01)
        message = "4 requests are in hand already, try again later"
        for _ in range(3):
            assert server.post("/predict", {"instances": [RIGHT]}) == (429, {"error": message})
        assert server.get("/health").status == 200
        for connection in slow:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
            connection.close()
        assert server.post("/predict", {"instances": [RIGHT]}).status == 200


def test_a_flood_of_anything_leaves_the_server_as_it_was(policy, tmp_path):
    deep = b'{"instances":' + b"[" * 200_000
    bodies = [b"x" * 2_000_000, deep, b"{}", json.dumps({"instances": [RIGHT]}).encode(), b"\xff" * 1000]
    with predictor(policy, tmp_path / "events", "--max-in-flight", "8") as server:

        def flood(number):
            statuses = set()
            for i in range(25):
                connection = http.client.HTTPConnection(*address(server), timeout=30)
                connection.request("POST", ("/predict", "/rewards")[i % 2], bodies[(number + i) % len(bodies)])
                response = connection.getresponse()
                assert re.fullmatch(rb'\{"(error|predictions)":.*\}', response.read(), re.DOTALL)
                statuses.add(response.status)
                connection.close()
            return statuses

        process = psutil.Process(server.process.pid)
        sizes = []
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            for _ in range(4):
                seen = set().union(*pool.map(flood, range(32)))
                assert seen <= {200, 400, 413, 429}
                sizes.append(process.memory_info().rss)
        assert sizes[-1] - sizes[0] < 40e6, sizes
        assert server.get("/health").body["events"]["dropped"] == 0
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


def test_overload_of_the_event_log(policy, tmp_path):
    """A buffer too small for a request stands for a disk that is too slow."""
    body = {"instances": [{"observation": observation} for observation in observe(20)]}
    rewards = {"rewards": [{"decision_id": "01a20375-ec4c-785b-98a2-17b9d72932ef", "reward": 1}] * 20}
    with predictor(policy, tmp_path / "a", "--buffer-bytes", "500") as server:
        assert server.post("/predict", body).status == 200  # answered, not logged, counted
        assert server.post("/rewards", rewards).status == 413  # could never fit
        events = server.get("/health").body["events"]
        assert (events["logged"], events["dropped"]) == (20, 20)
    with predictor(
        policy, tmp_path / "b", "--buffer-bytes", "500", "--on-overload", "block", "--body-seconds", "0.2"
    ) as server:
        for route, sent in (("/predict", body), ("/rewards", rewards)):  # could never fit, so waiting would be in vain
            reply = server.post(route, sent)
            assert reply.status == 413
            assert re.fullmatch(
                r"body: its events may take \d+ bytes, the event log's buffer has 500; send it in parts",
                reply.body["error"],
            )
        assert server.get("/health").body["events"]["logged"] == 0


def test_a_full_event_log_that_blocks_loses_nothing_of_requests_that_come_together(policy, tmp_path):
    """Room for about two requests, and eight clients: all wait for their turn, and each decision is logged."""
    flags = ("--buffer-bytes", "8000", "--on-overload", "block", "--segment-seconds", "0.1")
    with predictor(policy, tmp_path / "events", *flags) as server:
        load = Load(server, clients=8, instances=5)
        load.wait_for(1000)
        load.stop()
        assert load.failures == []
        assert server.get("/health").body["events"]["dropped"] == 0
        assert server.stop() == 0
    assert sorted(one.decision_id for one in logged(tmp_path / "events")) == sorted(
        one["decision_id"] for one in load.answered
    )


def test_request_id_comes_back(policy, tmp_path):
    with predictor(policy, tmp_path / "events", "--log-level", "info", "--log-format", "json") as server:
        connection = http.client.HTTPConnection(*address(server), timeout=30)
        for given, expected in (("abc-1", "abc-1"), ("a b", None), (None, None)):
            connection.request("POST", "/predict", b"{}", {"x-request-id": given} if given else {})
            response = connection.getresponse()
            response.read()
            received = response.headers["x-request-id"]
            assert received == expected if expected else re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", received)
        connection.close()
        while server.stderr().count('"refused"') < 3:  # written after the answer is
            time.sleep(0.01)
        refused = [json.loads(line) for line in server.stderr().splitlines() if '"refused"' in line]
        assert [line["status"] for line in refused] == [400, 400, 400]
        assert refused[0]["request_id"] == "abc-1"
        assert refused[0]["route"] == "/predict"


def test_json_lines_keep_the_traceback_in_one():
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, __file__, 1, "failed %s", ("x",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["severity"], parsed["message"]) == ("ERROR", "failed x")
    assert parsed["stack_trace"].endswith("ValueError: no")


SHOP = "https://shop.example"


def sent_from_a_page(server, origin, path, body=None, method="POST"):
    """The status and the headers of the answer to a request that a browser sends from a page of `origin`."""
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    headers = {"content-type": "application/json", "origin": origin, "sec-fetch-site": "cross-site"}
    if method == "OPTIONS":
        headers |= {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-api-key"}
    else:
        headers["x-api-key"] = "sesame"
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}


def test_pages_of_a_named_origin_may_send_what_came_of_decisions(policy, tmp_path):
    (tmp_path / "key").write_text("sesame\n")
    flags = ("--cors-origin", SHOP, "--cors-origin", "http://localhost:3000", "--api-key-file", str(tmp_path / "key"))
    with predictor(policy, tmp_path / "events", *flags) as server:
        own = http.client.HTTPConnection(*address(server), timeout=30)
        own.request("POST", "/predict", json.dumps({"instances": [RIGHT]}), {"x-api-key": "sesame"})
        decision = json.loads(own.getresponse().read())["predictions"][0]["decision_id"]
        own.close()
        bodies = {
            "/rewards": {"rewards": [{"decision_id": decision, "reward": 1}]},
            "/activate": {"decision_ids": [decision]},
            "/cancel": {"decision_ids": [decision]},
        }
        for path, body in bodies.items():
            for origin in (SHOP, "http://localhost:3000"):
                status, headers = sent_from_a_page(server, origin, path, method="OPTIONS")
                assert (status, headers["access-control-allow-origin"], headers["vary"]) == (204, origin, "origin")
                assert headers["access-control-allow-methods"] == "POST"
                assert {"content-type", "x-api-key"} == set(headers["access-control-allow-headers"].split(", "))
                status, headers = sent_from_a_page(server, origin, path, body)
                assert (status, headers["access-control-allow-origin"]) == (202, origin)
            for origin in ("https://evil.example", "null", SHOP + ".evil.example"):
                for method in ("OPTIONS", "POST"):
                    status, headers = sent_from_a_page(server, origin, path, body, method)
                    assert status in (401, 403, 405)
                    assert "access-control-allow-origin" not in headers
        # A page reads why its request was refused; predictions stay closed to it.
        status, headers = sent_from_a_page(server, SHOP, "/rewards", {"rewards": [{"decision_id": "x", "reward": 1}]})
        assert (status, headers["access-control-allow-origin"]) == (400, SHOP)
        for method in ("OPTIONS", "POST"):
            status, headers = sent_from_a_page(server, SHOP, "/predict", {"instances": [RIGHT]}, method)
            assert status in (401, 403, 405) and "access-control-allow-origin" not in headers


def test_without_the_flag_no_page_may(policy, tmp_path):
    with predictor(policy, tmp_path / "events") as server:
        assert sent_from_a_page(server, SHOP, "/rewards", method="OPTIONS")[0] in (403, 405)
        status, headers = sent_from_a_page(server, SHOP, "/rewards", {"rewards": []})
        assert status == 403 and "access-control-allow-origin" not in headers
