"""The Terraform files: formatted, parsed by Terraform itself where it is installed, and in step with the contract.

Validating against the Google provider needs its schema, which `terraform init` downloads.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

from beam_jobs import table_schemas
from contracts.schemas import TABLES
from orchestration import cli
from orchestration.cloud import configuration
from orchestration.pipelines import triggers

INFRA = Path(__file__).parents[1] / "infra"


def test_table_schemas_are_up_to_date() -> None:
    assert table_schemas.main([str(INFRA / "tables"), "--check"]) == 0
    assert {path.stem for path in (INFRA / "tables").iterdir()} == {table.name for table in TABLES}


def test_stale_schemas_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table_schemas.main([str(tmp_path), "--check"]) == 1
    assert (
        "decisions.json, rewards.json, statuses.json, dead_letters.json differ from the contract"
        in capsys.readouterr().err
    )


def test_bigquery_takes_the_schema_that_the_jobs_check_for() -> None:
    """Terraform's files and `beam_jobs.bigquery.ensure_tables` say the same."""
    from google.cloud.bigquery import SchemaField

    from beam_jobs import bigquery

    for table in TABLES:
        definition = json.loads((INFRA / "tables" / f"{table.name}.json").read_text())
        assert [SchemaField.from_api_repr(field) for field in definition["schema"]] == bigquery.schema(table)


