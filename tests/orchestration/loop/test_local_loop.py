"""The closed loop with its real processes, small: what it promises is checked on what it leaves behind."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from beam_jobs import warehouse
from contracts import policies, schemas
from contracts.errors import InputError, OperationError
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.records import Decision, encoder
from contracts.windows import MANIFEST_NAME, decode_manifest, encode_manifest
from orchestration import cli, policy_store
from orchestration.emulators import servers
from orchestration.loop import accounting, local_loop, report, report_page
from orchestration.loop.audience import load_movielens, new_movies
from orchestration.loop.progress import Progress
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import SentReward, ServedDecision, SessionStart, TruthLog, TruthReader
from predictor import policy as serving

pytestmark = [pytest.mark.loop, pytest.mark.timeout(900)]

SMALL = {
    "--num-actions": "10",
    "--rank": "5",
    "--window-seconds": "2",
    "--reward-window-seconds": "1.5",
    "--decisions-per-window": "400",
    "--bootstrap-decisions": "600",
    "--fault-rate": "0.05",
}


def loop(out: Path, *more: str, **given: str) -> subprocess.CompletedProcess[str]:
    flags = SMALL | {f"--{name.replace('_', '-')}": value for name, value in given.items()} | {"--out": str(out)}
    command = [sys.executable, "-m", "orchestration.cli", "loop", *(part for pair in flags.items() for part in pair)]
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=400)


def resume(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """As the message of an interrupted run asks for it: with nothing but the folder."""
    command = [sys.executable, "-m", "orchestration.cli", "loop", "--resume", "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def read_report(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def processes_of(out: Path) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"]) if str(out) in " ".join(process.info["cmdline"] or [])
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of three windows, and what it printed."""
    out = tmp_path_factory.mktemp("loop") / "run"
    answer = loop(out, windows="3", seed="1")
    assert answer.returncode == 0, answer.stderr + answer.stdout
    return out, answer.stdout


def test_nothing_is_lost_duplicated_or_misattributed_with_faults_injected(finished):
    totals = read_report(finished[0])["totals"]
    assert (totals["lost"], totals["duplicated"], totals["misattributed_rewards"]) == (0, 0, 0)
    assert totals["failed_requests"] == 0
    assert totals["decisions_served"] == totals["decisions_stored"] == 600 + 3 * 400
    assert totals["rewards_sent"] <= totals["rewards_stored"]
    injected, found = totals["faults_injected"], totals["faults_found"]
    assert min(injected[name] for name in ("orphan_rewards", "malformed", "late_rewards", "rewards_sent_twice")) > 0
    assert found["malformed"] == injected["malformed"]
    assert found["orphan_rewards"] == injected["orphan_rewards"]
    assert found["duplicate_decisions"] == injected["redelivered_decisions"]
    assert found["duplicate_rewards"] == injected["redelivered_rewards"] + injected["rewards_sent_twice"]
    assert found["late_rewards"] >= injected["late_rewards"]  # a slow machine makes some more late


def test_every_decision_has_one_fate(finished):
    report = read_report(finished[0])
    for window in [report["bootstrap"], *report["windows"]]:
        assert window["decisions"] == window["rewards"] + window["defaulted"] + window["dropped"]
        assert sum(share["decisions"] for share in window["policy_versions"].values()) == window["decisions"]
    totals = report["totals"]
    # On a slow machine the last answers may come when the last window is over.
    outside = totals["decisions_outside_windows"]
    assert sum(window["decisions"] for window in report["windows"]) + outside == 3 * 400
    assert outside <= 100
    dropped = sum(window["dropped"] for window in [report["bootstrap"], *report["windows"]])
    fates = totals["interactions_trained"] + totals["interactions_held_back"] + dropped + outside
    assert fates == totals["decisions_stored"]


def test_it_learns(finished):
    report = read_report(finished[0])
    assert report["bootstrap"]["policy_version"] == "uniform"
    first, *_, last = report["windows"]
    assert first["mean_expected_reward"] > report["reference"]["uniform"]
    assert last["mean_expected_reward"] > report["reference"]["best_fixed_action"]
    assert last["mean_expected_reward"] <= last["oracle_reward"]
    # On a slow machine the next policy may come after the last window; that it came is what counts.
    assert report["champion"] != first["policy_version"]


