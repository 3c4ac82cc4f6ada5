"""The steps of the pipelines, as plain functions of plain values; `orchestration.pipelines.components` wraps each one.

A plan goes in and out as JSON (`orchestration.pipelines.plan.Plan`), policies as versions in the policy store. Every step may be
run again: what is done already is found done. Where `vertex` names an endpoint (`orchestration.cloud.vertex.Place` as JSON),
what happens to the policy store happens to the Vertex AI endpoint too, and first: the store then never says more than
what serves.
"""

import importlib
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import contracts.windows
from contracts import policies
from contracts.command_line import parse_time
from contracts.errors import InputError
from contracts.event_segments import open_segments, opened_at, seal_abandoned
from contracts.policies import Exploration
from contracts.windows import MANIFEST_NAME, TrainingWindow, decode_manifest
from orchestration import endpoint as endpoints
from orchestration import ingestion, policy_store
from orchestration.pipelines import plan as plans
from orchestration.pipelines import runs
from orchestration.pipelines.plan import GeneratedLog, Plan, WindowSettings
from orchestration.places import Places, replace_file

if TYPE_CHECKING:
    from orchestration.cloud.vertex import Vertex

Hyperparameters = dict[str, float | int | str | bool]

JOBS = ("generate_movielens", "ingest_events", "export_trajectories")  # in this order
SEAL_TIMEOUT_SECONDS = 30.0
LATE_HORIZON_SECONDS = 3600.0


def resolve_bootstrap(root: str, run_id: str, settings: WindowSettings, generated: GeneratedLog) -> str:
    """The plan of a first training; without windows when there is a champion."""
    with runs.step(root, run_id, "resolve_windows") as record:
        made = plans.for_bootstrap(Path(root), run_id, settings, generated, datetime.now(UTC))
        record.said = _describe(made)
        return msgspec.json.encode(made).decode()


def resolve_retrain(root: str, run_id: str, settings: WindowSettings, until: str, vertex: str) -> str:
    """The plan of a retraining: the windows up to `until` (ISO 8601; now when empty) that the champion has not seen.

    Where another policy serves on Vertex AI than the store says, because somebody promoted or rolled back by hand, the
    store follows.
    """
    with runs.step(root, run_id, "resolve_windows") as record:
        if vertex:
            _follow_endpoint(Places(Path(root)).policies, vertex)
        now = datetime.now(UTC)
        moment = parse_time(until, "until") if until else now
        if moment > now:
            raise InputError(f"until must not be later than now ({now:%Y-%m-%dT%H:%M:%SZ}), got {until}")
        made = plans.for_retrain(Path(root), run_id, settings, moment)
        record.said = _describe(made)
        return msgspec.json.encode(made).decode()


def generate(plan: str) -> str:
    """Decisions of a uniform policy in the plan's window, and the catalogue. Returns the plan, for what comes after."""
    made = _decode(plan)
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
            reward_delay_seconds=0.5,
            seed=wanted.seed,
        )
        made.places.events.mkdir(parents=True, exist_ok=True)
        generate_movielens.generate(viewers, settings, made.places.events)
        made.places.catalogue.write_bytes(msgspec.json.encode(viewers.catalogue))
        record.said = f"{wanted.num_decisions} decisions of the uniform policy on {wanted.num_actions} movies"
    return plan


