"""The closed loop in simulated time: the product's own tables, export, audit, guard, training and gate, without processes.

Decisions are drawn by the policy that serves, and their rewards by viewers of MovieLens. A sabotage changes the rows on
their way from the predictor and the viewers to the tables, as a broken feed would. The product sees the tables alone.
"""

import shutil
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import generate_movielens, tables, warehouse, window_files
from beam_jobs.movielens import MovieLens
from beam_jobs.reward_join import JoinedBucket, join_rewards
from beam_jobs.warehouses import Warehouse, open_warehouse
from beam_jobs.window_rows import read_tables
from contracts.policies import Champion, Exploration
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import gate, policy_store, probation
from orchestration.audit import guard
from orchestration.audit.auditor import Auditor
from orchestration.audit.guard import Guard
from orchestration.audit.settings import GuardSettings
from orchestration.audit.window_audits import WindowAudit
from orchestration.loop.audience import LATE_SECONDS, SHARE_LATE
from orchestration.places import Places
from orchestration.watch import Caution, Look
from predictor import deciding
from predictor import exploration as explorers
from predictor import policy as serving
from predictor.line_up import LineUp
from trainer import training

WINDOW = timedelta(seconds=5)
SETTINGS = WindowSettings(reward_window_seconds=2.0, settle_seconds=1.0, missing_reward="drop")
ANSWER_SECONDS = (0.05, 1.0)


class Rows(NamedTuple):
    """The decisions of a window and their rewards, column by column; row i of one belongs to row i of the other."""

    decision_id: np.ndarray  # [N] text
    decided_at: np.ndarray  # [N] microseconds since the epoch
    version: np.ndarray  # [N] text
    observation: np.ndarray  # [N, D] float32
    action: np.ndarray  # [N]
    propensity: np.ndarray  # [N]
    reward: np.ndarray  # [N]
    occurred_at: np.ndarray  # [N] microseconds since the epoch
    answered: np.ndarray  # [N] bool


class Conditions(NamedTuple):
    """What a loop has to live with, though nothing is wrong with its log."""

    drift: float = 0.0  # radians by which tastes turn per window
    half_life: float = 0.0  # of the evidence, in windows; 0: infinite
    new_movies: int = 0  # that come out when serving begins
    silent_share: float = 0.05  # of viewers, who never answer
    fault_rate: float = 0.0  # of events: redelivered, late, or for a decision that was never made


Sabotage = Callable[[Rows, int, np.random.Generator], Rows]


class Served(NamedTuple):
    """What became of one window."""

    number: int
    version: str
    share_of_oracle: float  # expected reward of what was served, by the viewers' truth
    audit: WindowAudit
    held: bool
    look: Look | None  # at the version on probation


