import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from contracts import policies
from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import (
    ArmColumn,
    Champion,
    Exploration,
    PolicyCard,
    TrainedWindow,
    decode_card,
    decode_champion,
    encode_json,
)
from contracts.windows import TrainingWindow

START = datetime(2026, 1, 1, tzinfo=UTC)
CARD = PolicyCard(
    version="v2",
    parent="v1",
    algorithm="lin_ucb",
    hyperparameters={"tikhonov": 0.3},
    observation_dim=3,
    num_actions=2,
    catalogue=[
        Item(action=0, item_id="50", attributes={"title": "Star Wars", "year": 1977.0}),
        Item(action=1, item_id="1"),
    ],
    trained_on=[TrainedWindow(window=TrainingWindow(START, START + timedelta(seconds=5)), split="train", records=9)],
    exploration=Exploration(),
)


def test_a_card_survives_the_way_through_json_with_the_same_bytes():
    data = encode_json(CARD)
    assert decode_card(data, "policy.json") == CARD
    assert encode_json(decode_card(data, "policy.json")) == data


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"num_actions": 2', b'"num_actions": 0', "num_actions"),
        (b'"epsilon": 0.02', b'"epsilon": 2', "epsilon"),
        (b'"action": 1', b'"action": 0', "catalogue"),
        (b'"version": "v2"', b'"version": ""', "version"),
        (b'"schema_version": 2', b'"schema_version": 99', "schema_version 99 is newer than this code's"),
        (b"}", b"", "policy.json: not a policy"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused_in_one_line(old, new, message):
    data = encode_json(CARD)
    assert old in data
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        decode_card(data.replace(old, new), "policy.json")
    assert "\n" not in str(caught.value)


def test_a_card_of_the_first_schema_whose_items_were_movies_is_read():
    old = msgspec.json.decode(encode_json(CARD)) | {"schema_version": 1}
    old["hyperparameters"] |= {"arm_features": "hybrid"}
    del old["arm_columns"]
    old["catalogue"] = [
        {"action": 0, "movie_id": "50", "title": "Star Wars", "year": 1977, "genres": ["Action"], "status": "active"},
        {"action": 1, "movie_id": "1", "title": "", "year": None, "genres": [], "features": []},
    ]
    found = decode_card(msgspec.json.encode(old), "policy.json")
    assert found.catalogue == [
        Item(action=0, item_id="50", attributes={"title": "Star Wars", "year": 1977.0, "genres": ["Action"]}),
        Item(action=1, item_id="1"),
    ]
    assert found.schema_version == policies.SCHEMA_VERSION
    assert found.arm_columns == [
        ArmColumn(attribute="year", center=1980.0, scale=10.0),
        ArmColumn(attribute="genres", category="Action"),
    ]
    with pytest.raises(InputError, match=r"policy\.json: not a policy"):
        decode_card(msgspec.json.encode(old | {"schema_version": 2}), "policy.json")


def test_the_champion_pointer():
    champion = Champion(version="v2", previous="v1", promoted_at=START, reason="better")
    assert decode_champion(encode_json(champion), "champion.json") == champion
    with pytest.raises(InputError, match=r"champion\.json: not a champion pointer"):
        decode_champion(msgspec.json.encode({"version": "v2"}), "champion.json")


def test_a_version_on_probation_has_an_anchor_and_no_other_version_has_one():
    champion = Champion(
        version="v2", previous="v1", promoted_at=START, reason="", mode="probation", anchor="v1", anchor_share=0.1
    )
    data = encode_json(champion)
    assert decode_champion(data, "champion.json") == champion
    for old, new in (
        (b'"probation"', b'"canary"'),
        (b'"anchor": "v1"', b'"anchor": null'),
        (b'"anchor_share": 0.1', b'"anchor_share": 0.6'),
    ):
        assert old in data
        with pytest.raises(InputError, match=r"champion\.json: not a champion pointer: .*(anchor|0\.5)"):
            decode_champion(data.replace(old, new), "champion.json")


def test_a_live_version_names_its_base():
    name = policies.live_version("lin_ucb-20261122T130508.123456Z-abcdef12", 7)
    assert policies.split_version(name) == ("lin_ucb-20261122T130508.123456Z-abcdef12", 7)
    assert policies.base_of(name) == policies.base_of("lin_ucb-20261122T130508.123456Z-abcdef12")
    for other in ("uniform", "v1+", "+3", "v1+x"):
        assert policies.split_version(other) == (other, None)
