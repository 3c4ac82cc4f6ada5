"""Simulates the viewers of a production system: daily traffic, drifting tastes, new movies. On Cloud Run, or locally.

    python -m orchestration.traffic --endpoint http://127.0.0.1:8080 --rate 20 --seconds 60
    python -m orchestration.traffic --config prod --project PROJECT --rate 50 --seconds 3600 --start 2026-01-01T00:00:00Z

With `--config` it asks the Vertex AI endpoint through the SDK and publishes rewards to the events topic, as an application
does. `infra/services.tf` runs it as a Cloud Run job every hour, if the variable `traffic_rate` is above 0.

The viewers, their arrival times and their tastes depend only on the seed and on the time since `--start`. A job that runs
every hour therefore continues where the last one ended. The policies decide which movies the viewers see.
"""

import argparse
import contextlib
import heapq
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from contracts.command_line import FlagParser, add_flags, from_flags, parse_time, run_main
from contracts.errors import InputError, OperationError
from contracts.records import RewardEvent, encoder
from orchestration.loop.settings import DAY_SECONDS
from predictor.client import Client, RefusedError, UnavailableError
from predictor.messages import Instance, SentReward

PROGRAM = "orchestration.traffic"
TICK_SECONDS = 1.0
ANSWER_SECONDS = (0.1, 1.5)  # from the movie to the reward
INSTANCES_A_REQUEST = 100


class TrafficSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The viewers: how many arrive, when, and what they like."""

    ratings: Annotated[str, Meta(description="real ratings, as for the loop")] = "sample"
    num_actions: Annotated[int, Meta(description="movies that the policies know", ge=2)] = 100
    rank: Annotated[int, Meta(description="length of an observation", ge=1)] = 20
    reward_noise: Annotated[float, Meta(description="standard deviation of a reward", ge=0)] = 0.5
    rate: Annotated[float, Meta(description="viewers per second, on average over a day", gt=0)] = 20.0
    seconds: Annotated[float, Meta(description="how long to simulate, in seconds", gt=0)] = 60.0
    diurnal: Annotated[
        float, Meta(description="how far the rate swings around its average in a day: 0 not, 1 down to 0", ge=0, le=1)
    ] = 0.5
    drift: Annotated[float, Meta(description="how far tastes turn in a day, in radians", ge=0)] = 0.0
    new_movies: Annotated[
        int, Meta(description="how many of the movies come out one by one, evenly over the first day", ge=0)
    ] = 0
    no_reward_probability: Annotated[float, Meta(description="share of viewers who never answer", ge=0, lt=1)] = 0.05
    seed: Annotated[int, Meta(description="of viewers, tastes and noise", ge=0)] = 0


class Shown(NamedTuple):
    """A served decision."""

    decision_id: str
    action: int


class Edge(Protocol):
    """The system that serves decisions and accepts rewards."""

    def predict(self, instances: list[Instance]) -> list[Shown]:
        """The decision served for each instance."""

    def reward(self, rewards: list[SentReward]) -> None:
        """Sends the rewards."""

    def close(self) -> None:
        """Ends its connections."""


class Audience:
    """The viewers of `settings` at any moment, in seconds since the start.

    Their tastes turn (`beam_jobs.movielens`) by `drift` radians a day.
    """

    def __init__(self, settings: TrafficSettings) -> None:
        """Raises InputError for ratings that cannot be read, and for numbers that the ratings do not allow."""
        if settings.new_movies >= settings.num_actions:
            raise InputError(
                f"--new-movies must be below the {settings.num_actions} actions, got {settings.new_movies}"
            )
        self.settings = settings
        self.movielens = MovieLens.build(
            load_ratings(settings.ratings),
            num_actions=settings.num_actions,
            rank=settings.rank,
            reward_noise=settings.reward_noise,
            seed=settings.seed,
        )
        # The ones that come out later are any of them, not the least popular.
        self._coming = np.sort(np.array(self.movielens.drawn_actions(settings.new_movies), np.int64))

    def rate(self, at: float) -> float:
        """Viewers per second: lowest at the start of a day, highest in its middle."""
        return self.settings.rate * (1 - self.settings.diurnal * math.cos(2 * math.pi * at / DAY_SECONDS))

    def candidates(self, at: float) -> list[int]:
        """The movies that are out, by action; empty when all are."""
        out = int(len(self._coming) * min(1.0, at / DAY_SECONDS))
        hidden = set(self._coming[out:].tolist())
        return [action for action in range(self.settings.num_actions) if action not in hidden] if hidden else []

    def arrivals(self, tick: int) -> np.ndarray:
        """[N] indexes of the users who arrive in the second `tick`; N is Poisson distributed."""
        rng = np.random.default_rng([self.settings.seed, 1, tick])
        count = rng.poisson(self.rate(tick * TICK_SECONDS) * TICK_SECONDS)
        return rng.integers(0, self.movielens.num_users, count)

    def expected_rewards(self, users: np.ndarray, actions: np.ndarray, at: float) -> np.ndarray:
        """[N] float: the expected reward at that moment of each of [N] users for the action at its place."""
        return self.movielens.expected_rewards(users, actions, self.settings.drift * at / DAY_SECONDS)


class Totals(msgspec.Struct, kw_only=True):
    """Counts and sums of a run."""

    decisions: int = 0
    rewards: int = 0
    expected_reward: float = 0.0  # sum over decisions


def run(audience: Audience, edge: Edge, first_tick: int, say: Callable[[str], object]) -> Totals:
    """Lets viewers come from `first_tick` (seconds since the start) on for `settings.seconds`, each at its time.

    The clock paces, it does not decide: a slow edge delays viewers, it does not lose them.
    """
    settings = audience.settings
    totals = Totals()
    due: list[tuple[float, int, SentReward]] = []  # a heap
    begin = time.monotonic()
    ticks = math.ceil(settings.seconds / TICK_SECONDS)
    for tick in range(first_tick, first_tick + ticks):
        _sleep_until(begin + (tick - first_tick) * TICK_SECONDS)
        at = tick * TICK_SECONDS
        rng = np.random.default_rng([settings.seed, 2, tick])
        users = audience.arrivals(tick)
        candidates = audience.candidates(at)
        for position in range(0, len(users), INSTANCES_A_REQUEST):
            some = users[position : position + INSTANCES_A_REQUEST]
            instances = [
                Instance(observation, str(audience.movielens.user_ids[user]), [*candidates])
                for user, observation in zip(some, audience.movielens.observations[some].tolist(), strict=True)
            ]
            shown = edge.predict(instances)
            expected = audience.expected_rewards(some, np.array([one.action for one in shown]), at)
            rewards = expected + rng.normal(0, settings.reward_noise, len(some))
            answered = rng.random(len(some)) >= settings.no_reward_probability
            delays = rng.uniform(*ANSWER_SECONDS, len(some))
            now = time.time()
            for one, reward, answers, delay in zip(
                shown, rewards.tolist(), answered.tolist(), delays.tolist(), strict=True
            ):
                if answers:
                    moment = datetime.fromtimestamp(now + delay, UTC)
                    sent = SentReward(one.decision_id, reward, moment)
                    heapq.heappush(due, (now + delay, totals.decisions, sent))
                totals.decisions += 1
            totals.expected_reward += float(expected.sum())
        totals.rewards += _send_due(edge, due, time.time())
        if (tick - first_tick + 1) % 60 == 0:
            say(_line(audience, at, totals))
    _sleep_until(begin + settings.seconds + ANSWER_SECONDS[1])
    totals.rewards += _send_due(edge, due, math.inf)
    say(_line(audience, (first_tick + ticks) * TICK_SECONDS, totals))
    return totals


def _send_due(edge: Edge, due: list[tuple[float, int, SentReward]], now: float) -> int:
    ready = []
    while due and due[0][0] <= now:
        ready.append(heapq.heappop(due)[2])
    if ready:
        edge.reward(ready)
    return len(ready)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _line(audience: Audience, at: float, totals: Totals) -> str:
    mean = totals.expected_reward / totals.decisions if totals.decisions else 0.0
    out = len(audience.candidates(at)) or audience.settings.num_actions
    return f"{at:8.0f} s  {totals.decisions} decisions, {totals.rewards} rewards, mean {mean:.3f}, {out} movies out"


class Predictor:
    """One predictor over HTTP."""

    def __init__(self, url: str) -> None:
        """Raises InputError for a malformed URL."""
        self._client = Client(url)

    def predict(self, instances: list[Instance]) -> list[Shown]:
        """The decision served for each instance."""
        return [Shown(one.decision_id, one.action) for one in self._client.predict(instances)]

    def reward(self, rewards: list[SentReward]) -> None:
        """Posts the rewards to `/rewards`."""
        self._client.rewards(rewards)

    def close(self) -> None:
        """Ends its connection."""
        self._client.close()


class VertexEndpoint:
    """The endpoint of an environment by the SDK; rewards go to its events topic."""

    def __init__(self, config: str, project: str) -> None:
        """Raises InputError for an environment that is not on Google Cloud."""
        from google.cloud import pubsub_v1

        from orchestration.cloud import configuration, vertex_endpoint

        target = configuration.load(config, project).needed_cloud().target
        self._vertex = vertex_endpoint.VertexEndpoint(target)
        self._topic = target.topic
        self._publisher = pubsub_v1.PublisherClient()

    def predict(self, instances: list[Instance]) -> list[Shown]:
        """The decision served for each instance."""
        found = self._vertex.predict([msgspec.to_builtins(instance) for instance in instances])
        return [Shown(one["decision_id"], int(one["action"])) for one in found]  # the SDK gives every number as float

    def reward(self, rewards: list[SentReward]) -> None:
        """Publishes the rewards to the events topic; returns when the topic has accepted them."""
        sent = []
        for reward in rewards:
            assert reward.occurred_at is not None
            event = RewardEvent(decision_id=reward.decision_id, occurred_at=reward.occurred_at, reward=reward.reward)
            when = reward.occurred_at.isoformat()
            sent.append(self._publisher.publish(self._topic, encoder.encode(event), kind="reward", event_time=when))
        for future in sent:
            future.result(timeout=60)

    def close(self) -> None:
        """Ends the publisher's connections."""
        self._publisher.stop()
        self._publisher.transport.close()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--endpoint", help="a predictor, as http://host:port")
    where.add_argument("--config", help="an environment on Google Cloud: dev, prod, or a TOML file")
    parser.add_argument("--project", default="", help="replaces the configuration's project")
    parser.add_argument("--start", help="the time from which days are counted, ISO 8601 (default: now)")
    add_flags(parser, TrafficSettings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; 0 when all viewers came."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    settings = from_flags(arguments, TrafficSettings)
    now = datetime.now(UTC)
    begin = parse_time(arguments.start, "--start") if arguments.start else now
    if begin > now:
        raise InputError(f"--start: a time that is not in the future expected, got {arguments.start}")
    audience = Audience(settings)
    edge: Edge = (
        Predictor(arguments.endpoint) if arguments.endpoint else VertexEndpoint(arguments.config, arguments.project)
    )
    with contextlib.closing(edge):
        try:
            run(audience, edge, int((now - begin).total_seconds() / TICK_SECONDS), print)
        except RefusedError as error:
            raise InputError(str(error)) from None
        except UnavailableError as error:
            raise OperationError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
