"""Live learning in the loop in simulated time."""

from pathlib import Path

import numpy as np
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench import live_watch
from bench.live_watch import Outcome
from bench.simulated_live import LiveLoop
from orchestration.watch import Caution


@pytest.fixture(scope="module")
def viewers() -> MovieLens:
    return MovieLens.build(load_ratings("sample"), num_actions=6, rank=3, reward_noise=0.5, seed=0)


def test_live_versions_serve_until_a_fault_of_the_feed_holds_them(viewers: MovieLens, tmp_path: Path) -> None:
    loop = LiveLoop(tmp_path / "a", viewers, seed=1, decisions=1000, caution=Caution(anchor_share=0.1))
    for _ in range(3):
        loop.window()
    assert loop.alarms == []
    assert len(loop.shares) == 10 and np.mean(loop.by_live) > 0.5
    copy = loop.copy(tmp_path / "b")
    copy.only_learner, copy.sabotage = live_watch.faults()["feed: rewards flipped"]
    copy.mark()
    copy.window()
    [alarm] = copy.alarms
    assert alarm.decisions <= 100 and "rewards are far" in alarm.why
    assert copy.by_live[alarm.second :] == [0.0] * (15 - alarm.second)
    assert loop.alarms == []
    loop.only_learner, loop.sabotage = live_watch.faults()["learner: rewards flipped"]
    rows = loop.places.windows
    loop.window()
    assert len(list(rows.iterdir())) == 4  # the log is right, so the window is exported and accepted
    assert loop.alarms == [] or loop.alarms[0].why.startswith("refused: ")


def test_a_row_has_the_quantiles_of_the_runs_that_were_held() -> None:
    name = next(iter(live_watch.faults()))
    outcomes = [Outcome(name, seed, after, "surprise", 0.99, 0.9, 2) for seed, after in enumerate((100, 140))]
    outcomes += [Outcome(name, 2, None, "", 0.5, 0.4, 2), Outcome("clean", 0, None, "", 1.0, 1.0, 10)]
    *_, row, clean = live_watch.table(outcomes).splitlines()
    assert row == f"| {name} | 2 of 3 | 120, 138 | surprise 2 | 40% | 50% |"
    assert clean == "| clean | 0 in 10 windows | | | | |"
