"""Joins events as they come, and emits exact sums by arm of the windows that are not exported yet.

    python -m beam_jobs.learn_live --events runs/demo/events --windows runs/demo/windows --live runs/demo/live \\
        --start 2026-01-01T00:00:00Z --window-seconds 5 --reward-window-seconds 2 --settle-seconds 1 \\
        --observation-dim 20 --num-actions 100
    python -m beam_jobs.learn_live --events pubsub:projects/P/subscriptions/live --windows gs://B/windows \\
        --live gs://B/live --start 2026-01-01T00:00:00Z --window-seconds 300 --observation-dim 20 --num-actions 100

The job reads the events that `ingest_events` reads, and parses them with the same code. It keeps the decisions and rewards
of open windows in keyed state, and joins them with the code of `export_trajectories`. So the sums of a window equal those
of its exported records bit for bit once the job has read the same events. Each second it writes an emission to
`<live>/sums` (`contracts.live_emissions`). `trainer.live` makes live versions of the policy of them.

A reward is learned when it comes. Without one, a decision is not learned with `--missing-reward drop`; with `default` it
counts with the default reward at once, which is taken back when a reward comes. Held-back decisions are not learned.

When a window's manifest is there, the record's sums replace the job's own. A difference is logged and counted (`healed`).
An event that arrives between the two reads is the one reason for a difference in a sound system.

From a folder the job has no checkpoint. When it starts, it reads the log again from the late horizon before the first
window that is not exported, and emits once it has caught up; `--late-horizon-seconds` bounds that time. One job at a time
writes to a folder. From a subscription it needs one of its own, because each message is delivered to one reader. On
Dataflow the runner keeps the state; `--buckets` spreads it over workers. Beam's local runner acknowledges messages before
they are joined: when it is killed, the windows that were open stay incomplete until their record is there.
"""

import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from beam_jobs import files, live_stages, options
from beam_jobs.files import alone, path_is_local
from beam_jobs.ingest_events import check_events
from beam_jobs.live_events import FollowSegments, SubscriptionArrivals
from beam_jobs.live_join import JoinPlan, moment
from beam_jobs.live_record import Record
from beam_jobs.live_stages import LiveJob
from beam_jobs.live_windows import LiveSettings
from beam_jobs.payloads import DecisionShape
from beam_jobs.places import SUBSCRIPTION_PREFIX, check_folder
from contracts import command_line, live_encoders
from contracts.errors import InputError, OperationError
from contracts.live_encoders import Encoder
from contracts.policies import CARD_NAME, NETWORK_NAME
from contracts.windows import YEAR_SECONDS, WindowSettings

JOB = "learn_live"
POLL_SECONDS = 0.1


def build_pipeline(arrivals: Any, job: LiveJob) -> Any:
    """The job on a PCollection of `live_events.Arrivals`. Returns the emissions, each once its file is written."""
    parsed = arrivals | "ParseArrivals" >> live_stages.ParseArrivals(job)
    watched = parsed.progress | "WatchRecord" >> live_stages.WatchRecord(job)
    changes = (parsed.rows, watched.finished) | "JoinLive" >> live_stages.JoinLive(job)
    return (changes, parsed.progress, watched.recorded) | "EmitSums" >> live_stages.EmitSums(job)


def read_folder(pipeline: beam.Pipeline, events: str, job: LiveJob) -> Any:
    """The arrivals of an event log: all that the windows without a record need, then what is added."""
    horizon = timedelta(seconds=job.plan.settings.late_horizon_seconds)
    since = moment(job.at_start.first) - max(horizon, timedelta(seconds=job.plan.settings.reward_window_seconds))
    return pipeline | "FollowSegments" >> FollowSegments(Path(events), since, POLL_SECONDS)


