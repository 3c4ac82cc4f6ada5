import numpy as np

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench import forgetting
from bench.episode import play, sample


def test_the_table_compares_with_the_best_that_was_typed_in() -> None:
    regret = {f"{half_life}": [100, 300] for half_life in forgetting.HALF_LIVES} | {
        "4.0": [90, 110],
        "auto": [100, 105],
    }
    table = forgetting.section({"settings": {"ratings": "sample", "seeds": 2}, "regret": {"0.05": regret}})
    assert table.splitlines()[-1] == "| 0.05 | 200 | 200 | 200 | 100 | 200 | 200 | 102 | 1.025 |"


def test_a_policy_that_chooses_forgets_where_tastes_turn() -> None:
    """It keeps fewer records than there were, and more than a half-life of one window would."""
    viewers = MovieLens.build(
        load_ratings("sample"), num_actions=forgetting.NUM_ACTIONS, rank=5, reward_noise=0.5, seed=0
    )
    kept = {}
    for turn in (0.0, 3.0):
        world = sample(viewers, 10_000, 0, turn)
        learner = forgetting.Forgetful(world, 0, "auto")
        play(world, learner, 2000, uniform_first=True, seed=0)
        kept[turn] = learner._statistics.n.sum()
    assert np.isclose(kept[0.0], 10_000, rtol=0.5)
    assert 2000 < kept[3.0] < kept[0.0] <= 10_000
