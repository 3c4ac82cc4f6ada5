import re
from datetime import UTC, datetime

import msgspec
import pytest

from contracts import items
from contracts.errors import InputError
from contracts.items import Item


def three(*changes):
    catalogue = [
        Item(action=0, item_id="a", attributes={"year": 1980.0, "genres": ["Drama"]}),
        Item(action=1, item_id="b", attributes={"year": 2000.0, "genres": ["Comedy", "Drama"]}),
        Item(action=2, item_id="c"),
    ]
    for action, change in changes:
        catalogue[action] = msgspec.structs.replace(catalogue[action], **change)
    return catalogue


ALLOWED = {
    "the same": three(),
    "one more": [*three(), Item(action=3, item_id="d")],
    "masked": three((1, {"status": "masked"})),
    "retired": three((1, {"status": "retired"})),
    "another title": three((1, {"attributes": {"title": "B"}})),
}
REFUSED = {
    "gone": (three()[:2], "item 'c' is gone; retire it instead"),
    "reused": (three((1, {"item_id": "z"})), "action 1 is item 'b' in the parent, got 'z'"),
    "nothing to recommend": (
        three(*((action, {"status": ("masked", "retired")[action % 2]}) for action in range(3))),
        "must have an active item",
    ),
    "twice": (three((2, {"item_id": "a"})), "item 'a' is both action 0 and 2"),
    "out of order": (three()[::-1], "must list actions in order from 0, got 2 at 0"),
    "features": (three((1, {"features": [1.0, 2.0]})), "item 'b' has 2 features, the first has 0"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_catalogue_may_grow_and_change_its_status(case):
    items.check(ALLOWED[case], three())


@pytest.mark.parametrize("case", REFUSED)
def test_an_action_stays_the_same_item(case):
    catalogue, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        items.check(catalogue, three())


def test_a_masked_item_comes_back_a_retired_one_does_not():
    items.check(three(), three((1, {"status": "masked"})))
    with pytest.raises(InputError, match="item 'b' was retired, and is active again"):
        items.check(three(), three((1, {"status": "retired"})))


def test_an_action_stands_for_another_item_once_its_own_is_retired():
    retired = three((1, {"status": "retired"}))
    added = three((1, {"item_id": "z", "since": datetime(2026, 1, 1, tzinfo=UTC)}))
    items.check(added, retired)
    assert items.renewed(added, retired) == [1] and items.renewed(three(), retired) == []
    with pytest.raises(InputError, match="action 1 is item 'b' in the parent, got 'z'"):
        items.check(added, three())


def test_a_catalogue_survives_the_way_through_its_file(tmp_path):
    path = tmp_path / "catalogue.json"
    path.write_bytes(items.encode(three()))
    assert items.read(path) == three()
    with pytest.raises(InputError, match=r"catalogue: .*nowhere\.json: No such file"):
        items.read(tmp_path / "nowhere.json")


def test_without_actions_an_items_action_is_its_position():
    found = items.decode(b'[{"item_id": "a"}, {"item_id": "b", "attributes": {"price": 3, "url": "u"}}]', "here")
    assert [(item.action, item.item_id) for item in found] == [(0, "a"), (1, "b")]
    assert items.numbers_of(found[1]) == {"price": 3.0} and items.categories_of(found[1]) == {}


def test_numbers_categories_and_texts_are_told_apart():
    item = Item(action=0, item_id="a", attributes={"title": "T", "topic": "x", "tags": ["p", "q"], "words": 3.0})
    assert items.numbers_of(item) == {"words": 3.0}
    assert items.categories_of(item) == {"topic": ["x"], "tags": ["p", "q"]}
    assert (item.title, item.name, Item(action=0, item_id="a").name) == ("T", "T", "a")


WRONG = {
    b'{"item_id": "a", "colour": 1}': "item 'a': unknown field 'colour'; an item has action, item_id, attributes",
    b'{"item_id": 7}': "item 7, item_id: Expected `str`, got `int`",
    b'{"attributes": {}}': "entry 0: Object missing required field `item_id`",
    b"3": "entry 0 must be an object, got 3",
    b'{"item_id": "a", "status": "gone"}': "item 'a', status: Invalid enum value 'gone'",
    b'{"item_id": "a", "attributes": {"price": null}}': "item 'a', attributes.price: Expected `float | str | array`",
    b'{"item_id": "a", "attributes": {"price": 1e99}}': "item 'a', attributes.price: Expected `float` <= 3.4",
    b'{"item_id": "a", "attributes": {"1st": 3}}': "item 'a', attributes.1st: Expected `str` matching",
    b'{"item_id": "a", "attributes": {"title": 3}}': "item 'a': attributes.title: must be a text, got 3",
    b'{"item_id": "a", "attributes": {"topic": "%s"}}'
    % (b"x" * 65): "item 'a': attributes.topic: a category has 1 to 64",
    b'{"item_id": "a", "features": ["x"]}': "item 'a', features[0]: Expected `float`, got `str`",
    b'{"item_id": "a"}, {"item_id": "a"}': "item 'a' is both action 0 and 1",
    b'{"item_id": "a", "attributes": {"t": 5}}, {"item_id": "b", "attributes": {"t": "x"}}': (
        "item 'b', attributes.t: must be a number as in item 'a', got 'x'"
    ),
}


@pytest.mark.parametrize("entries", WRONG)
def test_what_is_wrong_is_refused_in_one_line_that_names_item_field_and_value(entries):
    with pytest.raises(InputError, match="^here: " + re.escape(WRONG[entries])) as caught:
        items.decode(b"[" + entries + b"]", "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_more_items_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(items, "MAX_ITEMS", 2)
    with pytest.raises(InputError, match="here: must have at most 2 items, got 3"):
        items.decode(items.encode(three()), "here")
    with pytest.raises(InputError, match="here: Expected `array`, got `object`"):
        items.decode(b"{}", "here")
