"""The closed loop in simulated time."""

from pathlib import Path

import numpy as np
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.worlds import WORLDS, World
from bench.simulated_loop import Conditions, SimulatedLoop
from orchestration import policy_store
from predictor import policy as serving


@pytest.fixture(scope="module")
def viewers() -> MovieLens:
    return MovieLens.build(load_ratings("sample"), num_actions=6, rank=3, reward_noise=0.5, seed=0)


def test_a_copy_serves_what_the_loop_would_serve(viewers: MovieLens, tmp_path: Path) -> None:
    loop = SimulatedLoop(tmp_path / "a", viewers, seed=1, decisions=200)
    loop.window()
    loop.window()
    copy = loop.copy(tmp_path / "b")
    one, other = loop.window(), copy.window()
    assert (one.number, one.version, one.share_of_oracle) == (other.number, other.version, other.share_of_oracle)
    assert one.audit.evidence == other.audit.evidence


def test_the_conditions_are_in_the_log(viewers: MovieLens, tmp_path: Path) -> None:
    conditions = Conditions(new_movies=2, silent_share=0.3, fault_rate=0.3)
    loop = SimulatedLoop(tmp_path, viewers, seed=1, decisions=400, conditions=conditions)
    first, second = loop.window().audit.evidence, loop.window().audit.evidence
    new = viewers.drawn_actions(2)
    assert np.array(first.taken + [0.0] * 6)[new].sum() == 0
    champion = policy_store.champion(tmp_path / "policies")
    assert champion is not None and serving.load(tmp_path / "policies" / champion.version).active is None
    assert first.duplicates > 30 and second.late_rewards > 10
    assert second.rewarded < 0.75 * second.decisions


@pytest.mark.parametrize("world", ["second_half", "like"])
def test_the_product_learns_in_another_world(world: World, tmp_path: Path) -> None:
    """Observations that are no factors, and rewards that are clicks, through tables, export, audit, training and gate."""
    viewers = WORLDS[world].build(load_ratings("sample"), num_actions=6, rank=3, reward_noise=0.5, seed=0)
    loop = SimulatedLoop(tmp_path, viewers, seed=1, decisions=1500)
    uniform, *_, last = (loop.window() for _ in range(4))
    assert not last.held and last.version != uniform.version
    best_fixed = viewers.reference.best_fixed_action / viewers.reference.oracle
    assert last.share_of_oracle > (best_fixed + uniform.share_of_oracle) / 2
