"""Viewers as production has them: what they are like is computed, what they do is seen by a real predictor."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import InputError
from contracts.event_segments import sealed_segments
from contracts.records import Decision, RewardEvent, event_decoder
from orchestration import traffic
from orchestration.traffic import DAY_SECONDS, Audience, TrafficSettings
from tests.linear_policies import point_at, write_policy
from tests.local_vertex.server import local_vertex
from tests.servers import predictor

SMALL = {"num_actions": 10, "rank": 3}


@pytest.fixture(scope="module")
def audience() -> Audience:
    return Audience(TrafficSettings(**SMALL, rate=20, diurnal=0.5, drift=1.0, new_movies=4))


def test_the_rate_swings_with_the_day_and_its_average_is_what_was_asked_for(audience):
    moments = np.arange(0, DAY_SECONDS, 60)
    rates = np.array([audience.rate(at) for at in moments])
    assert (rates.min(), rates.max(), rates.mean()) == pytest.approx((10, 30, 20))
    assert audience.rate(3 * DAY_SECONDS / 2) == pytest.approx(30)


def test_as_many_come_as_the_rate_says_and_the_same_ones_each_time(audience):
    noon = int(DAY_SECONDS / 2)
    counts = [len(audience.arrivals(noon + tick)) for tick in range(400)]
    # A Poisson number a second, at nearly the full rate of 30: mean within 4 standard errors of 0.27, variance as the mean.
    assert abs(np.mean(counts) - 30) < 1.1
    assert 0.75 < np.var(counts) / 30 < 1.3
    again = Audience(audience.settings)
    assert all((audience.arrivals(tick) == again.arrivals(tick)).all() for tick in range(5))


def test_movies_come_out_one_by_one(audience):
    assert len(audience.candidates(0)) == 6
    assert len(audience.candidates(DAY_SECONDS / 2)) == 8
    assert set(audience.candidates(0)) < set(audience.candidates(DAY_SECONDS / 2))
    assert audience.candidates(DAY_SECONDS) == []  # all of them
    assert Audience(TrafficSettings(**SMALL)).candidates(0) == []


def test_tastes_turn_as_far_as_the_drift_says(audience):
    users, actions = np.arange(200), np.arange(200) % 10
    now = audience.expected_rewards(users, actions, 0)
    np.testing.assert_allclose(now, audience.movielens.expected_rewards(users, actions), rtol=1e-6)
    a_quarter_turn = np.pi / 2 * DAY_SECONDS
    later = audience.expected_rewards(users, actions, a_quarter_turn)
    assert abs(np.corrcoef(now - now.mean(), later)[0, 1]) < 0.95
    np.testing.assert_allclose(audience.expected_rewards(users, actions, 2 * a_quarter_turn), -now, atol=1e-6)
    steady = Audience(TrafficSettings(**SMALL))
    np.testing.assert_array_equal(
        steady.expected_rewards(users, actions, 0), steady.expected_rewards(users, actions, 9 * DAY_SECONDS)
    )


def test_viewers_ask_a_predictor_and_reward_it(tmp_path, capsys):
    write_policy(tmp_path / "policies" / "v1", num_actions=10, observation_dim=3)
    point_at(tmp_path / "policies", "v1")
    with predictor(tmp_path / "policies", tmp_path / "events") as server:
        flags = ["--num-actions", "10", "--rank", "3", "--rate", "60", "--seconds", "2", "--new-movies", "5"]
        assert traffic.main(["--endpoint", server.url, "--diurnal", "0", *flags]) == 0
        server.stop()
    events = [
        event_decoder.decode(line)
        for segment in sealed_segments(tmp_path / "events")
        for line in segment.read_bytes().splitlines()
    ]
    decisions = [event for event in events if isinstance(event, Decision)]
    rewards = {event.decision_id for event in events if isinstance(event, RewardEvent)}
    settings = TrafficSettings(**SMALL, rate=60, diurnal=0, new_movies=5)
    come = Audience(settings)
    assert len(decisions) == len(come.arrivals(0)) + len(come.arrivals(1)) > 60
    assert rewards <= {decision.decision_id for decision in decisions}
    assert 0.8 < len(rewards) / len(decisions) < 1
    assert {tuple(decision.candidates) for decision in decisions} == {tuple(come.candidates(0))}
    assert f"{len(decisions)} decisions, {len(rewards)} rewards" in capsys.readouterr().out


def test_viewers_ask_the_vertex_endpoint_and_publish_rewards(tmp_path, pubsub_host, monkeypatch):
    from google.cloud import pubsub_v1

    from orchestration.cloud import configuration
    from orchestration.cloud.target import VertexTarget
    from orchestration.cloud.vertex_endpoint import VertexEndpoint

    topic, subscription = (
        "projects/films-traffic/topics/bandit-dev-events",
        "projects/films-traffic/subscriptions/rewards",
    )
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    publisher.create_topic(name=topic)
    subscriber.create_subscription(name=subscription, topic=topic)
    card = write_policy(tmp_path / "bucket" / "policies" / "v1", num_actions=10, observation_dim=3)
    with local_vertex(tmp_path) as (_, url):
        config = tmp_path / "c.toml"
        text = (configuration.FOLDER / "dev.toml").read_text()
        config.write_text(text.replace("cron =", f'api_endpoint = "{url}"\ncron ='))
        # Deployed without a topic: this test reads the rewards alone.
        target = VertexTarget(
            project="films-traffic",
            location="europe-west1",
            name="bandit-dev",
            policies="gs://bucket/policies",
            image="predictor:1",
            topic="",
            machine_type="n1-standard-2",
            events=str(tmp_path / "events"),
            api_endpoint=url,
        )
        endpoint = VertexEndpoint(target)
        endpoint.models.register(card, "")
        endpoint.promote("v1", "first")
        edge = traffic.VertexEndpoint(str(config), "films-traffic")
        settings = TrafficSettings(**SMALL, rate=30, seconds=1, diurnal=0)
        with contextlib.closing(edge):
            totals = traffic.run(Audience(settings), edge, 0, lambda line: None)
    assert totals.decisions == len(Audience(settings).arrivals(0)) > 10
    found: list[bytes] = []
    while len(found) < totals.rewards:
        pulled = subscriber.pull(subscription=subscription, max_messages=100, timeout=30).received_messages
        assert all(one.message.attributes["kind"] == "reward" for one in pulled)
        found += [one.message.data for one in pulled]
        subscriber.acknowledge(subscription=subscription, ack_ids=[one.ack_id for one in pulled])
    assert all(isinstance(event_decoder.decode(data), RewardEvent) for data in found)
    decided = {
        json.loads(line)["decision_id"]
        for segment in sealed_segments(Path(target.events))
        for line in segment.read_bytes().splitlines()
    }
    assert {event_decoder.decode(data).decision_id for data in found} <= decided
    publisher.transport.close()
    subscriber.close()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--endpoint", "nowhere"], "url: must be http://host:port, got 'nowhere'"),
        (["--endpoint", "http://127.0.0.1:9", "--new-movies", "100"], "--new-movies must be below the 100 actions"),
        (["--endpoint", "http://127.0.0.1:9", "--rate", "0"], "--rate: Expected `float` > 0.0, got '0'"),
        (["--endpoint", "http://127.0.0.1:9", "--start", "soon"], "--start: a time with its time zone"),
        (["--config", "dev"], "cloud.project is missing in dev.toml"),
    ],
)
def test_wrong_input_is_one_line(capsys, flags, message):
    assert traffic.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"orchestration.traffic: error: {message}")
    assert error.count("\n") == 1


def test_a_predictor_that_is_gone_is_a_failed_operation(capsys):
    assert traffic.main(["--endpoint", "http://127.0.0.1:9", "--diurnal", "0"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("orchestration.traffic: failed: cannot connect: ") and error.count("\n") == 1


def test_an_audience_needs_movies_to_start_with():
    with pytest.raises(InputError, match="--new-movies must be below the 10 actions, got 10"):
        Audience(TrafficSettings(**SMALL, new_movies=10))
