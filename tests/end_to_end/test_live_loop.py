"""The loop with live learning, with all its processes."""

import subprocess
import sys

import pytest

from contracts.errors import InputError
from contracts.live_emissions import SUMS_FOLDER, Reader
from contracts.policies import split_version
from contracts.windows import decode_manifest
from orchestration.audit import window_audits
from orchestration.emulators import servers
from orchestration.loop import report
from orchestration.loop.run_folder import RunFolder

pytestmark = [pytest.mark.loop, pytest.mark.timeout(600)]


def test_what_is_learned_live_decides_between_two_champions_and_is_audited(tmp_path):
    flags = ("--learning", "live", "--windows", "3", "--decisions-per-window", "500", "--num-actions", "20")
    command = [sys.executable, "-m", "orchestration.cli", "loop", "--out", str(tmp_path / "run"), *flags]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    folder = RunFolder(tmp_path / "run")
    figures = report.read(folder)
    assert figures.totals.lost == figures.totals.duplicated == figures.totals.misattributed_rewards == 0
    assert sum(window.live_decisions for window in figures.windows) > 500
    assert figures.live_freshness_seconds is not None and figures.live_freshness_seconds.p50 is not None
    assert figures.freshness_seconds.p50 is not None
    assert figures.live_freshness_seconds.p50 < figures.freshness_seconds.p50
    assert all(window.live_freshness_seconds is not None for window in figures.windows)
    for window in figures.windows:
        manifest = decode_manifest((folder.windows / f"window={_name(window)}" / "manifest.json").read_bytes(), "")
        for version in [*window.policy_versions, *manifest.policy_versions]:
            assert split_version(version)[1] is None  # counted by base
    served = [audit for audit in window_audits.read_all(folder.audit) if audit.window.start >= figures.windows[0].start]
    assert len(served) == 3
    for audit in served:
        for version in audit.evidence.versions.values():
            assert version.replayed == version.decisions
            assert version.action_differs == version.propensity_differs == 0


def _name(window):
    return window.start.strftime("%Y%m%dT%H%M%S.%fZ")


def test_it_learns_live_through_pubsub(tmp_path, emulators_environment):
    try:
        servers.pubsub_program()
    except InputError as error:
        pytest.skip(str(error))
    flags = ("--learning", "live", "--backend", "emulators", "--windows", "3", "--decisions-per-window", "500")
    command = [sys.executable, "-m", "orchestration.cli", "loop", "--out", str(tmp_path / "run"), *flags]
    answer = subprocess.run([*command, "--num-actions", "20"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    folder = RunFolder(tmp_path / "run")
    figures = report.read(folder)
    assert figures.totals.lost == figures.totals.duplicated == figures.totals.misattributed_rewards == 0
    assert sum(window.live_decisions for window in figures.windows) > 500
    assert figures.live_freshness_seconds is not None and figures.live_freshness_seconds.p50 is not None
    assert figures.live_freshness_seconds.p50 < figures.freshness_seconds.p50
    sums = Reader(folder.live / SUMS_FOLDER)
    list(sums.read())
    assert sums.latest.events > 1000
