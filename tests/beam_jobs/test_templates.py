"""The flex templates: their metadata is the jobs' flags, and their entry points run as the launcher runs them."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.cloud import dataflow_v1beta3
from google.protobuf import json_format

from beam_jobs import export_trajectories, generate_movielens, ingest_events, learn_live, replay_dead_letters, templates
from contracts.event_segments import sealed_segments

ROOT = Path(__file__).parents[2]
JOBS = {
    module.JOB: module
    for module in (generate_movielens, ingest_events, export_trajectories, learn_live, replay_dead_letters)
}


def test_the_files_are_up_to_date() -> None:
    assert templates.main([str(ROOT / "templates"), "--check"]) == 0


def test_stale_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert templates.main([str(tmp_path)]) == 0
    assert templates.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "ingest_events.json").write_text("{}")
    assert templates.main([str(tmp_path), "--check"]) == 1
    assert "ingest_events.json differ from the jobs' flags" in capsys.readouterr().err


@pytest.mark.parametrize("job", templates.JOBS)
def test_dataflow_takes_the_metadata(job: str) -> None:
    """Strictly: an unknown field or enum value is an error."""
    text = (ROOT / "templates" / f"{job}.json").read_text()
    parsed = dataflow_v1beta3.TemplateMetadata.pb(dataflow_v1beta3.TemplateMetadata())
    json_format.ParseDict(json.loads(text), parsed)
    assert parsed.name == job
    flags = {flag.dest: flag for flag in JOBS[job].parser()._actions if flag.dest != "help"}
    parameters = {parameter.name: parameter for parameter in parsed.parameters}
    assert parameters.keys() - flags.keys() == {"sdk_container_image"}
    # A template starts one job: following is not for it, and the job says so.
    assert flags.keys() - parameters.keys() == ({"follow"} if job == "export_trajectories" else set())
    for name, flag in ((name, flag) for name, flag in flags.items() if name in parameters):
        assert parameters[name].is_optional == (not flag.required)
        assert len(parameters[name].help_text) > 10
    assert all(len(pattern) > 2 for parameter in parsed.parameters for pattern in parameter.regexes)


@pytest.mark.parametrize("job", list(JOBS))
def test_help_says_which_commands_run_the_job(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        JOBS[job].main(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f"python -m beam_jobs.{job} --") for line in lines)
    assert "--" not in templates.metadata(job)["description"]  # a template's says what it does alone


@pytest.mark.parametrize(
    ("job", "parameter", "good", "bad"),
    [
        ("generate_movielens", "num_decisions", ["1", "2000"], ["0", "-1", "1.5", "many"]),
        ("generate_movielens", "seed", ["0", "7"], ["-1", ""]),
        ("generate_movielens", "reward_noise", ["0", "0.5", ".5", "1e-3"], ["-1", "half", "", "."]),
        ("export_trajectories", "default_reward", ["-1", "0.5"], ["--1", "nan"]),
        (
            "export_trajectories",
            "start",
            ["2026-01-01T00:00:00Z", "2026-01-01T02:00:00.5+02:00", "2026-01-01T02:00Z"],
            ["2026-01-01", "2026-01-01T00:00:00", "2026-01-01T::Z"],
        ),
        ("export_trajectories", "missing_reward", ["drop"], ["dropped"]),
    ],
)
def test_patterns_let_through_what_the_flag_takes(job: str, parameter: str, good: list[str], bad: list[str]) -> None:
    pattern = patterns(job)[parameter]
    [flag] = [flag for flag in JOBS[job].parser()._actions if flag.dest == parameter]
    kind = flag.type
    assert callable(kind)
    for text in good:
        assert re.fullmatch(pattern, text), text
        kind(text)
    for text in bad:
        assert not re.fullmatch(pattern, text), text
        if not flag.choices:
            with pytest.raises(argparse.ArgumentTypeError):
                kind(text)


@pytest.mark.parametrize(
    ("job", "parameter", "good", "bad"),
    [
        (
            "generate_movielens",
            "ratings",
            ["gs://bucket/ml-100k", "tfds:movielens/100k-ratings"],
            ["ml-100k", "gs://b"],
        ),
        ("generate_movielens", "events", ["gs://bucket/events"], ["events", "gs://"]),
        (
            "ingest_events",
            "events",
            ["gs://bucket/events", "pubsub:projects/my-project/subscriptions/bandit-ingest"],
            ["events", "projects/my-project/subscriptions/bandit-ingest", "pubsub:projects/p/subscriptions/-"],
        ),
        (
            "ingest_events",
            "warehouse",
            ["bigquery:my-project.bandit", "bigquery:example.com:my-project.bandit"],
            ["warehouse", "my-project.bandit", "bigquery:my-project", "bigquery:my-project.a-b"],
        ),
        ("ingest_events", "dead_letter_topic", ["projects/my-project/topics/letters"], ["letters"]),
        ("export_trajectories", "windows", ["gs://bucket/windows"], ["windows", "s3://bucket/windows"]),
    ],
)
def test_places_are_those_that_dataflow_can_use(job: str, parameter: str, good: list[str], bad: list[str]) -> None:
    assert all(re.fullmatch(patterns(job)[parameter], text) for text in good)
    assert not any(re.fullmatch(patterns(job)[parameter], text) for text in bad)


def patterns(job: str) -> dict[str, str]:
    return {p["name"]: p["regexes"][0] for p in templates.metadata(job)["parameters"] if "regexes" in p}


def test_the_run_lines_of_the_readme_are_taken() -> None:
    """Each parameter that they give is one of the template's and matches its pattern; none that is needed is missing."""
    text = (ROOT / "templates" / "README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("gcloud dataflow flex-template run ")]
    seen = set()
    for line in lines:
        variables = {"PROJECT": "my-project", "REGION": "europe-west1", "BUCKET": "gs://my-project-bandit", "TAG": "1"}
        for name, value in {**variables, "IMAGES": "europe-west1-docker.pkg.dev/my-project/bandit"}.items():
            line = line.replace(f"${name}", value)
        found = re.search(r"--template-file-gcs-location=gs://\S+/templates/(\w+)\.json .*--parameters=(\S+)", line)
        assert found, line
        job, given = found[1], dict(parameter.split("=", 1) for parameter in found[2].split(","))
        seen.add(job)
        metadata = {parameter["name"]: parameter for parameter in templates.metadata(job)["parameters"]}
        assert given.keys() <= metadata.keys()
        assert {name for name, parameter in metadata.items() if not parameter["isOptional"]} <= given.keys()
        for name, value in given.items():
            assert all(re.fullmatch(pattern, value) for pattern in metadata[name].get("regexes", [])), (name, value)
    assert seen == set(templates.JOBS)


def test_gcloud_makes_the_spec() -> None:
    """What the README's build line does, but for the upload."""
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    image = "europe-west1-docker.pkg.dev/my-project/bandit/ingest_events:1"
    command = ["gcloud", "dataflow", "flex-template", "build", "gs://bucket/spec.json", "--project=my-project"]
    command += [f"--image={image}", "--sdk-language=PYTHON", "--print-only", "--format=value[](.)"]
    command += [f"--metadata-file={ROOT / 'templates' / 'ingest_events.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spec = json.loads(done.stdout)
    assert spec["image"] == image
    assert spec["sdkInfo"] == {"language": "PYTHON"}
    names = {parameter["name"] for parameter in spec["metadata"]["parameters"]}
    assert names == {parameter["name"] for parameter in templates.metadata("ingest_events")["parameters"]}


def launch(job: str, parameters: dict[str, Any], folder: Path) -> str:
    """Runs a template's file as the launcher does: in another folder, each parameter as `--name=value`."""
    flags = [f"--{name}={value}" for name, value in parameters.items()]
    done = subprocess.run(
        [sys.executable, str(ROOT / "templates" / f"{job}.py"), *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # in the image the packages are installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_entry_point_runs_on_the_local_runner(tmp_path: Path) -> None:
    """The three one after the other: what one writes, the next one reads."""
    folders = {name: tmp_path / name for name in ("events", "warehouse", "windows")}
    start, end = "2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z"
    runner = {"runner": "apache_beam.runners.portability.fn_api_runner.FnApiRunner"}
    size = {"num_decisions": 50, "num_actions": 5, "rank": 3, "start": start}
    launch("generate_movielens", {"events": folders["events"], **size, **runner}, tmp_path)
    assert len(sealed_segments(folders["events"])) == 1
    tables = {"warehouse": folders["warehouse"]}
    assert "50 decisions" in launch("ingest_events", {"events": folders["events"], **tables, **runner}, tmp_path)
    window = {"windows": folders["windows"], "start": start, "end": end, "max_records_per_file": 10}
    assert "50 trajectories" in launch("export_trajectories", {**tables, **window, **runner}, tmp_path)
    letters = launch("replay_dead_letters", {**tables, "start": start, "end": end, **runner}, tmp_path)
    assert letters == "0 dead letters: 0 replayed, 0 still cannot be read\n"


def test_the_image_has_what_the_templates_run() -> None:
    """The Dockerfile and the lock agree on Beam, and the files that specs name are copied."""
    dockerfile = (ROOT / "templates" / "Dockerfile").read_text()
    locked = (ROOT / "requirements" / "beam.txt").read_text()
    import apache_beam

    assert f"assert apache_beam.__version__ == '{apache_beam.__version__}'" in dockerfile
    assert (
        f"apache-beam=={apache_beam.__version__}" in locked or f"apache-beam[gcp]=={apache_beam.__version__}" in locked
    )
    assert {path.stem for path in (ROOT / "templates").glob("*.py")} == set(templates.JOBS)
    copied = re.findall(r"^COPY ([^-]\S*) ", dockerfile, re.MULTILINE)
    assert len(copied) == 5
    assert all(list(ROOT.glob(source)) for source in copied)
