"""The steps that make training windows: resolve the plan, generate decisions, ingest, export.

The functions of the three task modules are the pipelines' steps, as plain functions of plain values;
`orchestration.pipelines.components` makes a KFP component of each. A plan travels between steps as JSON
(`orchestration.pipelines.plan.Plan`), a policy as its version in the policy store. Every step can run again: work that
an earlier run finished is left as it is.
"""

import importlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict

from contracts import items
from contracts.command_line import build, parse_time, say
from contracts.errors import InputError, OperationError
from contracts.windows import MANIFEST_NAME, TrainingWindow, WindowSettings, decode_manifest
from orchestration import ingestion, policy_store
from orchestration.pipelines import plan as plans
from orchestration.pipelines import probation_tasks, runs
from orchestration.pipelines.plan import GeneratedLog, Plan, WindowGrid, decode_plan
from orchestration.places import Places

JOBS = ("generate_movielens", "ingest_events", "export_trajectories")  # in this order
REWARD_DELAY_SECONDS = 0.5  # of generated rewards


def resolve_bootstrap(root: str, run_id: str, windows: dict[str, Any], generated: dict[str, Any]) -> str:
    """The plan of a first training; without windows if the store has a champion.

    Args:
      root: folder of the environment.
      run_id: of this run of the pipeline.
      windows: the fields of a `WindowGrid`.
      generated: the fields of a `GeneratedLog`.
    """
    with runs.step(root, run_id, "resolve_windows") as record:
        grid, log = build(WindowGrid, windows), build(GeneratedLog, generated)
        made = plans.for_bootstrap(Path(root), run_id, grid, log, datetime.now(UTC))
        record.said = _describe(made)
        return msgspec.json.encode(made).decode()


def resolve_retrain(root: str, run_id: str, windows: dict[str, Any], until: str, vertex: str) -> str:
    """The plan of a retraining: the windows up to `until` that the champion has not seen.

    If someone promoted or rolled back on Vertex AI by hand, the endpoint serves another policy than the store's
    champion. The store then follows the endpoint.

    Args:
      root: folder of the environment.
      run_id: of this run of the pipeline.
      windows: the fields of a `WindowGrid`.
      until: ISO 8601 with a time zone; now if empty.
      vertex: a `VertexTarget` as JSON; empty if the policies do not serve on Vertex AI.
    """
    with runs.step(root, run_id, "resolve_windows") as record:
        probation_tasks.settle(Places(Path(root)), vertex)  # an earlier run may have died before it could
        if vertex:
            _follow_endpoint(Places(Path(root)).policies, vertex)
        now = datetime.now(UTC)
        moment = parse_time(until, "until") if until else now
        if moment > now:
            raise InputError(f"until: a time not later than now ({now:%Y-%m-%dT%H:%M:%SZ}), got {until}")
        made = plans.for_retrain(Path(root), run_id, build(WindowGrid, windows), moment)
        record.said = _describe(made)
        return msgspec.json.encode(made).decode()