def test_formatted_and_parsed(tmp_path: Path) -> None:
    terraform = shutil.which("terraform")
    if terraform is None:
        pytest.skip("terraform is not installed")
    done = subprocess.run(
        [terraform, f"-chdir={INFRA}", "fmt", "-check", "-diff", "-recursive"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def text() -> str:
    """All files of the root module."""
    return "\n".join(path.read_text() for path in sorted(INFRA.glob("*.tf")))


def blocks(kind: str) -> dict[str, str]:
    """The bodies of the resources of one kind, by name."""
    found = re.findall(rf'^resource "{kind}" "(\w+)" \{{(.*?)^\}}', text(), re.MULTILINE | re.DOTALL)
    assert found, kind
    return dict(found)


def test_everything_that_is_referred_to_is_there() -> None:
    declared = {f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', text(), re.MULTILINE)}
    declared |= {f"{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', text(), re.MULTILINE)}
    referred = {f"{kind}.{name}" for kind, name in re.findall(r"\b(google_\w+|terraform_data)\.(\w+)", text())}
    assert referred <= declared
    assert set(re.findall(r"\bvar\.(\w+)", text())) == set(re.findall(r'^variable "(\w+)"', text(), re.MULTILINE))
    assert set(re.findall(r"\blocal\.(\w+)", text())) <= set(re.findall(r"^  (\w+) += ", text(), re.MULTILINE))


# The API of each kind of resource, by the beginning of the kind.
APIS = {
    "google_artifact_registry": "artifactregistry",
    "google_bigquery": "bigquery",
    "google_cloud_run": "run",
    "google_cloud_scheduler": "cloudscheduler",
    "google_compute": "compute",
    "google_dataflow": "dataflow",
    "google_eventarc": "eventarc",
    "google_logging": "logging",
    "google_monitoring": "monitoring",
    "google_project_iam": "cloudresourcemanager",
    "google_pubsub": "pubsub",
    "google_service_account": "iam",
    "google_storage": "storage",
}


def test_the_api_of_every_resource_is_enabled() -> None:
    enabled = {name.removesuffix(".googleapis.com") for name in re.findall(r'"(\w+\.googleapis\.com)"', text())}
    kinds = set(re.findall(r'^resource "(google_\w+)"', text(), re.MULTILINE)) - {"google_project_service"}
    needed = {api for kind in kinds for prefix, api in APIS.items() if kind.startswith(prefix)}
    assert {kind for kind in kinds if not any(kind.startswith(prefix) for prefix in APIS)} == set()
    # What the code and the builds call, beside Terraform.
    assert needed | {"aiplatform", "bigquerystorage", "cloudbuild"} == enabled


def test_every_name_begins_with_the_environment() -> None:
    """Resources that two environments of a project would share have no name of their own."""
    for kind, name, body in re.findall(
        r'^resource "(google_\w+)" "(\w+)" \{(.*?)^\}', text(), re.MULTILINE | re.DOTALL
    ):
        for field, value in re.findall(
            r"^  (name|display_name|account_id|repository_id|role_id|dataset_id) += (.*)$", body, re.MULTILINE
        ):
            named = re.search(r"var\.name|local\.bucket|google_\w+\.|each\.value|local\.topics", value)
            assert named or value.startswith('"templates/'), f"{kind}.{name}: {field} = {value}"


def test_workers_have_no_public_addresses_and_can_reach_what_they_need() -> None:
    (subnetwork,) = blocks("google_compute_subnetwork").values()
    assert "private_ip_google_access = true" in subnetwork and "name                     = var.name" in subnetwork
    assert blocks("google_compute_router_nat") and "dataflow" in "".join(blocks("google_compute_firewall").values())
    cloud = configuration.load("prod", "films").needed_cloud()
    for job in blocks("google_dataflow_flex_template_job").values():
        assert 'ip_configuration             = "WORKER_IP_PRIVATE"' in job
        path = re.search(r'subnetwork +=  *"([^"]+)"', job)
        assert path is not None
        made = path[1].replace("${var.region}", cloud.location)
        assert made.replace("${google_compute_subnetwork.own.name}", cloud.name) == cloud.subnetwork


def parameters(job: str) -> dict[str, dict[str, Any]]:
    """Those of the flex template, by name."""
    metadata = json.loads((INFRA.parent / "templates" / f"{job}.json").read_text())
    return {one["name"]: one for one in metadata["parameters"]}


def test_live_learning_takes_the_flags_of_the_template_and_loses_no_message() -> None:
    job = blocks("google_dataflow_flex_template_job")["learn_live"]
    known, given = parameters("learn_live"), dict(re.findall(r"^    (\w+) +(?:  )*= (.*)$", job, re.MULTILINE))
    assert {name for name, one in known.items() if not one["isOptional"]} <= given.keys() <= known.keys()
    assert "at_least_once" not in job and "enable_streaming_engine      = true" in job
    assert 'on_delete                    = "drain"' in job
    cloud = configuration.load("prod", "film-project").needed_cloud()
    values = {
        "events": f"pubsub:projects/film-project/subscriptions/{cloud.name}-live",
        "windows": f"{cloud.root_uri}/windows",
        "live": f"{cloud.root_uri}/live",
        "start": "2026-01-01T00:00:00Z",
        "window_seconds": "300",
        "missing_reward": "default",
    }
    for name, value in values.items():
        assert all(re.search(pattern, value) for pattern in known[name].get("regexes", []))
    defaults = {
        name: re.search(rf'variable "live_{name}" \{{.*?default += "?(\w*)', text(), re.DOTALL)
        for name in ("reward_window_seconds", "missing_reward")
    }
    assert {name: found and found[1] for name, found in defaults.items()} == {
        "reward_window_seconds": "60",
        "missing_reward": "default",
    }


def test_the_streaming_job_takes_the_flags_of_the_template() -> None:
    """Its parameters are the template's, the required ones among them, and their values fit the patterns."""
    job = blocks("google_dataflow_flex_template_job")["ingest_events"]
    known = parameters("ingest_events")
    given = dict(re.findall(r"^      (\w+) += (.*)$", job, re.MULTILINE))
    optional = set(re.findall(r"\? \{\} : \{ (\w+) = ", job))
    assert given.keys() | optional <= known.keys()
    assert {name for name, one in known.items() if not one["isOptional"]} <= given.keys()
    cloud = configuration.load("prod", "film-project").needed_cloud()
    values = {
        "events": f"pubsub:projects/film-project/subscriptions/{cloud.name}-ingest",
        "warehouse": cloud.warehouse,
        "dead_letter_topic": f"projects/film-project/topics/{cloud.name}-dead-letters",
        "write_method": "storage_write_api",
    }
    assert values.keys() == given.keys()
    for name, value in values.items():
        assert all(re.search(pattern, value) for pattern in known[name].get("regexes", []))
    assert 'on_delete                    = "drain"' in job


def test_dead_letters_are_kept() -> None:
    """A topic without a subscription forgets what is published to it."""
    subscribed = {
        re.search(r"google_pubsub_topic\.(\w+)\.id", body)[1] for body in blocks("google_pubsub_subscription").values()
    }  # type: ignore[index]
    assert subscribed == blocks("google_pubsub_topic").keys()


def test_the_trigger_is_what_the_code_expects() -> None:
    (service,) = blocks("google_cloud_run_v2_service").values()
    assert "triggers.py" in service and f"--target={triggers.retrain_on_manifest.__name__}" in service
    assert set(re.findall(r'name  = "(RECOMMENDER_\w+)"', service)) == {"RECOMMENDER_CONFIG", "RECOMMENDER_PROJECT"}
    (trigger,) = blocks("google_eventarc_trigger").values()
    assert f'"{triggers.FINALIZED}"' in trigger
    (invoker,) = blocks("google_cloud_run_v2_service_iam_member").values()
    assert '"roles/run.invoker"' in invoker and "local.member.trigger" in invoker


def test_builds_can_be_repeated() -> None:
    """No base image has a default, and Terraform and the build refuse one without a digest."""
    root = INFRA.parent
    build = (root / "templates" / "cloudbuild.yaml").read_text()
    for path in [root / folder / "Dockerfile" for folder in ("templates", "predictor", "trainer", "orchestration")]:
        stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?", path.read_text(), re.MULTILINE)
        bases = {base for base, _ in stages} - {stage for _, stage in stages}
        assert all(re.fullmatch(r"\$\{\w+_BASE\}", base) for base in bases), path
        assert not re.search(r"^ARG \w+_BASE=", path.read_text(), re.MULTILINE)
        for base in bases if path.parent.name != "trainer" else ():
            assert f"--build-arg={base[2:-1]}=${{_{base[2:-1]}}}" in build
    assert "@sha256:[0-9a-f]{64}$" in build and "@sha256:[0-9a-f]{64}$" in (INFRA / "variables.tf").read_text()
    (images,) = blocks("terraform_data").values()
    assert set(re.findall(r"\$\{(_\w+)\}", build)) == set(re.findall(r"(?<=[=,])(_[A-Z_]+)=", images))


def test_rights_are_the_least() -> None:
    """No primitive roles, no admin of a project; each part's roles are on the narrowest resource that Google has them for."""
    rights = json.loads((INFRA / "rights" / "rights.json").read_text())["rights"]
    assert not [right for right in rights if re.search(r"roles/(owner|editor|viewer)$", right["role"])]
    assert {right["role"] for right in rights if right["on"] == "project"} == {
        "custom:endpointCaller",
        "custom:runStarter",
        "roles/aiplatform.user",
        "roles/bigquery.jobUser",
        "roles/bigquery.readSessionUser",
        "roles/dataflow.developer",
        "roles/dataflow.worker",
        "roles/eventarc.eventReceiver",
        "roles/logging.logWriter",
        "roles/monitoring.viewer",
    }


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_ratings_of_a_bootstrap_can_be_read_in_the_image_of_the_jobs(name: str) -> None:
    assert configuration.load(name).own["bootstrap"]["ratings"] == "tfds:movielens/100k-ratings"
    locked = (INFRA.parent / "requirements" / "beam.txt").read_text()
    assert re.search(r"^tensorflow-datasets==", locked, re.MULTILINE)


def test_the_environments_are_what_is_set_up() -> None:
    """Names that `orchestration.cloud.configuration` derives, as Terraform makes them of the same name and project."""
    made = text().replace("${var.project}", "films").replace("${var.name}", "bandit")
    cloud = configuration.load("prod", "films").needed_cloud()
    assert f'name                       = "{cloud.topic.rpartition("/")[2]}"' in made
    assert re.search(rf'^  bucket +=  *"{cloud.bucket}"$', made, re.MULTILINE)
    assert 'dataset_id = replace(var.name, "-", "_")' in made
    assert cloud.warehouse == "bigquery:films.bandit"
    assert "repository_id = var.name" in made
    assert cloud.image("x").startswith(f"{cloud.location}-docker.pkg.dev/films/bandit/")
    assert 'account_id   = "bandit-${each.key}"' in made
    rights = json.loads((INFRA / "rights" / "rights.json").read_text())
    assert set(get_args(configuration.Part)) <= rights["accounts"].keys()
    # Rights are for folders of the bucket: the policies are where the predictor may read them.
    policies = cloud.target.policies
    assert policies == f"gs://{cloud.bucket}/policies"


def test_the_cost_in_the_readme_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (INFRA / "README.md").read_text()
    shown = re.search(r"\$ python -m orchestration.cli cost --config prod --rate 1000\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert cli.main(["cost", "--config", "prod", "--rate", "1000"]) == 0
    assert capsys.readouterr().out == shown[1]
    for rate, total in (("100", "1,109"), ("10000", "6,047")):
        assert cli.main(["cost", "--config", "prod", "--rate", rate]) == 0
        assert re.search(rf"^together +{total} ", capsys.readouterr().out, re.MULTILINE) and total in page
