import concurrent.futures
import re
import urllib.error
import urllib.request

import pytest

from contracts.records import event_decoder
from tests.linear_policies import write_policy
from tests.predictor.test_app import logged, observe
from tests.servers import predictor


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes") / "v1"
    write_policy(folder, num_actions=200)
    return folder


@pytest.mark.parametrize("candidates", [[], list(range(100, 200))])
def test_slates_that_block_are_logged_whole_or_refused(policy, tmp_path, candidates):
    """Room for one or two requests, and eight clients: each answered place is logged, and nothing is dropped."""
    flags = ("--buffer-bytes", "100000", "--on-overload", "block", "--body-seconds", "30")
    bodies = [
        {
            "instances": [{"observation": observation, "candidates": candidates} for observation in observe(3, seed)],
            "parameters": {"slate_size": 10},
        }
        for seed in range(80)
    ]
    with predictor(policy, tmp_path / "events", *flags) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda body: server.post("/predict", body), bodies))
        assert {reply.status for reply in replies} == {200}
        assert server.get("/health").body["events"]["dropped"] == 0
        assert server.stop() == 0
    answered = [
        place["decision_id"]
        for reply in replies
        for prediction in reply.body["predictions"]
        for place in prediction["slate"]
    ]
    assert len(answered) == 80 * 3 * 10
    assert sorted(decision.decision_id for decision in logged(tmp_path / "events")) == sorted(answered)


def test_vertex_writes_integers_as_doubles(policy, tmp_path):
    asked = {"instances": [{"observation": [1.0, 2.0, 3.0], "candidates": [7.0, 3.0, 5.0]}]}
    with predictor(policy, tmp_path / "events") as server:
        reply = server.post("/predict", asked | {"parameters": {"slate_size": 2.0}})
        assert reply.status == 200
        places = reply.body["predictions"][0]["slate"]
        assert {place["action"] for place in places} <= {3, 5, 7}
        wrong = server.post("/predict", asked | {"parameters": {"slate_size": 2.5}})
        assert wrong == (400, {"error": "parameters.slate_size: Expected `int`, got `float`, got 2.5"})
        assert server.stop() == 0
    lines = [path.read_bytes() for path in (tmp_path / "events").glob("*.jsonl")]
    first = event_decoder.decode(b"".join(lines).splitlines()[0])
    assert first.candidates == [7, 3, 5]
    assert b'"candidates":[7,3,5]' in b"".join(lines)  # integers in the log, whatever the client wrote


def test_pages_of_the_server_load_nothing_from_elsewhere(policy, tmp_path):
    with predictor(policy, tmp_path / "events") as server:
        page = server.read("/docs").decode()
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)
        scripts = re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page)
        assert len(scripts) >= 2
        for script in scripts:
            assert len(server.read(script)) > 1000


def test_head_has_the_status_and_no_body(policy, tmp_path):
    with predictor(policy, tmp_path / "events") as server:
        for path in ("/health", "/metrics"):
            request = urllib.request.Request(server.url + path, method="HEAD")
            with urllib.request.urlopen(request, timeout=30) as response:
                assert (response.status, response.read()) == (200, b"")


def test_a_page_of_another_site_cannot_send(policy, tmp_path):
    body = b'{"instances":[{"observation":[1,2,3]}]}'
    with predictor(policy, tmp_path / "events") as server:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            headers = {"content-type": "application/json", "sec-fetch-site": site}
            request = urllib.request.Request(server.url + "/predict", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    given = response.status
            except urllib.error.HTTPError as error:
                given = error.code
                error.close()
            assert given == status, site