def generate(plan: str) -> str:
    """Writes decisions of a uniform policy in the plan's window, and the catalogue. Returns the plan."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "generate") as record:
        if not made.windows:
            record.said = made.reason
            return plan
        from beam_jobs import generate_movielens
        from beam_jobs.movielens import MovieLens
        from beam_jobs.ratings import load_ratings

        wanted = _generated(made)
        viewers = MovieLens.build(
            load_ratings(wanted.ratings),
            num_actions=wanted.num_actions,
            rank=wanted.rank,
            reward_noise=wanted.reward_noise,
            seed=wanted.seed,
        )
        (window,) = made.windows
        settings = generate_movielens.GeneratorSettings(
            num_decisions=wanted.num_decisions,
            start=window.start,
            window_seconds=(window.end - window.start).total_seconds(),
            no_reward_probability=wanted.no_reward_probability,
            reward_delay_seconds=REWARD_DELAY_SECONDS,
            seed=wanted.seed,
        )
        made.places.events.mkdir(parents=True, exist_ok=True)
        generate_movielens.generate(viewers, settings, made.places.events)
        made.places.catalogue.write_bytes(items.encode(viewers.catalogue))
        record.said = f"{wanted.num_decisions} decisions of the uniform policy on {wanted.num_actions} items"
    return plan


def export_windows(plan: str) -> str:
    """Ingests the new segments of the event log and exports the plan's windows.

    Returns "exported" or "nothing new". Raises OperationError if the watermark does not pass the windows in time.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "export_windows") as record:
        if not made.windows:
            record.said, record.outcome = made.reason, "nothing new"
            return "nothing new"
        from beam_jobs import closing, export_trajectories
        from beam_jobs.payloads import IngestCounts
        from beam_jobs.warehouses import EmbeddedWarehouse

        places, settings = made.places, made.settings.record_settings
        source = EmbeddedWarehouse(places.warehouse)
        closes_at = made.windows[-1].closes_at(settings.reward_window_seconds, settings.settle_seconds)
        read = IngestCounts()

        def ingest() -> None:
            nonlocal read
            read += ingestion.ingest(places, made.generated.rank if made.generated else None)

        closing.wait_until_complete(
            lambda: ingestion.advance(places.events, source, closes_at, ingest),
            closes_at,
            made.settings.wait_settings,
            say,
            give_up=True,
        )
        aside = f", {read.dead_letters} dead letters" if read.dead_letters else ""
        known = plans.exported_windows(places.windows)
        decisions = 0
        for window in made.windows:
            counted = sum(dim.decisions for dim in source.observation_dims(window.start, window.end))
            # A window without decisions is not exported: the next window begins where the last exported one ended.
            if counted or window in known:
                export_trajectories.export(source, places.windows, window, settings)
                decisions += counted
        if not decisions:
            record.said, record.outcome = f"these windows have no decisions{aside}", "nothing new"
            return "nothing new"
        record.said = f"{decisions} decisions in {len(made.windows)} window(s){aside}"
        record.windows, record.decisions = len(made.windows), decisions
        return "exported"


def bootstrap_jobs(plan: str, root_uri: str, warehouse: str) -> list[dict[str, dict[str, str]]]:
    """The parameters of the Dataflow jobs of a bootstrap, by template: one entry per window of the plan (one or none)."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "bootstrap_jobs") as record:
        record.said = _describe(made)
        wanted = _generated(made)
        return [
            {
                "generate_movielens": {
                    **{name: str(value) for name, value in asdict(wanted).items()},
                    "events": f"{root_uri}/events",
                    "catalogue": f"{root_uri}/catalogue.json",
                    "start": window.start.isoformat(),
                    "window_seconds": str((window.end - window.start).total_seconds()),
                },
                "ingest_events": {
                    "events": f"{root_uri}/events",
                    "warehouse": warehouse,
                    "observation_dim": str(wanted.rank),
                    "num_actions": str(wanted.num_actions),
                },
                "export_trajectories": _export_parameters(window, root_uri, warehouse, made.settings.record_settings),
            }
            for window in made.windows
        ]


def export_jobs(plan: str, root_uri: str, warehouse: str, watermark: str) -> list[dict[str, dict[str, str]]]:
    """The parameters of the Dataflow job that exports a window, by template: one entry per window of the plan.

    The job waits for `watermark`: `pubsub:` and a subscription, or a file below the root.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "export_jobs") as record:
        record.said = _describe(made)
        settings = made.settings.record_settings
        waiting = {
            "watermark": watermark if watermark.startswith("pubsub:") else f"{root_uri}/{watermark}",
            "watermark_limit_seconds": str(made.settings.watermark_limit_seconds),
        }
        return [
            {"export_trajectories": _export_parameters(window, root_uri, warehouse, settings) | waiting}
            for window in made.windows
        ]


