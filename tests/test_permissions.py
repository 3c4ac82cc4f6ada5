"""Every call of a Google Cloud API is listed with its permissions, and the accounts that make it have them, no others.

`infra/rights/` holds three lists: the rights that Terraform grants, what Google's roles contain, and the calls. A small
policy engine below evaluates them as Cloud IAM documents it, with the conditions that Terraform itself makes of the file.
"""

import ast
import functools
import inspect
import io
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.cloud import bigquery, pubsub_v1, storage
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient
from google.cloud.monitoring_v3 import MetricServiceClient

from docs import reference
from tests.local_vertex.server import LocalVertex

ROOT = Path(__file__).resolve().parents[1]
RIGHTS = ROOT / "infra" / "rights"
BUCKET = "films-bandit"
OBJECTS = f"projects/_/buckets/{BUCKET}/objects/"
CLIENTS = (
    bigquery.Client,
    storage.Client,
    storage.Bucket,
    storage.Blob,
    pubsub_v1.PublisherClient,
    pubsub_v1.SubscriberClient,
    BigQueryReadClient,
    BigQueryWriteClient,
    MetricServiceClient,
)
# Methods that other objects have too, or that ask no service.
ELSEWHERE = {
    *dir(Path), *dir(dict), *dir(io.BytesIO), *dir(Future), "blob", "bucket", "create", "delete", "stop", "path", "dataset",
}  # fmt: skip
METHODS = {
    name
    for client in CLIENTS
    for name in dir(client)
    if not name.startswith("_") and inspect.isroutine(getattr(client, name))
} - ELSEWHERE
FILES = {"create", "delete", "exists", "match", "open", "rename", "copy", "checksum", "size", "last_updated"}
CONNECTORS = {"ReadFromPubSub", "WriteToPubSub", "ReadFromBigQuery", "WriteToBigQuery"}
MAX_LOGICAL_OPERATORS = 12  # https://cloud.google.com/iam/quotas


class Right(NamedTuple):
    account: str
    role: str
    on: str
    condition: str


class Asked(NamedTuple):
    """What the attributes of a condition say of one request."""

    name: str = ""
    prefix: str = ""


ANYTHING = Asked()


@functools.cache
def roles() -> dict[str, list[str]]:
    custom = json.loads((RIGHTS / "rights.json").read_text())["custom_roles"]
    found = tomllib.loads((RIGHTS / "roles.toml").read_text())
    return found | {f"custom:{name}": role["permissions"] for name, role in custom.items()}


@functools.cache
def calls() -> list[dict[str, Any]]:
    return tomllib.loads((RIGHTS / "calls.toml").read_text())["calls"]


