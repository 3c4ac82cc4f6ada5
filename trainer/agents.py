"""The algorithms by name, with their hyperparameters, and the specs of TF-Agents' agents."""

import math
from collections.abc import Callable
from typing import Any

from contracts.errors import InputError
from contracts.policies import Strategy

Hyperparameters = dict[str, float | int | str | bool]

AUTO = "auto"  # a half-life that each training chooses (trainer.forgetting)

# How much a policy explores is a setting of the explorer that serves it (contracts.policies.Exploration).
_LINEAR: Hyperparameters = {"tikhonov": 0.1, "arm_features": "none", "arm_tikhonov": 2.0, "half_life": 0.0}
_NEURAL: Hyperparameters = {
    "arm_features": "none",
    "layers": "64,64",
    "learning_rate": 0.003,
    "batch_size": 256,
    "epochs": 30,
    "patience": 3,
    "replay": 50_000,
}
DEFAULTS: dict[str, Hyperparameters] = {
    "lin_ucb": _LINEAR,
    "lin_ts": _LINEAR,
    "greedy": _LINEAR,
    "neural_epsilon_greedy": _NEURAL,
    "neural_boltzmann": _NEURAL,
    "neural_linucb": {name: value for name, value in _NEURAL.items() if name not in ("arm_features", "replay")}
    | {"layers": "64,20", "tikhonov": 0.1},
}


def number_or_auto(text: str) -> float | str:
    """A half-life on the command line. Raises ValueError for text that is neither a number nor "auto"."""
    return text if text == AUTO else float(text)


# The type of each on the command line, and its help.
HYPERPARAMETERS: dict[str, tuple[Callable[[str], float | int | str], str]] = {
    "tikhonov": (float, "linear, neural_linucb: ridge (default: 0.1)"),
    "arm_features": (
        str,
        "none: a model (neural: an output) for each arm (default); shared: one over observation x arm features (neural:"
        " two towers); hybrid, linear only: both",
    ),
    "arm_tikhonov": (float, "linear with arm features, hybrid: ridge on each arm's own term (default: 2)"),
    "half_life": (
        number_or_auto,
        "linear: number of windows after which the weight of evidence halves (default: 0, it never does); auto: chosen at"
        " each window by how well what was learned before predicts it",
    ),
    "layers": (str, "neural: sizes of the hidden layers (default: 64,64; neural_linucb 64,20)"),
    "learning_rate": (float, "neural: learning rate of Adam (default: 0.003)"),
    "batch_size": (int, "neural: trajectories per step (default: 256)"),
    "epochs": (int, "neural: largest number of passes over the new data (default: 30); linear: 1"),
    "replay": (
        int,
        "neural, not neural_linucb: how many earlier trajectories are trained on again beside the new ones (default: 50000)",
    ),
    "patience": (int, "neural: epochs without a lower held-out loss after which training stops (default: 3)"),
}
LINEAR_ALGORITHMS = ("greedy", "lin_ts", "lin_ucb")
# Those whose coefficients follow from sums: linear in the observation, or in what a frozen network makes of it.
LIVE_ALGORITHMS = (*LINEAR_ALGORITHMS, "neural_linucb")
# The strategy with which each algorithm explores in its paper; the default when it serves.
EXPLORATION: dict[str, Strategy] = {
    "lin_ucb": "ucb",
    "lin_ts": "thompson",
    "greedy": "epsilon_greedy",
    "neural_epsilon_greedy": "epsilon_greedy",
    "neural_boltzmann": "softmax",
    "neural_linucb": "ucb",
}
# How the TF-Agents policy in the artifact chooses, as the agent of that name does.
CHOICE: dict[str, Strategy] = EXPLORATION | {"greedy": "greedy"}
_MAY_BE_ZERO = ("half_life", "replay")


def complete(algorithm: str, given: Hyperparameters) -> Hyperparameters:
    """All hyperparameters of `algorithm`: the given ones, and the defaults of the others. Raises InputError."""
    if algorithm not in DEFAULTS:
        raise InputError(f"algorithm must be one of {', '.join(sorted(DEFAULTS))}, got {algorithm!r}")
    defaults = DEFAULTS[algorithm]
    given = dict(given)
    if algorithm in LINEAR_ALGORITHMS and (epochs := given.pop("epochs", 1)) != 1:
        raise InputError(
            f"epochs must be 1 for {algorithm}, got {epochs}: it counts evidence, and a second pass over the same"
            " interactions adds none"
        )
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"{algorithm} has no hyperparameter {name!r}: it has {', '.join(sorted(defaults))}")
        _check(algorithm, name, value, defaults[name])
    return {
        name: AUTO if given.get(name) == AUTO else type(default)(given.get(name, default))
        for name, default in defaults.items()
    }


def layer_sizes(hyperparameters: Hyperparameters) -> tuple[int, ...]:
    """The sizes of the hidden layers."""
    return tuple(int(size) for size in str(hyperparameters["layers"]).split(","))


def _check(algorithm: str, name: str, value: float | int | str | bool, default: float | int | str | bool) -> None:
    if name == "half_life" and value == AUTO:
        return
    if name == "arm_features":
        choices = ("none", "shared", "hybrid") if algorithm in LINEAR_ALGORITHMS else ("none", "shared")
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)} for {algorithm}, got {value!r}")
    elif name == "layers":
        sizes = str(value).split(",")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise InputError(f"layers must be sizes above 0 with commas between, such as 64,64, got {value!r}")
    elif isinstance(default, int):
        least = 0 if name in _MAY_BE_ZERO else 1
        if not (isinstance(value, int) and value >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    elif not (
        isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (value == 0 and name in _MAY_BE_ZERO))
    ):
        bound = "of at least" if name in _MAY_BE_ZERO else "above"
        raise InputError(f"{name} must be a number {bound} 0{' or auto' * (name == 'half_life')}, got {value!r}")


def specs(observation_dim: int, num_actions: int) -> tuple[Any, Any]:
    """TF-Agents' time step and action specs."""
    import tensorflow as tf
    from tf_agents.specs import BoundedTensorSpec
    from tf_agents.trajectories import time_step_spec

    return (
        time_step_spec(tf.TensorSpec([observation_dim], tf.float32, name="observation")),
        BoundedTensorSpec((), tf.int32, minimum=0, maximum=num_actions - 1, name="action"),
    )
