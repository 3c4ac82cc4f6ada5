"""The routes of Azure Personalizer, called by Microsoft's own clients, unchanged."""

import msgspec
import pytest
from azure.ai.personalizer import PersonalizerClient as NewClient
from azure.cognitiveservices.personalizer import PersonalizerClient
from azure.cognitiveservices.personalizer.models import ErrorResponseException, RankableAction, RankRequest
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from msrest.authentication import CognitiveServicesCredentials
from msrest.exceptions import HttpOperationError

from contracts import event_segments, policies
from contracts.features import Category, FeatureSpec, Number
from contracts.records import Decision, RewardEvent, StatusEvent, event_decoder
from predictor import personalizer
from tests.linear_policies import write_policy
from tests.servers import predictor

SPEC = FeatureSpec(features=[Number(name="user.age", scale=100), Category(name="device", values=["phone"])])
CONTEXT = [{"user": {"age": 30}}, {"device": "phone"}]
ACTIONS = [RankableAction(id=one, features=[{"x": 1}]) for one in ("100", "102", "104")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("personalizer")
    card = write_policy(folder / "v1", observation_dim=SPEC.dim)
    card = msgspec.structs.replace(card, features=SPEC)
    (folder / "v1" / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    (folder / "key").write_text("sesame\n")
    return folder


def logged(folder, kind):
    lines = [line for path in event_segments.sealed_segments(folder) for line in path.read_bytes().splitlines()]
    return [event for event in map(event_decoder.decode, lines) if isinstance(event, kind)]


def test_rank_reward_and_activate_by_the_first_client(store, tmp_path):
    keys = ("--api-key-file", str(store / "key"))
    with predictor(store / "v1", tmp_path / "events", "--personalizer", "online", *keys) as server:
        client = PersonalizerClient(server.url, CognitiveServicesCredentials("sesame"))
        mine = client.rank(RankRequest(actions=ACTIONS, context_features=CONTEXT, event_id="order 17/a"))
        assert mine.event_id == "order 17/a"
        assert sum(one.probability for one in mine.ranking) == pytest.approx(1)
        assert mine.ranking[0].id == mine.reward_action_id
        client.events.reward("order 17/a", 0.5)
        given = client.rank(
            RankRequest(actions=ACTIONS, context_features=CONTEXT, excluded_actions=["100"], defer_activation=True)
        )
        assert given.reward_action_id in ("102", "104")
        assert (given.ranking[0].id, given.ranking[0].probability) == ("100", 0.0)
        client.events.activate(given.event_id)
        client.events.reward(given.event_id, -1.0)
        again = client.rank(RankRequest(actions=ACTIONS, context_features=CONTEXT, event_id="order 17/a"))
        assert again.reward_action_id == mine.reward_action_id  # the draw depends on the event's id
        with pytest.raises(ErrorResponseException, match=r"BadArgument.*contextFeatures.user.age: a number expected"):
            client.rank(RankRequest(actions=ACTIONS, context_features=[{"device": "phone"}]))
        with pytest.raises(ErrorResponseException, match="actions: must include an item that the catalogue offers"):
            client.rank(RankRequest(actions=[RankableAction(id="999", features=[])], context_features=CONTEXT))
        with pytest.raises(HttpOperationError, match="Bad Request"):
            client.events.reward(given.event_id, 1e300)
        stranger = PersonalizerClient(server.url, CognitiveServicesCredentials("open"))
        for call in (
            lambda: stranger.rank(RankRequest(actions=ACTIONS, context_features=CONTEXT)),
            lambda: stranger.events.reward("order 17/a", 1.0),
        ):
            with pytest.raises(HttpOperationError, match="Unauthorized"):
                call()
        text = server.read("/metrics").decode()
        assert 'predictor_requests_total{route="/personalizer/events",status="204"} 3.0' in text
        assert server.stop() == 0
    first, second, repeat = logged(tmp_path / "events", Decision)
    assert (first.decision_id, first.deferred) == (personalizer.decision_id("order 17/a"), None)
    assert [first.observation[0], first.observation[1]] == [1.0, pytest.approx(0.3)]
    assert (first.candidates, second.candidates, second.deferred) == ([0, 2, 4], [2, 4], True)
    assert first.propensity == next(one.probability for one in mine.ranking if one.id == mine.reward_action_id)
    assert (second.decision_id, repeat.decision_id) == (given.event_id, first.decision_id)
    rewards = [(one.decision_id, one.reward) for one in logged(tmp_path / "events", RewardEvent)]
    assert rewards == [(first.decision_id, 0.5), (second.decision_id, -1.0)]
    assert [(one.decision_id, one.status) for one in logged(tmp_path / "events", StatusEvent)] == [
        (second.decision_id, "activated")
    ]


def test_several_slots_by_the_newer_client(store, tmp_path):
    actions = [{"id": one, "features": []} for one in ("100", "102", "104")]
    slots = [{"id": "top", "baselineAction": "100", "features": []}, {"id": "side", "baselineAction": "102"}]
    request = {"contextFeatures": CONTEXT, "actions": actions, "slots": slots, "deferActivation": True}
    keys = ("--api-key-file", str(store / "key"))
    with predictor(store / "v1", tmp_path / "events", "--personalizer", "online", *keys) as server:
        client = NewClient(server.url, AzureKeyCredential("sesame"))
        ranked = client.rank_multi_slot(request | {"eventId": "e1"})
        assert ranked["eventId"] == "e1"
        assert [slot["id"] for slot in ranked["slots"]] == ["top", "side"]
        assert len({slot["rewardActionId"] for slot in ranked["slots"]}) == 2
        client.activate_multi_slot("e1")
        client.reward_multi_slot("e1", {"reward": [{"slotId": "side", "value": 1.0}]})
        single = client.rank({"contextFeatures": CONTEXT, "actions": actions})
        client.reward(single["eventId"], {"value": 1.0})
        with pytest.raises(ResourceNotFoundError, match="EventNotFound"):
            client.activate_multi_slot("another")
        with pytest.raises(
            HttpResponseError, match=r"BadArgument.*slots: must be at most the 3 arms of request, got 4"
        ):
            client.rank_multi_slot(request | {"slots": [{"id": f"s{i}", "baselineAction": "100"} for i in range(4)]})
        for wrong, message in (
            ([slots[0], slots[0]], "slots: ids must differ"),
            ([slots[0] | {"excludedActions": ["100"]}], "slots.excludedActions: none expected"),
        ):
            with pytest.raises(HttpResponseError, match=f"BadArgument.*{message}"):
                client.rank_multi_slot(request | {"slots": wrong})
        with pytest.raises(ClientAuthenticationError):
            NewClient(server.url, AzureKeyCredential("open")).rank_multi_slot(request)
        assert server.stop() == 0
    top, side, _ = logged(tmp_path / "events", Decision)
    assert [top.decision_id, side.decision_id] == [personalizer.decision_id("e1", slot) for slot in ("top", "side")]
    assert (side.slate_id, side.place, side.deferred) == (top.decision_id, 1, True)
    assert {one.decision_id for one in logged(tmp_path / "events", StatusEvent)} == {top.decision_id, side.decision_id}
    assert logged(tmp_path / "events", RewardEvent)[0].decision_id == side.decision_id


def test_an_apprentice_answers_what_the_application_would_do(store, tmp_path):
    with predictor(store / "v1", tmp_path / "events", "--personalizer", "apprentice") as server:
        client = PersonalizerClient(server.url, CognitiveServicesCredentials("any"))
        for excluded, baseline in (([], "100"), (["100"], "102")):
            ranked = client.rank(RankRequest(actions=ACTIONS, context_features=CONTEXT, excluded_actions=excluded))
            assert ranked.reward_action_id == baseline
            assert {one.id: one.probability for one in ranked.ranking}[baseline] == 1.0
        request = {
            "contextFeatures": CONTEXT,
            "actions": [{"id": "100"}],
            "slots": [{"id": "s", "baselineAction": "100"}],
        }
        reply = server.post("/personalizer/multislot/rank", request)
        assert reply.status == 400
        assert reply.body["error"]["message"].startswith("slots: apprentice mode ranks one slot per event")
        assert server.stop() == 0
    assert [(one.action, one.candidates, one.propensity) for one in logged(tmp_path / "events", Decision)] == [
        (0, [0], 1.0),
        (2, [2], 1.0),
    ]


def test_without_the_flag_there_are_no_such_routes(store, tmp_path):
    with predictor(store / "v1", tmp_path / "events") as server:
        assert server.post("/personalizer/v1.0/rank", {}).status == 404
