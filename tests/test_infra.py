"""The Terraform files: formatted, parsed by Terraform itself where it is installed, and in step with the contract.

Validating against the Google provider needs its schema, which `terraform init` downloads.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from beam_jobs import table_schemas
from contracts.schemas import TABLES
from orchestration.cloud import configuration

INFRA = Path(__file__).parents[1] / "infra"


def test_table_schemas_are_up_to_date() -> None:
    assert table_schemas.main([str(INFRA / "tables"), "--check"]) == 0
    assert {path.stem for path in (INFRA / "tables").iterdir()} == {table.name for table in TABLES}


def test_stale_schemas_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table_schemas.main([str(tmp_path), "--check"]) == 1
    assert "decisions.json, rewards.json, dead_letters.json differ from the contract" in capsys.readouterr().err


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


def test_everything_that_is_referred_to_is_there() -> None:
    text = "\n".join(path.read_text() for path in sorted(INFRA.glob("*.tf")))
    declared = {f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE)}
    referred = {f"{kind}.{name}" for kind, name in re.findall(r"\b(google_\w+)\.(\w+)", text)}
    assert referred <= declared
    variables = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == variables


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
    }


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_ratings_of_a_bootstrap_can_be_read_in_the_image_of_the_jobs(name: str) -> None:
    assert configuration.load(name).own["bootstrap"]["ratings"] == "tfds:movielens/100k-ratings"
    locked = (INFRA.parent / "requirements" / "beam.txt").read_text()
    assert re.search(r"^tensorflow-datasets==", locked, re.MULTILINE)


def test_the_environments_are_what_is_set_up() -> None:
    """Names that `orchestration.cloud.configuration` derives, as Terraform makes them of the same name and project."""
    text = "\n".join(path.read_text() for path in sorted(INFRA.glob("*.tf")))
    made = text.replace("${var.project}", "films").replace("${var.name}", "bandit")
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
