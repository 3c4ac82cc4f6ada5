from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contracts import policies
from contracts.errors import InputError
from orchestration import policy_store
from orchestration.pipelines import canary
from tests.linear_policies import point_at, write_policy

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three policies, rolled out one after the other."""
    for number, version in enumerate(("v1", "v2", "v3")):
        write_policy(tmp_path / version, seed=number)
        policy_store.roll_out(tmp_path, version, f"reason {number}", NOW + timedelta(days=number))
    return tmp_path


def served(store: Path) -> list[str]:
    return [past.version for past in policy_store.history(store)]


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()}


def champion(store: Path) -> policies.Champion:
    found = policy_store.champion(store)
    assert found is not None
    return found


def test_a_roll_out_names_the_version_before_and_is_done_once(store):
    assert (champion(store).version, champion(store).previous) == ("v3", "v2")
    before = files(store)
    assert policy_store.roll_out(store, "v3", "again", NOW).reason == "reason 2"
    assert files(store) == before
    with pytest.raises(InputError, match=r"has no policy 'v4'; it has: v1, v2, v3$"):
        policy_store.roll_out(store, "v4", "", NOW)


def test_each_rollback_goes_further_back_and_never_forward(store):
    assert policy_store.roll_back(store, "reward fell", NOW).version == "v2"
    found = champion(store)
    assert (found.previous, found.reason, found.rolled_back) == ("v1", "reward fell", "v3")
    assert policy_store.roll_back(store, "again", NOW).version == "v1"
    assert champion(store).previous is None
    before = files(store)
    with pytest.raises(InputError, match="has no earlier champion to go back to"):
        policy_store.roll_back(store, "", NOW)
    assert files(store) == before
    assert served(store) == ["v1", "v2", "v3", "v2", "v1"]


def test_a_version_that_was_rolled_back_is_passed_over_after_the_next_roll_out(store):
    policy_store.roll_back(store, "reward fell", NOW)
    write_policy(store / "v4", seed=4)
    policy_store.roll_out(store, "v4", "better", NOW)
    assert policy_store.roll_back(store, "worse", NOW).version == "v2"
    assert policy_store.roll_back(store, "worse", NOW).version == "v1"


def test_a_version_that_was_promoted_again_by_hand_is_gone_back_from(store):
    policy_store.roll_out(store, "v1", "by hand", NOW)
    assert [policy_store.roll_back(store, "", NOW).version for _ in range(3)] == ["v3", "v2", "v1"]


def test_a_pointer_without_a_history_is_enough_to_go_back(tmp_path):
    for version in ("v1", "v2"):
        write_policy(tmp_path / version)
    point_at(tmp_path, "v2", previous="v1")
    assert policy_store.roll_back(tmp_path, "", NOW).version == "v1"
    with pytest.raises(InputError, match="no earlier champion"):
        policy_store.roll_back(tmp_path, "", NOW)


@pytest.mark.parametrize(
    "change", [policy_store.roll_back, lambda store, *why: policy_store.roll_out(store, "v2", *why)]
)
def test_a_policy_that_does_not_load_is_refused_and_nothing_changes(store, change):
    (store / "v2" / policies.LINEAR_NAME).unlink()
    before = files(store)
    with pytest.raises(InputError, match="v2") as refused:
        change(store, "why", NOW)
    assert "\n" not in str(refused.value)
    assert files(store) == before


@pytest.mark.parametrize("torn", [b'{"version":"v', b"\xff", b'{"version":"v9","previous":null}'])
def test_a_torn_last_line_is_ignored_and_removed_by_the_next_write(store, torn):
    history = store / policy_store.HISTORY_NAME
    whole = history.read_bytes()
    history.write_bytes(whole + torn)
    assert served(store) == ["v1", "v2", "v3"]
    policy_store.roll_back(store, "reward fell", NOW)
    assert history.read_bytes().startswith(whole + b'{"version":"v2"')
    assert served(store) == ["v1", "v2", "v3", "v2"]


def test_a_line_that_is_not_a_champion_is_named(store):
    history = store / policy_store.HISTORY_NAME
    first, *others = history.read_bytes().splitlines(keepends=True)
    history.write_bytes(b"".join([first, b"{}\n", *others]))
    with pytest.raises(InputError, match=r"history\.jsonl, line 2: not a champion pointer"):
        policy_store.history(store)


def test_a_roll_out_that_was_killed_before_its_line_in_the_history_gets_it_the_next_time(store):
    history = store / policy_store.HISTORY_NAME
    before = history.read_bytes()
    history.write_bytes(before[: before[:-1].rfind(b"\n") + 1])
    assert served(store) == ["v1", "v2", "v3"]  # the pointer decides
    policy_store.roll_out(store, "v3", "better", NOW)
    assert history.read_bytes() == before
    # A canary beside it changes the pointer, not who was promoted when.
    canary.start(store, "v1", 0.5)
    policy_store.roll_out(store, "v3", "better", NOW)
    assert served(store) == ["v1", "v2", "v3"]
    assert history.read_bytes() == before


def test_a_folder_without_policies_has_no_champion(tmp_path):
    assert policy_store.champion(tmp_path) is None
    assert policy_store.history(tmp_path / "none") == []
    assert policy_store.versions(tmp_path) == []


def test_a_roll_back_from_probation_goes_to_the_anchor_and_then_before_it(store):
    point_at(store, "v3", previous="v2", mode="probation", anchor="v1", anchor_share=0.1)
    assert policy_store.roll_back(store, "", NOW).version == "v1"
    found = champion(store)
    assert (found.previous, found.rolled_back, found.anchor, found.mode) == (None, "v3", None, "canary")
    with pytest.raises(InputError, match="has no earlier champion to go back to"):
        policy_store.roll_back(store, "", NOW)
    policy_store.roll_out(store, "v2", "", NOW)
    assert policy_store.roll_back(store, "", NOW).version == "v1"


def test_no_canary_beside_a_version_on_probation(store):
    point_at(store, "v3", previous="v2", mode="probation", anchor="v2", anchor_share=0.1)
    before = files(store)
    with pytest.raises(InputError, match=r"^v3 is on probation: v1 can be tried beside it once it is confirmed$"):
        canary.start(store, "v1", 0.1)
    canary.end(store)
    assert files(store) == before


def test_every_change_of_the_pointer_is_recorded(store):
    before = policy_store.pointers(store)
    canary.start(store, "v1", 0.25)
    canary.start(store, "v1", 0.25)  # it takes them already
    canary.end(store)
    started, ended = policy_store.pointers(store)[len(before) :]
    assert (started.pointer.candidate, started.pointer.candidate_share, ended.pointer.candidate) == ("v1", 0.25, None)
    assert [one.pointer.version for one in before] == ["v1", "v2", "v3"]
    with (store / policy_store.POINTERS_NAME).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=r"pointers\.jsonl, line 6: not a change of the pointer"):
        policy_store.pointers(store)


def test_updates_on_probation_keep_the_anchor_until_one_is_confirmed(store):
    for number in (4, 5):
        write_policy(store / f"v{number}", seed=number)
        policy_store.roll_out(store, f"v{number}", "better", NOW + timedelta(days=number), anchor_share=0.2)
        found = champion(store)
        assert (found.version, found.mode, found.anchor, found.anchor_share) == (f"v{number}", "probation", "v3", 0.2)
    policy_store.confirm(store, NOW + timedelta(days=6))
    found = champion(store)
    assert (found.version, found.mode, found.anchor, found.anchor_share) == ("v5", "canary", None, 0.0)
    assert policy_store.pointers(store)[-1].pointer == found
    before = files(store)
    policy_store.confirm(store, NOW)
    assert files(store) == before
    assert served(store) == ["v1", "v2", "v3", "v4", "v5"]
    assert policy_store.roll_back(store, "", NOW).version == "v4"


def test_the_first_champion_has_no_anchor(tmp_path):
    write_policy(tmp_path / "v1")
    assert policy_store.roll_out(tmp_path, "v1", "first", NOW, anchor_share=0.2).mode == "canary"
