import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from contracts.features import Category, FeatureSpec, Number
from predictor import openapi
from tests.linear_policies import write_policy
from tests.servers import predictor


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    write_policy(folder / "v1")
    with predictor(folder / "v1", folder / "events", "--log-level", "info", "--log-format", "json") as running:
        yield running


def test_document_is_of_the_policy_that_serves(server):
    document = server.get("/openapi.json").body
    instance = document["components"]["schemas"]["Instance"]["properties"]
    assert (instance["observation"]["minItems"], instance["observation"]["maxItems"]) == (3, 3)
    action, item_id = instance["candidates"]["items"]["anyOf"]
    assert (action["maximum"], item_id["type"]) == (4, "string")
    assert {"/predict", "/rewards", "/activate", "/cancel", "/health", "/metrics"} == set(document["paths"])
    assert b"/openapi.json" in server.read("/docs")


def test_the_context_is_described_by_the_feature_spec(tmp_path):
    spec = FeatureSpec(features=[Number(name="hour"), Category(name="device", values=["phone"], unseen="refuse")])
    card = msgspec.structs.replace(write_policy(tmp_path / "v"), features=spec)
    instance = openapi.complete({"paths": {}}, card)["components"]["schemas"]["Instance"]
    assert instance["properties"]["context"]["properties"] == {
        "hour": {"type": "number"},
        "device": {"enum": ["phone"]},
    }
    assert instance["properties"]["context"]["required"] == ["hour", "device"]
    bare = openapi.complete({"paths": {}}, msgspec.structs.replace(card, features=None))
    assert "context" not in bare["components"]["schemas"]["Instance"]["properties"]
    assert bare["components"]["schemas"]["Instance"]["required"] == ["observation"]


def test_every_example_is_accepted(server):
    for path, item in server.get("/openapi.json").body["paths"].items():
        for operation in item.values():
            for example in (
                operation.get("requestBody", {})
                .get("content", {})
                .get("application/json", {})
                .get("examples", {})
                .values()
            ):
                assert server.post(path, example["value"]).status in (200, 202)


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_fuzzed_on_its_own_document(server, tmp_path):
    """Thousands of right and wrong requests: answered as documented, never with 5xx, and the log shows no crash."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
    # What a schema cannot say (a slate longer than its candidates) is refused although the schema allows it.
    command += ["--exclude-checks", "positive_data_acceptance"]
    command += ["--max-examples", "150", "--seed", "1", "--no-color", "--suppress-health-check", "all"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    requests = [json.loads(line) for line in server.stderr().splitlines() if '"refused"' in line]
    assert len(requests) > 100
    assert {line["status"] for line in requests} <= {400, 404, 405, 413, 415}
    assert "Traceback" not in server.stderr()
    assert "stack_trace" not in server.stderr()
    assert server.get("/health").status == 200
