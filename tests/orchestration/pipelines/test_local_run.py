"""The pipelines as KFP runs them here, with a real predictor and viewers who ask it while they run."""

import fcntl
import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.errors import InputError, OperationError
from orchestration import policy_store, probation
from orchestration.cloud import configuration
from orchestration.pipelines import canary, local_run, plan, runs
from orchestration.pipelines.runs import RunReport
from orchestration.places import Places
from predictor import policy as policy_files
from tests.servers import Server, predictor
from tests.viewers import Viewers

pytestmark = pytest.mark.timeout(900)

# A world that takes learning: two decisions a movie leave the first policy at about 2.0 of the best 3.1 a decision.
K, D, BOOTSTRAP_DECISIONS = 50, 20, 100
SETTINGS = {
    "window_seconds": "1",
    "reward_window_seconds": "1",
    "settle_seconds": "0.5",
}
CLOSED_SECONDS = 2.5  # until the window in which a decision was made has closed
CANARY = {"canary_share": "0.5", "canary_decisions": "300", "canary_seconds": "300"}
UNJUDGED = {"holdback_share": "0"}  # the gate has nothing to go by and lets the champion's own next update pass


def run(name: str, root: Path, **given: str) -> RunReport:
    """With the steps in this process."""
    known = {"root": str(root)} | SETTINGS | ({} if name == "bootstrap" else CANARY)
    with local_run.steps_in_this_process():
        return local_run.run(name, configuration.load("local"), known | given)


class Environment:
    def __init__(self, root: Path, server: Server, bootstrap: RunReport) -> None:
        self.root = root
        self.server = server
        self.bootstrap = bootstrap
        self.viewers = Viewers(server, root, K, D)

    def champion(self) -> str:
        found = policy_store.champion(self.root / "policies")
        assert found is not None
        assert found.candidate is None  # no canary is left behind
        return found.version

    def served(self) -> str:
        version: str = self.server.get("/health").body["policy_version"]
        return version

    def confirm(self) -> None:
        """A candidate can be tried beside a champion that is confirmed."""
        policy_store.confirm(self.root / "policies", datetime.now(UTC))

    def remove_untrained_windows(self) -> None:
        """A window stays as it was exported: for other settings, those that were not trained on must go."""
        card = policy_files.read_card(self.root / "policies" / self.champion())
        trained = {one.window.folder for one in card.trained_on}
        for folder in (self.root / "windows").glob("window=*"):
            if folder.name not in trained:
                shutil.rmtree(folder)

    def retrain(self, **given: str) -> RunReport:
        """With viewers meanwhile."""
        with self.viewers.watching():
            return run("retrain", self.root, endpoint=self.server.url, **given)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    root = tmp_path_factory.mktemp("pipelines")
    report = run("bootstrap", root, num_actions=str(K), rank=str(D), num_decisions=str(BOOTSTRAP_DECISIONS))
    with predictor(root / "policies", root / "events") as server:
        made = Environment(root, server, report)
        yield made
        made.viewers.close()


def test_a_bootstrap_makes_the_first_champion_and_a_second_one_changes_nothing(environment):
    assert environment.bootstrap.outcome == "promoted"
    assert environment.bootstrap.version == environment.champion() == environment.served()
    again = run("bootstrap", environment.root, num_actions=str(K), rank=str(D))
    assert (again.outcome, again.reason) == ("nothing new", f"{environment.champion()} is the champion already")


