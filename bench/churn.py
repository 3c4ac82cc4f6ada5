"""A shop whose catalogue never stands still: `make churn`.

Items of a simulated shop come and go, every window, by the product's own `orchestration.catalogue`. Everything else is the
loop of `bench.simulated_loop`: tables, export, audit, guard, training and gate. The same loop runs with the same visitors
and without churn, for comparison. Writes the figures to bench/churn.json.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from bench.simulated_loop import SETTINGS, WINDOW, Rows, SimulatedLoop
from contracts import items
from contracts.items import Attribute, Item
from contracts.policies import Exploration, PolicyCard
from contracts.windows import TrainingWindow
from orchestration import catalogue, gate, policy_store
from orchestration.audit import guard
from orchestration.catalogue import Reuse
from predictor import policy as serving
from trainer import training

TOPICS, USERS = 20, 2_000
OWN = 0.3  # what an item is worth of its own, beside what its attributes tell
RESULTS = Path(__file__).parent / "churn.json"


class World(NamedTuple):
    """How many items there are, and how they change."""

    num_items: int = 2_000
    churn: float = 0.05  # share of the items that are replaced every window
    reuse_after_windows: int = 10
    arm_features: str = "hybrid"
    # (window, length): from that window on, applications send observations of that length.
    context: tuple[tuple[int, int], ...] = ((0, 6),)


class Shop:
    """Visitors with tastes, and items whose worth to them depends on the items' attributes and on the item itself."""

    def __init__(self, world: World, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 3])
        tastes = np.random.default_rng([seed, 4])
        length = max(length for _, length in world.context)
        self.num_users, self.observation_dim = USERS, world.context[0][1]
        self._whole = np.concatenate(
            [np.ones((USERS, 1)), tastes.normal(size=(USERS, length - 1)) / np.sqrt(length - 1)], axis=1
        ).astype(np.float32)
        self._of_topic = tastes.normal(size=(TOPICS, length))
        self._of_number = tastes.normal(size=(2, length)) / 2
        self._worth: dict[str, np.ndarray] = {}
        self._next = 0
        self.catalogue: list[Item] = []

    def made(self, count: int) -> list[Item]:
        """New items, which no one knows yet."""
        found = []
        for _ in range(count):
            item_id, self._next = f"item{self._next:06d}", self._next + 1
            topic, numbers = int(self._rng.integers(TOPICS)), self._rng.normal(size=2)
            own = OWN * self._rng.normal(size=self._of_topic.shape[1])
            self._worth[item_id] = self._of_topic[topic] + numbers @ self._of_number + own
            attributes: dict[str, Attribute] = {
                "topic": f"topic {topic}",
                "length": round(200 + 80 * float(numbers[0]), 1),
                "age": round(float(numbers[1]), 4),
            }
            found.append(Item(action=0, item_id=item_id, attributes=attributes))
        return found

    @property
    def observations(self) -> np.ndarray:
        """[U, D] float32: what applications send at the moment of what describes a visitor."""
        return self._whole[:, : self.observation_dim]

    @property
    def num_actions(self) -> int:
        """K, retired items included."""
        return len(self.catalogue)

    @property
    def on_offer(self) -> np.ndarray:
        """The actions of active items."""
        return np.array([item.action for item in self.catalogue if item.status == "active"])

    def drawn_actions(self, count: int) -> list[int]:
        """No item waits for serving to begin."""
        assert not count
        return []

    def masking(self, actions: Sequence[int]) -> "Shop":
        """This shop: nothing is masked."""
        assert not actions
        return self

    def expected_of_all_actions(self, users: np.ndarray, angle: float = 0.0) -> np.ndarray:
        """[N] users -> [N, K] float64; what is not on offer counts as the worst of what is."""
        assert not angle
        worth = np.array([self._worth[item.item_id] for item in self.catalogue])
        expected = self._whole[users].astype(np.float64) @ worth.T
        gone = np.array([item.status != "active" for item in self.catalogue])
        expected[:, gone] = expected[:, ~gone].min(axis=1, keepdims=True)
        return expected

    def observed_rewards(
        self, users: np.ndarray, actions: np.ndarray, rng: np.random.Generator, angle: float = 0.0
    ) -> np.ndarray:
        """[N], with noise; those of retired items too, if any are shown."""
        worth = np.array([self._worth[self.catalogue[action].item_id] for action in actions])
        return np.einsum("nd,nd->n", self._whole[users], worth) + rng.normal(0.0, 0.5, len(users))


