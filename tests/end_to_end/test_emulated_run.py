"""The pipelines on the emulators of Pub/Sub and BigQuery, as a person runs them: the same steps, jobs and parameters as in
the cloud, with a predictor that publishes what it decides."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_jobs import bigquery
from beam_jobs.places import parse_dataset
from contracts.errors import InputError, OperationError
from contracts.schemas import DECISIONS, REWARDS
from contracts.windows import decode_manifest
from orchestration import policy_store
from orchestration.cloud import configuration
from orchestration.cloud.configuration import EMULATED_WAREHOUSE
from orchestration.emulators import __main__ as emulators
from orchestration.emulators import servers
from orchestration.emulators.redirect import redirect
from orchestration.emulators.servers import Addresses
from orchestration.pipelines import local_run, plan
from orchestration.pipelines.runs import RunReport
from tests.servers import predictor
from tests.viewers import Viewers

pytestmark = pytest.mark.timeout(900)

K, D, DECISIONS_ASKED = 10, 5, 400
SETTINGS = {
    "window_seconds": "1",
    "reward_window_seconds": "1",
    "settle_seconds": "0.5",
    # With nothing held back the gate lets the champion's next update pass: this test follows the data, not the gate.
    "holdback_share": "0",
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, emulators_environment: Path) -> Iterator[tuple[Path, Addresses]]:
    """`python -m orchestration.emulators up` as a process; yields its root and the addresses in it."""
    try:
        servers.pubsub_program()
    except InputError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("emulated") / "root"
    with (root.parent / "up.log").open("w") as log:
        command = [sys.executable, "-m", "orchestration.emulators", "up", "--root", str(root)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or (root / servers.ADDRESSES_NAME).is_file())
            assert process.poll() is None, (root.parent / "up.log").read_text()
            yield root, servers.running(root)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    assert code == 0, (root.parent / "up.log").read_text()
    assert not (root / servers.ADDRESSES_NAME).exists()
    with pytest.raises(InputError, match="no emulators are up for root"):
        servers.running(root)


def run(name: str, root: Path, **given: str) -> RunReport:
    return local_run.run(name, configuration.load("emulators"), {"root": str(root)} | SETTINGS | given)


def wait_until(done: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def stored(addresses: Addresses) -> dict[str, set[str]]:
    """The ids of the decisions that are in BigQuery, and of those that have a reward there."""
    begin, end = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    dataset = parse_dataset(EMULATED_WAREHOUSE)
    with redirect(addresses.pubsub, addresses.bigquery):
        return {
            table.name: set(bigquery.read_all(dataset, table, begin, end, ("decision_id",))["decision_id"].to_pylist())
            for table in (DECISIONS, REWARDS)
        }


def test_bootstrap_and_retrain_through_pubsub_and_bigquery(up):
    root, addresses = up
    report = run("bootstrap", root, num_actions=str(K), rank=str(D), num_decisions="200")
    assert report.outcome == "promoted", report
    assert {"generate_movielens", "ingest_events", "export_trajectories"} <= set(report.seconds)
    generated = stored(addresses)["decisions"]
    assert len(generated) == 200
    assert run("bootstrap", root).reason == f"{report.version} is the champion already"

    served, flags = root / "served", ("--topic", servers.TOPIC)
    with (
        predictor(root / "policies", served, *flags, environment={"PUBSUB_EMULATOR_HOST": addresses.pubsub}) as server,
        contextlib.closing(Viewers(server, root, K, D)) as viewers,
    ):
        viewers.watch(DECISIONS_ASKED)
        wait_until(lambda: len(stored(addresses)["rewards"] - generated) == DECISIONS_ASKED)
        assert len(stored(addresses)["decisions"]) == 200 + DECISIONS_ASKED
        time.sleep(2.5)  # until the window has closed
        viewers.candidate_reward = 9.0
        with viewers.watching():
            later = run(
                "retrain",
                root,
                endpoint=server.url,
                canary_share="0.5",
                canary_decisions="2000",
                canary_seconds="300",
            )
        assert later.outcome == "promoted", later
        # The canary was judged by what BigQuery holds.
        assert "; confirmed in the canary: not worse than the anchor by more than " in later.reason
        assert server.get("/health").body["policy_version"] == later.version != report.version
    champion = policy_store.champion(root / "policies")
    assert champion is not None
    assert (champion.version, champion.previous) == (later.version, report.version)
    newest = max(plan.exported_windows(root / "windows"))
    path = root / "windows" / newest.folder / "manifest.json"
    counts = decode_manifest(path.read_bytes(), str(path)).counts
    assert counts.decisions == counts.rewards + counts.dropped == DECISIONS_ASKED
    assert counts.rewards > 0
    assert run("retrain", root, until=newest.end.isoformat()).outcome == "nothing new"
    log = (root / "runs" / local_run.LOG_NAME).read_text()
    assert not [warning for warning in local_run.WRONG_BRANCH if warning in log]


def test_a_second_time_for_the_same_root_is_one_line(up, capsys):
    root, _ = up
    assert emulators.main(["up", "--root", str(root)]) == 2
    assert f"orchestration.emulators: error: --root: emulators already run for {root}" in capsys.readouterr().err


def test_emulators_that_are_gone_are_one_line(tmp_path):
    gone = Addresses(pubsub="127.0.0.1:1", bigquery_rest="http://127.0.0.1:1", bigquery_grpc="127.0.0.1:1")
    (tmp_path / servers.ADDRESSES_NAME).write_text(
        f'{{"pubsub": "{gone.pubsub}", "bigquery_rest": "{gone.bigquery_rest}", "bigquery_grpc": "{gone.bigquery_grpc}"}}'
    )
    with pytest.raises(OperationError, match=r"no longer answer: run `python -m orchestration.emulators up --root"):
        run("retrain", tmp_path)