def test_retraining_three_times_with_traffic_makes_it_better_and_a_rerun_changes_nothing(environment, capsys):
    viewers = environment.viewers
    first = viewers.value(environment.served())
    outcomes = []
    # An update is better by half a rating (0.3 to 0.9 in 25 runs with other seeds), so a canary is not expected to take it
    # back. The gate's interval is wider, and may refuse a good update: it did so in none of 75 tries, and need not pass
    # each of the three here.
    for trial in (CANARY, {"canary_share": "0"}, {"canary_share": "0"}):
        viewers.watch(1000)
        time.sleep(CLOSED_SECONDS)
        before = environment.champion()
        report = environment.retrain(**trial)
        outcomes.append(report.outcome)
        assert report.windows == 1
        assert report.decisions >= 1000
        # What it cost.
        cost = rf"^1 window\(s\) of {report.decisions} decisions: \d+\.\d s, \d+\.\d CPU seconds per window$"
        assert re.search(cost, capsys.readouterr().out, re.MULTILINE)
        assert report.outcome in ("promoted", "on probation", "refused"), report
        assert environment.served() == environment.champion()
        assert (environment.champion() == report.version != before) == (report.outcome != "refused")
        if trial is CANARY and report.outcome == "promoted":
            assert "; confirmed in the canary: not worse than the anchor by more than " in report.reason
        elif trial is CANARY and report.outcome == "on probation":
            assert "; undecided in the canary: gain " in report.reason
        elif report.outcome != "refused":  # without a canary, an update goes on probation
            assert report.outcome == "on probation"
        tried = probation.current_trial(Places(environment.root))
        assert (tried is not None) == (
            report.outcome == "on probation" or (tried is not None and before in tried.versions)
        )
    assert set(outcomes) & {"promoted", "on probation"}
    # The windows of a version on probation were added to its evidence by the run after it. After a canary they count only
    # once every server has surely followed the pointer, which is later than this test ends.
    if outcomes[0] != "on probation" and outcomes[1] == "on probation":
        assert probation.history(environment.root)
    # From about 2.05 to 2.75 in 25 runs with other seeds: by 0.40 at least, 0.71 with a standard deviation of 0.17.
    assert viewers.value(environment.served()) > first + 0.05

    # Everything that closed by then is trained on, or was refused, so nothing changes.
    champion = environment.champion()
    until = max(window.end for window in plan.exported_windows(environment.root / "windows"))
    again = run("retrain", environment.root, until=until.isoformat())
    assert again.outcome == ("refused" if outcomes[-1] == "refused" else "nothing new")
    assert environment.served() == environment.champion() == champion


def test_a_bad_candidate_is_refused_with_the_reason(environment):
    before = environment.champion()
    environment.viewers.watch(1000)
    time.sleep(CLOSED_SECONDS)
    # Movies at random: the gate's estimate of what is lost is 2.0 with a standard deviation of 0.27.
    report = run("retrain", environment.root, epsilon="1.0", canary_share="0")
    assert report.outcome == "refused"
    assert report.reason.startswith(("worse: gain -", "not the champion's own next update, undecided: gain -"))
    assert environment.champion() == environment.served() == before


def test_a_canary_whose_reward_drops_is_rolled_back_and_does_not_come_again(environment):
    before = environment.champion()
    environment.confirm()
    environment.remove_untrained_windows()
    environment.viewers.watch(400)
    time.sleep(CLOSED_SECONDS)
    environment.viewers.candidate_reward = -5.0
    until = datetime.now(UTC).isoformat()
    report = environment.retrain(until=until, canary_decisions="5000", **UNJUDGED)
    environment.viewers.candidate_reward = None
    assert (report.outcome, report.exit_code) == ("rolled back", 7)
    assert report.reason.startswith("worse in the canary: ")
    assert environment.champion() == environment.served() == before
    again = run("retrain", environment.root, until=until, **UNJUDGED)
    assert (again.outcome, again.version) == ("refused", report.version)
    assert again.reason.startswith(f"rolled back before, by {report.run_id}: ")
    assert environment.champion() == before


