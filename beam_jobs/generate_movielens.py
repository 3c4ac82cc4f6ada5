"""Simulates a uniform logging policy on MovieLens viewers: the first data, so that training can start.

    python -m beam_jobs.generate_movielens --ratings sample --num-decisions 2000 --start 2026-01-01T00:00:00Z \\
        --events runs/demo/events

The job writes decisions (`policy_version="uniform"`, propensity 1/K) and their rewards into sealed segments of the event
log, one per shard of decisions. A shard depends only on the settings, the seed and its number, and its segment appears
once it is complete. When the job is rerun, or the runner repeats some work, each segment exists once with the same bytes.
Shards are simulated as arrays and workers share nothing, so more workers simulate proportionally more decisions.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import options
from beam_jobs.files import publish
from beam_jobs.movielens import OBSERVATION_DECIMALS, MovieLens
from beam_jobs.places import check_folder
from beam_jobs.ratings import load_ratings
from beam_jobs.worlds import WORLDS
from contracts import command_line, items
from contracts.errors import InputError
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.records import Decision, RewardEvent, utc_microseconds

JOB = "generate_movielens"
POLICY_VERSION = "uniform"
ROWS_ENCODED_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """The decisions to simulate, evenly over `[start, start + window_seconds)`, and the rewards that follow them.

    Raises InputError for a start without time zone, and for a number out of its bounds.
    """

    num_decisions: int
    start: datetime
    window_seconds: float = 5.0
    no_reward_probability: float = 0.05
    reward_delay_seconds: float = 0.5  # uniform from 0 to this
    seed: int = 0
    decisions_per_shard: int = 20_000

    def __post_init__(self) -> None:
        if self.start.tzinfo is None:
            raise InputError(f"--start must carry a time zone, got {self.start.isoformat()}")
        for name, valid, wanted in (
            ("num_decisions", self.num_decisions >= 1, "1 or more"),
            ("window_seconds", 0 < self.window_seconds < np.inf, "above 0"),
            ("no_reward_probability", 0 <= self.no_reward_probability <= 1, "from 0 to 1"),
            ("reward_delay_seconds", 0 <= self.reward_delay_seconds < np.inf, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("decisions_per_shard", self.decisions_per_shard >= 1, "1 or more"),
        ):
            if not valid:
                raise InputError(f"--{name.replace('_', '-')} must be {wanted}, got {getattr(self, name)}")

    @property
    def num_shards(self) -> int:
        """The number of shards, each of which becomes one segment."""
        return -(-self.num_decisions // self.decisions_per_shard)


class SimulatedDecisions(NamedTuple):
    """One shard: `N` decisions and their rewards, as arrays."""

    decision_id: np.ndarray  # [N] 36 ASCII bytes
    decided_at: np.ndarray  # [N] int64, microseconds since the epoch
    user: np.ndarray  # [N] int64, index of the viewer
    action: np.ndarray  # [N] int64
    reward: np.ndarray  # [N] float64
    occurred_at: np.ndarray  # [N] int64, microseconds since the epoch
    answered: np.ndarray  # [N] bool; without it there is no reward event


def simulate_shard(viewers: MovieLens, settings: GeneratorSettings, shard: int) -> SimulatedDecisions:
    """Shard `shard` of `settings.num_shards`: the same arrays for the same arguments."""
    rng = np.random.default_rng([settings.seed, shard])
    first = shard * settings.decisions_per_shard
    last = min(first + settings.decisions_per_shard, settings.num_decisions)
    count = last - first
    # In Python's integers: the product of a count and microseconds is beyond 64 bits for a billion decisions.
    window = round(settings.window_seconds * 1e6)
    offsets = [index * window // settings.num_decisions for index in range(first, last)]
    decided_at = utc_microseconds(settings.start) + np.array(offsets, np.int64)
    user = rng.integers(viewers.num_users, size=count)
    action = viewers.on_offer[rng.integers(len(viewers.on_offer), size=count)]
    delay = rng.uniform(0, settings.reward_delay_seconds * 1e6, count).astype(np.int64)
    return SimulatedDecisions(
        decision_id=uuid7(decided_at, rng),
        decided_at=decided_at,
        user=user,
        action=action,
        reward=viewers.observed_rewards(user, action, rng),
        occurred_at=decided_at + delay,
        answered=rng.random(count) >= settings.no_reward_probability,
    )


def uuid7(moments: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """UUIDs of version 7 (RFC 9562): 48 bits of milliseconds, then random ones. [N] microseconds -> [N] 36 bytes."""
    octets = np.frombuffer(rng.bytes(16 * len(moments)), np.uint8).reshape(-1, 16).copy()
    octets[:, :6] = (moments // 1000).astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:]
    octets[:, 6] = octets[:, 6] & 0x0F | 0x70  # version
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80  # variant
    nibbles = np.stack([octets >> 4, octets & 0x0F], axis=2).reshape(-1, 32)
    text = np.full((len(moments), 36), ord("-"), np.uint8)
    places = [place for place in range(36) if place not in (8, 13, 18, 23)]
    text[:, places] = np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles]
    return text.view("S36").ravel()


@dataclass(frozen=True)
class ShardEncoder:
    """Turns simulated decisions into lines of the event log."""

    viewers: MovieLens

    @cached_property
    def _observations(self) -> list[msgspec.Raw]:
        """[U] observations as JSON: a viewer's is the same at each visit, so it is written once."""
        rows = self.viewers.observations.astype(np.float64).round(OBSERVATION_DECIMALS).tolist()
        return [msgspec.Raw(msgspec.json.encode(row)) for row in rows]

    @cached_property
    def _user_ids(self) -> list[str]:
        return [str(user_id) for user_id in self.viewers.user_ids]

    def lines(self, simulated: SimulatedDecisions) -> Iterator[bytes]:
        """Chunks of JSON lines: decisions, each chunk followed by their rewards."""
        encoder = msgspec.json.Encoder()
        on_offer = self.viewers.on_offer.tolist()
        propensity = 1 / len(on_offer)
        candidates = on_offer if len(on_offer) < self.viewers.num_actions else []
        for begin in range(0, len(simulated.user), ROWS_ENCODED_AT_ONCE):
            rows = SimulatedDecisions(*(column[begin : begin + ROWS_ENCODED_AT_ONCE] for column in simulated))
            ids = rows.decision_id.astype("U36").tolist()
            yield encoder.encode_lines(
                Decision(
                    decision_id=decision_id,
                    decided_at=decided_at,
                    policy_version=POLICY_VERSION,
                    user_id=self._user_ids[user],
                    observation=self._observations[user],  # encoded already
                    candidates=candidates,
                    action=action,
                    propensity=propensity,
                )
                for decision_id, decided_at, user, action in zip(
                    ids, _moments(rows.decided_at), rows.user.tolist(), rows.action.tolist(), strict=True
                )
            )
            yield encoder.encode_lines(
                RewardEvent(decision_id=decision_id, occurred_at=occurred_at, reward=reward)
                for decision_id, occurred_at, reward, answered in zip(
                    ids, _moments(rows.occurred_at), rows.reward.tolist(), rows.answered.tolist(), strict=True
                )
                if answered
            )


