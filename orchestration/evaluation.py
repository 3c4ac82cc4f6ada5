"""Judges policies on the log: what a policy would have earned, or how two compare, on decisions that neither has learned from.

    python -m orchestration.cli evaluate VERSION --root news
    python -m orchestration.cli evaluate VERSION --against OTHER --root news --windows 2026-11-28T12:00:00Z …

The estimates are those of the gate. Each comes with an interval, and says whether it can be relied on.
"""

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.command_line import say, time_flag
from contracts.errors import InputError
from contracts.policies import PolicyCard
from orchestration import gate, held_back
from orchestration.gate import GateResult
from orchestration.places import Places
from predictor import policy as serving

if TYPE_CHECKING:
    from contracts.command_line import FlagParser
    from contracts.windows import Split
    from trainer.dataset import ReadyWindow

_EVALUATE = """Judges a policy on the log, alone or against another one, on decisions that neither has learned from.

    evaluate lin_ucb-20261128T120000.000000Z-1a2b3c4d --root news
    evaluate VERSION --against OTHER --root news --windows 2026-11-28T12:00:00Z 2026-11-28T12:01:00Z

Parts of windows that one of the policies was trained on are left out. An estimate that is not reliable says why.
"""


def add_command(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate", description=_EVALUATE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="of a policy in the store")
    parser.add_argument("--against", metavar="VERSION", help="another policy, with which it is compared")
    parser.add_argument("--root", type=Path, required=True, help="a project folder, a run, or the root of pipelines")
    parser.add_argument(
        "--windows", type=time_flag, nargs="+", metavar="START", help="starts of windows to judge on (default: all)"
    )
    parser.set_defaults(command=_evaluate)


def judge(places: Places, version: str, against: str | None, only: Sequence[datetime] | None = None) -> GateResult:
    """The gate's result for `version`, on what neither policy was trained on.

    Args:
      places: the root.
      version: in the policy store.
      against: another version; None: `version` is judged alone.
      only: starts of windows; None: all.

    Raises InputError for an unknown version, and where no decisions are left to judge by.
    """
    new = serving.load(places.policies / version)
    old = held_back.seen_as(serving.load(places.policies / against), new.card) if against is not None else None
    if old is not None and not old.card.trained_on:
        raise InputError(
            f"--against: {against} has learned nothing, so it has no model to judge by; judge {version} alone"
        )
    parts = _unseen(places.windows, [new.card] if old is None else [new.card, old.card], only)
    decisions = held_back.read_parts(places.policies, parts, new.card, old.card if old is not None else None)
    if not len(decisions.decisions.action):
        raise InputError("--windows: decisions that neither policy was trained on expected, got none")
    return gate.judge_alone(new, decisions) if old is None else gate.compare(new, old, decisions, gate.OTHER)


def _unseen(
    windows: Path, cards: Sequence[PolicyCard], only: Sequence[datetime] | None
) -> "list[tuple[ReadyWindow, Split]]":
    from trainer import dataset

    seen = {(trained.window.start, trained.split) for card in cards for trained in card.trained_on}
    ready = dataset.ready_windows(windows)
    if missing := set(only or []) - {window.start for window in ready}:
        raise InputError(f"--windows: the start of a window in {windows} expected, got {min(missing).isoformat()}")
    splits: tuple[Split, ...] = ("train", "holdback")
    return [
        (window, split)
        for window in ready
        if only is None or window.start in only
        for split in splits
        if (window.start, split) not in seen
    ]


def _evaluate(arguments: argparse.Namespace) -> int:
    result = judge(Places(arguments.root), arguments.version, arguments.against, arguments.windows)
    found = result.evaluation
    if found is not None:
        trust = "reliable" if found.reliable else f"not reliable: {found.reason}"
        say(
            f"{arguments.version}: reward per decision {found.value:.4f} [{found.low:.4f}, {found.high:.4f}],"
            f" {found.estimator}, effective sample size {found.effective_sample_size:.0f} of {found.decisions} decisions;"
            f" {trust}"
        )
    if arguments.against is not None:
        say(f"against {arguments.against}: {result.reason}")
    elif found is None:
        say(result.reason)
    return 0
