import re
import socket
import threading
import time
from datetime import UTC, datetime

import pytest

from contracts import event_segments
from contracts.errors import InputError
from contracts.records import Decision, StatusEvent, event_decoder
from predictor.client import Client, RefusedError, UnavailableError
from predictor.messages import Instance, SentReward
from tests.linear_policies import write_policy
from tests.servers import predictor


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    write_policy(folder / "v1")
    (folder / "key").write_text("sesame\n")
    with predictor(folder / "v1", folder / "events", "--api-key-file", str(folder / "key")) as running:
        running.events = folder / "events"
        yield running


def test_predict_and_reward(server):
    with Client(server.url, api_key="sesame") as client:
        predictions = client.predict([Instance([1.0, 2.0, 3.0], "u1"), Instance([3.0, 2.0, 1.0], "u2", [2, 4])])
        assert [prediction.policy_version for prediction in predictions] == ["v1", "v1"]
        assert predictions[1].action in (2, 4)
        assert predictions[0].slate == []
        client.reward(predictions[0].decision_id, 4.5)
        assert client.rewards([SentReward(prediction.decision_id, 1.0) for prediction in predictions]) == 2
        (slate,) = client.predict([Instance([1.0, 2.0, 3.0])], slate_size=3)
        assert len({slot.action for slot in slate.slate}) == 3
        product = slate.slate[0].propensity * slate.slate[1].propensity * slate.slate[2].propensity
        assert slate.slate_propensity == pytest.approx(product)
        assert (slate.slate[0].decision_id, slate.slate[0].action) == (slate.decision_id, slate.action)


def test_activate_and_cancel(server):
    with Client(server.url, api_key="sesame") as client:
        shown, cancelled = client.predict([Instance([1.0, 2.0, 3.0], deferred=True), Instance([1.0, 2.0, 3.0])])
        moment = datetime.now(UTC)
        assert client.activate([shown.decision_id], moment) == 1
        assert client.cancel([cancelled.decision_id]) == 1
        with pytest.raises(RefusedError, match=r"^400: decision_ids\[0\]: Expected `str` of length"):
            client.cancel(["not-an-id"])
        with pytest.raises(RefusedError, match=r"^400: decision_ids: Expected `array` of length >= 1"):
            client.activate([])
        with pytest.raises(RefusedError, match=r"^400: occurred_at: must be of the last five years"):
            client.activate([shown.decision_id], datetime(1999, 1, 1, tzinfo=UTC))
    with Client(server.url) as client, pytest.raises(RefusedError, match=r"^401: x-api-key"):
        client.activate([shown.decision_id])
    found = []
    deadline = time.monotonic() + 10
    while len(found) < 2 and time.monotonic() < deadline:
        paths = [*event_segments.sealed_segments(server.events), *event_segments.open_segments(server.events)]
        lines = [line for path in paths for line in path.read_bytes().splitlines()]
        found = [event for event in map(event_decoder.decode, lines) if isinstance(event, StatusEvent)]
    assert [(event.decision_id, event.status) for event in found] == [
        (shown.decision_id, "activated"),
        (cancelled.decision_id, "cancelled"),
    ]
    assert found[0].occurred_at == moment
    decided = [event for event in map(event_decoder.decode, lines) if isinstance(event, Decision)]
    assert {event.decision_id: event.deferred for event in decided}[shown.decision_id] is True
    assert {event.decision_id: event.deferred for event in decided}[cancelled.decision_id] is None
    text = server.read("/metrics").decode()
    assert 'predictor_statuses_total{status="activated"} 1.0' in text


def test_refusals_are_not_repeated(server):
    with Client(server.url, api_key="sesame") as client:
        with pytest.raises(RefusedError, match=r"^400: instances\[0\].observation: must have 3 numbers, got 1$"):
            client.predict([Instance([1.0])])
        with pytest.raises(RefusedError, match=r"^400: rewards\[0\].decision_id: Expected"):
            client.reward("not-an-id", 1.0)
    for key in (None, "open"):
        with Client(server.url, api_key=key) as client, pytest.raises(RefusedError) as caught:
            client.predict([Instance([1.0, 2.0, 3.0])])
        assert (caught.value.status, str(caught.value)) == (401, "401: x-api-key: is missing or wrong")
    assert server.get("/health").status == 200  # asks for no key
    assert "sesame" not in server.stderr()


def test_an_idle_connection_is_opened_again(server):
    with Client(server.url, api_key="sesame") as client:
        client.predict([Instance([1.0, 2.0, 3.0])])
        client._connection.sock.shutdown(socket.SHUT_RDWR)  # as a proxy does
        assert len(client.predict([Instance([1.0, 2.0, 3.0])])) == 1


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", attempts=2) as client,
        pytest.raises(UnavailableError, match="cannot connect"),
    ):
        client.predict([Instance([1.0])])


def test_waits_for_a_server_that_starts(tmp_path):
    write_policy(tmp_path / "v1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers = []

    def ask():
        with Client(f"http://127.0.0.1:{port}", attempts=12) as client:
            answers.extend(client.predict([Instance([1.0, 2.0, 3.0])]))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    with predictor(tmp_path / "v1", tmp_path / "events", "--port", str(port)) as server:
        asking.join()
        assert server.stop() == 0
    (segment,) = event_segments.sealed_segments(tmp_path / "events")
    (line,) = segment.read_bytes().splitlines()
    assert event_decoder.decode(line).decision_id == answers[0].decision_id


def test_a_lost_answer_is_not_asked_for_again_but_a_reward_is():
    """A server that takes each request and breaks off in the middle of its answer."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve():
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    with connection.makefile("rb") as received:
                        head = b"".join(iter(received.readline, b"\r\n"))
                        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                        taken.append(received.read(int(length[1])))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        serving = threading.Thread(target=serve)
        serving.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, attempts=2) as client:
            with pytest.raises(UnavailableError, match="the connection was lost"):
                client.predict([Instance([1.0])])
            assert len(taken) == 1
            with pytest.raises(UnavailableError, match="the connection was lost"):
                client.reward("01a20375-ec4c-785b-98a2-17b9d72932ef", 1.0)
        serving.join()
    _, first, second = taken
    assert first == second  # the same moment, so that one of two is dropped when they are read


def test_wrong_url():
    with pytest.raises(InputError, match=r"^url: must be http://host:port, got 'localhost:80'$"):
        Client("localhost:80")
