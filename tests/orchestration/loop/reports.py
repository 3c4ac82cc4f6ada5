"""Reports as they may come out, for what reads and compares them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from orchestration.loop.accounting import Totals
from orchestration.loop.report import OffPolicy, ReferenceReport, Report, Seconds, VersionShare, WindowReport
from orchestration.loop.settings import LoopSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
FAULTS = ("redelivered_decisions", "redelivered_rewards", "rewards_sent_twice", "malformed", "orphan_rewards")
INJECTED = dict.fromkeys((*FAULTS, "late_rewards", "refused_requests"), 0)
FOUND = dict.fromkeys(("duplicate_decisions", "duplicate_rewards", "malformed", "orphan_rewards", "late_rewards"), 0)


def window(number: int, **changed: Any) -> WindowReport:
    start = START + timedelta(seconds=5 * number)
    made = WindowReport(
        number=number,
        start=start,
        end=start + timedelta(seconds=5),
        interrupted=False,
        policy_version="v-1",
        policy_versions={"v-1": VersionShare(decisions=100, mean_expected_reward=2.8)},
        decisions=100,
        rewards=95,
        defaulted=0,
        dropped=5,
        late_rewards=0,
        orphan_rewards=0,
        duplicates=0,
        dead_letters=0,
        mean_expected_reward=2.8,
        oracle_reward=3.0,
        best_fixed_reward=2.0,
        uniform_reward=1.0,
        new_movie_decisions=0,
        masked_movie_decisions=0,
        regret=20.0,
        candidate=f"v-{number + 1}",
        off_policy=OffPolicy(estimate=2.8, low=2.5, high=3.1, effective_sample_size=9.0, truth=2.7),
        gain=None,
        promoted=True,
        reason="own next update",
        ingest_seconds=0.1,
        export_seconds=0.1,
        train_seconds=0.1,
        gate_seconds=0.1,
        freshness_seconds=Seconds(6.0, 8.0),
    )
    return msgspec.structs.replace(made, **changed)


def report(windows: list[WindowReport], settings: LoopSettings | None = None, **totals: int) -> Report:
    counts: dict[str, Any] = dict.fromkeys(Totals.__struct_fields__, 0) | totals
    return Report(
        settings=settings or LoopSettings(exploration="ucb"),
        reference=ReferenceReport(3.0, 2.0, 1.0),
        bootstrap=window(0, mean_expected_reward=1.0),
        windows=windows,
        totals=Totals(**(counts | {"faults_injected": INJECTED, "faults_found": FOUND})),
        champion="v-9",
        freshness_seconds=Seconds(6.0, 8.0) if windows else Seconds(None, None),
    )


def kept(folder: Path, windows: list[WindowReport], settings: LoopSettings, **totals: int) -> Path:
    """A folder with the report of a run."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_bytes(msgspec.json.encode(report(windows, settings, **totals)))
    return folder
