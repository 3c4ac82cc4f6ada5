import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from contracts import event_segments, policies
from contracts.policies import Exploration
from contracts.records import Decision, RewardEvent, event_decoder
from predictor import deciding
from predictor import policy as policy_files
from tests.linear_policies import point_at, write_policy
from tests.servers import predictor

REWARDED = "01a20375-ec4c-785b-98a2-17b9d72932ef"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_policy(folder / "v1", seed=1)
    write_policy(folder / "v2", seed=2)
    point_at(folder, "v1")
    return folder


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    """One that many tests share: none of them may change what it serves."""
    with predictor(store / "v1", tmp_path_factory.mktemp("served") / "events", "--body-seconds", "1") as running:
        yield running


def logged(folder):
    return [
        event_decoder.decode(line)
        for path in event_segments.sealed_segments(folder)
        for line in path.read_bytes().splitlines()
    ]


def observe(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3)).tolist()


def test_each_answer_is_a_logged_decision(store, tmp_path):
    with predictor(store / "v1", tmp_path / "events") as server:
        observations = observe(20)
        reply = server.post(
            "/predict",
            {
                "instances": [
                    {"observation": observation, "user_id": f"u{i}", "candidates": [1, 3] if i % 2 else []}
                    for i, observation in enumerate(observations)
                ],
                "parameters": {},
            },
        )
        assert reply.status == 200
        predictions = reply.body["predictions"]
        sent = [
            {"decision_id": predictions[0]["decision_id"], "reward": 4.5},
            {"decision_id": REWARDED, "reward": -1, "occurred_at": "2026-11-22T10:00:00.5+01:00"},
        ]
        before = time.time()
        assert server.post("/rewards", {"rewards": sent}) == (202, {"accepted": 2})
        after = time.time()
        health = server.get("/health")
        assert health.status == 200
        assert health.body["policy_version"] == "v1"
        assert health.body["events"]["logged"] == 22
        assert server.stop() == 0
    events = logged(tmp_path / "events")
    decisions = [event for event in events if isinstance(event, Decision)]
    rewards = [event for event in events if isinstance(event, RewardEvent)]
    assert event_segments.open_segments(tmp_path / "events") == []
    assert [decision.observation for decision in decisions] == observations
    assert [decision.user_id for decision in decisions] == [f"u{i}" for i in range(20)]
    assert predictions == [
        {
            "decision_id": decision.decision_id,
            "action": decision.action,
            "propensity": decision.propensity,
            "policy_version": "v1",
            "item_id": str(100 + decision.action),
            "title": f"Movie {decision.action}",
        }
        for decision in decisions
    ]
    replayed = deciding.replay(policy_files.load(store / "v1"), decisions)
    assert replayed == ([d.action for d in decisions], [d.propensity for d in decisions])
    assert before <= rewards[0].occurred_at.timestamp() <= after
    assert (rewards[1].decision_id, rewards[1].reward) == (REWARDED, -1.0)
    assert rewards[1].occurred_at.isoformat() == "2026-11-22T10:00:00.500000+01:00"