def read_subscription(pipeline: beam.Pipeline, subscription: str, timestamp_attribute: str | None) -> Any:
    """The arrivals of a Pub/Sub subscription."""
    from beam_jobs import pubsub

    batches = pipeline | "ReadEvents" >> pubsub.ReadEvents(subscription, timestamp_attribute)
    return batches | "Arrivals" >> SubscriptionArrivals()


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag("events", options.TEXT, "folder of the event log, or pubsub:projects/PROJECT/subscriptions/NAME")
    flags.flag("windows", options.TEXT, "folder, or gs://BUCKET/FOLDER, of the exported windows")
    flags.flag("live", options.TEXT, "folder, or gs://BUCKET/FOLDER, for what is learned live; created if missing")
    flags.flag("start", options.MOMENT, "start of the first window to learn live, as for export_trajectories --follow")
    flags.flag("window-seconds", options.number(0, YEAR_SECONDS, above=True), "length of a window")
    flags.flag("observation-dim", options.whole(1), "length of an observation; other decisions are unreadable here")
    flags.flag("num-actions", options.whole(1), "number of actions; decisions with other actions are unreadable here")
    flags.flag(
        "encoder",
        options.TEXT,
        "folder, or gs://BUCKET/FOLDER, of a policy whose network encodes observations (neural_linucb)",
        default=None,
    )
    flags.settings(WindowSettings, reward_window_seconds=60.0, settle_seconds=60.0)
    flags.settings(LiveSettings)
    flags.flag("buckets", options.whole(1), "parts of the join, by the hash of decision_id", default=1)
    flags.flag(
        "timestamp-attribute", options.TEXT, "message attribute that holds the event's time (RFC 3339)", default=None
    )
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job, without end on a local runner."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    streaming = arguments.events.startswith(SUBSCRIPTION_PREFIX)
    _check_places(arguments, pipeline_options, streaming)
    job = _job(arguments)
    pipeline_options.view_as(StandardOptions).streaming = True
    options.local_by_default(pipeline_options, options.LOCAL_STREAMING_RUNNER)
    if not streaming and pipeline_options.view_as(StandardOptions).runner != options.LOCAL_STREAMING_RUNNER:
        raise InputError("--events: a folder is followed by the local streaming runner alone; give pubsub:… to another")
    with alone(arguments.live, "--live", wait=False):
        pipeline = beam.Pipeline(options=pipeline_options)
        arrivals = (
            read_subscription(pipeline, _subscription(arguments.events), arguments.timestamp_attribute)
            if streaming
            else read_folder(pipeline, arguments.events, job)
        )
        build_pipeline(arrivals, job)
        with options.job_errors():
            result = pipeline.run()
            if options.is_dataflow(pipeline_options):
                print("submitted")
                return
            print(f"learning live from {moment(job.at_start.first).isoformat()} on", flush=True)
            job.record.prepare()  # while the job reads the log
            result.wait_until_finish()
    raise OperationError(f"{arguments.events}: the runner stopped reading")


def _job(arguments: Any) -> LiveJob:
    """The job that the flags describe. Raises InputError when the exported windows have other settings."""
    plan = JoinPlan(
        arguments.start,
        arguments.window_seconds,
        command_line.from_flags(arguments, WindowSettings),
        arguments.observation_dim,
        _encoder(arguments.encoder, arguments.observation_dim),
    )
    settings = command_line.from_flags(arguments, LiveSettings)
    record = Record(arguments.windows, plan, arguments.num_actions)
    record.check_newest()
    return LiveJob(
        plan=plan,
        shape=DecisionShape(arguments.observation_dim, arguments.num_actions),
        settings=settings,
        record=record,
        at_start=record.at_start(datetime.now(UTC), settings.recorded_seconds),
        live=arguments.live,
        buckets=arguments.buckets,
    )


def _encoder(policy: str | None, observation_dim: int) -> Encoder | None:
    """The encoder of a policy, if one is given. Raises InputError for one that does not fit."""
    if policy is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        for name in (CARD_NAME, NETWORK_NAME):
            data = files.read(FileSystems.join(policy, name))
            if data is None:
                raise InputError(f"--encoder: a policy with a network expected, got {policy!r}: it has no {name}")
            Path(scratch, name).write_bytes(data)
        encoder = live_encoders.read(Path(scratch))
    if encoder.observation_dim != observation_dim:
        raise InputError(f"--encoder: observation_dim {observation_dim} expected, got {encoder.observation_dim}")
    return encoder


def _check_places(arguments: Any, pipeline_options: PipelineOptions, streaming: bool) -> None:
    """Raises InputError for a source or folder that cannot be used."""
    if streaming:
        from beam_jobs import pubsub

        pubsub.check_subscription(_subscription(arguments.events))
    else:
        if not path_is_local(arguments.events):
            raise InputError(
                f"--events: a folder of this machine or pubsub:projects/PROJECT/subscriptions/NAME expected,"
                f" got {arguments.events!r}"
            )
        check_events(arguments.events)
        if arguments.timestamp_attribute:
            raise InputError("--timestamp-attribute: requires --events pubsub:…")
    check_folder("--windows", arguments.windows, pipeline_options)
    check_folder("--live", arguments.live, pipeline_options)
    if path_is_local(arguments.windows) and not Path(arguments.windows).is_dir():
        raise InputError(f"--windows: a folder of exported windows expected, got {arguments.windows!r}")


def _subscription(events: str) -> str:
    from beam_jobs import pubsub

    return pubsub.parse_subscription(events)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return command_line.run_main(f"beam_jobs.{JOB}", run, argv)


if __name__ == "__main__":
    # By its module name: Beam pickles a function of `__main__` with all its globals.
    from beam_jobs import learn_live

    sys.exit(learn_live.main())