def _moments(microseconds: np.ndarray) -> Iterator[datetime]:
    return (moment.replace(tzinfo=UTC) for moment in microseconds.astype("M8[us]").tolist())


def shard_segment(settings: GeneratorSettings, shard: int) -> str:
    """The name of a shard's segment."""
    return segment_name(settings.start, f"{JOB}-{shard:06d}")


class GenerateShardFn(beam.DoFn):
    """Shard number -> the segment written."""

    def __init__(self, viewers: MovieLens, settings: GeneratorSettings, events: str) -> None:
        self._encoder = ShardEncoder(viewers)
        self._settings = settings
        self._events = events
        self._decisions = Metrics.counter(JOB, "decisions")
        self._rewards = Metrics.counter(JOB, "rewards")

    def process(self, shard: int) -> Iterator[str]:
        """Simulates one shard and writes its segment."""
        simulated = simulate_shard(self._encoder.viewers, self._settings, shard)
        segment = FileSystems.join(self._events, shard_segment(self._settings, shard) + SEALED_SUFFIX)
        publish(segment, self._encoder.lines(simulated))
        self._decisions.inc(len(simulated.user))
        self._rewards.inc(int(simulated.answered.sum()))
        yield segment


class SimulateUniformPolicy(beam.PTransform):
    """Writes all shards of `settings` into the event log `events`; gives the segments written."""

    def __init__(self, viewers: MovieLens, settings: GeneratorSettings, events: str) -> None:
        super().__init__()
        self._viewers = viewers
        self._settings = settings
        self._events = events

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[str]:
        """Shard numbers, spread over the workers, then their simulation."""
        return (
            pipeline
            | "Shards" >> beam.Create(range(self._settings.num_shards))
            | "Spread" >> beam.Reshuffle()
            | "GenerateShard" >> beam.ParDo(GenerateShardFn(self._viewers, self._settings, self._events))
        )