def test_it_says_how_fresh_it_is_and_what_was_promoted(finished):
    out, printed = finished
    report = read_report(out)
    promoted = [window for window in report["windows"] if window["promoted"]]
    assert promoted
    for window in report["windows"]:
        # Which decisions are held back, their ids say: by chance an update may look worse.
        assert window["promoted"] or window["reason"].startswith("worse: ")
        assert window["off_policy"]["low"] <= window["off_policy"]["estimate"] <= window["off_policy"]["high"]
    for window in promoted:
        assert 0 < window["freshness_seconds"]["p50"] <= window["freshness_seconds"]["p99"]
    assert printed.count("\nwindow ") == 3


def test_each_new_version_is_watched_beside_an_anchor(finished):
    out, printed = finished
    looks = [entry.look for entry in RunFolder(out).journal() if entry.look is not None]
    assert looks
    for look in looks:
        assert look.anchor_share == 0.1
        assert look.anchor != look.version
        assert f"{look.outcome.upper()} {look.version}: {look.reason}" in printed
    assert all(
        earlier.decisions <= later.decisions
        for earlier, later in itertools.pairwise(looks)
        if earlier.anchor == later.anchor
    )


def test_the_page_is_whole_and_self_contained(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    for word in ("Does it learn?", "0 lost, 0 duplicated"):
        assert word in page


def test_it_leaves_no_process_behind(finished):
    assert processes_of(finished[0]) == []


def test_the_truth_is_of_what_the_estimate_is_of(finished):
    """Where silence takes the default reward, so does the truth that the estimate is held against."""
    folder = RunFolder(finished[0])
    settings, movielens = folder.settings(), load_movielens(folder.settings())
    card = serving.read_card(folder.policies / read_report(folder.root)["champion"])

    def true_value(**changed: Any) -> float:
        progress = Progress(folder, movielens, msgspec.structs.replace(settings, **changed))
        value = progress.true_value(card)
        assert value is not None
        return value

    answered = (1 - settings.no_reward_probability) * (1 - settings.fault_rate / 3)  # each within the reward window
    taking_default = true_value(missing_reward="default", default_reward=-1.0)
    assert taking_default == pytest.approx(answered * true_value() - (1 - answered))


def test_reports_can_be_made_again_from_the_data(finished):
    out, _ = finished
    before = (out / "report.json").read_bytes()
    (out / "report.json").unlink()
    subprocess.run([sys.executable, "-m", "orchestration.cli", "report", "--out", str(out)], check=True)
    assert (out / "report.json").read_bytes() == before


@pytest.fixture
def tampered(finished, tmp_path: Path) -> RunFolder:
    """A copy of the finished run, to do harm to."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def totals_of(folder: RunFolder) -> accounting.Totals:
    return report.build(folder, load_movielens(folder.settings())).totals


def test_the_report_notices_lost_decisions(tampered):
    victim = max(tampered.warehouse.glob("decisions/day=*/*predictor*.parquet"), key=lambda path: path.stat().st_size)
    gone = pq.read_metadata(victim).num_rows
    victim.unlink()
    totals = totals_of(tampered)
    assert 0.8 * gone < totals.lost_decisions <= gone  # some were redelivered, and so stand elsewhere too
    assert totals.lost == totals.lost_decisions == totals.decisions_served - totals.decisions_stored


def rewrite_records(folder: RunFolder, split: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Changes the records of the last window that was trained on, as an export with a bug would have written them."""
    card = serving.read_card(folder.policies / str(read_report(folder.root)["champion"]))
    path = folder.windows / max(part.window for part in card.trained_on).folder / MANIFEST_NAME
    manifest = decode_manifest(path.read_bytes(), "manifest")
    old = max((file for file in manifest.files if file.split == split), key=lambda file: file.records)
    data, records = (path.parent / old.name).read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little") + 16  # TFRecord: length, its checksum, record, its checksum
        records.append(data[:length])
        data = data[length:]
    records = change(records)
    data = b"".join(records)
    (path.parent / old.name).write_bytes(data)
    new = msgspec.structs.replace(old, records=len(records), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = [new if file is old else file for file in manifest.files]
    path.write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


@pytest.mark.parametrize("split", ["train", "holdback"])
def test_the_report_notices_records_that_the_export_left_out(tampered, split):
    rewrite_records(tampered, split, lambda records: records[3:])
    totals = totals_of(tampered)
    assert (totals.lost_between_tables_and_windows, totals.lost, totals.duplicated) == (3, 3, 0)


@pytest.mark.parametrize("split", ["train", "holdback"])
def test_the_report_notices_records_that_the_export_wrote_twice(tampered, split):
    rewrite_records(tampered, split, lambda records: records + records[:2])
    totals = totals_of(tampered)
    assert (totals.duplicated, totals.lost, totals.misattributed_rewards) == (2, 0, 0)


def test_the_report_notices_a_window_never_trained_on(tampered):
    champion = policy_store.champion(tampered.policies)
    assert champion is not None
    path = tampered.policies / champion.version / policies.CARD_NAME
    card = policies.decode_card(path.read_bytes(), "card")
    first, *others = sorted(card.trained_on, key=lambda part: (part.window, part.split))
    path.write_bytes(policies.encode_json(msgspec.structs.replace(card, trained_on=others)))
    totals = totals_of(tampered)
    assert totals.lost_between_windows_and_training == totals.lost == first.records > 0


def test_rewards_that_are_not_in_the_tables_are_lost_and_nothing_else(tampered):
    victim = max(tampered.warehouse.glob("rewards/day=*/*predictor*.parquet"), key=lambda path: path.stat().st_size)
    victim.unlink()
    totals = totals_of(tampered)
    assert totals.lost == totals.lost_rewards > 0
    assert (totals.duplicated, totals.misattributed_rewards) == (0, 0)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: next(run.windows.glob("*/manifest.json")).unlink(), "no manifest, but the run noted it"),
        (lambda run: (run.root / "journal.jsonl").write_text("{}\n"), "journal.jsonl, line 1: Object missing"),
        (lambda run: (run.truth / "viewers-0000.jsonl").write_text("{}\n"), "viewers-0000.jsonl: not what viewers"),
        (lambda run: (run.policies / "champion.json").write_text("{"), "champion.json: not a champion pointer"),
    ],
)
def test_a_run_with_a_part_gone_wrong_is_one_line(tampered, capsys, harm, message):
    harm(tampered)
    assert cli.main(["report", "--out", str(tampered.root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_report_notices_a_reward_of_somebody_else(tampered):
    """As if the join had paid each of some decisions the reward of the next one."""
    (path,) = tampered.truth.glob("*.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    sent = [entry for entry in entries if entry[0] == "sent" and entry[5] == ""][:50]
    rewards = [entry[2] for entry in sent]
    for entry, reward in zip(sent, rewards[1:] + rewards[:1], strict=True):
        entry[2] = reward
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    totals = totals_of(tampered)
    assert totals.lost_rewards == 50  # as sent, they are nowhere
    assert 25 <= totals.misattributed_rewards <= 50  # some may be held back, so no policy was trained on them yet
    assert totals.duplicated == 0


def test_the_report_notices_a_window_trained_on_twice(tampered):
    champion = policy_store.champion(tampered.policies)
    assert champion is not None
    path = tampered.policies / champion.version / policies.CARD_NAME
    card = policies.decode_card(path.read_bytes(), "card")
    twice = card.trained_on[0]
    path.write_bytes(policies.encode_json(msgspec.structs.replace(card, trained_on=[*card.trained_on, twice])))
    assert totals_of(tampered).duplicated == twice.records > 0


def test_an_interrupted_run_goes_on(tmp_path):
    out = tmp_path / "run"
    flags = [part for pair in (SMALL | {"--windows": "50", "--seed": "2", "--out": str(out)}).items() for part in pair]
    command = [sys.executable, "-m", "orchestration.cli", "loop", *flags]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    endpoint = ""
    for line in running.stdout:
        if line.startswith("Predictor: "):
            endpoint = line.split()[1]
        if line.startswith("window  1/"):
            break
    # Another client uses the same predictor, and another run tries to use the same folder.
    asked = httpx.post(f"{endpoint}/predict", json={"instances": [{"observation": [0.5, 0, 0, 0, 0]}]}, timeout=30)
    (served,) = asked.json()["predictions"]
    rewards = {"rewards": [{"decision_id": served["decision_id"], "reward": 5.0}]}
    assert httpx.post(f"{endpoint}/rewards", json=rewards, timeout=30).status_code == 202
    # And a client logs decisions that no policy here could be trained on.
    now = datetime.now(UTC)
    fitting = Decision(
        decision_id=served["decision_id"][:-12] + "0" * 12,
        decided_at=now,
        policy_version="another",
        observation=[0.5, 0, 0, 0, 0],
        action=0,
        propensity=1.0,
    )
    strange = [
        msgspec.structs.replace(fitting, observation=[0.5, 0]),
        msgspec.structs.replace(fitting, action=1_000_000),
    ]
    segment = out / "events" / f"{segment_name(now, 'another')}{SEALED_SUFFIX}"
    segment.write_bytes(encoder.encode_lines(strange))
    second = loop(out)
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "is in use by another run" in second.stderr

    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "interrupted; its processes have ended. It can go on" in errors
    assert processes_of(out) == []

    changed = loop(out, "--resume", windows="3", seed="3")
    assert (changed.returncode, changed.stderr.count("\n")) == (2, 1)
    assert "changed: seed: 2 → 3" in changed.stderr

    answer = resume(out, "--windows", "3")
    assert answer.returncode == 0, answer.stderr
    report = read_report(out)
    assert sum(not window["interrupted"] for window in report["windows"]) >= 3
    assert (report["settings"]["windows"], report["settings"]["seed"]) == (3, 2)
    assert report["totals"]["decisions_of_others"] == 1
    totals = report["totals"]
    assert (totals["lost"], totals["duplicated"], totals["misattributed_rewards"]) == (0, 0, 0)
    stored = warehouse.read(
        out / "warehouse", schemas.DECISIONS, datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
    ).rows.num_rows
    assert stored == totals["decisions_stored"] >= 600 + 3 * 400
    letters = warehouse.read(
        out / "warehouse", schemas.DEAD_LETTERS, datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
    ).rows
    # A set: the simulator's bad transport may deliver an event a second time.
    reasons = {reason for reason in letters["error_message"].to_pylist() if fitting.decision_id in reason}
    assert sorted(reason.split(" (")[0] for reason in reasons) == [
        "action: must be below 10, got 1000000",
        "observation: must have 5 numbers, got 2",
    ]


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose tastes drift, with movies that come out and movies that are masked: two windows, resumed for a third.

    What looks best is served, but for a tenth of the decisions: whatever has more than epsilon / K was recommended.
    """
    out = tmp_path_factory.mktemp("changing") / "run"
    given = {"num_actions": "40", "rank": "10", "arm_features": "shared", "exploration": "epsilon_greedy"}
    given |= {"epsilon": "0.1", "new_movies": "10", "masked_movies": "10", "drift": "0.4", "half_life": "1"}
    for more in ((), ("--resume",)):
        answer = loop(out, *more, windows="3" if more else "2", **given)
        assert answer.returncode == 0, answer.stderr + answer.stdout
    return RunFolder(out)


def decisions_of(folder: RunFolder) -> dict[str, dict[str, Any]]:
    begin, end = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
    rows = warehouse.read(folder.warehouse, schemas.DECISIONS, begin, end).rows.to_pylist()
    return {row["decision_id"]: row for row in rows}


def test_a_movie_that_nobody_has_seen_is_recommended_and_a_masked_one_never(changing):
    movielens = load_movielens(changing.settings())
    new = set(new_movies(changing.settings(), movielens))
    masked = {movie.action for movie in movielens.catalogue if movie.status == "masked"}
    assert (len(new), len(masked)) == (10, 10)
    served = {True: [], False: []}
    for row in decisions_of(changing).values():
        served[row["policy_version"] == "uniform"].append(row)
    assert len(served[True]) == 600
    assert {row["action"] for row in served[True]} == set(range(40)) - new - masked
    assert not masked & {row["action"] for row in served[False]}

    # The first policy never saw them. It recommends them by their features alone, and would the masked ones too.
    first = serving.load(changing.policies / policy_store.history(changing.policies)[0].version)
    with np.load(changing.policies / first.card.version / policies.LINEAR_NAME) as arrays:
        assert not arrays["num_samples"][sorted(new | masked)].any()
    assert {movie.action for movie in first.card.catalogue if movie.status == "masked"} == masked
    looks_best = first.scores(movielens.observations)[0].argmax(axis=1)
    assert np.isin(looks_best, sorted(masked)).mean() > 0.1
    by_first = [row for row in served[False] if row["policy_version"] == first.card.version]
    recommended = [row for row in by_first if row["action"] in new and row["propensity"] > 2 * 0.1 / 40]
    assert len(recommended) > 0.2 * len(by_first) > 0

    found = read_report(changing.root)
    assert [window["masked_movie_decisions"] for window in [found["bootstrap"], *found["windows"]]] == [0] * (
        1 + len(found["windows"])
    )
    assert found["bootstrap"]["new_movie_decisions"] == 0
    of_new = sum(row["action"] in new for row in served[False])
    assert sum(window["new_movie_decisions"] for window in found["windows"]) == of_new
    page = (changing.root / "report.html").read_text()
    assert "new movies shown" in page and "masked shown" in page


def test_the_truth_drifts_and_the_report_with_it(changing):
    """What the viewers wrote down as they answered, and what the report counts from the tables, are the same."""
    found, settings = read_report(changing.root), changing.settings()
    entries = TruthReader(changing.truth).read()
    sessions = [entry for entry in entries if isinstance(entry, SessionStart)]
    assert [session.first_window for session in sessions] == [1, 3]
    answered = {entry.decision_id: entry for entry in entries if isinstance(entry, ServedDecision)}
    decisions = decisions_of(changing)
    for window in found["windows"]:
        begin, end = (datetime.fromisoformat(window[side]) for side in ("start", "end"))
        inside = [one for key, one in answered.items() if begin <= decisions[key]["decided_at"] < end]
        assert len(inside) == window["decisions"] > 0
        mean = sum(one.expected_reward for one in inside) / len(inside)
        oracle = sum(one.oracle_reward for one in inside) / len(inside)
        assert (window["mean_expected_reward"], window["oracle_reward"]) == pytest.approx((mean, oracle))
        assert oracle > window["best_fixed_reward"] > window["uniform_reward"]
        assert oracle > mean

    # The rewards are those of the tastes that turned, not of those before. 1,100 rewards with noise of 0.5: 5 standard
    # errors are 0.08.
    movielens = load_movielens(settings)
    rewards = {entry.decision_id: entry.reward for entry in entries if isinstance(entry, SentReward)}
    served = [answered[key] for key in rewards if key in answered]
    off = np.array([rewards[one.decision_id] - one.expected_reward for one in served])
    assert abs(off.mean()) < 0.08 and off.std() == pytest.approx(0.5, abs=0.06)
    users, actions = np.array([(one.user, one.action) for one in served]).T
    before = movielens.expected_rewards(users, actions)
    assert np.sqrt(np.mean((before - [one.expected_reward for one in served]) ** 2)) > 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drift": "-1"}, "--drift: Expected `float` >= 0.0, got '-1'"),
        ({"new_movies": "some"}, "--new-movies: Expected `int`, got 'some'"),
        ({"new_movies": "5", "masked_movies": "4"}, "--new-movies and --masked-movies must leave 2 of the 10 movies"),
        ({"ratings": "/no/such/folder"}, "/no/such/folder"),
        ({"num_actions": "100000"}, "--num-actions must be from 1 to"),
        ({"rank": "5000"}, "--rank must be from 1 to"),
        ({"window_seconds": "0"}, "--window-seconds: Expected `float` >= 0.1, got '0'"),
        ({"algorithm": "magic"}, "algorithm must be one of"),
        ({"exploration": "magic"}, "exploration"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing_half_done(tmp_path, given, message):
    out = tmp_path / "run"
    answer = loop(out, **given)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr
    assert processes_of(out) == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"thesis.txt": "mine"}, "is not empty and not a run of the loop"),
        ({"settings.json": "{}", "thesis.txt": "mine"}, "is not empty and not a run of the loop"),
        ({"settings.json": "{}", "runs": "a pipeline's"}, "is not empty and not a run of the loop"),
        ({"settings.json": '{"editor.fontSize": 14}'}, "unknown field `editor.fontSize`"),
    ],
)
def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message), RunFolder(tmp_path).locked():
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_first_policy_that_may_not_serve_is_one_line(tmp_path):
    """Everybody likes the same movie best, which the gate takes for a policy gone wrong."""
    ratings = tmp_path / "ratings"
    ratings.mkdir()
    rows = [
        f"{user}\t{movie}\t{1 + user % 8 / 2}\t{(7 * user + 3 * movie + user * movie) % 11}\n"
        for user in range(1, 101)  # with one factor they differ in how much they like, never in what
        for movie in range(1, 31)
    ]
    (ratings / "u.data").write_text("".join(rows))
    out = tmp_path / "run"
    answer = loop(out, ratings=str(ratings), num_actions="2", rank="1", bootstrap_decisions="2000")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "the first policy may not serve, sanity check failed: action" in answer.stderr
    report = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "report", "--out", str(out)], capture_output=True, text=True
    )
    assert (report.returncode, report.stderr.count("\n")) == (2, 1)


def test_a_run_that_served_no_window_has_a_report(tampered):
    journal = tampered.root / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    made = report_page.write(tampered, load_movielens(tampered.settings()))
    assert made.windows == []
    assert "the last window" in tampered.report_html.read_text()


def test_viewers_are_given_the_time_that_loading_the_ratings_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(local_loop, "START_TIMEOUT_SECONDS", 0.0)
    folder, settings = RunFolder(tmp_path), LoopSettings(num_actions=2, rank=1)
    log = TruthLog(folder.truth / "viewers-0000.jsonl")
    log.append([SessionStart(100.0, 1)])
    log.close()
    movielens = load_movielens(settings)
    patient = local_loop.LocalLoop(settings, folder, movielens, loading_seconds=60.0)
    assert patient._first_window_starts(0.0) == datetime.fromtimestamp(100, UTC)
    with pytest.raises(OperationError, match="no viewers came within 0 s"):
        local_loop.LocalLoop(settings, folder, movielens, loading_seconds=0.0)._first_window_starts(200.0)


def test_a_killed_run_leaves_no_children_and_goes_on(tmp_path):
    out = tmp_path / "run"
    flags = [part for pair in (SMALL | {"--windows": "1", "--out": str(out)}).items() for part in pair]
    command = [sys.executable, "-m", "orchestration.cli", "loop", *flags]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("Serving"):
            break
    wait_until(lambda: any(b'"served"' in path.read_bytes() for path in (out / "truth").glob("viewers-*.jsonl")))
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    wait_until(lambda: not processes_of(out))

    # A part that is gone is reported before anything is served, and with it back the run goes on.
    [manifest] = (out / "windows").glob("*/manifest.json")
    [card] = (out / "policies").glob("*/policy.json")
    for part, message in (
        (manifest, "no manifest, but the run noted it"),
        (card, "cannot be read: No such file"),
        (out / "policies" / "champion.json", "has no champion to go on with"),
    ):
        away = part.rename(tmp_path / "away")
        answer = resume(out)
        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer.stderr
        assert message in answer.stderr and str(part.parent) in answer.stderr
        assert "Predictor" not in answer.stdout
        away.rename(part)

    answer = resume(out)
    assert answer.returncode == 0, answer.stderr
    report = read_report(out)
    assert sum(not window["interrupted"] for window in report["windows"]) == 1
    totals = report["totals"]
    assert (totals["lost"], totals["duplicated"], totals["misattributed_rewards"]) == (0, 0, 0)
    assert totals["decisions_stored"] >= 600 + 400


def test_the_same_loop_through_the_emulators(tmp_path, emulators_environment):
    try:
        servers.pubsub_program()
    except InputError as error:
        pytest.skip(str(error))
    out = tmp_path / "run"
    answer = loop(out, backend="emulators", windows="2")
    assert answer.returncode == 0, answer.stderr + answer.stdout
    totals = read_report(out)["totals"]
    assert (totals["lost"], totals["duplicated"], totals["misattributed_rewards"]) == (0, 0, 0)
    assert totals["decisions_served"] == totals["decisions_stored"] == 600 + 2 * 400
    assert processes_of(out) == []
    assert loop(out, "--resume", backend="emulators").returncode == 2
