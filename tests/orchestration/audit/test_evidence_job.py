"""The evidence of a window by a Beam job, and by one process: the same, and the same findings."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from bench.simulated_loop import SETTINGS, Sabotages, SimulatedLoop
from contracts.windows import TrainingWindow
from orchestration import policy_store
from orchestration.audit import evidence_job, window_audits
from orchestration.audit.auditor import Auditor
from orchestration.audit.evidence import Evidence, Sums
from predictor import storage

GOOD = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop of four good windows, and one whose rewards are flipped."""
    root: Path = tmp_path_factory.mktemp("root")
    viewers = MovieLens.build(load_ratings("sample"), num_actions=8, rank=4, reward_noise=0.5, seed=0)
    loop = SimulatedLoop(root, viewers, seed=1, decisions=600)
    for _ in range(GOOD):
        loop.window()
    assert loop.window(Sabotages(GOOD, [], 8).by_name["rewards flipped"]).audit.examination == "consistent"
    return root


def assert_equal(one: object, other: object) -> None:
    """Equal but for the order in which floats were added."""
    assert type(one) is type(other)
    if isinstance(one, Sums):
        for name in one.__struct_fields__:
            assert_equal(getattr(one, name), getattr(other, name))
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key])
    else:
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("per_bucket", [50_000, 100])
def test_the_job_finds_what_one_process_finds(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_bucket: int
) -> None:
    monkeypatch.setattr(evidence_job, "DECISIONS_PER_BUCKET", per_bucket)
    source = EmbeddedWarehouse(root / "warehouse")
    by_beam = Auditor(source, root / "policies", tmp_path, SETTINGS, beam=PipelineOptions([]))
    kept = window_audits.read_all(root / "audit")
    assert [one.accepted for one in kept] == [True] * GOOD + [False]
    for one in kept:
        found = by_beam.audit(one.window)
        assert_equal(one.evidence, found.evidence)
        assert [(each.check, each.alarm, each.fact) for each in one.findings] == [
            (each.check, each.alarm, each.fact) for each in found.findings
        ]
        assert (one.accepted, one.reason) == (found.accepted, found.reason)
        assert (one.examination, found.examination) in {(None, None), ("consistent", "consistent")}


def test_a_window_without_rows_has_no_evidence(root: Path, tmp_path: Path) -> None:
    last = window_audits.read_all(root / "audit")[-1].window
    window = TrainingWindow(last.end + timedelta(hours=1), last.end + timedelta(hours=2))
    source = EmbeddedWarehouse(root / "warehouse")
    found = Auditor(source, root / "policies", tmp_path, SETTINGS, beam=PipelineOptions([])).audit(window)
    assert found.evidence == Evidence() and found.accepted


def test_a_store_in_a_bucket_is_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    champions = frozenset(past.version for past in policy_store.history(root / "policies"))
    first, *_ = sorted(champions)
    monkeypatch.setattr(storage, "place", lambda _: storage.Disk(root / "policies"))  # in place of the bucket's copies
    policies = evidence_job.Policies("gs://bucket/policies", champions - {first})
    step = evidence_job.GatherBucketFn(None, policies, "")  # type: ignore[arg-type]
    step.setup()
    known = {version: step._load(version) for version in (*champions, "gone")}
    step.teardown()
    assert known["gone"] is None
    assert {version for version, one in known.items() if one is not None and not one.num_samples.any()} == {first}
