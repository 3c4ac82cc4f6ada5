"""`candidates`: decisions a second with 200 candidates, out of a catalogue of 200 and out of one of 100,000.

Both go the whole way of a request of one instance, without HTTP: probabilities, draw and record. Each strategy takes its
turn, so the figure is of all explorers together.
"""

import numpy as np

from bench.measure import Result, compare, seconds
from contracts.items import Item
from contracts.policies import STRATEGIES, Exploration, PolicyCard
from contracts.policy_arrays import PolicyArrays, Scorer
from predictor.deciding import Asked, decide
from predictor.line_up import LineUp
from predictor.policy import Policy, baseline

OBSERVATION_DIM = 20
OFFERED = 200
LARGE = 100_000
REQUESTS = 60  # per strategy


def line_ups(num_actions: int) -> list[LineUp]:
    """A linear policy with random parameters, under each strategy."""
    random = np.random.default_rng(0)
    half = random.normal(size=(64, OBSERVATION_DIM, OBSERVATION_DIM))
    covariances = half @ half.transpose(0, 2, 1) / OBSERVATION_DIM + 0.1 * np.eye(OBSERVATION_DIM)
    arrays = PolicyArrays.linear(
        random.normal(size=(num_actions, OBSERVATION_DIM)),
        covariances.astype(np.float32)[np.arange(num_actions) % len(covariances)],
        np.ones(num_actions, np.float32),
    )
    scorer = Scorer(arrays)
    made = []
    for strategy in STRATEGIES:
        card = PolicyCard(
            version=f"bench-{strategy}",
            parent=None,
            algorithm="lin_ucb",
            hyperparameters={},
            observation_dim=OBSERVATION_DIM,
            num_actions=num_actions,
            catalogue=[Item(action=action, item_id=str(action)) for action in range(num_actions)],
            trained_on=[],
            exploration=Exploration(strategy=strategy),
        )
        made.append(LineUp(Policy(card, scorer), baseline(card)))
    return made


def run() -> Result:
    """Both catalogues by turns."""
    random = np.random.default_rng(1)
    observations = random.normal(size=(REQUESTS, OBSERVATION_DIM)).tolist()

    def requests(num_actions: int) -> list[list[Asked]]:
        offered = [random.choice(num_actions, OFFERED, replace=False).tolist() for _ in observations]
        return [[Asked(one, None, arms)] for one, arms in zip(observations, offered, strict=True)]

    def rate(policies: list[LineUp], asked: list[list[Asked]]) -> float:
        def work() -> None:
            for policy in policies:
                for one in asked:
                    assert not decide(policy, one).failures

        return len(policies) * len(asked) / seconds(work)

    small, large = line_ups(OFFERED), line_ups(LARGE)
    of_small, of_large = requests(OFFERED), requests(LARGE)
    for policies, asked in ((small, of_small), (large, of_large)):
        rate(policies, asked[:2])
    return compare(
        reference=lambda: rate(small, of_small), ours=lambda: rate(large, of_large), unit="decisions/s", runs=5
    )