class SimulatedLoop:
    """One run below `root`, window after window."""

    def __init__(
        self,
        root: Path,
        viewers: MovieLens,
        *,
        seed: int,
        decisions: int = 2000,
        conditions: Conditions = Conditions(),  # noqa: B008 - immutable
        exploration: Exploration = Exploration(strategy="ucb", alpha=0.2, epsilon=0.02),  # noqa: B008 - frozen
        caution: Caution = Caution(anchor_share=0.0),  # noqa: B008 - frozen
    ) -> None:
        self.places = Places(root)
        self._viewers = viewers
        self._decisions = decisions
        self._conditions = conditions
        self._exploration = exploration
        self._caution = caution
        self._rng = np.random.default_rng([seed, 0])
        self._sabotage_rng = np.random.default_rng([seed, 1])
        self._fault_rng = np.random.default_rng([seed, 2])
        warehouse.create(self.places.warehouse)
        self._source: Warehouse = open_warehouse(str(self.places.warehouse), PipelineOptions([]))
        auditor = Auditor(self._source, self.places.policies, self.places.audit, SETTINGS)
        self._guard = Guard(self.places, auditor, GuardSettings())
        self._origin = datetime(2026, 1, 1, tzinfo=UTC)
        self._number = 0

    def copy(self, root: Path) -> Self:
        """The same loop below another folder, from here on on its own: what it serves next is what this one would."""
        shutil.copytree(self.places.root, root)
        other = type(self)(
            root,
            self._viewers,
            seed=0,
            decisions=self._decisions,
            conditions=self._conditions,
            exploration=self._exploration,
            caution=self._caution,
        )
        for name in ("_rng", "_sabotage_rng", "_fault_rng", "_number"):
            setattr(other, name, deepcopy(getattr(self, name)))
        return other

    def window(self, sabotage: Sabotage | None = None) -> Served:
        """Serves one window, and deals with it as the loop does."""
        start = self._origin + self._number * WINDOW
        window = TrainingWindow(start, start + WINDOW)
        rows, share = self._serve(window)
        version = str(rows.version[0])
        if sabotage is not None:
            rows = sabotage(rows, self._number, self._sabotage_rng)
        self._store(rows)
        now = window.end + timedelta(seconds=SETTINGS.closing_seconds)
        self._export(window)
        audit = self._guard.check(window, now)
        held = guard.is_held(self.places.root)
        source = probation.Source(self._source, SETTINGS)
        look = probation.step(self.places, source, window, now) if audit.accepted else None
        if not held:
            self._learn(now)
        self._number += 1
        return Served(self._number - 1, version, share, audit, held, look)

    def _serve(self, window: TrainingWindow) -> tuple[Rows, float]:
        champion = policy_store.champion(self.places.policies) if self.places.policies.is_dir() else None
        line_up = None if champion is None else self._line_up(champion)
        return self._decided(window.start, WINDOW, self._decisions, line_up)

    def _decided(self, start: datetime, length: timedelta, count: int, line_up: LineUp | None) -> tuple[Rows, float]:
        """`count` decisions by the policies of `line_up` (None: uniform), and their share of the oracle's reward."""
        viewers, rng = self._viewers, self._rng
        users = rng.integers(0, viewers.num_users, count)
        observation = viewers.observations[users]
        first = round(start.timestamp() * 1e6)
        decided_at = first + np.sort(rng.integers(0, round(length.total_seconds() * 1e6), count))
        ids = generate_movielens.uuid7(decided_at, rng).astype("U36")
        version = np.full(count, generate_movielens.POLICY_VERSION, dtype=object)
        if line_up is None:
            on_offer = viewers.masking(viewers.drawn_actions(self._conditions.new_movies)).on_offer
            action = on_offer[rng.integers(0, len(on_offer), count)]
            propensity = np.full(count, 1 / len(on_offer))
        else:
            action, propensity = np.zeros(count, np.int64), np.zeros(count)
            for policy, of_policy in line_up.shares(ids.tolist()):
                probabilities = policy.probabilities(deciding.fitted(observation[of_policy].tolist(), policy))
                version[of_policy] = policy.card.version
                action[of_policy] = explorers.draw(probabilities, ids[of_policy].tolist(), policy.card.version)
                propensity[of_policy] = probabilities[np.arange(len(of_policy)), action[of_policy]]
        angle = self._conditions.drift * self._number
        expected = viewers.expected_of_all_actions(users, angle)
        reward = viewers.observed_rewards(users, action, rng, angle)
        delay = (rng.uniform(*ANSWER_SECONDS, count) * 1e6).astype(np.int64)
        rows = Rows(
            decision_id=ids,
            decided_at=decided_at,
            version=version.astype(str),
            observation=observation,
            action=action,
            propensity=propensity,
            reward=reward,
            occurred_at=decided_at + delay,
            answered=rng.random(count) >= self._conditions.silent_share,
        )
        return rows, float(expected[np.arange(count), action].mean() / expected.max(axis=1).mean())

    def _line_up(self, champion: Champion) -> LineUp:
        serves = serving.load(self.places.policies / champion.version)
        if champion.anchor is None:
            return LineUp(serves, serves)
        anchor = serving.load(self.places.policies / champion.anchor)
        return LineUp(serves, serves, anchor=anchor, anchor_share=champion.anchor_share)

    def _store(self, rows: Rows) -> None:
        decisions = [
            Decision(
                decision_id=decision_id,
                decided_at=_moment(decided_at),
                policy_version=version,
                observation=observation,
                action=action,
                propensity=propensity,
            )
            for decision_id, decided_at, version, observation, action, propensity in zip(
                *(column.tolist() for column in rows[:6]), strict=True
            )
        ]
        rewards = [
            RewardEvent(decision_id=decision_id, occurred_at=_moment(occurred_at), reward=reward)
            for decision_id, occurred_at, reward, answered in zip(
                *(getattr(rows, name).tolist() for name in ("decision_id", "occurred_at", "reward", "answered")),
                strict=True,
            )
            if answered
        ]
        if self._conditions.fault_rate:
            decisions, rewards = self._with_faults(decisions, rewards)
        for table, records in ((DECISIONS, decisions), (REWARDS, rewards)):
            batch = tables.record_batch(table, records)
            warehouse.write(self.places.warehouse, table, f"window-{self._number:05d}", batch)

    def _with_faults(
        self, decisions: list[Decision], rewards: list[RewardEvent]
    ) -> tuple[list[Decision], list[RewardEvent]]:
        """The faults of `orchestration.loop.simulator`: events that come twice, late rewards, and orphans."""
        rate, rng = self._conditions.fault_rate, self._fault_rng
        again = [decision for decision in decisions if rng.random() < rate / 2]
        kept = []
        for reward in rewards:
            lot = rng.random() / rate
            late = timedelta(seconds=SETTINGS.reward_window_seconds + rng.uniform(*LATE_SECONDS))
            if lot < SHARE_LATE:
                reward = msgspec.structs.replace(reward, occurred_at=reward.occurred_at + late)
            elif lot < SHARE_LATE + 1 / 3:
                kept.append(reward)  # sent twice
            elif lot < SHARE_LATE + 2 / 3:
                stranger = f"{reward.decision_id[:24]}{rng.bytes(6).hex()}"
                kept.append(msgspec.structs.replace(reward, decision_id=stranger))
            kept.append(reward)
        return decisions + again, kept

    def _export(self, window: TrainingWindow) -> None:
        """The export's own functions, one after the other: starting a Beam pipeline takes longer than all they do."""
        inputs = read_tables(self._source, window, SETTINGS)
        joined = JoinedBucket(0, *join_rewards(**inputs, window=window, settings=SETTINGS))
        folder = str(self.places.windows / window.folder)
        written = window_files.add_up(
            window_files.WriteBucketFn(folder, SETTINGS.holdback_share, 100_000).process(joined)
        )
        window_files.write_manifest(written, folder, window, SETTINGS, self._viewers.observation_dim)

    def _learn(self, now: datetime) -> None:
        champion = policy_store.champion(self.places.policies) if self.places.policies.is_dir() else None
        before = champion.version if champion else None
        card = training.train(
            training.Settings(
                windows=self.places.windows,
                policies=self.places.policies,
                num_actions=self._viewers.num_actions,
                catalogue=self._viewers.catalogue,
                parent=before,
                hyperparameters={"tikhonov": 0.3, "half_life": self._conditions.half_life},
                exploration=self._exploration,
                refused=guard.refused_windows(self.places),
            )
        )
        if card.version == before:
            return
        anchor = champion.anchor if champion else None
        result = gate.evaluate(self.places.policies, self.places.windows, card.version, before, anchor=anchor)
        if result.promoted:
            source = probation.Source(self._source, SETTINGS)
            probation.enter(self.places, source, card.version, self._caution, result.reason, now)


