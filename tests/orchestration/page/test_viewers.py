"""Be a viewer: observations, and what became of a reward."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.reward_join import in_holdback
from contracts.errors import InputError
from contracts.policies import TrainedWindow
from orchestration.audit import window_audits
from orchestration.page.sources import Sources
from orchestration.page.viewers import Audience, RewardFollower, Sent, curl
from tests.orchestration.page.events import START, decision
from tests.orchestration.page.roots import add_version, audit, finding, make, window


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "run")


def sent(split: str, seconds: float = 6.0, after: float = 1.0) -> Sent:
    """A reward for a decision whose id puts it in that split."""
    for number in range(1000):
        made = decision(number, seconds)
        held_back = bool(in_holdback(pa.array([made.decision_id]), 0.2)[0])
        if held_back == (split == "holdback"):
            at = made.decided_at + timedelta(seconds=after)
            return Sent(decision_id=made.decision_id, item="an item", reward=4.0, sent_at=at)
    raise AssertionError("no such id")


def status(folder, one: Sent):
    follower = RewardFollower(Sources(folder.root))
    follower.add(one)
    return follower.rewarded()[0]


def trained(*numbers: int, held_back: int | None = None) -> list[TrainedWindow]:
    found = [TrainedWindow(window=window(number), split="train", records=5) for number in numbers]
    if held_back is not None:
        found.append(TrainedWindow(window=window(held_back), split="holdback", records=1))
    return found


def test_a_reward_waits_until_a_policy_trained_on_it_serves(folder):
    one = sent("train")
    follower = RewardFollower(Sources(folder.root))
    follower.add(one)
    assert follower.rewarded()[0].status == "waiting"
    add_version(folder, 2, trained(0, 1, 2))
    (learned,) = follower.rewarded()
    assert (learned.status, learned.version) == ("learned", "v2")
    assert learned.seconds == pytest.approx((window(2).end + timedelta(seconds=4) - one.sent_at).total_seconds())


def test_a_reward_that_is_held_back_is_learned_one_policy_later(folder):
    one = sent("holdback")
    add_version(folder, 2, trained(0, 1, 2))
    assert status(folder, one).status == "held back"
    add_version(folder, 3, trained(0, 1, 2, 3, held_back=2))
    learned = status(folder, one)
    assert (learned.status, learned.version) == ("learned", "v3")


def test_a_late_reward_is_not_waited_for(folder):
    late = status(folder, sent("train", after=2.5))
    assert late.status == "late" and "2.5 s" in late.words and "2 s" in late.words


def test_a_window_that_the_guard_refused_is_not_waited_for(folder):
    one = sent("train")
    add_version(folder, 2, trained(0, 1))
    window_audits.write(folder.audit, audit(2, finding("residual", alarm=True)))
    assert status(folder, one).status == "refused"


def test_the_latest_rewards_are_followed(folder):
    follower = RewardFollower(Sources(folder.root))
    for seconds in range(30):
        follower.add(sent("train", seconds=100.0 + seconds))
    assert len(follower.rewarded()) == 20
    assert follower.rewarded()[0].sent_at == START + timedelta(seconds=130)


def test_viewers_of_the_run_and_one_made_of_ratings(folder):
    audience = Audience(Sources(folder.root).settings())
    first = audience.user_ids()[0]
    assert len(audience.observation(first)) == 3
    movielens = audience._movielens()
    # Ratings that a known viewer's taste predicts give about that viewer's observation.
    tastes = movielens.observations[0].astype(np.float64) * 3
    ratings = dict(enumerate((movielens.movie_factors @ tastes).tolist()))
    found = np.array(audience.observation_of(ratings))
    assert np.linalg.norm(movielens.movie_factors @ (found - tastes)) < 0.2 * np.linalg.norm(
        movielens.movie_factors @ tastes
    )
    assert audience.observation_of({}) == [0.0, 0.0, 0.0]
    with pytest.raises(InputError, match="user_id: a viewer of this run expected, got -1"):
        audience.observation(-1)
    with pytest.raises(InputError, match="ratings: actions below 5 expected, got 5"):
        audience.observation_of({5: 3.0})


def test_curl_quotes_what_a_shell_would_read():
    assert curl("http://h", "/predict", {"user_id": "o'neil; rm"}) == (
        """curl -s http://h/predict --json '{"user_id":"o'\\''neil; rm"}'"""
    )