RIGHT = {"observation": [1, 2, 3]}
WRONG_PREDICTS = [
    (b"", 400, "Input data was truncated"),
    (b'{"instances":[{"observation":[1,2,3],"user_id":"\xff"}]}', 400, ""),
    (b"nonsense", 400, "JSON is malformed: invalid character"),
    (b"[]", 400, "Expected `object`, got `array`"),
    ({}, 400, "Object missing required field `instances`"),
    ({"instances": []}, 400, "instances: Expected `array` of length >= 1, got []"),
    ({"instances": [RIGHT] * 1025}, 400, "instances: must be at most 1024 (times slate_size), got 1025"),
    ({"instances": [RIGHT, {"observation": [1, 2]}]}, 400, "instances[1].observation: must have 3 numbers, got 2"),
    ({"instances": [{"observation": []}]}, 400, "instances[0].observation: Expected `array` of length >= 1, got []"),
    (
        {"instances": [{"observation": [1, 2, "x"]}]},
        400,
        "instances[0].observation[2]: Expected `float`, got `str`, got 'x'",
    ),
    ({"instances": [RIGHT | {"candidates": [5]}]}, 400, "instances[0].candidates: must be below 5, got 5"),
    ({"instances": [RIGHT | {"candidates": [1, 1]}]}, 400, "instances[0].candidates: must differ, got one twice"),
    ({"instances": [RIGHT | {"candidates": [-1]}]}, 400, "instances[0].candidates[0]: Expected `int` >= 0, got -1"),
    (
        {"instances": [RIGHT | {"canditates": [1]}]},
        400,
        "instances[0]: Object contains unknown field `canditates`, got",
    ),
    (b'{"instances":[{"observation":[1,2,NaN]}]}', 400, "JSON is malformed: invalid character"),
    (b'{"instances":[{"observation":[1,2,1e39]}]}', 400, "instances[0].observation[2]: Expected `float` <= 3.40"),
    (b'{"instances":[{"observation":[1,2,1e999]}]}', 400, "Number out of range"),
    (b'{"parameters":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, 400, ""),
    (b'{"instances":[{"observation":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}", 400, ""),
    (b'{"instances":' + b"[" * 100_000, 400, ""),
    (b'"' + b"x" * 1_500_000 + b'"', 413, "body: must be at most 1500000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), WRONG_PREDICTS)
def test_wrong_predicts_are_refused_with_the_reason_and_not_logged(server, body, status, message):
    before = server.get("/health").body["events"]["logged"]
    reply = server.post("/predict", body)
    assert reply.status == status
    assert reply.body["error"].startswith(message)
    assert list(reply.body) == ["error"]
    assert server.get("/health").body["events"]["logged"] == before


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"decision_id": "x", "reward": 1}, "rewards[0].decision_id: Expected `str` of length >= 36"),
        ({"decision_id": REWARDED, "reward": "much"}, "rewards[0].reward: Expected `float`, got `str`, got 'much'"),
        ({"decision_id": REWARDED}, "rewards[0]: Object missing required field `reward`"),
        (
            {"decision_id": REWARDED, "reward": 1, "occurred_at": "2026-11-22T10:00:00"},
            "rewards[0].occurred_at: Expected `datetime` with a timezone component",
        ),
        (
            {"decision_id": REWARDED, "reward": 1, "occurred_at": "1650-01-01T00:00:00Z"},
            "rewards[0].occurred_at: must be of the last five years, and at most a day ahead, got 1650-01-01T",
        ),
        (
            {"decision_id": REWARDED, "reward": 1, "occurred_at": "9999-12-31T23:59:59Z"},
            "rewards[0].occurred_at: must be of the last five years, and at most a day ahead, got 9999-12-31T",
        ),
    ],
)
def test_wrong_rewards(server, reward, message):
    reply = server.post("/rewards", {"rewards": [reward]})
    assert reply.status == 400
    assert reply.body["error"].startswith(message)


def test_unknown_routes_and_methods(server):
    assert server.get("/nothing") == (404, {"error": "Not Found"})
    assert server.get("/predict") == (405, {"error": "Method Not Allowed"})
    assert server.post("/predict/", {"instances": [RIGHT]}) == (
        404,
        {"error": "Not Found"},
    )  # no redirect to a host header


