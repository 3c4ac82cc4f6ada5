"""What Personalizer's bodies mean: actions, context, ids of decisions, the ranking."""

import re

import msgspec
import pytest

from contracts.errors import InputError
from contracts.features import Category, FeatureSpec, Number
from contracts.records import UUID7_PATTERN
from predictor import personalizer
from predictor import policy as policy_files
from predictor.personalizer import MultiSlotRankRequest, RankRequest
from predictor.policy import Policy
from tests.linear_policies import write_policy

OWN_ID = "01a20375-ec4c-785b-98a2-17b9d72932ef"
SPEC = FeatureSpec(
    features=[Number(name="user.age", scale=100), Category(name="device", values=["phone"], unseen="refuse")]
)
CONTEXT = [{"user": {"age": 30}}, {"device": "phone"}]


def decoded(kind, **fields):
    actions = {"actions": [{"id": one, "features": [{"x": 1}]} for one in fields.pop("actions", ["100", "102", "104"])]}
    return msgspec.convert(actions | fields, kind)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Policy:
    """A policy of observations of three numbers, and items 100 to 104."""
    folder = tmp_path_factory.mktemp("personalizer") / "v1"
    write_policy(folder)
    return policy_files.load(folder)


@pytest.fixture(scope="module")
def policy(bare) -> Policy:
    """The same with a feature spec, and item 104 masked."""
    catalogue = [
        msgspec.structs.replace(item, status="masked" if item.item_id == "104" else "active")
        for item in bare.card.catalogue
    ]
    return Policy(msgspec.structs.replace(bare.card, features=SPEC, catalogue=catalogue), bare.scorer)


def test_an_event_has_its_decision_wherever_it_is_asked_for():
    ids = [
        personalizer.decision_id(*parts)
        for parts in (("e1",), ("e2",), ("e1", "top"), ("e1", "side"), ("e", "1top"), ("e1 t", "op"), (OWN_ID, "top"))
    ]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(UUID7_PATTERN, one) for one in ids)
    assert personalizer.decision_id("e1") == ids[0]
    assert personalizer.decision_id(OWN_ID) == OWN_ID


def test_a_request_becomes_an_instance(policy):
    request = decoded(RankRequest, actions=["102", "104", "999", "100"], contextFeatures=CONTEXT, deferActivation=True)
    instance = personalizer.instance(request, policy, "e1", personalizer.offered(request))
    assert instance.context == {"user.age": 30, "device": "phone"}
    assert instance.candidates == [2, 0]  # 104 is masked, and the policy does not know 999
    assert (instance.deferred, instance.decision_ids) == (True, [personalizer.decision_id("e1")])
    slots = [{"id": name, "baselineAction": "100"} for name in ("top", "side")]
    many = personalizer.instance(
        decoded(MultiSlotRankRequest, slots=slots, contextFeatures=CONTEXT), policy, "e1", ["100", "102"]
    )
    assert many.decision_ids == [personalizer.decision_id("e1", name) for name in ("top", "side")]


def test_a_policy_without_a_spec_takes_an_observation(bare):
    request = decoded(RankRequest, contextFeatures=[{"observation": [0.5, 1, 2]}])
    assert personalizer.instance(request, bare, "e", ["100"]).observation == [0.5, 1.0, 2.0]


def test_a_policy_without_a_catalogue_takes_numbers(bare):
    plain = Policy(msgspec.structs.replace(bare.card, catalogue=[]), bare.scorer)
    request = decoded(RankRequest, contextFeatures=[{"observation": [0, 1, 2]}])
    assert personalizer.instance(request, plain, "e", ["3", "17"]).candidates == [3]
    assert personalizer.item_id(3, plain) == "3"
    with pytest.raises(InputError, match=r"^actions: v1 has no catalogue; numbers .* expected as ids, got 'x'$"):
        personalizer.instance(request, plain, "e", ["x"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actions": ["100", "100"]}, "actions: ids must differ, got '100' twice"),
        ({"actions": ["100"], "excludedActions": ["100"]}, "excludedActions: must leave an action, got all 1"),
        ({"actions": ["999"]}, "actions: must include an item that the catalogue offers, got '999'"),
        ({"actions": ["104"]}, "actions: must include an item that the catalogue offers, got '104'"),
        ({"contextFeatures": ["phone"]}, "contextFeatures: groups of features expected, got 'phone'"),
        ({"contextFeatures": [{"device": [1]}]}, "contextFeatures.device: a number, a text, true or false expected"),
        ({"contextFeatures": [{"device": "a"}, {"device": "b"}]}, "contextFeatures.device: must come once"),
    ],
)
def test_what_does_not_fit_is_one_line(policy, fields, message):
    request = decoded(RankRequest, **fields)
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        personalizer.instance(request, policy, "e", personalizer.offered(request))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            CONTEXT,
            "contextFeatures: v1 has no feature spec; one feature named observation expected, a list of 3 numbers",
        ),
        ([{"observation": "x"}], "contextFeatures.observation: Expected `array`"),
    ],
)
def test_features_that_a_bare_policy_cannot_take(bare, features, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        personalizer.instance(decoded(RankRequest, contextFeatures=features), bare, "e", ["100"])


def test_excluded_actions_keep_their_places_and_the_chosen_one_comes_first():
    request = decoded(RankRequest, actions=["a", "b", "c", "d", "e"], excludedActions=["a", "d"])
    offered = personalizer.offered(request)
    assert offered == ["b", "c", "e"]
    ranked = personalizer.ranking(request, "e", offered, {"b": 0.2, "c": 0.7, "e": 0.1})
    assert [(one.id, one.probability) for one in ranked] == [
        ("a", 0.0),
        ("e", 0.1),
        ("c", 0.7),
        ("d", 0.0),
        ("b", 0.2),
    ]


def test_paths_count_as_one_of_two_routes():
    assert personalizer.counted_as("/personalizer/v1.0/rank") == personalizer.RANK_ROUTE
    assert personalizer.counted_as("/personalizer/multislot/rank") == personalizer.RANK_ROUTE
    for path in ("/personalizer/events/e1/reward", "/personalizer/v1.1-preview.3/multislot/events/e 2/activate"):
        assert personalizer.counted_as(path) == personalizer.EVENTS_ROUTE
    assert personalizer.counted_as("/predict") == "/predict"