def _moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def _permuted(rows: Rows, _: int, rng: np.random.Generator) -> Rows:
    return rows._replace(reward=rng.permutation(rows.reward))


def _permuted_in_part(rows: Rows, _: int, rng: np.random.Generator) -> Rows:
    chosen = np.flatnonzero(rng.random(len(rows.reward)) < 0.3)
    reward = rows.reward.copy()
    reward[chosen] = rng.permutation(reward[chosen])
    return rows._replace(reward=reward)


def _good_arms(rows: Rows) -> np.ndarray:
    """[N] bool: decisions for the most taken fifth of the arms."""
    taken = np.bincount(rows.action)
    return np.isin(rows.action, np.argsort(-taken)[: max(len(taken) // 5, 1)])


def _altered(rows: Rows, _: int, rng: np.random.Generator) -> Rows:
    chosen = rng.random(len(rows.action)) < 0.3
    other = rng.integers(0, int(rows.action.max()) + 1, len(rows.action))
    return rows._replace(action=np.where(chosen, other, rows.action))


class Sabotages:
    """Every sabotage by name. Each call makes a fresh set, as some remember the window before."""

    def __init__(self, first_window: int, versions: list[str], num_actions: int) -> None:
        self._first = first_window
        self._versions = versions
        self._num_actions = num_actions
        self.by_name: dict[str, Sabotage] = {
            "rewards permuted": _permuted,
            "propensities logged as 1/K": lambda rows, _, __: rows._replace(
                propensity=np.full(len(rows.action), 1 / self._num_actions)
            ),
            "propensities halved": lambda rows, _, __: rows._replace(propensity=rows.propensity / 2),
            "rewards of half of the arms dropped": lambda rows, _, __: rows._replace(
                answered=rows.answered & (rows.action % 2 == 0)
            ),
            "served by A, logged as B": lambda rows, _, __: rows._replace(
                version=np.full(len(rows.version), next(v for v in reversed(self._versions) if v != rows.version[0]))
            ),
            "stale observations": lambda rows, _, __: rows._replace(observation=np.roll(rows.observation, 1, axis=0)),
            "reward times shifted": lambda rows, _, __: rows._replace(occurred_at=rows.occurred_at + 900_000),
            "30% of actions altered": _altered,
            "30% of rewards permuted": _permuted_in_part,
            "rewards flipped": lambda rows, _, __: rows._replace(reward=-rows.reward),
            "good arms paid half": lambda rows, _, __: rows._replace(
                reward=np.where(_good_arms(rows), rows.reward / 2, rows.reward)
            ),
            "minus 5% per window": lambda rows, number, __: rows._replace(
                reward=rows.reward * 0.95 ** (number - self._first + 1)
            ),
        }