def test_a_slow_body_is_refused(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        with http.client.HTTPResponse(slow) as response:
            response.begin()
            assert response.status == 408
            assert json.loads(response.read()) == {"error": "body: must arrive within 1 seconds"}


def test_a_chunked_body_beyond_the_limit_is_refused(server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    try:
        connection.request("POST", "/predict", body=iter([b" " * 400_000] * 12), encode_chunked=True)
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def test_vertex_environment(store, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "AIP_HTTP_PORT": str(port),
        "AIP_HEALTH_ROUTE": "/v1/health",
        "AIP_PREDICT_ROUTE": "/v1/models/m:predict",
        "AIP_STORAGE_URI": str(store / "v2"),
    }
    command = [sys.executable, "-m", "predictor.app", "--events", tmp_path / "events"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == f"serving v2 on http://0.0.0.0:{port}\n"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/v1/health")
            assert json.loads(connection.getresponse().read())["policy_version"] == "v2"
            connection.request("POST", "/v1/models/m:predict", json.dumps({"instances": [RIGHT]}))
            assert json.loads(connection.getresponse().read())["predictions"][0]["policy_version"] == "v2"
            connection.close()
        finally:
            process.terminate()
        assert process.wait(20) == 0


def run(*arguments):
    command = [sys.executable, "-m", "predictor.app", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIP_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_wrong_starts_end_in_one_line(store, tmp_path):
    half = tmp_path / "half"
    write_policy(half)
    (half / policies.LINEAR_NAME).unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        right = {"--policy": store, "--events": tmp_path / "events", "--port": 0}
        for changed, message in [
            ({"--port": port}, f"port: cannot listen on 127.0.0.1:{port}: Address already in use"),
            ({"--port": "http"}, "--port: must be a number, got 'http'"),
            ({"--policy": tmp_path}, f"policy: {tmp_path} is neither a policy (it has no policy.json) nor"),
            ({"--policy": half}, f"{half}/linear.npz: is missing"),
            ({"--events": half / "policy.json"}, f"events: cannot make the folder {half}/policy.json: File exists"),
            ({"--segment-seconds": 0}, "--segment-seconds: Expected `float` > 0.0, got '0'"),
            ({"--sement-seconds": 1}, "unrecognized arguments: --sement-seconds 1"),
            ({"--segment-second": 1}, "unrecognized arguments: --segment-second 1"),  # abbreviated
            ({"--buffer-bytes": "inf"}, "--buffer-bytes: Expected `int`, got 'inf'"),
            (
                {"--predict-route": "predict"},
                "--predict-route: must be a path of letters, digits and ._~:/-, from /, got",
            ),
            (
                {"--predict-route": "/{any}"},
                "--predict-route: must be a path of letters, digits and ._~:/-, from /, got",
            ),
            (
                {"--predict-route": "/rewards"},
                "--predict-route: must not be one of /rewards, /activate, /cancel, /metrics, /docs,",
            ),
            ({"--predict-route": "/health"}, "--predict-route: must differ from the health route, got '/health'"),
        ]:
            result = run(*(part for pair in (right | changed).items() for part in pair))
            assert (result.returncode, result.stdout) == (2, "")
            assert result.stderr.startswith(f"predictor.app: error: {message}")
            assert result.stderr.count("\n") == 1
    assert run("--events", tmp_path).stderr == "predictor.app: error: --policy: is missing\n"
    assert not [path for path in tmp_path.glob("events/**/*") if path.is_file()]


def test_help_teaches():
    result = run("--help")
    assert result.returncode == 0
    assert "AIP_STORAGE_URI" in result.stdout
    assert "--segment-seconds" in result.stdout


class Load:
    """Clients that ask as fast as they are answered, over connections that are kept, until stopped."""

    def __init__(self, server, clients=4, instances=3):
        self.answered, self.failures = [], []
        self._stop = threading.Event()
        self._address = server.url.removeprefix("http://")
        self._threads = [threading.Thread(target=self._ask, args=(i, instances)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, seed, instances):
        body = json.dumps({"instances": [{"observation": observation} for observation in observe(instances, seed)]})
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/predict", body)
                response = connection.getresponse()
                data = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                break
            if response.status != 200:
                self.failures.append((response.status, data))
            else:
                self.answered += json.loads(data)["predictions"]
        connection.close()

    def wait_for(self, count, seconds=60.0):
        """Until so many decisions are answered."""
        deadline = time.monotonic() + seconds
        while len(self.answered) < count and not self.failures:
            assert time.monotonic() < deadline, f"only {len(self.answered)} were answered"
            time.sleep(0.01)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def same(answered, decisions):
    """Every answer is in the log once, with the same content."""
    by_id = {decision.decision_id: decision for decision in decisions}
    assert len(by_id) == len(decisions)
    for prediction in answered:
        decision = by_id[prediction["decision_id"]]
        for field in ("action", "propensity", "policy_version"):
            assert getattr(decision, field) == prediction[field]


def test_a_long_request_does_not_hold_up_the_others(tmp_path):
    write_policy(tmp_path / "v", num_actions=1000, exploration=Exploration(strategy="thompson"))
    long = {"instances": [{"observation": observation} for observation in observe(200)]}
    with predictor(tmp_path / "v", tmp_path / "events") as server:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.post("/predict", long)))
        asking.start()
        before = 0
        while asking.is_alive():
            before += server.get("/health").status == 200
        asking.join()
        assert answers[0].status == 200
        assert len(answers[0].body["predictions"]) == 200
        assert before > 2  # one may have waited for it to end
        assert server.stop() == 0
    assert len(logged(tmp_path / "events")) == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_drops_nothing_that_was_answered(store, tmp_path, number):
    with predictor(store, tmp_path / "events", "--segment-seconds", "0.1") as server:
        load = Load(server)
        load.wait_for(500)
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        load.stop()
        assert not [failure for failure in load.failures if isinstance(failure, tuple)]  # no answer with an error
        assert server.stderr() == f"serving v1 on {server.url}\n"
    decisions = logged(tmp_path / "events")
    assert len(load.answered) > 100
    same(load.answered, decisions)
    assert len(decisions) - len(load.answered) <= 4 * 3  # answers on their way when their client was cut off
    assert event_segments.open_segments(tmp_path / "events") == []


def test_swaps_under_load(tmp_path):
    store = tmp_path / "store"
    write_policy(store / "v1", seed=1)
    write_policy(store / "v2", seed=2)
    point_at(store, "v1")
    swaps = 1000
    with predictor(store, tmp_path / "events", "--poll-seconds", "0.001") as server:
        load = Load(server, clients=2)
        for i in range(swaps):
            version = f"v{1 + (i + 1) % 2}"
            point_at(store, version)
            promoted = time.monotonic()
            while server.get("/health").body["policy_version"] != version:
                assert time.monotonic() - promoted < 10
        load.stop()
        assert server.get("/health").body["swaps"] == swaps
        assert server.stop() == 0
    assert load.failures == []
    decisions = logged(tmp_path / "events")
    same(load.answered, decisions)
    assert len(decisions) == len(load.answered)
    for version in ("v1", "v2"):
        decided = [decision for decision in decisions if decision.policy_version == version]
        assert decided
        replayed = deciding.replay(policy_files.load(store / version), decided)
        assert replayed == ([d.action for d in decided], [d.propensity for d in decided])


@pytest.mark.parametrize(
    ("module", "stays_out"),
    [
        ("predictor.app", ["tensorflow", "google.cloud.storage", "grpc", "apache_beam", "kfp", "scipy", "pandas"]),
        ("predictor.publisher", ["tensorflow", "fastapi", "numpy", "apache_beam"]),
        ("predictor.client", ["tensorflow", "fastapi", "numpy", "uvicorn"]),
        ("predictor.policy", ["tensorflow", "fastapi", "uvicorn"]),
    ],
)
def test_imports_no_more_than_it_needs(module, stays_out):
    script = f"import sys, {module}; print(*[name for name in {stays_out} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == ""


def test_a_store_that_cannot_be_reached_is_a_failed_operation(tmp_path):
    """Nothing listens where the bucket should be: wrong input has exit code 2, this has 3."""
    environment = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1", "GOOGLE_CLOUD_PROJECT": "test-project"}
    command = [sys.executable, "-m", "predictor.app", "--policy", "gs://models/store", "--events", tmp_path / "events"]
    result = subprocess.run(
        [*command, "--port", "0"], env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 3
    assert result.stderr.startswith("predictor.app: failed: policy: cannot read gs://models/store: ")
    assert result.stderr.count("\n") == 1
