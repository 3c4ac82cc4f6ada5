"""The hyperparameters that a search tries, by algorithm: plain data, from which each tuner makes its own form.

`trainer.tune` makes Optuna's suggestions from it, and the pipelines make the study of Vertex AI from it. Names are
those of hyperparameters (`half_life`); `contracts.command_line.flag_name` spells the flag of each (`--half-life`).
"""

import msgspec

from contracts.errors import InputError
from trainer import agents


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter is tried only in trials in which the parameter `name` has the value `value`."""

    name: str
    value: float | int | str


class FloatRange(msgspec.Struct, frozen=True, kw_only=True):
    """Any number from `low` to `high`, searched on a logarithmic scale where `log` is true."""

    name: str
    low: float
    high: float
    log: bool = False
    condition: Condition | None = None


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """One of `values`, which are all numbers or all strings."""

    name: str
    values: tuple[float, ...] | tuple[int, ...] | tuple[str, ...]
    condition: Condition | None = None


Parameter = FloatRange | Choices

_TIKHONOV = FloatRange(name="tikhonov", low=0.01, high=100.0, log=True)
_LINEAR: tuple[Parameter, ...] = (_TIKHONOV, Choices(name="half_life", values=(0.0, 4.0, 16.0)))
_ARM_FEATURES: tuple[Parameter, ...] = (
    Choices(name="arm_features", values=("none", "shared", "hybrid")),
    FloatRange(
        name="arm_tikhonov", low=0.1, high=10.0, log=True, condition=Condition(name="arm_features", value="hybrid")
    ),
)
_NEURAL: tuple[Parameter, ...] = (
    Choices(name="layers", values=("32,16", "64,20", "64,64", "128,64")),
    FloatRange(name="learning_rate", low=3e-4, high=3e-2, log=True),
    Choices(name="batch_size", values=(64, 256, 1024)),
)


def search_space(algorithm: str, has_arm_features: bool) -> tuple[Parameter, ...]:
    """The parameters to try, each after the one that its condition names.

    Args:
      algorithm: one of `agents.DEFAULTS`.
      has_arm_features: whether the catalogue describes its arms (`arms.has_features`). Without features, models that
        share evidence between arms have nothing to share it by, so `arm_features` is not tried.

    Raises InputError for an unknown algorithm.
    """
    match algorithm:
        case "lin_ucb" | "lin_ts" | "greedy":
            return _LINEAR + (_ARM_FEATURES if has_arm_features else ())
        case "neural_epsilon_greedy" | "neural_boltzmann":
            return _NEURAL
        case "neural_linucb":
            return (*_NEURAL, _TIKHONOV)
        case _:
            raise InputError(f"algorithm must be one of {', '.join(sorted(agents.DEFAULTS))}, got {algorithm!r}")
