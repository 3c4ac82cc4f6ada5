"""What each entry point pulls in, seen from a fresh interpreter. The rules between modules are import-linter's."""

import json
import subprocess
import sys

import pytest

# entry point: heavy modules that must not be there once it is imported
ENTRY_POINTS = {
    "contracts.records": {"numpy", "tensorflow", "apache_beam", "pyarrow", "fastapi"},
    "contracts.policies": {"numpy", "tensorflow", "apache_beam", "pyarrow", "fastapi"},
    "beam_jobs.generate_movielens": {"tensorflow", "fastapi", "kfp", "tf_agents"},
    "beam_jobs.ingest_events": {"tensorflow", "fastapi", "kfp", "tf_agents"},
    "beam_jobs.export_trajectories": {"fastapi", "kfp", "tf_agents"},
    "beam_jobs.learn_live": {"tensorflow", "fastapi", "kfp", "tf_agents"},
    "trainer.task": {"tensorflow", "tf_agents", "apache_beam", "fastapi", "kfp"},
    "trainer.live": {"tensorflow", "tf_agents", "apache_beam", "fastapi", "kfp", "scipy"},
    "trainer.off_policy": {"tensorflow", "tf_agents", "apache_beam", "fastapi", "kfp"},
    "predictor.app": {"tensorflow", "tf_agents", "apache_beam", "kfp", "pyarrow", "duckdb", "scipy"},
    "orchestration.live_watch": {"tensorflow", "tf_agents", "apache_beam", "kfp", "fastapi", "pyarrow"},
    "orchestration.loop.simulator": {"tensorflow", "tf_agents", "apache_beam", "kfp", "fastapi"},
    "orchestration.page.__main__": {"tensorflow", "tf_agents", "apache_beam", "kfp", "google.cloud.aiplatform"},
    "orchestration.cli": {"tensorflow", "tf_agents", "apache_beam", "kfp", "fastapi", "google.cloud.aiplatform"},
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_entry_point_imports_no_more_than_it_needs(entry_point):
    script = f"import json, sys, {entry_point}; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(answer.stdout.splitlines()[-1]))
    assert loaded & ENTRY_POINTS[entry_point] == set()


@pytest.mark.parametrize(
    "module",
    [
        "beam_jobs.generate_movielens",
        "beam_jobs.ingest_events",
        "beam_jobs.export_trajectories",
        "trainer.task",
        "trainer.live",
        "predictor.app",
        "orchestration.live_watch",
        "orchestration.loop.simulator",
        "orchestration.cli",
    ],
)
def test_help_teaches_and_costs_no_run(module):
    answer = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("usage: ")
    assert len(answer.stdout.splitlines()) > 5
