"""A run of one bootstrap window, made without the loop's processes."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from beam_jobs import export_trajectories, generate_movielens, ingest_events
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.event_segments import sealed_segments
from contracts.policies import PolicyCard
from contracts.windows import TrainingWindow
from orchestration import policy_store
from orchestration.gate import GateResult
from orchestration.loop.run_folder import JournalEntry, RunFolder
from orchestration.loop.settings import LoopSettings
from trainer import training

START = datetime(2026, 1, 1, tzinfo=UTC)
DECISIONS = 60
SETTINGS = LoopSettings(num_actions=5, rank=3, bootstrap_decisions=DECISIONS, holdback_share=0.2, exploration="ucb")
Tamper = Callable[[list[bytes]], list[bytes]]


def viewers() -> MovieLens:
    """Those of SETTINGS."""
    return MovieLens.build(load_ratings("sample"), num_actions=5, rank=3, reward_noise=0.5, seed=0)


def make(root: Path, movielens: MovieLens, tamper: Tamper = lambda lines: lines) -> tuple[RunFolder, PolicyCard]:
    """Generated decisions, ingested, exported, and trained on; `tamper` changes the log's lines on their way to the tables."""
    folder = RunFolder(root)
    settings = msgspec.structs.replace(SETTINGS, out=str(root))
    with folder.locked():
        folder.create(settings, movielens.catalogue)
    generate_movielens.generate(
        movielens,
        generate_movielens.GeneratorSettings(
            num_decisions=DECISIONS, start=START, window_seconds=5.0, no_reward_probability=0.0, seed=1
        ),
        folder.simulated,
    )
    for segment in sealed_segments(folder.simulated):
        lines = tamper(segment.read_bytes().splitlines())
        (folder.events / segment.name).write_bytes(b"".join(line + b"\n" for line in lines))
    ingest_events.ingest(folder.events, EmbeddedWarehouse(folder.warehouse))
    window = TrainingWindow(START, START.replace(second=5))
    export_trajectories.export(EmbeddedWarehouse(folder.warehouse), folder.windows, window, settings.window_settings())
    card = training.train(
        training.Settings(
            windows=folder.windows,
            policies=folder.policies,
            num_actions=5,
            catalogue=movielens.catalogue,
            exploration=settings.exploration_settings(),
        )
    )
    policy_store.roll_out(folder.policies, card.version, "first policy", START)
    folder.append(
        JournalEntry(
            number=0,
            window=window,
            interrupted=False,
            candidate=card.version,
            gate=GateResult(verdict="undecided", promoted=True, reason="first policy", evaluation=None),
            true_value=None,
            ingest_seconds=1.0,
            export_seconds=2.0,
            train_seconds=3.0,
            gate_seconds=4.0,
            serving_at=START.replace(second=9),
        )
    )
    return folder, card
