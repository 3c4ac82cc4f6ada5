from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from contracts.errors import InputError
from orchestration import policy_store
from orchestration.pipelines import canary
from orchestration.pipelines.canary import Arm, Canary, Trial
from tests.linear_policies import point_at, write_policy


def trial(candidate: float, champion: float, decisions: int = 100) -> Trial:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=decisions)
    noise -= noise.mean()
    return Trial(Arm.of((candidate + noise).tolist()), Arm.of((champion + noise).tolist()))


def test_the_standard_error_is_that_of_a_difference_of_means():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 2, 400), rng.normal(1, 3, 900)
    found = Trial(Arm.of(a.tolist()), Arm.of(b.tolist()))
    assert found.gain == pytest.approx(a.mean() - b.mean())
    assert found.standard_error == pytest.approx(np.sqrt(a.var(ddof=1) / 400 + b.var(ddof=1) / 900))


def test_an_equal_candidate_is_rarely_called_worse():
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(2000):
        same = Trial(Arm.of(rng.normal(size=100).tolist()), Arm.of(rng.normal(size=900).tolist()))
        called += same.worse(canary.STANDARD_ERRORS)
    assert 0.012 < called / 2000 < 0.04  # one side of 95%: 2.5%


@pytest.mark.parametrize(
    ("found", "action", "reason"),
    [
        (trial(1.0, 1.0), "promote", "not worse in the canary: gain +0.000"),
        (trial(2.0, 1.0), "promote", "not worse in the canary: gain +1.000"),
        (trial(0.6, 1.0), "roll back", "worse in the canary: gain -0.400"),
        (trial(-1.0, 1.0), "roll back", "clearly worse in the canary: gain -2.000"),
        (trial(-9.0, 1.0, 10), "promote", "not worse in the canary: 10 of its decisions against 10, too few to tell"),
    ],
)
def test_the_verdict(found, action, reason):
    verdict = canary.watch(lambda end: found, datetime.now(UTC), Canary(decisions=10, seconds=60), settle_seconds=0)
    assert verdict.action == action
    assert verdict.reason.startswith(reason)


def test_harm_ends_it_before_its_time_and_too_few_decisions_wait_for_it():
    begin = datetime.now(UTC)
    looks = iter([trial(1, 1, 5), trial(1, 1, 40), trial(-2, 1, 40)])
    verdict = canary.watch(lambda end: next(looks), begin, Canary(decisions=1000, seconds=3600), settle_seconds=0)
    assert verdict.action == "roll back"
    ends = []

    def few(end: datetime) -> Trial:
        ends.append(end)
        return trial(1, 1, 5)

    assert canary.watch(few, begin, Canary(decisions=10, seconds=0.2), settle_seconds=0.1).action == "promote"
    assert max(ends) == begin + timedelta(seconds=0.1)  # the youngest decision whose reward was in by then


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