def build_pipeline(
    pipeline: beam.Pipeline, viewers: MovieLens, settings: GeneratorSettings, events: str
) -> beam.PCollection[str]:
    """The job. Returns the segments written."""
    return pipeline | "SimulateUniformPolicy" >> SimulateUniformPolicy(viewers, settings, events)


def generate(
    viewers: MovieLens, settings: GeneratorSettings, events: Path | str, pipeline_options: PipelineOptions | None = None
) -> None:
    """Runs the job to its end, in this process unless `pipeline_options` say otherwise (Dataflow: submits it)."""
    beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
    pipeline = beam.Pipeline(options=beam_options)
    build_pipeline(pipeline, viewers, settings, str(events))
    with options.job_errors():
        result = pipeline.run()
        if not options.is_dataflow(beam_options):
            result.wait_until_finish()


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag(
        "ratings",
        options.TEXT,
        "MovieLens folder, also gs://BUCKET/FOLDER; tfds:movielens/100k-ratings; or sample",
        default="sample",
    )
    flags.flag(
        "world",
        options.TEXT,
        "how viewers see movies and policies see viewers, as for the loop (docs/other-data.md)",
        default="latent",
        choices=list(WORLDS),
    )
    flags.flag("events", options.TEXT, "folder of the event log to write to; created when it does not exist")
    flags.flag("num-decisions", options.whole(1), "decisions to simulate", default=2000)
    flags.flag(
        "num-actions", options.whole(1), "number of movies to choose from, those with the most ratings", default=100
    )
    flags.flag(
        "rank",
        options.whole(1),
        "number of factors of the user x movie matrix; in the world latent, the length of an observation",
        default=20,
    )
    flags.flag("reward-noise", options.number(0), "standard deviation of a reward around its expectation", default=0.5)
    flags.flag("no-reward-probability", options.number(0, 1), "share of decisions without a reward", default=0.05)
    flags.flag("reward-delay-seconds", options.number(0), "longest delay of a reward", default=0.5)
    flags.flag("start", options.MOMENT, "time of the first decision, as 2026-01-01T00:00:00Z")
    flags.flag(
        "window-seconds",
        options.number(0, above=True),
        "length of the window over which decisions are spread",
        default=5.0,
    )
    flags.flag(
        "seed", options.whole(0), "seed of the simulation; the same seed and settings give the same bytes", default=0
    )
    flags.flag(
        "decisions-per-shard", options.whole(1), "decisions per segment, which is the unit of work", default=20_000
    )
    flags.flag("catalogue", options.TEXT, "JSON file to write, with the movie of each action", default=None)
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags, builds the viewers, runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    chosen: dict[str, Any] = vars(arguments)
    for flag in ("events", "catalogue"):
        if chosen[flag]:
            check_folder(f"--{flag}", chosen[flag], pipeline_options)
    if arguments.ratings.startswith("gs://"):
        check_folder("--ratings", arguments.ratings, pipeline_options)
    settings = GeneratorSettings(**{name: chosen[name] for name in GeneratorSettings.__dataclass_fields__})
    try:
        settings.start + timedelta(seconds=settings.window_seconds + settings.reward_delay_seconds)
    except OverflowError:
        raise InputError(f"--window-seconds: no such end of the window, got {settings.window_seconds}") from None
    viewers = WORLDS[arguments.world].build(
        load_ratings(arguments.ratings),
        num_actions=arguments.num_actions,
        rank=arguments.rank,
        reward_noise=arguments.reward_noise,
        seed=arguments.seed,
    )
    if Path(arguments.events).is_file():
        raise InputError(f"--events: a folder expected, got the file {arguments.events!r}")
    generate(viewers, settings, arguments.events, pipeline_options)
    if arguments.catalogue:
        publish(arguments.catalogue, [items.encode(viewers.catalogue)])
    if options.is_dataflow(pipeline_options):
        print("submitted")
        return
    print(f"{arguments.events}: {settings.num_decisions} decisions, segments written: {settings.num_shards}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return command_line.run_main(f"beam_jobs.{JOB}", run, argv)


if __name__ == "__main__":
    # By its module name: Beam pickles a function of `__main__` with all its globals.
    from beam_jobs import generate_movielens

    sys.exit(generate_movielens.main())