def export_windows(plan: str) -> str:
    """Ingests what is new and exports the plan's windows. Returns "exported" or "nothing new"."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "export_windows") as record:
        if not made.windows:
            record.said, record.outcome = made.reason, "nothing new"
            return "nothing new"
        from beam_jobs import export_trajectories
        from beam_jobs.warehouses import EmbeddedWarehouse

        places, wanted = made.places, made.settings
        source = EmbeddedWarehouse(places.warehouse)
        settings = contracts.windows.WindowSettings(
            reward_window_seconds=wanted.reward_window_seconds,
            settle_seconds=wanted.settle_seconds,
            missing_reward=wanted.missing_reward,  # type: ignore[arg-type]  # checked there
            default_reward=wanted.default_reward,
            holdback_share=wanted.holdback_share,
            late_horizon_seconds=LATE_HORIZON_SECONDS,
        )
        _wait_until_closed(places, made.windows[-1].closes_at(wanted.reward_window_seconds, wanted.settle_seconds))
        read = ingestion.ingest(places, made.generated.rank if made.generated else None)
        aside = f", {read.dead_letters} dead letters" if read.dead_letters else ""
        known = set(plans.exported_windows(places.windows))
        decisions = 0
        for window in made.windows:
            counted = sum(dim.decisions for dim in source.observation_dims(window.start, window.end))
            # A window in which nobody came is not made: the next one begins where the last one ended.
            if counted or window in known:
                export_trajectories.export(source, places.windows, window, settings)
                decisions += counted
        if not decisions:
            record.said, record.outcome = f"nobody asked for a movie in these windows{aside}", "nothing new"
            return "nothing new"
        record.said = f"{decisions} decisions in {len(made.windows)} window(s){aside}"
        record.windows, record.decisions = len(made.windows), decisions
        return "exported"


def bootstrap_jobs(plan: str, root_uri: str, warehouse: str) -> list[dict[str, dict[str, str]]]:
    """For each window of the plan (one, or none): the parameters of the Dataflow jobs by the name of their template."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "bootstrap_jobs") as record:
        record.said = _describe(made)
        wanted = _generated(made)
        return [
            {
                "generate_movielens": {
                    "ratings": wanted.ratings,
                    "events": f"{root_uri}/events",
                    "catalogue": f"{root_uri}/catalogue.json",
                    "num_decisions": str(wanted.num_decisions),
                    "num_actions": str(wanted.num_actions),
                    "rank": str(wanted.rank),
                    "reward_noise": str(wanted.reward_noise),
                    "no_reward_probability": str(wanted.no_reward_probability),
                    "start": window.start.isoformat(),
                    "window_seconds": str((window.end - window.start).total_seconds()),
                    "seed": str(wanted.seed),
                },
                "ingest_events": {
                    "events": f"{root_uri}/events",
                    "warehouse": warehouse,
                    "observation_dim": str(wanted.rank),
                    "num_actions": str(wanted.num_actions),
                },
                "export_trajectories": _export_parameters(window, root_uri, warehouse, made.settings),
            }
            for window in made.windows
        ]


def export_jobs(plan: str, root_uri: str, warehouse: str) -> list[dict[str, dict[str, str]]]:
    """For each window of the plan: the parameters of the Dataflow job that exports it, by the name of its template."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "export_jobs") as record:
        record.said = _describe(made)
        return [
            {"export_trajectories": _export_parameters(window, root_uri, warehouse, made.settings)}
            for window in made.windows
        ]


def run_jobs(plan: str, jobs: list[dict[str, dict[str, str]]]) -> list[str]:
    """Runs the Beam jobs of each window here, one after the other, with the parameters that their templates take.

    Returns what was run.
    """
    made = _decode(plan)
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
    """Whether the plan's windows hold anything that is new. Returns "exported" or "nothing new"."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "exported") as record:
        decisions = 0
        for window in made.windows:
            path = made.places.windows / window.folder / MANIFEST_NAME
            if not path.is_file():
                raise InputError(f"{path} is missing: the window was not exported")
            decisions += decode_manifest(path.read_bytes(), str(path)).counts.decisions
        if not decisions:
            record.said, record.outcome = made.reason or "nobody asked for a movie in these windows", "nothing new"
            return "nothing new"
        record.said = f"{decisions} decisions in {len(made.windows)} window(s)"
        record.windows, record.decisions = len(made.windows), decisions
        return "exported"


def train(
    plan: str,
    algorithm: str,
    hyperparameters: Hyperparameters,
    exploration: str,
    epsilon: float,
    alpha: float,
    fresh: bool,
) -> str:
    """Trains the champion's next update and returns its version; the champion's own when there is nothing new.

    With `fresh`, trains on all windows from scratch instead, as other settings may ask for.
    """
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "train") as record:
        from trainer import arms, training

        catalogue = arms.read_catalogue(made.places.catalogue)
        try:
            explorer = msgspec.convert({"strategy": exploration, "epsilon": epsilon, "alpha": alpha}, Exploration)
        except msgspec.ValidationError as error:
            raise InputError(f"exploration: {error}") from None
        card = training.train(
            training.Settings(
                windows=made.places.windows,
                policies=made.places.policies,
                num_actions=len(catalogue),
                catalogue=catalogue,
                parent=None if fresh else made.champion,
                algorithm=algorithm,
                hyperparameters=hyperparameters,
                exploration=explorer,
            )
        )
        if card.version != made.champion:
            record.version = card.version
        record.said = f"{card.version} from {card.parent or 'scratch'}"
        return card.version


