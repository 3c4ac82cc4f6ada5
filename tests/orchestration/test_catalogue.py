import json
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from contracts import items
from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import WITHDRAWN_NAME
from orchestration import catalogue, cli, policy_store
from orchestration.catalogue import Reuse
from orchestration.places import Places
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def listed(*ids, **fields):
    return [Item(action=position, item_id=one, **fields) for position, one in enumerate(ids)]


@pytest.fixture
def places(tmp_path):
    places = Places(tmp_path / "root")
    catalogue.apply(places, listed("a", "b", "c"), START)
    return places


def statuses(places):
    return {item.item_id: item.status for item in items.read(places.catalogue)}


def test_the_first_items_of_a_catalogue_are_not_new_and_later_ones_are(places):
    change = catalogue.apply(places, listed("d", "a"), START + HOUR)
    assert change.added == ["d"] and change.changed == [] and (change.num_items, change.num_active) == (4, 4)
    found = items.read(places.catalogue)
    assert [(item.action, item.item_id, item.since) for item in found] == [
        (0, "a", None),
        (1, "b", None),
        (2, "c", None),
        (3, "d", START + HOUR),
    ]
    assert catalogue.history(places.root)[-1] == change
    assert catalogue.apply(places, listed("d"), START + 2 * HOUR) is None  # nothing new, and no line for it
    assert len(catalogue.history(places.root)) == 2


def test_items_are_changed_masked_offered_and_retired(places):
    changed = catalogue.apply(places, listed("b", attributes={"title": "B"}), START + HOUR)
    assert changed.changed == ["b"]
    assert catalogue.set_status(places, ["a", "b"], "masked", START + HOUR).masked == ["a", "b"]
    assert catalogue.set_status(places, ["a"], "active", START + HOUR).offered == ["a"]
    assert catalogue.set_status(places, ["b"], "retired", START + 2 * HOUR).retired == ["b"]
    assert statuses(places) == {"a": "active", "b": "retired", "c": "active"}
    found = items.read(places.catalogue)[1]
    assert (found.title, found.retired_at) == ("B", START + 2 * HOUR)


@pytest.mark.parametrize(("missing", "status"), [("keep", "active"), ("mask", "masked"), ("retire", "retired")])
def test_what_becomes_of_items_that_a_whole_catalogue_leaves_out(places, missing, status):
    catalogue.apply(places, listed("a", "x"), START + HOUR, missing)
    assert statuses(places) == {"a": "active", "b": status, "c": status, "x": "active"}


def test_the_action_of_a_retired_item_is_used_again_only_after_the_stated_time(places):
    reuse = Reuse(reuse_after_hours=24)
    catalogue.set_status(places, ["b"], "retired", START)
    early = catalogue.apply(places, listed("d"), START + 23 * HOUR, reuse=reuse)
    assert early.replaced == {} and early.num_items == 4
    late = catalogue.apply(places, listed("e", "f"), START + 24 * HOUR, reuse=reuse)
    assert late.replaced == {"e": "b"} and late.num_items == 5
    assert [item.item_id for item in items.read(places.catalogue)] == ["a", "e", "c", "d", "f"]
    assert items.read(places.catalogue)[1].since == START + 24 * HOUR


def test_long_churn_does_not_grow_the_catalogue(tmp_path):
    """400 items of which 5% change every hour, for ten days, with logs kept for a day."""
    places, reuse, size = Places(tmp_path), Reuse(reuse_after_hours=24), 400
    offered, serial = [f"i{number}" for number in range(size)], size
    catalogue.apply(places, listed(*offered), START)
    counts, sizes = [], []
    owner: dict[int, tuple[str, datetime]] = {}  # action -> the last item that left it, and when
    for hour in range(1, 241):
        now = START + hour * HOUR
        for item in items.read(places.catalogue):
            if item.item_id in offered[:20]:
                owner[item.action] = item.item_id, now
        offered = [*offered[20:], *(f"i{serial + number}" for number in range(20))]
        serial += 20
        change = catalogue.apply(places, listed(*offered), now, "retire", reuse)
        counts.append(change.num_items)
        sizes.append(places.catalogue.stat().st_size)
        assert change.num_active == size and len(change.added) == len(change.retired) == 20
        found = {item.item_id: item for item in items.read(places.catalogue)}
        for new, old in change.replaced.items():
            left, at = owner[found[new].action]
            assert left == old and now - at >= 24 * HOUR
    assert max(counts) == counts[30] == size + 24 * 20 and set(counts[30:]) == {counts[30]}
    assert max(sizes[50:]) < 1.03 * sizes[50]  # longer ids


