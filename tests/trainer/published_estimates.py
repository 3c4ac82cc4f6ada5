"""Writes published_estimates.json: what published implementations estimate from the arrays made here.

In an environment of its own (Open Bandit Pipeline pins a PyTorch that Python 3.11 cannot install; these estimators do not
use it, so an empty module stands in for it):

    pip install --no-deps obp==0.5.7 vw-estimators==0.2.2
    pip install numpy pandas scipy scikit-learn pyyaml tqdm
    python -m tests.trainer.published_estimates
"""

import json
import sys
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np

PUBLISHED = Path(__file__).with_suffix(".json")
LAMBDAS = [*(10.0 ** np.arange(-1.0, 9.5, 0.5)).tolist(), float("inf")]
SWITCH_THRESHOLD = 2.0


class Bandit(NamedTuple):
    logging: np.ndarray  # [N, K]
    target: np.ndarray
    model: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    categories: np.ndarray  # [K]


class Slates(NamedTuple):
    propensities: np.ndarray  # [S, P]
    target: np.ndarray
    rewards: np.ndarray
    marginal_propensities: np.ndarray
    marginal_target: np.ndarray
    action: np.ndarray
    model: np.ndarray  # [S, P, K]
    distribution: np.ndarray


def _shares(numbers):
    return numbers / numbers.sum(axis=-1, keepdims=True)


def bandit():
    rng = np.random.default_rng(20)
    decisions, arms = 200, 6
    logging = 0.9 * _shares(rng.random((decisions, arms)) ** 2) + 0.1 / arms
    target, model = _shares(rng.random((decisions, arms)) ** 4), 2 * rng.random((decisions, arms)) - 1
    action = (logging.cumsum(axis=1) < rng.random((decisions, 1))).sum(axis=1)
    reward = 0.7 * model[np.arange(decisions), action] + 2 * rng.random(decisions)
    return Bandit(logging, target, model, action, reward, np.arange(arms) % 3)


def slates():
    rng = np.random.default_rng(21)
    shape, arms = (60, 3), 4
    return Slates(
        *(0.1 + 0.8 * rng.random(shape), rng.random(shape), rng.random(shape)),
        *(0.1 + 0.8 * rng.random(shape), rng.random(shape)),
        (arms * rng.random(shape)).astype(int),
        rng.random((*shape, arms)),
        _shares(rng.random((*shape, arms))),
    )


class _Absent(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _without_torch():
    for name in ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils", "torch.utils.data"):
        module = _Absent(name)
        module.__path__ = []
        sys.modules[name] = module
        if "." in name:
            parent, child = name.rsplit(".", 1)
            setattr(sys.modules[parent], child, module)
    for name in ("pyieoe", "mabwiser", "matplotlib", "matplotlib.pyplot", "seaborn"):
        sys.modules.setdefault(name, _Absent(name))


def of_bandit():
    from estimators.bandits import cressieread
    from obp import ope

    logging, target, model, action, reward, categories = bandit()
    rows = np.arange(len(action))
    propensity, probability = logging[rows, action], target[rows, action]
    log = {
        "reward": reward,
        "action": action,
        "pscore": propensity,
        "action_dist": target[:, :, None],
        "position": np.zeros(len(action), int),
        "estimated_rewards_by_reg_model": model[:, :, None],
    }
    found = {
        name: float(estimator.estimate_policy_value(**log))
        for name, estimator in {
            "ips": ope.InverseProbabilityWeighting(),
            "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
            "dm": ope.DirectMethod(),
            "dr": ope.DoublyRobust(),
            "switch_dr": ope.SwitchDoublyRobust(lambda_=SWITCH_THRESHOLD),
            "dros": ope.DoublyRobustWithShrinkageTuning(
                lambdas=list(LAMBDAS), tuning_method="mse", use_bias_upper_bound=False
            ),
        }.items()
    }
    found["dros_by_lambda"] = [
        float(ope.DoublyRobustWithShrinkage(lambda_=value).estimate_policy_value(**log)) for value in LAMBDAS
    ]
    embedded = {
        "reward": reward,
        "action": action,
        "action_embed": categories[action][:, None],
        "pi_b": logging[:, :, None],
        "action_dist": target[:, :, None],
        "position": log["position"],
        "p_e_a": np.eye(3)[categories][:, :, None],
    }
    mips = ope.MarginalizedInverseProbabilityWeighting(n_actions=model.shape[1])
    snmips = ope.SelfNormalizedMarginalizedInverseProbabilityWeighting(n_actions=model.shape[1])
    found["mips"] = float(mips.estimate_policy_value(**embedded))
    found["snmips"] = float(snmips._estimate_round_rewards(context=None, **embedded).mean())
    interval = cressieread.Interval(wmin=0, wmax=20.0, rmin=-1.0, rmax=3.0)
    for values in zip(propensity.tolist(), reward.tolist(), probability.tolist(), strict=True):
        interval.add_example(*values)
    found["cressie_read"] = [float(bound) for bound in interval.get(0.05)]
    return found


def of_slates():
    from estimators.slates import pseudo_inverse
    from obp import ope

    log = slates()
    count, places = log.rewards.shape
    common = {
        "slate_id": np.repeat(np.arange(count), places),
        "reward": log.rewards.ravel(),
        "position": np.tile(np.arange(places), count),
    }
    so_far, target_so_far = log.propensities.cumprod(axis=1), log.target.cumprod(axis=1)
    whole = {
        "pscore": np.repeat(so_far[:, -1], places),
        "evaluation_policy_pscore": np.repeat(target_so_far[:, -1], places),
    }
    cascade = {"pscore_cascade": so_far.ravel(), "evaluation_policy_pscore_cascade": target_so_far.ravel()}
    own = {
        "pscore_item_position": log.marginal_propensities.ravel(),
        "evaluation_policy_pscore_item_position": log.marginal_target.ravel(),
    }
    with_model = {
        "action": log.action.ravel(),
        "q_hat": log.model.ravel(),
        "evaluation_policy_action_dist": log.distribution.ravel(),
    }
    cascade_dr = ope.SlateCascadeDoublyRobust(len_list=places, n_unique_action=log.model.shape[2])
    found = {
        "sips": ope.SlateStandardIPS(len_list=places).estimate_policy_value(**common, **whole),
        "rips": ope.SlateRewardInteractionIPS(len_list=places).estimate_policy_value(**common, **cascade),
        "iips": ope.SlateIndependentIPS(len_list=places).estimate_policy_value(**common, **own),
        "cascade_dr": cascade_dr.estimate_policy_value(**common, **cascade, **with_model),
    }
    pseudo = pseudo_inverse.Estimator()
    for values in zip(log.marginal_propensities, log.rewards.sum(axis=1), log.marginal_target, strict=True):
        pseudo.add_example(*(value.tolist() for value in values))
    return {name: float(value) for name, value in found.items()} | {"pseudo_inverse": float(pseudo.get())}


if __name__ == "__main__":
    _without_torch()
    PUBLISHED.write_text(json.dumps({"bandit": of_bandit(), "slates": of_slates()}, indent=2) + "\n")