def run_jobs(plan: str, jobs: list[dict[str, dict[str, str]]]) -> list[str]:
    """Runs the Beam jobs of each window on this machine, one after the other, with their templates' parameters.

    Returns the names of the jobs that ran.
    """
    made = decode_plan(plan)
    done = []
    for jobs_of_window in jobs:
        for name in JOBS:
            if name not in jobs_of_window:
                continue
            with runs.step(made.root, made.run_id, name) as record:
                job = importlib.import_module(f"beam_jobs.{name}")
                job.run([f"--{key}={value}" for key, value in jobs_of_window[name].items()])
                record.said = "done"
                done.append(name)
    return done


def exported(plan: str) -> str:
    """Whether the plan's windows have decisions: "exported" or "nothing new".

    Raises OperationError if a job ended without the manifest of its window.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "exported") as record:
        decisions = 0
        for window in made.windows:
            path = made.places.windows / window.folder / MANIFEST_NAME
            if not path.is_file():
                raise OperationError(f"the export of {window.folder} ended without its manifest, {path}")
            decisions += decode_manifest(path.read_bytes(), str(path)).counts.decisions
        if not decisions:
            record.said, record.outcome = made.reason or "these windows have no decisions", "nothing new"
            return "nothing new"
        record.said = f"{decisions} decisions in {len(made.windows)} window(s)"
        record.windows, record.decisions = len(made.windows), decisions
        return "exported"


def audit(plan: str, exported: str, warehouse: str) -> str:
    """Audits the plan's windows before anything is trained on them (`orchestration.audit.guard`).

    Args:
      plan: a `Plan` as JSON.
      exported: what the export returned.
      warehouse: `bigquery:PROJECT.DATASET`, or empty for the embedded one below the root.

    Returns `exported`, or "held" when the guard holds the pipelines of this root.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "audit") as record:
        from orchestration.audit import guard
        from orchestration.audit.auditor import Auditor
        from orchestration.audit.settings import GuardSettings

        places, now = made.places, datetime.now(UTC)
        source, settings = probation_tasks.source_of(made, warehouse)
        auditor = Auditor(source, places.policies, places.audit, settings, places.live)
        watch = guard.Guard(places, auditor, GuardSettings())
        known = plans.exported_windows(places.windows)
        audits = [watch.check(window, now, revision=known[window]) for window in made.windows if window in known]
        held = guard.state(places.root)
        if held is not None and held.held:
            record.said, record.outcome = f"held: {held.reason}", "held"
            return "held"
        record.said = f"{sum(one.accepted for one in audits)} of {len(audits)} window(s) accepted"
        return exported


def _export_parameters(
    window: TrainingWindow, root_uri: str, warehouse: str, settings: WindowSettings
) -> dict[str, str]:
    return {
        "warehouse": warehouse,
        "windows": f"{root_uri}/windows",
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        **{name: str(value) for name, value in asdict(settings).items()},
    }


def _follow_endpoint(store: Path, vertex: str) -> None:
    from orchestration.cloud.vertex_endpoint import endpoint_of

    endpoint = endpoint_of(vertex)
    serving = endpoint.champion()
    current = policy_store.champion(store)
    if serving is not None and current is not None and current.version != serving:
        why = [f": {past.reason}" for past in endpoint.history() if past.version == serving]
        policy_store.roll_out(store, serving, "".join(["it serves on the endpoint", *why[-1:]]), datetime.now(UTC))


def _generated(made: Plan) -> GeneratedLog:
    assert made.generated is not None, "only the plan of a bootstrap has a generated log"
    return made.generated


def _describe(made: Plan) -> str:
    if not made.windows:
        return made.reason
    spans = ", ".join(f"[{window.start.isoformat()}, {window.end.isoformat()})" for window in made.windows)
    return f"{len(made.windows)} window(s) after {made.champion or 'nothing'}: {spans}"