def test_a_wrong_change_changes_nothing(places):
    before = places.catalogue.read_bytes()
    for change, message in (
        (lambda: catalogue.set_status(places, ["a", "x"], "masked", START), "catalogue: has no item 'x'"),
        (lambda: catalogue.set_status(places, ["a", "b", "c"], "retired", START), "must have an active item"),
        (lambda: catalogue.apply(places, listed("y", features=[1.0]), START), "item 'y' has 1 features"),
        (lambda: catalogue.apply(places, listed("y", status="masked"), START, "retire"), "must have an active item"),
    ):
        with pytest.raises(InputError, match=message):
            change()
    catalogue.set_status(places, ["b"], "retired", START)
    before = places.catalogue.read_bytes()
    with pytest.raises(InputError, match="item 'b' was retired, and is active again"):
        catalogue.apply(places, listed("x", "b"), START)
    assert places.catalogue.read_bytes() == before and len(catalogue.history(places.root)) == 2


def test_changes_at_the_same_time_are_made_one_after_the_other(places):
    threads = [
        threading.Thread(target=catalogue.apply, args=(places, listed(f"t{number}"), START + HOUR))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(items.read(places.catalogue)) == 11 and len(catalogue.history(places.root)) == 9


def test_the_command(places, tmp_path, capsys):
    path = tmp_path / "new.json"
    path.write_bytes(items.encode(listed("d", "e")))
    root = ["--root", str(places.root)]
    assert cli.main(["catalogue", "apply", *root, "--items", str(path)]) == 0
    assert capsys.readouterr().out == "added 2: d, e\n5 actions, 5 items on offer\n"
    assert cli.main(["catalogue", "retire", "a", "b", *root]) == 0
    assert cli.main(["catalogue", "retire", "a", *root]) == 0
    assert capsys.readouterr().out.endswith("nothing changed\n")
    assert cli.main(["catalogue", "show", *root]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "5 actions: 3 items on offer, 0 masked, 2 retired"
    assert shown[-1].endswith("retired 2: a, b; 5 actions, 3 items on offer")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["mask"], "ID: mask, offer and retire take ids, got mask and 0 ids"),
        (["show", "a"], "ID: mask, offer and retire take ids, got show and 1 ids"),
        (["apply"], "--items: belongs to apply, got apply and --items None"),
        (["mask", "x"], "catalogue: has no item 'x'"),
    ],
)
def test_a_wrong_command_is_refused(places, capsys, flags, message):
    assert cli.main(["catalogue", *flags, "--root", str(places.root)]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_line_of_the_history_is_named(places):
    with (places.root / catalogue.HISTORY_NAME).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=r"catalogue\.jsonl, line 2"):
        catalogue.history(places.root)


def test_a_change_is_a_line_of_json(places):
    [line] = (places.root / catalogue.HISTORY_NAME).read_bytes().splitlines()
    assert msgspec.json.decode(line)["added"] == ["a", "b", "c"]


def test_what_the_champion_still_offers_is_listed_as_withdrawn(places):
    store = places.policies
    for version in ("v1", "v2"):  # their items are "100" to "104"
        write_policy(store / version)
    catalogue.apply(places, listed("100", "101", "102"), START + HOUR)
    assert not (store / WITHDRAWN_NAME).is_file()
    policy_store.roll_out(store, "v1", "first", START)
    catalogue.set_status(places, ["a", "101"], "retired", START + HOUR)
    read = (store / WITHDRAWN_NAME).read_bytes
    assert json.loads(read()) == ["101", "103", "104"]  # those that the catalogue does not have are not on offer either
    catalogue.set_status(places, ["102"], "masked", START + HOUR)
    assert json.loads(read()) == ["101", "102", "103", "104"]
    catalogue.set_status(places, ["102"], "active", START + HOUR)
    assert json.loads(read()) == ["101", "103", "104"]
