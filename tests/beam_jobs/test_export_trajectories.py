import hashlib
import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from beam_jobs import export_trajectories, warehouse
from beam_jobs.export_trajectories import export
from beam_jobs.reward_join import in_holdback
from beam_jobs.tables import ObservationDim, choose_dim, record_batch
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.errors import InputError
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS
from contracts.windows import Manifest, TrainingWindow, WindowSettings, decode_manifest
from trainer import validation
from trainer.dataset import ReadyWindow

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=10))
SETTINGS = WindowSettings(reward_window_seconds=2, settle_seconds=1, default_reward=-1)
RECORDS_PER_FILE = 40
ROOT = Path(__file__).parents[2]


def decision_id(number: int) -> str:
    return f"019b76da-a800-7000-8000-{number:012x}"


def decision(number: int, seconds: float, **fields: object) -> Decision:
    given = {"policy_version": f"v{number % 2}", "observation": [number / 8, 0.1, -1.0], "propensity": 0.25}
    moment = START + timedelta(seconds=seconds)
    return Decision(decision_id=decision_id(number), decided_at=moment, action=number % 7, **(given | fields))


def store(folder: Path, name: str, *events: Decision | RewardEvent) -> None:
    warehouse.create(folder)
    decisions = [event for event in events if isinstance(event, Decision)]
    rewards = [event for event in events if isinstance(event, RewardEvent)]
    warehouse.write(folder, DECISIONS, name, record_batch(DECISIONS, decisions))
    warehouse.write(folder, REWARDS, name, record_batch(REWARDS, rewards))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 decisions of the window, every second one rewarded half a second later; two before it, one after."""
    folder = tmp_path_factory.mktemp("warehouse")
    decisions = [decision(number, number / 10) for number in range(100)]
    rewards = [
        RewardEvent(
            decision_id=event.decision_id, occurred_at=event.decided_at + timedelta(seconds=0.5), reward=float(number)
        )
        for number, event in enumerate(decisions)
        if number % 2 == 0
    ]
    late = RewardEvent(decision_id=decision_id(200), occurred_at=START + timedelta(seconds=4), reward=9)
    orphan = RewardEvent(decision_id=decision_id(201), occurred_at=START + timedelta(seconds=4), reward=9)
    outside = [decision(200, -1), decision(201, -5000), decision(202, 10)]
    store(folder, "one", *decisions[:50], *rewards, late, orphan, *outside)
    store(folder, "two", *decisions[50:], *decisions[:5], rewards[0])
    return folder


def read(windows: Path, manifest: Manifest, split: str) -> list[tuple[float, int, float, float, bool]]:
    import tensorflow as tf

    from contracts import trajectories

    found = []
    for file in manifest.files:
        if file.split == split:
            path = windows / WINDOW.folder / file.name
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
            assert path.stat().st_size == file.bytes
            records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
            assert len(records) == file.records <= RECORDS_PER_FILE
            batch = trajectories.decode(records, manifest.observation_dim)
            assert (batch.observation[:, 1] == np.float32(0.1)).all()
            found += list(
                zip(
                    batch.observation[:, 0].tolist(),
                    batch.action.tolist(),
                    batch.reward.tolist(),
                    batch.propensity.tolist(),
                    batch.defaulted.tolist(),
                    strict=True,
                )
            )
    return found


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_window_as_trajectories(folder: Path, tmp_path: Path) -> None:
    manifest = export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    counts = manifest.counts
    assert (counts.decisions, counts.rewards, counts.defaulted, counts.dropped) == (100, 50, 50, 0)
    assert (counts.late_rewards, counts.orphan_rewards, counts.repeated_rewards) == (1, 1, 0)
    assert (counts.duplicate_decisions, counts.duplicate_rewards) == (5, 1)
    assert manifest.policy_versions == {"v0": 50, "v1": 50}
    assert manifest.observation_dim == 3
    assert (manifest.reward_window_seconds, manifest.default_reward, manifest.missing_reward) == (2, -1, "default")
    train, holdback = read(tmp_path, manifest, "train"), read(tmp_path, manifest, "holdback")
    held_back = in_holdback(warehouse.read(folder, DECISIONS, WINDOW.start, WINDOW.end).rows["decision_id"], 0.1)
    rows = [
        (number / 8, number % 7, -1.0 if number % 2 else float(number), 0.25, bool(number % 2)) for number in range(100)
    ]
    assert sorted(train) == [row for row, held in zip(rows, held_back, strict=True) if not held]
    assert sorted(holdback) == [row for row, held in zip(rows, held_back, strict=True) if held]
    assert 0 < len(holdback) < 25
    # Nothing else is there, and what is there is what the manifest says.
    names = {file.name for file in manifest.files} | {"manifest.json"}
    assert set(digests(tmp_path / WINDOW.folder)) == names
    assert all(re.fullmatch(rf"part-{file.split}-\d{{5}}(-\d+)?\.tfrecord", file.name) for file in manifest.files)
    assert sum(file.split == "train" for file in manifest.files) >= 3
    written = (tmp_path / WINDOW.folder / "manifest.json").read_bytes()
    assert decode_manifest(written, "manifest") == manifest


def test_records_are_ordered_by_time(folder: Path, tmp_path: Path) -> None:
    settings = WindowSettings(reward_window_seconds=2)
    manifest = export(EmbeddedWarehouse(folder), tmp_path, WINDOW, settings)
    assert [file.name for file in manifest.files] == ["part-holdback-00000.tfrecord", "part-train-00000.tfrecord"]
    import tensorflow as tf

    from contracts import trajectories

    path = tmp_path / WINDOW.folder / "part-train-00000.tfrecord"
    batch = trajectories.decode([record.numpy() for record in tf.data.TFRecordDataset(str(path))], 3)
    assert (np.diff(batch.observation[:, 0]) > 0).all()


def test_the_same_bytes_in_another_process_from_another_layout(folder: Path, tmp_path: Path) -> None:
    export(EmbeddedWarehouse(folder), tmp_path / "here", WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    # The same rows, ingested in other batches and an other order.
    rows = warehouse.read_all(folder, DECISIONS, START - timedelta(days=1), START + timedelta(days=1))
    rewards = warehouse.read_all(folder, REWARDS, START - timedelta(days=1), START + timedelta(days=1))
    other = tmp_path / "warehouse"
    warehouse.create(other)
    for place in range(rows.num_rows)[::-7]:
        low = max(0, place - 6)
        [batch] = rows.slice(low, place + 1 - low).combine_chunks().to_batches()
        warehouse.write(other, DECISIONS, f"{place:03d}", batch)
    [batch] = rewards.combine_chunks().to_batches()
    warehouse.write(other, REWARDS, "all", batch)
    command = [sys.executable, "-m", "beam_jobs.export_trajectories", "--warehouse", str(other)]
    command += [
        "--windows",
        str(tmp_path / "there"),
        "--start",
        WINDOW.start.isoformat(),
        "--end",
        WINDOW.end.isoformat(),
    ]
    command += ["--reward-window-seconds", "2", "--settle-seconds", "1", "--default-reward=-1"]
    command += ["--max-records-per-file", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "100 trajectories (decisions 100, rewards 50," in done.stdout
    assert digests(tmp_path / "here" / WINDOW.folder) == digests(tmp_path / "there" / WINDOW.folder)


def test_a_window_is_exported_once_and_leftovers_are_replaced(folder: Path, tmp_path: Path) -> None:
    manifest = export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    target = tmp_path / WINDOW.folder
    before = digests(target)
    moments = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    assert (
        export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE) == manifest
    )
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == moments
    (target / "manifest.json").unlink()
    (target / "part-train-00099.tfrecord").write_bytes(b"left by a killed export")
    (target / "part-train-00000.tfrecord").write_bytes(b"torn")
    assert (
        export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE) == manifest
    )
    assert digests(target) == before


def test_missing_rewards_can_be_dropped(folder: Path, tmp_path: Path) -> None:
    manifest = export(
        EmbeddedWarehouse(folder), tmp_path, WINDOW, WindowSettings(reward_window_seconds=2, missing_reward="drop")
    )
    assert (manifest.counts.rewards, manifest.counts.dropped, manifest.records("train", "holdback")) == (50, 50, 50)
    assert manifest.policy_versions == {"v0": 50}


def test_a_quiet_window_has_a_manifest_and_no_files(folder: Path, tmp_path: Path) -> None:
    quiet = TrainingWindow(START + timedelta(days=3), START + timedelta(days=4))
    manifest = export(EmbeddedWarehouse(folder), tmp_path, quiet, SETTINGS)
    assert (manifest.files, manifest.counts.decisions, manifest.observation_dim) == ([], 0, 0)
    assert [path.name for path in (tmp_path / quiet.folder).iterdir()] == ["manifest.json"]


def test_adjacent_windows_hold_every_decision_once(folder: Path, tmp_path: Path) -> None:
    edges = [START + timedelta(seconds=seconds) for seconds in (-6000, 0, 3.3, 3.4, 10, 20)]
    manifests = [
        export(EmbeddedWarehouse(folder), tmp_path, TrainingWindow(start, end), SETTINGS)
        for start, end in pairwise(edges)
    ]
    assert sum(manifest.counts.decisions for manifest in manifests) == 103
    assert sum(manifest.records("train", "holdback") for manifest in manifests) == 103
    assert sum(manifest.counts.rewards for manifest in manifests) == 50
    assert sum(manifest.counts.late_rewards for manifest in manifests) == 1


def test_follow_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--warehouse", str(folder), "--windows", str(tmp_path), "--start", "2026-01-01T00:00:00Z"]
    flags += ["--follow", "--window-seconds", "5", "--end", "2026-01-01T00:00:17Z"]  # not the end of a window
    assert export_trajectories.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"0000(\d\d)\.0+Z: (\d+) traj", line).groups() for line in lines] == [  # type: ignore[union-attr]
        ("00", "50"),
        ("05", "50"),
        ("10", "1"),
    ]


@pytest.fixture
def mixed(tmp_path: Path) -> EmbeddedWarehouse:
    """Three decisions of length 3, of which one is rewarded, and two of length 1, of which one is rewarded."""
    events: list[Decision | RewardEvent] = [decision(number, number) for number in (1, 2, 3)]
    events += [decision(number, number, observation=[0.1]) for number in (4, 5)]
    for number in (1, 4):
        moment = START + timedelta(seconds=number + 0.5)
        events.append(RewardEvent(decision_id=decision_id(number), occurred_at=moment, reward=1))
    store(tmp_path / "w", "x", *events)
    return EmbeddedWarehouse(tmp_path / "w")


@pytest.mark.parametrize("missing", ["default", "drop"])
@pytest.mark.parametrize(("observation_dim", "kept"), [(None, 3), (3, 3), (1, 1), (2, 0)])
def test_decisions_with_observations_of_another_length_are_set_aside_and_counted(
    mixed: EmbeddedWarehouse,
    tmp_path: Path,
    missing: Literal["default", "drop"],
    observation_dim: int | None,
    kept: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = WindowSettings(reward_window_seconds=2, missing_reward=missing)
    manifest = export(mixed, tmp_path / "windows", WINDOW, settings, observation_dim=observation_dim)
    counts = manifest.counts
    assert counts.decisions == counts.rewards + counts.defaulted + counts.dropped + counts.set_aside == 5
    assert manifest.records("train", "holdback") == counts.rewards + counts.defaulted
    assert manifest.observation_dim == kept
    validation.check_counts(ReadyWindow(tmp_path / "windows" / WINDOW.folder, manifest))  # as the trainer does
    assert counts.rewards == (1 if kept else 0)
    silent = {3: 2, 1: 1, 0: 0}[kept]
    # A decision without a reward is dropped, whatever its length, before lengths are compared.
    assert (counts.defaulted, counts.dropped) == ((silent, 0) if missing == "default" else (0, 3))
    [warning] = caplog.messages
    for length, number in ((3, 1), (1, 4)):
        assert (f"{length} ({'3' if length == 3 else '2'} decisions, such as {decision_id(number)})" in warning) == (
            kept != length
        )


def test_a_window_of_two_lengths_depends_only_on_its_rows(mixed: EmbeddedWarehouse, tmp_path: Path) -> None:
    """Also when it is exported in other buckets, and again when it is there."""
    manifest = export(mixed, tmp_path / "here", WINDOW, SETTINGS)
    assert export(mixed, tmp_path / "here", WINDOW, SETTINGS) == manifest
    assert export(mixed, tmp_path / "there", WINDOW, SETTINGS, max_records_per_file=1).counts == manifest.counts
    with pytest.raises(InputError, match="was exported with --observation-dim 3, got 1: remove it first"):
        export(mixed, tmp_path / "here", WINDOW, SETTINGS, observation_dim=1)


def test_a_window_of_one_length_has_the_bytes_that_it_always_had(folder: Path, tmp_path: Path) -> None:
    export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS)
    assert b"set_aside" not in (tmp_path / WINDOW.folder / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("decisions_by_length", "wanted", "chosen"),
    [({}, None, None), ({}, 4, 4), ({3: 5, 9: 4}, None, 3), ({3: 5, 9: 5, 4: 5}, None, 9), ({3: 5, 9: 4}, 9, 9)],
)
def test_the_length_that_a_window_keeps(
    decisions_by_length: dict[int, int], wanted: int | None, chosen: int | None
) -> None:
    dims = [ObservationDim(length, decisions, "x") for length, decisions in decisions_by_length.items()]
    assert choose_dim(dims, wanted) == chosen
    assert choose_dim(dims[::-1], wanted) == chosen


def test_a_full_disk_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does, at the write; before that line stands Beam's own log."""
    flags = ["--warehouse", str(folder), "--windows", str(tmp_path), "--start", "2026-01-01T00:00:00Z"]
    command = [sys.executable, "-m", "beam_jobs.export_trajectories", *flags, "--window-seconds", "10"]
    limited = f"ulimit -f 2; exec {shlex.join(command)}"  # kilobytes
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("beam_jobs.export_trajectories: failed: ")
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert not (tmp_path / WINDOW.folder / "manifest.json").exists()