def search(plan: str, algorithm: str, trials: int, seed: int) -> Hyperparameters:
    """Searches hyperparameters here, on all windows that are exported. Returns the best ones."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "search") as record:
        from trainer import arms, tune

        catalogue = arms.read_catalogue(made.places.catalogue)
        best = tune.search(
            tune.Search(
                windows=made.places.windows,
                study=made.places.runs / f"{made.run_id}-study",
                num_actions=len(catalogue),
                catalogue=catalogue,
                algorithm=algorithm,
                trials=trials,
                seed=seed,
            )
        )
        record.said = (
            f"{best.value:.3f} [{best.low:.3f}, {best.high:.3f}] with {best.hyperparameters}, the best of {best.trials}"
        )
        return best.hyperparameters


def trial_pools(plan: str, root_uri: str, image: str, machine_type: str, algorithm: str) -> list[dict[str, Any]]:
    """The worker pool of a trial on Vertex AI: the trainer, which reports the estimate of what it is told to try."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "trial_pools") as record:
        from trainer import arms

        num_actions = len(arms.read_catalogue(made.places.catalogue))
        record.said = f"{algorithm} on {num_actions} movies"
        arguments = {
            "--windows": f"{root_uri}/windows",
            "--policies": f"{root_uri}/studies/{made.run_id}",
            "--catalogue": f"{root_uri}/catalogue.json",
            "--num-actions": str(num_actions),
            "--algorithm": algorithm,
        }
        return [
            {
                "machine_spec": {"machine_type": machine_type},
                "replica_count": 1,
                "container_spec": {
                    "image_uri": image,
                    "command": ["python", "-m", "trainer.task"],
                    "args": ["--report-metric", *(f"{flag}={value}" for flag, value in arguments.items())],
                },
            }
        ]


def best_trial(plan: str, gcp_resources: str, vertex: str) -> Hyperparameters:
    """The hyperparameters of the best trial of a tuning job."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "best_trial") as record:
        best, value = _vertex(vertex).best_trial(gcp_resources)
        record.said = f"{value:.3f} with {best}"
        return best


def evaluate(plan: str, candidate: str) -> str:
    """Compares candidate and champion on decisions neither was trained on. Returns the `gate.GateResult` as JSON."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "evaluate") as record:
        from orchestration import gate

        if candidate == made.champion:
            result = gate.GateResult(
                verdict="undecided", promoted=False, reason="nothing new to train on", evaluation=None
            )
        elif (why := _withdrawn(made.places, candidate)) is not None:
            result = gate.GateResult(verdict="worse", promoted=False, reason=why, evaluation=None)
        else:
            result = gate.evaluate(made.places.policies, made.places.windows, candidate, made.champion)
        record.version, record.said = candidate, result.reason
        return msgspec.json.encode(result).decode()


def gate(plan: str, candidate: str, result: str) -> str:
    """Whether the candidate goes on: "promote" or "keep" (the champion)."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "gate") as record:
        from orchestration.gate import GateResult

        judged = msgspec.json.decode(result, type=GateResult)
        record.version, record.said = candidate, judged.reason
        if judged.promoted:
            return "promote"
        record.outcome = "nothing new" if candidate == made.champion else "refused"
        return "keep"


def register(plan: str, candidate: str, result: str, vertex: str) -> str:
    """Writes the gate's estimate into the policy's card, and registers it in the Vertex AI Model Registry."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "register") as record:
        from orchestration.gate import GateResult

        judged = msgspec.json.decode(result, type=GateResult)
        path = made.places.policies / candidate / policies.CARD_NAME
        card = policies.decode_card(path.read_bytes(), str(path))
        if card.evaluation != judged.evaluation:
            card = msgspec.structs.replace(card, evaluation=judged.evaluation)
            replace_file(path, policies.encode_json(card))
        record.version, record.said = candidate, f"{candidate}: {judged.reason}"
        if vertex:
            record.said = _vertex(vertex).register(card, judged.reason)
        return candidate


def try_out(
    plan: str, candidate: str, share: float, decisions: int, seconds: float, warehouse: str, vertex: str
) -> str:
    """Canary: the candidate takes a share of the decisions for a while. Returns "promote" or "roll back".

    Its rewards are read from `warehouse` (`bigquery:PROJECT.DATASET`), or from the embedded one when that is empty.
    """
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "try_out") as record:
        from orchestration.pipelines import canary

        record.version = candidate
        if not share or made.champion is None:
            record.said = "no canary" if not share else "no canary: there is no champion yet"
            return "promote"
        if vertex:
            _vertex(vertex).canary(candidate, share)
        champion = made.champion
        canary.start(made.places.policies, candidate, share)
        begin = datetime.now(UTC)
        verdict = canary.watch(
            lambda end: canary.measure(made.places, warehouse, champion, candidate, begin, end, made.settings),
            begin,
            decisions,
            seconds,
            made.settings.closing_seconds,
        )
        record.said = verdict.reason
        return verdict.action


