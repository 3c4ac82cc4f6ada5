"""Locations as flags name them; what Google Cloud answers is in test_bigquery and test_servers."""

import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google.cloud import bigquery as api

from beam_jobs import bigquery, export_trajectories, generate_movielens, ingest_events, replay_dead_letters
from beam_jobs.places import Dataset, check_folder, explained, parse_dataset
from contracts.errors import InputError, OperationError
from contracts.schemas import DECISIONS

HERE = PipelineOptions([])
DATAFLOW = PipelineOptions(["--runner=DataflowRunner"])
DAY = ["--start=2026-01-01T00:00:00Z", "--end=2026-01-02T00:00:00Z"]


def test_a_dataset_has_a_project() -> None:
    assert parse_dataset("bigquery:my-project.bandit") == Dataset("my-project", "bandit")
    assert parse_dataset("bigquery:example.com:my-project.bandit").table(DECISIONS) == (
        "example.com:my-project.bandit.decisions"
    )
    for text in ("bigquery:bandit", "bigquery:my-project.a-b"):
        with pytest.raises(InputError, match=r"--warehouse: bigquery:PROJECT\.DATASET expected"):
            parse_dataset(text)


def test_a_folder_is_where_the_job_runs() -> None:
    check_folder("--windows", "some/folder", HERE)
    with pytest.raises(InputError, match="--windows: Dataflow cannot use a folder of this machine, got 'some/folder'"):
        check_folder("--windows", "some/folder", DATAFLOW)
    with pytest.raises(InputError, match="--windows: a folder or gs://BUCKET/FOLDER expected, got 'nosuch://x'"):
        check_folder("--windows", "nosuch://x", HERE)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (exceptions.NotFound("x"), "--flag: table t does not exist"),
        (exceptions.Forbidden("Access Denied:\nno"), "--flag: no permission for table t: Access Denied: no"),
        (DefaultCredentialsError("not found"), "--flag: no valid credentials for table t: not found"),
        (RefreshError("expired"), "--flag: no valid credentials for table t: expired"),
        (exceptions.Unauthenticated("who?"), "--flag: no valid credentials for table t: .*who\\?"),
        (exceptions.ServiceUnavailable("down"), "--flag: no answer about table t: .*down"),
    ],
)
def test_what_google_cloud_answers_is_one_line(error: Exception, message: str) -> None:
    kind = OperationError if isinstance(error, exceptions.ServiceUnavailable) else InputError
    with pytest.raises(kind) as caught, explained("--flag", "table t"):
        raise error
    assert re.fullmatch(message, str(caught.value))


def test_a_bug_stays_one() -> None:
    with pytest.raises(exceptions.BadRequest), explained("--flag", "table t"):
        raise exceptions.BadRequest("syntax error")


@pytest.mark.parametrize(
    ("main", "flags", "thing"),
    [
        (
            ingest_events.main,
            ["--events=pubsub:projects/my-project/subscriptions/sub", "--warehouse=bigquery:my-project.bandit"],
            "--events: no valid credentials for subscription projects/my-project/subscriptions/sub: ",
        ),
        (
            ingest_events.main,
            ["--events=gs://bucket/events", "--warehouse=bigquery:my-project.bandit"],
            "--events: no valid credentials for gs://bucket/events: ",
        ),
        (
            export_trajectories.main,
            ["--warehouse=bigquery:my-project.bandit", "--windows=WINDOWS", *DAY],
            "--warehouse: no valid credentials for table my-project.bandit.decisions: ",
        ),
        (
            export_trajectories.main,
            ["--warehouse=w", "--windows=gs://bucket/windows", *DAY],
            "--windows: no valid credentials for gs://bucket/windows: ",
        ),
        (
            replay_dead_letters.main,
            ["--warehouse=bigquery:my-project.bandit", *DAY],
            "--warehouse: no valid credentials for dataset my-project.bandit: ",
        ),
        (
            generate_movielens.main,
            ["--events=gs://bucket/events", DAY[0]],
            "--events: no valid credentials for gs://bucket/events: ",
        ),
    ],
)
def test_without_credentials_a_job_ends_at_once(
    main, flags, thing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(bigquery, "client", lambda project: api.Client(project=project))  # as it is without emulators
    assert main([flag.replace("WINDOWS", str(tmp_path / "windows")) for flag in flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert thing in line
    assert "nothing.json was not found" in line
