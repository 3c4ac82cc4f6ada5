from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contracts.errors import InputError
from contracts.policies import Exploration
from orchestration import policy_store, watch
from orchestration.pipelines import canary
from orchestration.pipelines.canary import Canary
from orchestration.watch import Look, Scale
from predictor import policy as serving
from tests.linear_policies import point_at, write_policy

SETTINGS = Canary(share=0.1, margin=0.02)
SCALE = Scale(low=0.0, high=1.0, residual=1.0, unit=0.5)


def look(outcome: str = "on probation") -> Look:
    found = watch.nothing_yet(SCALE, 0.9, 0.02).look("new", "old")
    return msgspec.structs.replace(found, outcome=outcome)


@pytest.mark.parametrize("outcome", ["confirmed", "rolled back"])
def test_a_verdict_ends_it_before_its_time(outcome):
    looks = iter([(look(), 5), (look(), 40), (look(outcome), 60)])
    found = canary.watch(lambda end: next(looks), datetime.now(UTC), Canary(decisions=1000, seconds=3600), 0)
    assert found.outcome == outcome
    assert next(looks, None) is None


def test_without_a_verdict_it_ends_with_its_decisions_or_its_time():
    begin, ends = datetime.now(UTC), []
    looks = iter([(look(), 5), (look(), 10)])
    assert canary.watch(lambda end: next(looks), begin, Canary(decisions=10, seconds=3600), 0) == look()

    def few(end: datetime) -> tuple[Look, int]:
        ends.append(end)
        return look(), 5

    begin = datetime.now(UTC)
    assert canary.watch(few, begin, Canary(decisions=10, seconds=0.2), settle_seconds=0.1) == look()
    assert max(ends) == begin + timedelta(seconds=0.1)  # the youngest decision whose reward was in by then


def test_a_canary_goes_on_with_what_an_earlier_one_of_the_same_settings_showed(tmp_path: Path):
    for version in ("first", "next"):
        write_policy(tmp_path / version)
    write_policy(tmp_path / "bolder", exploration=Exploration(epsilon=0.5))
    cards = {name: serving.read_card(tmp_path / name) for name in ("first", "next", "bolder")}
    trial = canary.Trial(
        candidate="first", champion="old", evidence=watch.nothing_yet(SCALE, 1 - 0.1, 0.02), look=look()
    )
    assert canary.read(tmp_path) is None
    canary.write(tmp_path, trial)
    assert canary.read(tmp_path) == trial
    assert trial.goes_on(tmp_path, cards["next"], "old", SETTINGS)
    assert not trial.goes_on(tmp_path, cards["bolder"], "old", SETTINGS)
    assert not trial.goes_on(tmp_path, cards["next"], "other", SETTINGS)
    assert not trial.goes_on(tmp_path, cards["next"], "old", Canary(share=0.2, margin=0.02))
    assert not trial.goes_on(tmp_path, cards["next"], "old", Canary(share=0.1, margin=0.05))
    ended = msgspec.structs.replace(trial, look=look("rolled back"))
    assert not ended.goes_on(tmp_path, cards["next"], "old", SETTINGS)
    (tmp_path / canary.STATE_NAME).write_text("{}")
    with pytest.raises(InputError, match=r"canary\.json: not a canary"):
        canary.read(tmp_path)


def test_start_and_end_move_the_pointer_and_nothing_else(tmp_path):
    for version in ("old", "new"):
        write_policy(tmp_path / version)
    point_at(tmp_path, "old", previous="older")
    before = policy_store.champion(tmp_path)
    started = canary.start(tmp_path, "new", 0.25)
    assert policy_store.champion(tmp_path) == started
    assert (started.version, started.candidate, started.candidate_share) == ("old", "new", 0.25)
    assert canary.start(tmp_path, "new", 0.25) == started
    assert canary.end(tmp_path) == policy_store.champion(tmp_path) == before
    assert canary.end(tmp_path) == before


@pytest.mark.parametrize(
    ("version", "share", "message"),
    [
        ("none", 0.1, "has no policy 'none'"),
        ("old", 0.1, "old is the champion: it cannot be its own canary"),
    ],
)
def test_wrong_canaries(tmp_path, version, share, message):
    for name in ("old", "new"):
        write_policy(tmp_path / name)
    with pytest.raises(InputError, match="has no champion"):
        canary.start(tmp_path, "new", 0.1)
    point_at(tmp_path, "old")
    with pytest.raises(InputError, match=message):
        canary.start(tmp_path, version, share)
