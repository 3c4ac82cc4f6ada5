"""Each alert fires on a series that has its incident, and not on one that has not; each has a page of the runbook."""

import json
import math
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestration.pipelines.runs import RunReport

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "infra" / "alerts"
ALERTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "alerts.json").read_text())["alerts"]
SERIES: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "alert_series.json").read_text())
NAME = "bandit-dev"


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Terraform makes of the file for one environment."""
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform is not installed")
    folder = tmp_path_factory.mktemp("alerts")
    for name in ("main.tf", "alerts.json"):
        shutil.copy(FOLDER / name, folder)
    for arguments in (["init", "-no-color"], ["apply", "-no-color", "-auto-approve", f"-var=name={NAME}"]):
        done = subprocess.run([program, f"-chdir={folder}", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([program, f"-chdir={folder}", "output", "-json"], capture_output=True, text=True, check=True)
    return {name: output["value"] for name, output in json.loads(done.stdout).items()}


def aligned(aligner: str, points: list[Any], seconds: float) -> float | None:
    """One aligned value of the points of a period, as Cloud Monitoring's aligners define it; None without points."""
    points = [point for point in points if point is not None]
    if not points:
        return None
    match aligner:
        case "ALIGN_MAX":
            return max(points)
        case "ALIGN_MEAN":
            return sum(points) / len(points)
        case "ALIGN_DELTA":
            return sum(points)
        case "ALIGN_RATE":
            return sum(points) / seconds
        case "ALIGN_PERCENTILE_99":
            samples = sorted(sample for point in points for sample in point)
            return samples[math.ceil(0.99 * len(samples)) - 1]
        case _:
            raise ValueError(aligner)


def fires_at(alert: dict[str, Any], points: list[Any], seconds: int = 60) -> int | None:
    """The index of the point with which the condition is first true for its whole duration; None if it never is.

    A point every `seconds`; each aligned value covers the period that ends with its point.
    """
    per_period = alert["period_seconds"] // seconds
    since: int | None = None
    for index in range(len(points)):
        if index + 1 < per_period:
            continue
        value = aligned(alert["aligner"], points[index + 1 - per_period : index + 1], alert["period_seconds"])
        match alert["comparison"]:
            case "ABSENT":
                holds = value is None
            case "COMPARISON_GT":
                holds = value is not None and value > alert["threshold"]
            case "COMPARISON_LT":
                holds = value is None or value < alert["threshold"]  # no data: it did not happen
            case other:
                raise ValueError(other)
        since = (index if since is None else since) if holds else None
        if since is not None and (index - since) * seconds >= alert["duration_seconds"]:
            return index
    return None


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_in_its_incident_and_not_otherwise(name):
    series = SERIES[name]
    every = series.get("every", 60)
    assert fires_at(ALERTS[name], series["quiet"], every) is None
    assert fires_at(ALERTS[name], series["firing"], every) == series["fires_at"]


def test_every_series_belongs_to_an_alert():
    assert SERIES.keys() - {"about"} == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_page_that_says_what_to_do(name):
    page = (ROOT / "docs" / "runbook" / f"{name}.md").read_text()
    title, means, look, do = re.fullmatch(r"# (.*?)\n\n(.+?)\n\n## Look at\n\n(.+?)\n\n## Do\n\n(.+)", page, re.DOTALL).groups()  # type: ignore[union-attr]  # fmt: skip
    assert title == ALERTS[name]["title"]
    assert len(means) > 80 and look.startswith("- ") and do.startswith("- ")
    assert f"](runbook/{name}.md)" in (ROOT / "docs" / "runbook.md").read_text()


def test_pages_without_an_alert_are_none():
    assert {path.stem for path in (ROOT / "docs" / "runbook").glob("*.md")} == ALERTS.keys()


def test_the_commands_of_the_runbook_are_commands():
    from orchestration import cli

    known = set(re.findall(r"^(\S+)  ", str(cli.__doc__), re.MULTILINE))
    for path in (ROOT / "docs" / "runbook").glob("*.md"):
        for command in re.findall(r"`python\s+-m\s+orchestration\.cli\s+(\w[\w-]*)", path.read_text()):
            assert command in known, f"{path.name}: {command}"


def report(outcome: str, run_id: str) -> str:
    return RunReport(
        run_id=run_id,
        pipeline="retrain",
        outcome=outcome,
        reason="because",
        version="v",
        ended_at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds={"train": 1.0},
    ).line


def test_the_lines_that_runs_print_are_counted_for_their_environment(terraform):
    counted = terraform["logs"]
    mine, other = f"{NAME}-retrain-20260101t000000", "bandit-retrain-20260101t000000"
    outcomes = ("promoted", "on probation", "undecided", "refused", "rolled back", "nothing new", "held", "failed")
    for outcome in outcomes:
        assert re.search(counted["run-ended"], report(outcome, mine))
        assert not re.search(counted["run-ended"], report(outcome, other))
        assert bool(re.search(counted["run-failed"], report(outcome, mine))) == (outcome == "failed")
        assert bool(re.search(counted["run-held"], report(outcome, mine))) == (outcome == "held")


def test_filters_name_the_resources_of_their_environment(terraform):
    filters = {name: alert["filter"] for name, alert in terraform["alerts"].items()}
    assert filters["events_wait"] == (
        'metric.type="pubsub.googleapis.com/subscription/oldest_unacked_message_age" AND '
        'resource.type="pubsub_subscription" AND resource.labels.subscription_id="bandit-dev-ingest"'
    )
    assert 'resource.labels.endpoint_id="bandit-dev"' in filters["endpoint_errors"]
    assert filters["run_failed"] == 'metric.type="logging.googleapis.com/user/bandit-dev-run-failed"'
    text = "\n".join(path.read_text() for path in (ROOT / "infra").glob("*.tf"))
    for name, alert in ALERTS.items():
        if alert["resource"] and alert["value"]:
            assert f'"${{var.name}}-{alert["value"]}"' in text, f"{name}: no resource has this name"
