"""The page's server, as a real process: documents, streams, and who may do what."""

import json
import time
import urllib.request
from pathlib import Path

import pytest

from orchestration.audit import guard
from orchestration.loop.run_folder import RunFolder
from tests.orchestration.page.events import decision, lines, segment
from tests.orchestration.page.pages import KEY, ask, page, wait_for_state
from tests.orchestration.page.roots import make


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("page") / "run")
    with page(folder.root) as live:
        wait_for_state(live.url)
        yield folder, live.url


def documents(url: str, count: int) -> list[dict]:
    """The first documents of a stream."""
    found = []
    with urllib.request.urlopen(f"{url}api/events", timeout=30) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        while len(found) < count:
            line = stream.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
    return found


def test_the_files_are_the_pages_own_and_nothing_else_may_be_loaded(shown):
    _, url = shown
    for name in ("", "page.js", "charts.js", "viewer.js", "page.css"):
        status, text, headers = ask(url + name)
        assert status == 200 and text
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert ask(url + "../../server.py")[0] == ask(url + "docs")[0] == 404


def test_a_stream_brings_what_is_written_meanwhile(shown):
    folder, url = shown
    before = documents(url, 1)[0]["wrong"]["counts"]["decisions"]
    segment(folder.events, 30.0 + time.time() % 1, lines(decision(77, 30.0)), writer=f"w{time.time_ns()}")
    after = documents(url, 4)[-1]
    assert after["wrong"]["counts"]["decisions"] == before + 1
    assert after["stream"][0]["decision"]["decision_id"] == decision(77, 30.0).decision_id


def test_many_streams_get_the_same_document(shown):
    _, url = shown
    streams = [urllib.request.urlopen(f"{url}api/events", timeout=30) for _ in range(50)]
    try:
        found = [json.loads(stream.readline()[6:])["wrong"]["counts"] for stream in streams]
    finally:
        for stream in streams:
            stream.close()
    assert found == [found[0]] * 50


def test_a_decision_is_explained(shown):
    status, found, _ = ask(f"{shown[1]}api/decisions/{decision(1, 2.0).decision_id}")
    assert status == 200
    assert found["decision"]["action"] == 1 and len(found["arms"]) == 5
    status, refused, _ = ask(f"{shown[1]}api/decisions/nonsense")
    assert (status, refused["error"][:12]) == (400, "decision_id:")


@pytest.mark.parametrize("headers", [{}, {"x_page_key": "wrong"}, {"cookie": f"page-key={KEY}"}])
@pytest.mark.parametrize("action", ["roll-back", "hold", "release", "recommend", "reward", "viewers"])
def test_a_change_needs_the_key_in_the_header(shown, action, headers):
    folder, url = shown
    status, refused, _ = ask(f"{url}api/{action}", {"reason": "x"}, **headers)
    assert status == 403 and "key" in refused["error"]
    assert guard.state(folder.root) is None


def test_with_the_key_the_loop_is_held_and_released(shown):
    folder, url = shown
    assert ask(f"{url}api/hold", {"reason": "a look"}, x_page_key=KEY)[:2] == (200, {"held": True})
    assert guard.is_held(folder.root)
    assert ask(f"{url}api/hold", {"reason": "a look"}, x_page_key=KEY)[0] == 400
    assert ask(f"{url}api/release", {"reason": "done"}, x_page_key=KEY)[:2] == (200, {"held": False})


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", {}, {"reason": ""}, {"reason": 3}, {"reason": "x", "more": 1}, {"reason": "x" * 501}]
)
def test_a_body_that_does_not_fit_is_refused(shown, body):
    status, refused, _ = ask(f"{shown[1]}api/hold", body, x_page_key=KEY)
    assert status == 400 and refused["error"].startswith("body: ")


def test_a_body_without_end_is_refused(shown):
    assert ask(f"{shown[1]}api/hold", b"x" * 100_000, x_page_key=KEY)[0] == 413


def test_another_sites_name_is_refused(shown):
    status, refused, _ = ask(f"{shown[1]}api/state", host="rebound.example")
    assert status == 401 and "key" in refused["error"]


def test_what_cannot_be_read_is_on_the_page_and_the_page_goes_on(tmp_path):
    folder = make(tmp_path / "run")
    with page(folder.root) as live:
        wait_for_state(live.url)
        kept = folder.running.read_bytes()
        folder.running.write_bytes(b"{")
        assert "running.json" in documents(live.url, 3)[-1]["error"]
        folder.running.write_bytes(kept)
        assert "error" not in documents(live.url, 3)[-1]


def test_elsewhere_reading_needs_the_key_too(tmp_path):
    folder = make(tmp_path / "run")
    with page(folder.root, "--host", "0.0.0.0") as live:
        url = live.url.replace("0.0.0.0", "127.0.0.1")
        assert ask(f"{url}api/state")[0] == ask(url)[0] == 401
        assert ask(f"{url}?key=wrong")[0] == 401
        assert ask(f"{url}api/state", cookie=f"page-key={KEY}")[0] == 200
        assert live.address.endswith(f"?key={KEY}")
        status, text, _ = ask(f"{url}?key={KEY}")  # urllib follows without the cookie
        assert status == 401, text


def test_address_and_key_are_for_this_user_and_go_when_the_page_does(tmp_path):
    folder = make(tmp_path / "run")
    with page(folder.root) as live:
        assert live.address == f"{live.url}#key={KEY}"
        assert Path(folder.page).stat().st_mode & 0o077 == 0
    assert RunFolder(folder.root).read_page() is None