class Churned(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one window."""

    window: int
    observation_dim: int  # of what was sent
    policy_dim: int  # of the version that is promoted at its end
    share_of_oracle: float
    uniform: float  # share of the oracle that a uniform choice has
    num_actions: int
    new_items: int  # for the version that serves
    new_share: float  # of its decisions
    budget: float
    added_share: float  # of the decisions, for the items that came at the last change
    retired_shown: int  # decisions for items that the catalogue had retired when the window began
    held: bool
    promoted: bool
    policy_megabytes: float
    train_seconds: float
    peak_megabytes: float  # of the process


class ChurningLoop(SimulatedLoop):
    """The simulated loop over a shop whose items change before every training."""

    def __init__(self, root: Path, shop: Shop, world: World, *, seed: int, decisions: int) -> None:
        super().__init__(root, shop, seed=seed, decisions=decisions, exploration=Exploration(alpha=0.2, epsilon=0.02))
        self._shop, self._world = shop, world
        self._pick = np.random.default_rng([seed, 5])
        self._reuse = Reuse(reuse_after_hours=world.reuse_after_windows * WINDOW.total_seconds() / 3600)
        self._last_rows: Rows | None = None
        self._train_seconds, self._promoted = 0.0, False
        catalogue.apply(self.places, shop.made(world.num_items), self._origin)
        shop.catalogue = items.read(self.places.catalogue)

    def churned(self) -> Churned:
        """Serves one window, then changes the catalogue, trains and promotes."""
        self._shop.observation_dim = [length for start, length in self._world.context if start <= self._number][-1]
        card = self._card()
        at_start = self._shop.catalogue
        oracle_users = np.arange(USERS)
        expected = self._shop.expected_of_all_actions(oracle_users)[:, self._shop.on_offer]
        number = self._number
        served = self.window()
        rows = self._last_rows
        assert rows is not None
        retired = [item.action for item in at_start if item.status == "retired"]
        added = [item.action for item in at_start if item.since == self._origin + self._number * WINDOW]
        new = card.new_actions if card else []
        budget = min(card.exploration.new_item_share, 0.02 * len(new)) if card else 0.0
        champion = self._card()
        assert champion is not None
        folder = self.places.policies / champion.version
        return Churned(
            window=number,
            observation_dim=self._shop.observation_dim,
            policy_dim=champion.observation_dim,
            share_of_oracle=served.share_of_oracle,
            uniform=float(expected.mean() / expected.max(axis=1).mean()),
            num_actions=len(at_start),
            new_items=len(new),
            new_share=float(np.isin(rows.action, new).mean()),
            budget=budget,
            added_share=float(np.isin(rows.action, added).mean()),
            retired_shown=int(np.isin(rows.action, retired).sum()),
            held=served.held,
            promoted=self._promoted,
            policy_megabytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
            train_seconds=self._train_seconds,
            peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        )

    def _card(self) -> PolicyCard | None:
        champion = policy_store.champion(self.places.policies) if self.places.policies.is_dir() else None
        return serving.read_card(self.places.policies / champion.version) if champion else None

    def _serve(self, window: TrainingWindow) -> tuple[Rows, float]:
        rows, share = super()._serve(window)
        self._last_rows = rows
        self._window = window
        return rows, share

    def _learn(self, now: object) -> None:
        """Changes the catalogue at the end of the window, and trains the next version on the window and on that."""
        end = self._window.end
        current = self._shop.catalogue
        active = [item for item in current if item.status == "active"]
        leave = round(self._world.churn * len(active))
        if leave:
            gone = set(self._pick.choice(len(active), leave, replace=False).tolist())
            stay = [item for number, item in enumerate(active) if number not in gone]
            catalogue.apply(self.places, stay + self._shop.made(leave), end, "retire", self._reuse)
        after = items.read(self.places.catalogue)
        before = self._card()
        started = time.monotonic()
        card = training.train(
            training.Settings(
                windows=self.places.windows,
                policies=self.places.policies,
                num_actions=len(after),
                catalogue=after,
                parent=before.version if before else None,
                hyperparameters={"tikhonov": 0.3, "arm_features": self._world.arm_features},
                exploration=self._exploration,
                refused=guard.refused_windows(self.places),
            )
        )
        self._train_seconds = time.monotonic() - started
        version = before.version if before else None
        result = gate.evaluate(self.places.policies, self.places.windows, card.version, version)
        self._promoted = result.promoted
        if result.promoted:
            policy_store.roll_out(
                self.places.policies, card.version, result.reason, end + timedelta(seconds=SETTINGS.closing_seconds)
            )
        else:
            sys.stderr.write(f"window {self._number}: {result.reason}\n")
        self._shop.catalogue = after


def run(world: World, seed: int, windows: int, decisions: int) -> list[Churned]:
    """The windows of one loop, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        loop = ChurningLoop(Path(folder) / "root", Shop(world, seed), world, seed=seed, decisions=decisions)
        found = []
        for _ in range(windows):
            found.append(loop.churned())
            one = found[-1]
            sys.stderr.write(
                f"churn {world.churn:g}, window {one.window}: {one.share_of_oracle:.1%} of the oracle (uniform"
                f" {one.uniform:.1%}), {one.num_actions} actions, {one.new_items} new with {one.new_share:.1%},"
                f" {one.policy_megabytes:.1f} MB, trained in {one.train_seconds:.1f} s\n"
            )
        return found


def summary(rows: Sequence[Churned], settled: int) -> dict[str, float]:
    """The figures of one run, those of quality from window `settled` on."""
    late = [row for row in rows if row.window >= settled]
    return {
        "share_of_oracle": float(np.mean([row.share_of_oracle for row in late])),
        "uniform": float(np.mean([row.uniform for row in late])),
        "largest_share_of_new_items_beyond_their_budget": max(row.new_share - row.budget for row in rows),
        "largest_share_of_items_just_added": max(row.added_share for row in rows),
        "share_of_new_items": float(np.mean([row.new_share for row in late])),
        "decisions_for_retired_items": sum(row.retired_shown for row in rows),
        "windows_held": sum(row.held for row in rows),
        "versions_refused": sum(not row.promoted for row in rows),
        "actions_when_settled": late[0].num_actions,
        "actions_at_the_end": rows[-1].num_actions,
        "policy_megabytes_when_settled": late[0].policy_megabytes,
        "policy_megabytes_at_the_end": rows[-1].policy_megabytes,
        "train_seconds_when_settled": float(np.median([row.train_seconds for row in late[:10]])),
        "train_seconds_at_the_end": float(np.median([row.train_seconds for row in late[-10:]])),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs both loops and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=World().num_items)
    parser.add_argument("--churn", type=float, default=World().churn)
    parser.add_argument("--windows", type=int, default=50)
    parser.add_argument("--decisions", type=int, default=5_000, help="per window")
    parser.add_argument("--reuse-after-windows", type=int, default=World().reuse_after_windows)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arm-features", choices=("none", "shared", "hybrid"), default="hybrid")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    world = World(arguments.items, arguments.churn, arguments.reuse_after_windows, arguments.arm_features)
    settled = min(world.reuse_after_windows + 5, arguments.windows // 2)
    found = []
    for seed in arguments.seeds:
        runs = {
            name: run(one, seed, arguments.windows, arguments.decisions)
            for name, one in (("with churn", world), ("without churn", world._replace(churn=0.0)))
        }
        found.append(
            {
                "seed": seed,
                "summary": {name: summary(rows, settled) for name, rows in runs.items()},
                "windows": {name: msgspec.to_builtins(rows) for name, rows in runs.items()},
            }
        )
        for name, figures in found[-1]["summary"].items():
            print(f"seed {seed}, {name}: {json.dumps(figures)}")
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "seeds")}
    arguments.out.write_text(json.dumps({"settings": settings, "settled": settled, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