def test_another_window_of_the_same_start_is_refused(folder: Path, tmp_path: Path) -> None:
    export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    longer = TrainingWindow(WINDOW.start, WINDOW.end + timedelta(seconds=1))
    with pytest.raises(InputError, match="another window was exported there: it ends at 2026-01-01T00:00:10"):
        export(EmbeddedWarehouse(folder), tmp_path, longer, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_window_seconds": 0.001}, "--reward-window-seconds 2.0, got 0.001"),
        ({"settle_seconds": 2}, "--settle-seconds 1.0, got 2.0"),
        ({"missing_reward": "drop"}, "--missing-reward default, got drop"),
        ({"default_reward": 0}, "--default-reward -1.0, got 0.0"),
        ({"holdback_share": 0.2}, "--holdback-share 0.1, got 0.2"),
        ({"late_horizon_seconds": 60}, "--late-horizon-seconds 3600.0, got 60.0"),
    ],
)
def test_the_same_window_with_other_settings_is_refused_and_left_alone(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    before = digests(tmp_path / WINDOW.folder)
    with pytest.raises(InputError, match=re.escape(f"this window was exported with {message}: remove it first")):
        export(EmbeddedWarehouse(folder), tmp_path, WINDOW, msgspec.structs.replace(SETTINGS, **change))
    assert digests(tmp_path / WINDOW.folder) == before


def test_a_window_of_before_a_setting_was_written_down_is_taken(folder: Path, tmp_path: Path) -> None:
    manifest = export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    path = tmp_path / WINDOW.folder / "manifest.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name != "late_horizon_seconds"}
    path.write_text(json.dumps(older))
    assert export(
        EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE
    ) == msgspec.structs.replace(manifest, late_horizon_seconds=None)


def test_a_window_without_time_zone_is_refused(folder: Path, tmp_path: Path) -> None:
    naive = TrainingWindow(START.replace(tzinfo=None), WINDOW.end.replace(tzinfo=None))
    with pytest.raises(InputError, match="--start, --end: must carry a time zone"):
        export(EmbeddedWarehouse(folder), tmp_path, naive, SETTINGS)


def test_a_broken_manifest_is_told_and_left_alone(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / WINDOW.folder / "manifest.json"
    path.parent.mkdir()
    path.write_text('{"window": 1}')
    with pytest.raises(InputError, match=r"manifest\.json: not a window manifest"):
        export(EmbeddedWarehouse(folder), tmp_path, WINDOW, SETTINGS, max_records_per_file=RECORDS_PER_FILE)
    assert path.read_text() == '{"window": 1}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_window_seconds": 0}, "--reward-window-seconds: Expected `float` > 0.0, got 0"),
        ({"holdback_share": 1.0}, r"--holdback-share: Expected `float` < 1.0, got 1\.0"),
        ({"missing_reward": "guess"}, "--missing-reward: Invalid enum value 'guess', got 'guess'"),
        ({"default_reward": float("nan")}, "--default-reward: Expected `float` >= .*, got nan"),
        ({"default_reward": 1e300}, r"--default-reward: Expected `float` <= 3.40282346\d*e\+38, got 1e\+300"),
    ],
)
def test_settings_out_of_their_bounds_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export(EmbeddedWarehouse(folder), tmp_path, WINDOW, WindowSettings(**change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--end", "2026-01-01T00:00:00Z"], "--start, --end: training window must end after its start, got"),
        (["--end", "2025-01-01T00:00:00Z"], "--start, --end: training window must end after its start, got"),
        (["--end", "2999-01-01T00:00:00Z"], r"the window \[2026-01-01T00:00:00\+00:00, .* closes at 2999-01-01T00:02"),
        (["--start", "0001-01-01T00:00:00Z", "--end", "2026-01-01T00:00:00Z"], "must lie in the years 1 to 9999"),
        (["--start", "9999-12-31T23:59:50Z", "--window-seconds", "5"], "must lie in the years 1 to 9999"),
        (["--window-seconds", "5", "--follow", "--end", "2026-01-01T00:00:01Z"], "--end: the first window ends at"),
        (
            ["--window-seconds", "5", "--follow", "--template_location", "gs://bucket/job"],
            "--follow: not available in a template",
        ),
        (["--end", "2026-01-01T00:00:05Z", "--windows", "FILE"], "--windows: .* cannot be written to: File exists"),
        (["--end", "2026-01-02"], "argument --end: expected: a time with its time zone"),
        (["--end", "2026-01-02T00:00:00Z", "--warehouse", "WINDOWS"], "is not a warehouse"),
        (["--end", "2026-01-02T00:00:00Z", "--default-reward", "1e300"], "argument --default-reward: a number from"),
        (["--end", "2026-01-02T00:00:00Z", "--missing-reward", "x"], "argument --missing-reward.*invalid choice: 'x'"),
        (["--end", "2026-01-02T00:00:00Z", "--holdback-share", "1"], "--holdback-share: a number from 0 to below 1"),
        (["--end", "2026-01-02T00:00:00Z", "--max-records-per-file", "0"], "--max-records-per-file: a whole number"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = ["--warehouse", str(folder), "--windows", str(tmp_path), "--start", "2026-01-01T00:00:00Z", *flags]
    places = {"WINDOWS": str(tmp_path), "FILE": str(tmp_path / "file")}
    assert export_trajectories.main([places.get(flag, flag) for flag in given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("beam_jobs.export_trajectories: error: ")
    assert re.search(message, line)
    assert not list(tmp_path.glob("window=*"))