@pytest.fixture(scope="module")
def rights(tmp_path_factory: pytest.TempPathFactory) -> list[Right]:
    """The rights as Terraform makes them of the file, conditions included."""
    terraform = shutil.which("terraform")
    if terraform is None:
        pytest.skip("terraform is not installed")
    folder = tmp_path_factory.mktemp("rights")
    for name in ("main.tf", "rights.json"):
        shutil.copy(RIGHTS / name, folder)

    def run(*arguments: str) -> str:
        command = [terraform, f"-chdir={folder}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "-no-color")
    run("apply", "-no-color", "-auto-approve", f"-var=bucket={BUCKET}")
    by_kind = json.loads(run("output", "-json", "on"))
    return [
        Right(right["account"], right["role"], ":".join(filter(None, (kind, right["name"]))), right["condition"])
        for kind, some in by_kind.items()
        for right in some.values()
    ]


def holds(condition: str, asked: Asked) -> bool:
    """Whether a condition, in the part of the Common Expression Language that the rights use, is true of a request."""
    term = (
        r"resource\.name\.startsWith\('(?P<folder>[^']*)'\)|resource\.name (?P<sign>==|!=) '(?P<name>[^']*)'"
        r"|api\.getAttribute\('storage\.googleapis\.com/objectListPrefix', ''\)\.startsWith\('(?P<prefix>[^']*)'\)"
    )

    def value(match: re.Match[str]) -> str:
        if match["folder"] is not None:
            return str(asked.name.startswith(match["folder"]))
        if match["prefix"] is not None:
            return str(asked.prefix.startswith(match["prefix"]))
        return str((asked.name == match["name"]) == (match["sign"] == "=="))

    plain = re.sub(term, value, condition).replace("||", "or").replace("&&", "and")
    assert re.fullmatch(r"(True|False|or|and|[() ])*", plain), f"not understood: {plain}"
    return not condition or bool(eval(plain))


def allows(rights: list[Right], account: str, permission: str, on: str, asked: Asked = ANYTHING) -> bool:
    """Whether an account has a permission on a resource, by a right on it or on the project that holds it."""
    return any(
        right.account == account
        and right.on in (on, "project")
        and permission in roles()[right.role]
        and holds(right.condition, asked)
        for right in rights
    )


def asked_of(name: str) -> Asked:
    """The request for an object, or for a listing if the name ends with a slash."""
    return Asked(OBJECTS.removesuffix("/objects/"), name) if name.endswith("/") else Asked(OBJECTS + name)


def test_every_account_may_make_the_calls_that_it_makes(rights):
    missing = [
        f"{account}: {call['code']} {', '.join(call['calls'])}: {permission} on {call['on']} {name}"
        for call in calls()
        for account in call["accounts"]
        if account != "operator"
        for permission in call["permissions"]
        for name in call.get("objects", [""])
        if not allows(rights, account, permission, call["on"], asked_of(name) if name else ANYTHING)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("account", "permission", "on", "name"),
    [
        # Overwriting an object needs the right to delete it.
        ("dataflow", "storage.objects.delete", "bucket", "policies/champion.json"),
        ("dataflow", "storage.objects.delete", "bucket", "policies/v/linear.npz"),
        ("dataflow", "storage.objects.delete", "bucket", "templates/ingest_events.json"),
        ("dataflow", "storage.objects.delete", "bucket", "runs/run.json"),
        ("trainer", "storage.objects.create", "bucket", "policies/champion.json"),
        ("trainer", "storage.objects.delete", "bucket", "policies/champion.json"),
        ("trainer", "storage.objects.delete", "bucket", "policies/history.jsonl"),
        ("trainer", "storage.objects.create", "bucket", "windows/window=x/manifest.json"),
        ("predictor", "storage.objects.get", "bucket", "windows/window=x/manifest.json"),
        ("predictor", "storage.objects.list", "bucket", "windows/"),
        ("predictor", "storage.objects.create", "bucket", "policies/champion.json"),
        ("predictor", "bigquery.tables.getData", "dataset", ""),
        ("predictor", "pubsub.subscriptions.consume", "subscription:ingest", ""),
        ("traffic", "aiplatform.endpoints.deploy", "project", ""),
        ("traffic", "aiplatform.pipelineJobs.create", "project", ""),
        ("traffic", "storage.objects.get", "bucket", "policies/champion.json"),
        ("trigger", "storage.objects.create", "bucket", "policies/champion.json"),
        ("trigger", "aiplatform.endpoints.deploy", "project", ""),
        ("trigger", "iam.serviceAccounts.actAs", "account:dataflow", ""),
        ("pipelines", "iam.serviceAccounts.actAs", "account:pipelines", ""),
        ("pipelines", "bigquery.tables.updateData", "dataset", ""),
    ],
)
def test_what_an_account_must_not_do_is_denied(rights, account, permission, on, name):
    assert not allows(rights, account, permission, on, asked_of(name) if name else ANYTHING)


def test_no_role_is_broader_than_its_calls_need(rights):
    """Each right is what makes some call possible: without it, a call would be denied."""
    for right in rights:
        others = [one for one in rights if one != right]
        needed = [
            call
            for call in calls()
            if right.account in call["accounts"]
            for permission in call["permissions"]
            for name in call.get("objects", [""])
            if permission in roles()[right.role]
            and right.on in (call["on"], "project")
            and (
                not allows(others, right.account, permission, call["on"], asked_of(name) if name else ANYTHING)
                or right.role == "roles/dataflow.worker"  # Google requires this role of a worker's account
            )
        ]
        # Reading a missing object is answered 404 with this role and 403 without.
        assert needed or right.role == "roles/storage.legacyBucketReader", f"no call needs {right}"


def test_conditions_are_as_short_as_iam_takes_them(rights):
    for right in rights:
        assert len(re.findall(r"\|\||&&", right.condition)) <= MAX_LOGICAL_OPERATORS


def test_the_engine_reads_conditions():
    condition = (
        f"(resource.name.startsWith('{OBJECTS}a/') || api.getAttribute('storage.googleapis.com/objectListPrefix', '')"
        f".startsWith('a/')) && resource.name != '{OBJECTS}a/x'"
    )
    names = ["a/y", "a/x", "b/y", "a/", "b/", "ab/"]
    assert [name for name in names if holds(condition, asked_of(name))] == ["a/y", "a/"]
    assert holds("", asked_of("x"))
    with pytest.raises(AssertionError, match="not understood"):
        holds("request.time < timestamp('2026-01-01T00:00:00Z')", Asked())


def called() -> Iterator[tuple[str, str]]:
    """Module and call of every use of Google's clients and connectors in the product, Vertex AI's apart."""
    for package in ("beam_jobs", "trainer", "predictor", "orchestration"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            text = path.read_text()
            if module.startswith(("orchestration.emulators", "orchestration.cloud.vertex")):
                continue  # the emulators have no rights; Vertex AI's calls are those that the local one answers
            google = re.search(r"\bgoogle[._]|beam_jobs import .*bigquery\b", text)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Attribute):
                    base, name = ast.unparse(node.value), node.attr
                    if base == "FileSystems" and name in FILES:
                        yield module, f"FileSystems.{name}"
                    elif google and name in METHODS and base not in ("bigquery", "embedded"):
                        yield module, name
                elif isinstance(node, ast.alias | ast.Name):
                    name = node.name if isinstance(node, ast.alias) else node.id
                else:
                    continue
                if name in CONNECTORS or (google and re.search(r"Op$|_from_component$", name)):
                    yield module, name


def test_every_call_in_the_code_is_listed():
    listed = {(call["code"], name) for call in calls() for name in call["calls"]}
    assert {one for one in called() if one not in listed} == set()
    modules = {code for code, _ in listed if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", code)}
    assert {one for one in listed if one[0] in modules} == set(called())


def test_every_call_of_vertex_ai_is_listed(tmp_path):
    """The local Vertex AI answers the calls that the code makes, and refuses any other."""
    routes = set()
    for method, pattern, _ in LocalVertex(tmp_path)._routes():
        readable = re.sub(r"\(\?:[^()]*(\([^()]*\))?[^()]*\)\??", "", pattern)
        readable = re.sub(r"\(\[[^()]*\)", "*", readable)
        routes.add(f"{method} {readable.lstrip('/')}")
    listed = {name for call in calls() if call["code"] == "Vertex AI" for name in call["calls"] if ": " not in name}
    assert listed == routes


def test_the_page_lists_every_call():
    page = reference.permissions()
    for call in calls():
        for permission in call["permissions"]:
            assert f"`{permission}`" in page
    assert (
        "| dataflow | `roles/storage.objectAdmin` | bucket: events/, live/, temp/, windows/, catalogue.json |" in page
    )
