"""The algorithms by name: what each can be told, and TF-Agents' agents of them."""

import math
from typing import Any

from contracts.errors import InputError
from contracts.policies import STRATEGIES, Exploration
from trainer.linear import SufficientStatistics, disjoint

Hyperparameters = dict[str, float | int | str | bool]

# How much a policy explores is not here: that belongs to the explorer that serves it (contracts.policies.Exploration).
_LINEAR: Hyperparameters = {"tikhonov": 0.1, "arm_features": "none", "arm_tikhonov": 2.0, "half_life": 0.0}
_NEURAL: Hyperparameters = {
    "arm_features": "none",
    "layers": "64,64",
    "learning_rate": 0.003,
    "batch_size": 256,
    "epochs": 30,
    "patience": 3,
}
DEFAULTS: dict[str, Hyperparameters] = {
    "lin_ucb": _LINEAR,
    "lin_ts": _LINEAR,
    "greedy": _LINEAR,
    "neural_epsilon_greedy": _NEURAL,
    "neural_boltzmann": _NEURAL,
    "neural_linucb": {name: value for name, value in _NEURAL.items() if name != "arm_features"}
    | {"layers": "64,20", "tikhonov": 0.1},
}
# What they mean, and the type that a command line gives.
HYPERPARAMETERS: dict[str, tuple[type, str]] = {
    "tikhonov": (float, "linear, neural_linucb: ridge (default: 0.1)"),
    "arm_features": (
        str,
        "none: a model (neural: an output) for each arm (default); shared: one over observation x arm features (neural:"
        " two towers); hybrid, linear only: both",
    ),
    "arm_tikhonov": (float, "linear with arm features, hybrid: ridge on each arm's own term (default: 2)"),
    "half_life": (float, "linear: windows after which evidence counts half (default: 0, it counts for ever)"),
    "layers": (str, "neural: sizes of the hidden layers (default: 64,64; neural_linucb 64,20)"),
    "learning_rate": (float, "neural: Adam's (default: 0.003)"),
    "batch_size": (int, "neural: trajectories a step (default: 256)"),
    "epochs": (int, "neural: passes over the new data at most (default: 30); linear: 1"),
    "patience": (int, "neural: epochs without a lower held-out loss after which training stops (default: 3)"),
}
LINEAR_ALGORITHMS = ("greedy", "lin_ts", "lin_ucb")
# The explorer that serves as the algorithm means it, unless another is asked for.
EXPLORATION = {
    "lin_ucb": "ucb",
    "lin_ts": "thompson",
    "greedy": "epsilon_greedy",
    "neural_epsilon_greedy": "epsilon_greedy",
    "neural_boltzmann": "softmax",
    "neural_linucb": "ucb",
}
_MAY_BE_ZERO = ("half_life",)


def complete(algorithm: str, given: Hyperparameters) -> Hyperparameters:
    """All hyperparameters of `algorithm`: the given ones over the defaults. Raises InputError for a wrong one."""
    if algorithm not in DEFAULTS:
        raise InputError(f"algorithm must be one of {', '.join(sorted(DEFAULTS))}, got {algorithm!r}")
    defaults = DEFAULTS[algorithm]
    given = dict(given)
    if algorithm in LINEAR_ALGORITHMS and (epochs := given.pop("epochs", 1)) != 1:
        raise InputError(
            f"epochs must be 1 for {algorithm}, got {epochs}: it counts evidence, and the same interaction twice is not"
            " twice the evidence"
        )
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"{algorithm} has no hyperparameter {name!r}: it has {', '.join(sorted(defaults))}")
        _check(algorithm, name, value, defaults[name])
    return {name: type(default)(given.get(name, default)) for name, default in defaults.items()}


def check_exploration(exploration: Exploration) -> None:
    """Raises InputError for a strategy that there is not, and for settings that a policy's card could not hold."""
    if exploration.strategy not in STRATEGIES:
        raise InputError(f"exploration must be one of {', '.join(STRATEGIES)}, got {exploration.strategy!r}")
    for name in ("alpha", "temperature", "gamma"):
        if not math.isfinite(value := getattr(exploration, name)):
            raise InputError(f"exploration: {name} must be finite, got {value}")


def layer_sizes(hyperparameters: Hyperparameters) -> tuple[int, ...]:
    """The sizes of the hidden layers."""
    return tuple(int(size) for size in str(hyperparameters["layers"]).split(","))


def _check(algorithm: str, name: str, value: float | int | str | bool, default: float | int | str | bool) -> None:
    if name == "arm_features":
        choices = ("none", "shared", "hybrid") if algorithm in LINEAR_ALGORITHMS else ("none", "shared")
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)} for {algorithm}, got {value!r}")
    elif name == "layers":
        sizes = str(value).split(",")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise InputError(f"layers must be sizes above 0 with commas between, such as 64,64, got {value!r}")
    elif isinstance(default, int):
        if not (isinstance(value, int) and value > 0):
            raise InputError(f"{name} must be a whole number above 0, got {value!r}")
    elif not (
        isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (value == 0 and name in _MAY_BE_ZERO))
    ):
        raise InputError(
            f"{name} must be a number {'of at least' if name in _MAY_BE_ZERO else 'above'} 0, got {value!r}"
        )


def specs(observation_dim: int, num_actions: int) -> tuple[Any, Any]:
    """TF-Agents' time step and action specs."""
    import tensorflow as tf
    from tf_agents.specs import BoundedTensorSpec
    from tf_agents.trajectories import time_step_spec

    return (
        time_step_spec(tf.TensorSpec([observation_dim], tf.float32, name="observation")),
        BoundedTensorSpec((), tf.int32, minimum=0, maximum=num_actions - 1, name="action"),
    )


def linear_agent(statistics: SufficientStatistics, tikhonov: float, alpha: float, algorithm: str = "lin_ucb") -> Any:
    """TF-Agents' linear agent that has learned `statistics` (float32, as it computes); `greedy` is LinUCB of width 0.

    The artifact is made from the same statistics without it, since it holds five variables and a loop's turn for every
    action: it cannot be traced at thousands of them. At a few hundred it can, and then it says the same.
    """
    import tensorflow as tf
    from tf_agents.bandits.agents.lin_ucb_agent import LinearUCBAgent
    from tf_agents.bandits.agents.linear_bandit_agent import LinearBanditVariableCollection
    from tf_agents.bandits.agents.linear_thompson_sampling_agent import LinearThompsonSamplingAgent

    learned = LinearBanditVariableCollection(statistics.observation_dim, statistics.num_actions, dtype=tf.float32)
    learned.theta.assign(disjoint(statistics, tikhonov).theta)
    for k in range(statistics.num_actions):
        learned.cov_matrix_list[k].assign(statistics.a[k])
        learned.data_vector_list[k].assign(statistics.b[k])
        learned.num_samples_list[k].assign(statistics.n[k])
    time_step_spec, action_spec = specs(statistics.observation_dim, statistics.num_actions)
    make = LinearThompsonSamplingAgent if algorithm == "lin_ts" else LinearUCBAgent
    return make(
        time_step_spec=time_step_spec,
        action_spec=action_spec,
        variable_collection=learned,
        alpha=0.0 if algorithm == "greedy" else alpha,
        tikhonov_weight=tikhonov,
        dtype=tf.float32,
    )
