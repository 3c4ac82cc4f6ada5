import http.client
import json

import pytest

from contracts.errors import InputError
from predictor import keys
from predictor.keys import Keys
from tests.linear_policies import write_policy
from tests.servers import predictor

BODY = b'{"instances":[{"observation":[1,2,3]}]}'
REWARDS = {"rewards": [{"decision_id": "01a20375-ec4c-785b-98a2-17b9d72932ef", "reward": 1}]}


def test_each_line_is_a_key_and_a_changed_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text("old\n\n  new  \n")
    known = Keys("--api-key-file", path)
    assert [known.admit(given) for given in (b"old", b"new", b"", b"ol", b"other")] == [True, True, False, False, False]
    path.write_text("new\nnewest")
    assert [known.admit(given) for given in (b"old", b"new", b"newest")] == [False, True, True]


@pytest.mark.parametrize("broken", ["\n", None, b"\xff\xfe"])
def test_a_changed_file_that_is_no_use_changes_nothing(tmp_path, monkeypatch, caplog, broken):
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text("key")
    known = Keys("--api-key-file", path)
    path.unlink()
    if broken is not None:
        path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    assert known.admit(b"key")
    assert not known.admit(b"")
    assert "the keys stay as they were" in caplog.text


def test_a_file_without_keys_is_refused(tmp_path):
    (tmp_path / "empty").write_text(" \n")
    for name, problem in (("empty", "is empty"), ("missing", "cannot read")):
        with pytest.raises(InputError, match=f"^--rewards-key-file: .*{problem}|^--rewards-key-file: {problem}"):
            Keys("--rewards-key-file", tmp_path / name)


def ask(server, method, path, body=None, key=None, **headers):
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers | ({"x-api-key": key} if key else {}))
    response = connection.getresponse()
    status, data = response.status, response.read()
    connection.close()
    return status, data


def test_predictions_rewards_and_operations_have_keys_of_their_own(tmp_path):
    write_policy(tmp_path / "v1")
    flags = []
    for flag, key in (("api", "p"), ("rewards", "r"), ("operations", "o")):
        (tmp_path / flag).write_text(key)
        flags += [f"--{flag}-key-file", str(tmp_path / flag)]
    with predictor(tmp_path / "v1", tmp_path / "events", *flags) as server:
        wants = {"/predict": "p", "/rewards": "r", "/metrics": "o", "/openapi.json": "o", "/docs": "o"}
        bodies = {"/predict": BODY, "/rewards": json.dumps(REWARDS)}
        for path, wanted in wants.items():
            method = "POST" if path in bodies else "GET"
            for key in ("p", "r", "o", None):
                status, _ = ask(server, method, path, bodies.get(path), key)
                assert (status < 300) == (key == wanted), (path, key, status)
                assert status in (200, 202, 401)
        assert json.loads(ask(server, "GET", "/health")[1]) == {"status": "ok"}
        assert "policy_version" in json.loads(ask(server, "GET", "/health", key="o")[1])