def test_tuning_trains_the_best_settings_afresh_and_compares_them(environment):
    before = environment.champion()
    environment.remove_untrained_windows()
    report = run("tune", environment.root, trials="3", canary_share="0")
    assert report.outcome in ("promoted", "on probation", "refused")
    assert report.version != before
    assert set(report.seconds) >= {"search", "train", "evaluate", "gate"}
    trials = environment.root / "runs" / f"{report.run_id}-study" / "best.json"
    assert json.loads(trials.read_text())["trials"] == 3
    card = json.loads((environment.root / "policies" / report.version / "policy.json").read_text())
    assert card["parent"] is None
    assert card["hyperparameters"] == json.loads(trials.read_text())["hyperparameters"]


def test_a_failing_step_leaves_the_champion_serving_and_says_what_failed(environment):
    before = environment.champion()
    environment.viewers.watch(100)
    time.sleep(CLOSED_SECONDS)
    report = run("retrain", environment.root, algorithm="guess")
    assert (report.outcome, report.failure, report.exit_code) == ("failed", "input", 2)
    assert report.reason.startswith("train: InputError: ")
    assert environment.champion() == environment.served() == before
    assert report in runs.reports(environment.root)


def test_a_run_that_was_killed_in_its_canary_is_closed_by_the_next_one(environment, capsys):
    root, before = environment.root, environment.champion()
    environment.confirm()
    (other,) = [version for version in policy_store.versions(root / "policies") if version != before][:1]
    canary.start(root / "policies", other, 0.5)
    script = f"""
        import os, signal
        from orchestration.pipelines import runs
        with runs.step({str(root)!r}, "retrain-2026-01-01-00-00-00-000000", "try_out"):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    report = run("retrain", root, algorithm="guess")  # it fails, and the canary is over nonetheless
    assert report.outcome == "failed"
    killed = next(one for one in runs.reports(root) if one.run_id.startswith("retrain-2026-01-01"))
    assert (killed.pipeline, killed.outcome, killed.reason) == ("retrain", "failed", f"try_out: {runs.KILLED}")
    assert killed.line in capsys.readouterr().out
    assert environment.champion() == before
    environment.server.wait_for(lambda health: health["policy_version"] == before)


def test_two_runs_at_a_time_are_one_too_many(tmp_path):
    lock = tmp_path / "runs" / local_run.LOCK_NAME
    lock.parent.mkdir()
    with lock.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            OperationError, match=rf"root: {tmp_path} is in use by another run: wait until it has ended"
        ):
            run("retrain", tmp_path)


def test_kfp_was_never_in_doubt_about_a_branch(environment):
    log = (environment.root / "runs" / local_run.LOG_NAME).read_text()
    assert "finished with status" in log
    assert not [warning for warning in local_run.WRONG_BRANCH if warning in log]


@pytest.mark.parametrize(
    ("name", "config", "given", "message"),
    [
        ("retrian", "local", {}, "pipeline: one of bootstrap, retrain, tune, got 'retrian'"),
        ("retrain", "dev", {}, "run-local runs on this machine, but the backend of dev.toml is gcp: submit it"),
        ("retrain", "emulators", {"root": "/tmp/none"}, "no emulators are up for root /tmp/none: run `python -m"),
        ("retrain", "local", {"rank": "3"}, "--set rank: retrain has no such parameter; it has: root, until"),
        (
            "retrain",
            "local",
            {"missing_reward": "forget"},
            "--set missing_reward: Invalid enum value 'forget'",
        ),
        ("retrain", "local", {"epsilon": "much"}, "--set epsilon: Expected `float`, got 'much'"),
        ("retrain", "local", {"root": "/proc/no"}, "root: /proc/no cannot be created"),
    ],
)
def test_wrong_input_is_one_line(name, config, given, message):
    with pytest.raises(InputError) as raised:
        local_run.run(name, configuration.load(config), given)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_each_task_in_a_process_of_its_own(tmp_path):
    """As a person runs it, and as the end-to-end guide does. It fails at once, for a reason that it says."""
    report = local_run.run("retrain", configuration.load("local"), {"root": str(tmp_path)})
    assert report.outcome == "failed"
    assert report.reason.endswith("has no champion: run the bootstrap pipeline first")
