"""Plans with the settings that were asked for, the parameters of the Beam jobs, and a store that follows its endpoint."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import asdict

from beam_jobs import export_trajectories, generate_movielens, ingest_events
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench.simulated_loop import Sabotages, SimulatedLoop
from contracts.errors import InputError, OperationError
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import policy_store
from orchestration.pipelines import rollout_tasks, runs, training_tasks, window_tasks
from orchestration.pipelines.plan import GeneratedLog, Plan, WindowGrid, decode_plan
from tests.orchestration.pipelines.environments import PASSED, SETTINGS

TEMPLATES = Path(__file__).parents[3] / "templates"
JOBS = {
    "generate_movielens": generate_movielens,
    "ingest_events": ingest_events,
    "export_trajectories": export_trajectories,
}


def test_a_plan_holds_the_settings_even_if_kfp_made_floats_of_its_integers(tmp_path):
    windows = asdict(WindowGrid()) | {"reward_window_seconds": 7.0, "late_horizon_seconds": 60.0}
    generated = asdict(GeneratedLog()) | {"num_decisions": 100.0, "seed": 9.0}
    made = decode_plan(window_tasks.resolve_bootstrap(str(tmp_path), "r", windows, generated))
    assert made.settings == WindowGrid(reward_window_seconds=7.0, late_horizon_seconds=60.0)
    assert made.settings.record_settings == WindowSettings(reward_window_seconds=7.0, late_horizon_seconds=60.0)
    assert made.generated == GeneratedLog(num_decisions=100, seed=9)


def test_a_setting_out_of_bounds_is_wrong_input(tmp_path):
    windows = asdict(WindowGrid()) | {"holdback_share": 1.0}
    with pytest.raises(InputError, match=r"holdback_share: Expected `float` < 1.0, got 1.0"):
        window_tasks.resolve_bootstrap(str(tmp_path), "r", windows, asdict(GeneratedLog()))
    assert runs.records(tmp_path, "r")[-1].failure == "input"


def test_a_job_that_leaves_no_manifest_is_a_failed_operation(tmp_path):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    window = TrainingWindow(start, start + timedelta(hours=1))
    plan = Plan(root=str(tmp_path), run_id="r", champion="v", windows=[window], settings=SETTINGS)
    with pytest.raises(OperationError, match=r"the export of window=20260101T000000.000000Z ended without its manif"):
        window_tasks.exported(msgspec.json.encode(plan).decode())
    assert runs.records(tmp_path, "r")[-1].failure == "operation"


def test_a_refused_window_holds_the_pipelines(tmp_path):
    viewers = MovieLens.build(load_ratings("sample"), num_actions=5, rank=3, reward_noise=0.5, seed=0)
    loop = SimulatedLoop(tmp_path, viewers, seed=1, decisions=300)
    good = [loop.window().audit.window for _ in range(3)]
    champion = policy_store.champion(tmp_path / "policies").version
    plan = Plan(root=str(tmp_path), run_id="r", champion=champion, windows=good, settings=SETTINGS)
    encoded = msgspec.json.encode(plan).decode()
    assert window_tasks.audit(encoded, "exported", "") == "exported"
    assert runs.records(tmp_path, "r")[-1].said == "3 of 3 window(s) accepted"
    versions = policy_store.versions(tmp_path / "policies")
    loop.window(Sabotages(3, versions, 5).by_name["propensities halved"])
    assert window_tasks.audit(encoded, "exported", "") == "held"
    report = runs.close(tmp_path, "r", "retrain", "SUCCEEDED", "", datetime.now(UTC))
    assert (report.outcome, report.exit_code) == ("held", 5)
    with pytest.raises(OperationError, match="held by the guard: replayed propensity"):
        training_tasks.train(encoded, "lin_ucb", {}, {}, fresh=False)


def test_dataflow_is_given_flags_that_the_jobs_have(tmp_path):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    window = TrainingWindow(start, start + timedelta(hours=1))
    made = Plan(
        root=str(tmp_path),
        run_id="r",
        champion=None,
        windows=[window],
        settings=WindowGrid(
            window_seconds=3600.0, reward_window_seconds=120.0, settle_seconds=60.0, missing_reward="drop"
        ),
        generated=GeneratedLog(num_decisions=100, num_actions=10, rank=5),
    )
    plan = msgspec.json.encode(made).decode()
    (of_bootstrap,) = window_tasks.bootstrap_jobs(plan, "gs://b/f", "bigquery:films.recommender")
    subscription = "pubsub:projects/films/subscriptions/films-ingest"
    (again,) = window_tasks.export_jobs(plan, "gs://b/f", "bigquery:films.recommender", subscription)
    waiting = {"watermark": subscription, "watermark_limit_seconds": "60.0"}
    assert again["export_trajectories"] == of_bootstrap["export_trajectories"] | waiting
    export_trajectories.parser().parse_with_beam([f"--{k}={v}" for k, v in again["export_trajectories"].items()])
    (emulated,) = window_tasks.export_jobs(plan, "/loop", "bigquery:films.recommender", "ingest.json")
    assert emulated["export_trajectories"]["watermark"] == "/loop/ingest.json"
    assert (of_bootstrap["ingest_events"]["observation_dim"], of_bootstrap["ingest_events"]["num_actions"]) == (
        "5",
        "10",
    )
    assert set(of_bootstrap) == set(JOBS)
    for job, parameters in of_bootstrap.items():
        metadata = json.loads((TEMPLATES / f"{job}.json").read_text())
        known = {parameter["name"]: parameter for parameter in metadata["parameters"]}
        assert {name for name, one in known.items() if not one.get("isOptional")} <= set(parameters) <= set(known)
        for name, value in parameters.items():
            assert all(re.fullmatch(regex, value) for regex in known[name].get("regexes", [])), (job, name, value)
        JOBS[job].parser().parse_with_beam([f"--{name}={value}" for name, value in parameters.items()])


def test_the_store_follows_what_was_promoted_and_rolled_back_by_hand(environment):
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    environment.endpoint.promote("new", "it looks good")
    assert environment.serving() == ("old", None)
    arguments = (str(environment.root), "later", asdict(SETTINGS), datetime.now(UTC).isoformat(), environment.target)
    with pytest.raises(ValueError, match="has no window"):  # there are none here, which is found out after that
        window_tasks.resolve_retrain(*arguments)
    assert environment.serving() == ("new", None)
    environment.endpoint.roll_back("it was not")
    with pytest.raises(ValueError, match="has no window"):
        window_tasks.resolve_retrain(*arguments)
    assert environment.serving() == ("old", None)
    reasons = [past.reason for past in policy_store.history(environment.places.policies)]
    assert reasons[1:] == ["it serves on the endpoint: it looks good", "it serves on the endpoint: it was not"]


def test_a_window_that_is_yet_to_come_is_not_waited_for(environment):
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    with pytest.raises(InputError, match=r"until: a time not later than now \(20.*Z\), got 20"):
        window_tasks.resolve_retrain(str(environment.root), "later", asdict(SETTINGS), until, "")
