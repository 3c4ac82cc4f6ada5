"""What `cli audit` can look at, and what it says of wrong input: one line, and exit code 2."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from beam_jobs import ingest_events, warehouse
from beam_jobs.movielens import MovieLens
from beam_jobs.places import Dataset
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import BigQueryWarehouse
from bench.simulated_loop import Sabotages, SimulatedLoop
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.records import Decision, RewardEvent, encoder
from contracts.schemas import DECISIONS, REWARDS
from orchestration import cli, policy_store

GOOD = 3
START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 2, tzinfo=UTC)
RANGE = ["--window-seconds", "5", "--start", "2026-01-01T00:00:00Z", "--end"]
ALL, FIRST_THREE = "2026-01-01T00:00:20Z", "2026-01-01T00:00:15Z"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop of three good windows and one with halved propensities."""
    root: Path = tmp_path_factory.mktemp("root")
    viewers = MovieLens.build(load_ratings("sample"), num_actions=5, rank=3, reward_noise=0.5, seed=0)
    loop = SimulatedLoop(root, viewers, seed=1, decisions=400)
    for _ in range(GOOD):
        loop.window()
    versions = policy_store.versions(root / "policies")
    assert loop.window(Sabotages(GOOD, versions, 5).by_name["propensities halved"]).held
    write_events(root)
    return root


def write_events(root: Path) -> None:
    """The rows of the warehouse as an event log."""
    (root / "events").mkdir()
    lines = []
    for table, record in ((DECISIONS, Decision), (REWARDS, RewardEvent)):
        for row in warehouse.read_all(root / "warehouse", table, START, END).to_pylist():
            lines.append(encoder.encode(record(**row)))
    (root / "events" / f"{segment_name(START, 'test')}{SEALED_SUFFIX}").write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("more", [[], ["--beam=--direct_num_workers=1"]])
@pytest.mark.parametrize("kind", ["warehouse", "events"])
def test_each_source_gives_the_same_verdicts(
    root: Path, capsys: pytest.CaptureFixture[str], kind: str, more: list[str]
) -> None:
    flags = ["audit", f"--{kind}", str(root / kind), "--policies", str(root / "policies"), *more, *RANGE]
    assert cli.main([*flags, ALL]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if line[0] != " "] == ["✓", "✓", "✓", "✗", "1"]
    assert any("replayed propensity: 400 of 400 replayed decisions differ" in line for line in lines)
    assert cli.main([*flags, FIRST_THREE]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no window refused"


def test_bigquery_gives_the_same_verdicts(root: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    ingest_events.ingest(root / "events", BigQueryWarehouse(dataset))
    flags = ["audit", "--warehouse", f"bigquery:{dataset.project}.{dataset.name}", "--policies", str(root / "policies")]
    for more in ([], ["--beam=--direct_num_workers=1"]):
        assert cli.main([*flags, *more, *RANGE, ALL]) == 5
        lines = capsys.readouterr().out.splitlines()
        assert [line[0] for line in lines if line[0] != " "] == ["✓", "✓", "✓", "✗", "1"]
        assert any("replayed propensity: 400 of 400 replayed decisions differ" in line for line in lines)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert cli.main(["audit", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "empty"], "--root: empty has no exported window"),
        (["--warehouse", "empty"], "--policies: needed with --warehouse"),
        (["--events", "empty"], "--policies: needed with --events"),
        (["--events", "empty", "--policies", "empty", *RANGE, ALL], "--events: a folder with sealed segments expected"),
        (["--warehouse", "empty", "--policies", "empty", *RANGE, ALL], "empty is not a warehouse"),
        (["--warehouse", "empty", "--policies", "nowhere", *RANGE, ALL], "--policies: a policy store expected"),
        (["--root", "empty", "--accept", "soon", "--reason", "x"], "--accept: a time with its time zone"),
        (
            ["--root", "empty", "--accept", "2026-01-01T00:00:00Z", "--reason", "x"],
            "--accept: no audited window starts",
        ),
        (["--root", "empty", "--accept", "soon"], "--accept: needs --root and --reason"),
        (["--root", "empty", "--warehouse", "empty"], "not allowed with argument"),
        (["--root", "empty", "--beam=--no_such_option=1"], "unrecognized argument: --no_such_option=1"),
    ],
)
def test_wrong_flags(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *flags)


def test_a_range_without_decisions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--warehouse", str(root / "warehouse"), "--policies", str(root / "policies"), "--window-seconds", "5"]
    line = refused(capsys, *flags, "--start", "2027-01-01T00:00:00Z", "--end", "2027-01-01T01:00:00Z")
    assert "--start, --end: the warehouse has no decisions in [2027-01-01T00:00:00+00:00, 2027-01-01T01" in line


@pytest.mark.parametrize("kind", ["root", "warehouse"])
def test_a_store_without_the_versions_that_decided(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    for name in ("windows", "warehouse"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "policies").mkdir()
    more = ["--policies", str(tmp_path / "policies"), *RANGE, ALL] if kind == "warehouse" else []
    line = refused(capsys, f"--{kind}", str(tmp_path / ("warehouse" if kind == "warehouse" else "")), *more)
    assert "has none of the" in line and "versions that decided, such as lin_ucb-" in line


def test_versions_that_were_deleted_are_named(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(root / "policies", tmp_path / "policies")
    oldest, *_ = policy_store.versions(tmp_path / "policies")
    shutil.rmtree(tmp_path / "policies" / oldest)
    flags = ["--warehouse", str(root / "warehouse"), "--policies", str(tmp_path / "policies")]
    assert cli.main(["audit", *flags, *RANGE, FIRST_THREE]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"1 of 2 versions that decided are gone, such as {oldest}: not replayed\n"
    assert " 400 decisions, 0 replayed" in captured.out and " 400 decisions, 400 replayed" in captured.out


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("* EXCLUDE (propensity)", "a table is not as it must be: "),
        ("* REPLACE (NULL::DOUBLE AS propensity)", "a table is not as it must be: "),
        ("* REPLACE (0.0::DOUBLE AS propensity)", "decisions: propensity must be in (0, 1], got 0.0 (decision_id="),
    ],
)
def test_a_warehouse_without_propensities(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, select: str, message: str
) -> None:
    shutil.copytree(root / "warehouse", tmp_path / "warehouse")
    for path in (tmp_path / "warehouse" / "decisions").rglob("*.parquet"):
        query = f"COPY (SELECT {select} FROM read_parquet('{path}')) TO '{path}.new' (FORMAT parquet)"
        with duckdb.connect() as connection:
            connection.execute(query)
        Path(f"{path}.new").replace(path)
    flags = ["--warehouse", str(tmp_path / "warehouse"), "--policies", str(root / "policies"), *RANGE, ALL]
    line = refused(capsys, *flags)
    assert message in line and "propensity" in line


def test_an_event_log_without_propensities(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    [segment] = (root / "events").iterdir()
    lines = [line.replace(b'"propensity":', b'"chance":') for line in segment.read_bytes().splitlines()]
    (tmp_path / segment.name).write_bytes(b"\n".join(lines) + b"\n")
    line = refused(capsys, "--events", str(tmp_path), "--policies", str(root / "policies"), *RANGE, ALL)
    assert "with none and 1600 unreadable events, such as: " in line and "propensity" in line