def promote(plan: str, candidate: str, result: str, endpoint: str, vertex: str) -> str:
    """Makes the candidate the champion and waits until `endpoint` (a predictor, if any) serves it."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "promote") as record:
        from orchestration import gate

        judged = msgspec.json.decode(result, type=gate.GateResult)
        reason = "; ".join([judged.reason, *_said_in_canary(made)])
        if endpoint:
            endpoints.served(endpoint)  # one that is gone is told before anything has changed
        if vertex:
            _vertex(vertex).promote(candidate, reason)
        policy_store.roll_out(made.places.policies, candidate, reason, datetime.now(UTC))
        if endpoint:
            endpoints.wait_until_served(endpoint, candidate)
        record.version, record.said, record.outcome = candidate, reason, "promoted"
        return candidate


def withdraw(plan: str, candidate: str, vertex: str) -> str:
    """Ends the canary: the champion serves all again."""
    made = _decode(plan)
    with runs.step(made.root, made.run_id, "withdraw") as record:
        _end_canary(made.places.policies, vertex)
        record.version, record.outcome = candidate, "rolled back"
        record.said = "".join(_said_in_canary(made)) or "the canary was ended"
        return candidate


def report_outcome(root: str, run_id: str, pipeline: str, vertex: str, state: str, error: str) -> None:
    """What became of the run, in one line and in its report. A canary that a failure left behind is ended."""
    report = runs.close(Path(root), run_id, pipeline, state, error, datetime.now(UTC))
    print(report.line)
    if report.outcome == "failed":
        _end_canary(Places(Path(root)).policies, vertex)


def _export_parameters(
    window: TrainingWindow, root_uri: str, warehouse: str, settings: WindowSettings
) -> dict[str, str]:
    return {
        "warehouse": warehouse,
        "windows": f"{root_uri}/windows",
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "reward_window_seconds": str(settings.reward_window_seconds),
        "settle_seconds": str(settings.settle_seconds),
        "missing_reward": settings.missing_reward,
        "default_reward": str(settings.default_reward),
        "holdback_share": str(settings.holdback_share),
    }


def _follow_endpoint(store: Path, vertex: str) -> None:

    endpoint = _vertex(vertex)
    serving = endpoint.champion()
    current = policy_store.champion(store)
    if serving is not None and current is not None and current.version != serving:
        why = [f": {past.reason}" for past in endpoint.history() if past.version == serving]
        policy_store.roll_out(store, serving, "".join(["it serves on the endpoint", *why[-1:]]), datetime.now(UTC))


def _decode(plan: str) -> Plan:
    return msgspec.json.decode(plan, type=Plan)


def _vertex(place: str) -> "Vertex":
    """Vertex AI at a place (as JSON). Imported where it is needed: its SDK takes seconds."""
    from orchestration.cloud.vertex import Vertex, decode_place

    return Vertex(decode_place(place))


def _end_canary(store: Path, vertex: str) -> None:
    """Gives all decisions back to the champion, where there is one.

    The endpoint may have a canary of which the store does not know: it changes first.
    """
    from orchestration.pipelines import canary

    if policy_store.champion(store) is None:
        return
    if vertex:
        _vertex(vertex).end_canary()
    canary.end(store)


def _said_in_canary(made: Plan) -> list[str]:
    """What this run's canary ended with; nothing where there was none."""
    return [record.said for record in runs.records(Path(made.root), made.run_id) if record.step == "try_out"][-1:]


def _generated(made: Plan) -> GeneratedLog:
    assert made.generated is not None, "the plan is not a bootstrap's"
    return made.generated


def _describe(made: Plan) -> str:
    if not made.windows:
        return made.reason
    spans = ", ".join(f"[{window.start.isoformat()}, {window.end.isoformat()})" for window in made.windows)
    return f"{len(made.windows)} window(s) after {made.champion or 'nothing'}: {spans}"


def _withdrawn(places: Places, candidate: str) -> str | None:
    """Why the candidate may not come again by itself, if it was taken back before."""

    for report in runs.reports(places.root):
        if report.version == candidate and report.outcome == "rolled back":
            return f"rolled back before, by {report.run_id}: {report.reason}"
    if any(past.version == candidate for past in policy_store.history(places.policies)):
        return "it was the champion before, and was rolled back"
    return None


def _wait_until_closed(places: Places, moment: datetime) -> None:
    """Until the log holds, sealed, all that was written to it before `moment`."""
    while (left := (moment - datetime.now(UTC)).total_seconds()) > 0:
        time.sleep(min(left, 1.0))
    seal_abandoned(places.events)
    deadline = datetime.now(UTC) + timedelta(seconds=SEAL_TIMEOUT_SECONDS)
    while any(opened_at(segment) < moment for segment in open_segments(places.events)):
        if datetime.now(UTC) > deadline:
            raise InputError(f"the event log in {places.events} was not sealed in {SEAL_TIMEOUT_SECONDS:g} s")
        time.sleep(0.05)
