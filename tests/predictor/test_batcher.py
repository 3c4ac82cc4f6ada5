import asyncio
import dataclasses

import numpy as np
import pytest

from contracts import event_segments
from contracts.errors import InputError
from contracts.records import event_decoder
from predictor import batcher as batching
from predictor import deciding
from predictor import policy as policy_files
from predictor.batcher import Batcher
from predictor.event_log import EventLog
from predictor.follower import PolicyFollower
from predictor.line_up import LineUp
from predictor.messages import Instance
from predictor.metrics import Metrics
from tests.linear_policies import write_policy


class Watched:
    """A policy that notes how many rows each pass has; observations that begin with 666 are too much for it."""

    def __init__(self, folder):
        self.policy = policy_files.load(folder)
        self.passes = []

    def line_up(self):
        def scorer(observations):
            self.passes.append(len(observations))
            mean, std = self.policy.scorer(observations)
            mean[observations[:, 0] == 666] = np.nan
            return mean, std

        watched = dataclasses.replace(self.policy, scorer=scorer)
        return LineUp(watched, policy_files.baseline(self.policy.card))


@pytest.fixture
def watched(tmp_path):
    write_policy(tmp_path / "v1")
    return Watched(tmp_path / "v1")


@pytest.fixture
def batcher(watched, tmp_path):
    follower = PolicyFollower(tmp_path / "v1")
    follower.line_up = watched.line_up()
    events, shadows = EventLog(tmp_path / "events", "w"), EventLog(tmp_path / "shadow", "w")
    yield Batcher(follower, events, shadows, Metrics())
    events.close()
    shadows.close()


def asking(batcher, *requests, slate_size=1):
    """The answers, or errors, to requests that come at the same time."""

    async def ask():
        asked = [batcher.decide(request, slate_size, 100) for request in requests]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


def observe(count, seed):
    return [Instance(observation) for observation in np.random.default_rng(seed).normal(size=(count, 3)).tolist()]


def logged(folder):
    return [
        event_decoder.decode(line)
        for path in event_segments.sealed_segments(folder)
        for line in path.read_bytes().splitlines()
    ]


def test_requests_that_come_together_share_a_pass_and_get_their_own(watched, batcher, tmp_path):
    requests = [observe(count, seed) for seed, count in enumerate((3, 1, 8, 2))]
    answers = asking(batcher, *requests)
    assert watched.passes == [14]
    for (card, slates), request in zip(answers, requests, strict=True):
        assert card.version == "v1"
        assert [decision.observation for (decision,) in slates] == [instance.observation for instance in request]
        for (decision,) in slates:  # one by one, as they were not decided
            assert deciding.replay(watched.policy, [decision]) == ([decision.action], [decision.propensity])
    batcher._events.close()
    assert logged(tmp_path / "events") == [decision for _, slates in answers for (decision,) in slates]
    assert batcher._metrics.decisions == 14
    assert batcher.expected_bytes == 0


def test_a_request_that_is_read_while_another_is_parsed_joins_it(watched, batcher):
    async def ask():
        first = asyncio.create_task(batcher.decide(observe(3, 0), 1, 100))
        await asyncio.sleep(0)  # the first asks in this turn of the event loop
        second = asyncio.create_task(batcher.decide(observe(2, 1), 1, 100))
        await asyncio.gather(first, second)
        await batcher.decide(observe(1, 2), 1, 100)

    asyncio.run(ask())
    assert watched.passes == [5, 1]


def test_a_wrong_request_is_refused_alone(watched, batcher):
    right, wrong = observe(2, 0), [Instance([1.0])]
    first, second, third = asking(batcher, right, wrong, right)
    assert watched.passes == [4]
    assert (len(first[1]), len(third[1])) == (2, 2)
    assert isinstance(second, InputError)
    assert str(second) == "instances[0].observation: must have 3 numbers, got 1"
    assert batcher.expected_bytes == 0


def test_what_is_too_much_for_the_policy_falls_back_alone(batcher, tmp_path):
    answers = asking(batcher, observe(2, 0), [Instance([666.0, 0.0, 0.0])], observe(3, 1))
    versions = [[decision.policy_version for (decision,) in slates] for _, slates in answers]
    assert versions == [["v1"] * 2, ["uniform"], ["v1"] * 3]
    assert batcher._metrics.fallbacks == 1
    batcher._events.close()
    assert len(logged(tmp_path / "events")) == 6  # nothing of the pass that failed


def test_slates_of_one_size_go_together(watched, batcher):
    async def ask():
        return await asyncio.gather(*(batcher.decide(observe(2, size), size, 100) for size in (1, 2, 1, 2)))

    answers = asyncio.run(ask())
    assert [[len(slate) for slate in slates] for _, slates in answers] == [[1, 1], [2, 2], [1, 1], [2, 2]]
    assert watched.passes == [4, 4, 4]  # a pass for the single ones, one a place for the slates


def test_a_pass_is_bounded_and_what_is_long_is_worked_on_beside_it(watched, batcher, monkeypatch):
    monkeypatch.setattr(batching, "_LONG_WORK", 50)  # ten rows of five arms
    answers = asking(batcher, observe(11, 0), *(observe(4, seed) for seed in range(1, 8)))
    assert [len(slates) for _, slates in answers] == [11] + [4] * 7
    assert sorted(watched.passes) == [4, 11, 12, 12]


def test_a_request_that_is_given_up_takes_nothing_from_the_others(batcher):
    async def ask():
        given_up = asyncio.ensure_future(batcher.decide(observe(2, 0), 1, 100))
        wrong = asyncio.ensure_future(batcher.decide([Instance([1.0])], 1, 100))
        kept = asyncio.ensure_future(batcher.decide(observe(3, 1), 1, 100))
        await asyncio.sleep(0)
        given_up.cancel()
        wrong.cancel()
        return await asyncio.gather(given_up, wrong, kept, return_exceptions=True)

    given_up, wrong, (_, slates) = asyncio.run(ask())
    assert isinstance(given_up, asyncio.CancelledError)
    assert isinstance(wrong, asyncio.CancelledError)
    assert len(slates) == 3
    assert batcher.expected_bytes == 0


def test_a_bug_reaches_those_who_ask(batcher, monkeypatch):
    def crash(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(deciding, "decide", crash)
    answers = asking(batcher, observe(1, 0), observe(1, 1))
    assert [str(error) for error in answers] == ["a bug", "a bug"]
