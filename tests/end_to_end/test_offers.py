"""What was on offer, from the predictor's decision to the judged trajectory.

Real requests are decided by the predictor's code, travel as JSON, through the join and the codec into a window, and are
judged as the gate judges. There a policy's mean weight on its own log must be 1: at every place of a slate, with
candidates and with masked movies, for every explorer.
"""

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.reward_join import holdback_ids, in_holdback, join_rewards
from beam_jobs.tables import record_batch
from beam_jobs.window_files import WrittenBucket, trajectories, write_file, write_manifest
from contracts import policies
from contracts.policies import STRATEGIES, Exploration, Strategy, TrainedWindow
from contracts.records import Decision, RewardEvent, encoder, event_decoder
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import TrainingWindow, WindowCounts, WindowSettings
from orchestration import gate, held_back
from orchestration.audit import evidence
from orchestration.held_back import Judged
from predictor import deciding
from predictor import policy as serving
from predictor.line_up import LineUp
from predictor.messages import Instance
from predictor.policy import Policy
from tests.linear_policies import write_policy

K, D = 9, 3
EXPLORATION = {"epsilon": 0.3, "alpha": 1.0, "temperature": 1.0, "gamma": 5.0}
TASTE = np.random.default_rng(17).normal(size=(K, D))


class Offer(NamedTuple):
    """How requests ask, and what the policy offers."""

    candidates: bool
    masked: bool
    slate_size: int


OFFERS = {
    "everything": Offer(False, False, 1),
    "candidates": Offer(True, False, 1),
    "masked": Offer(False, True, 1),
    "slates": Offer(False, False, 3),
    "slates of candidates, some masked": Offer(True, True, 3),
}


def make_policy(store: Path, version: str, exploration: Exploration, seed: int, masked: bool) -> Policy:
    """A policy of which three movies are not on offer if `masked`, in the store."""
    card = write_policy(store / version, num_actions=K, observation_dim=D, seed=seed, exploration=exploration)
    if masked:
        catalogue = [
            msgspec.structs.replace(movie, status="masked" if movie.action in (1, 4, 7) else "active")
            for movie in card.catalogue
        ]
        card = msgspec.structs.replace(card, catalogue=catalogue)
        (store / version / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    return serving.load(store / version)


def served(policy: Policy, offer: Offer, requests: int) -> list[list[Decision]]:
    """The slates that the predictor decides for, as they come out of the event log."""
    rng = np.random.default_rng(3)
    asked = [
        Instance(
            rng.normal(size=D).tolist(),
            candidates=[0, 2, 3, *rng.permutation([1, 4, 5, 6, 7, 8])[: rng.integers(1, 4)].tolist()]
            if offer.candidates
            else [],
        )
        for _ in range(requests)
    ]
    line_up = LineUp(policy, serving.baseline(policy.card))
    decided = deciding.decide(line_up, deciding.check(asked, line_up, offer.slate_size), offer.slate_size)
    assert not decided.failures
    slates = [[event_decoder.decode(encoder.encode(decision)) for decision in slate] for slate in decided.slates]
    assert slates == decided.slates
    return slates  # type: ignore[return-value]


SETTINGS = WindowSettings(reward_window_seconds=2, holdback_share=0.8)


class Joined(NamedTuple):
    """Interactions of one window."""

    window: TrainingWindow
    rows: pa.RecordBatch
    counts: WindowCounts


def joined(slates: list[list[Decision]]) -> Joined:
    """The decisions with their rewards."""
    decisions = [decision for slate in slates for decision in slate]
    rewards = [
        RewardEvent(
            decision_id=decision.decision_id,
            occurred_at=decision.decided_at + timedelta(seconds=1),
            reward=float(TASTE[decision.action] @ decision.observation),
        )
        for decision in decisions
    ]
    start = decisions[0].decided_at.replace(microsecond=0)
    window = TrainingWindow(start, start + timedelta(seconds=5))
    rows = record_batch(DECISIONS, decisions)
    interactions, counts = join_rewards(
        decisions=pa.Table.from_batches([rows]),
        earlier=pa.Table.from_batches([rows.slice(0, 0).select(["decision_id", "decided_at"])]),
        rewards=pa.Table.from_batches([record_batch(REWARDS, rewards)]),
        statuses=pa.Table.from_batches([record_batch(STATUSES, [])]),
        window=window,
        settings=SETTINGS,
    )
    assert counts.rewards == len(decisions)
    return Joined(window, interactions, counts)


def export(folder: Path, found: Joined, version: str) -> TrainingWindow:
    """Writes the window: four fifths of its interactions are held back."""
    held = in_holdback(holdback_ids(found.rows), SETTINGS.holdback_share)
    target = folder / found.window.folder
    target.mkdir(parents=True)
    files = [
        write_file(
            str(target), f"part-{split}-00000.tfrecord", split, trajectories(found.rows.filter(pa.array(chosen)))
        )
        for split, chosen in (("train", ~held), ("holdback", held))
    ]
    written = WrittenBucket(files, found.counts, {version: found.rows.num_rows})
    write_manifest(written, str(target), found.window, SETTINGS, D)
    return found.window


def log(folder: Path, policy: Policy, offer: Offer, requests: int) -> tuple[Path, TrainingWindow]:
    """The windows folder, and the window of what the policy decided."""
    windows = folder / "windows"
    return windows, export(windows, joined(served(policy, offer, requests)), policy.card.version)


def judged(store: Path, windows: Path, window: TrainingWindow, policy: Policy) -> Judged:
    card = msgspec.structs.replace(policy.card, trained_on=[TrainedWindow(window=window, split="train", records=1)])
    return held_back.read(store, windows, card).judged_by([policy], K)


def weights(policy: Policy, on: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Probability / propensity of each logged action, and its place."""
    probabilities = policy.probabilities(on.decisions.observation, on.offered)
    chosen = probabilities[np.arange(len(probabilities)), on.decisions.action]
    place = on.decisions.place if on.decisions.place is not None else np.zeros(len(chosen), np.int32)
    return chosen / on.decisions.propensity, place


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_policys_weight_on_its_own_log_is_one_at_every_place(tmp_path: Path, strategy: Strategy, offer: str) -> None:
    """Not only on average: what the predictor did is computed again from what the window holds."""
    policy = make_policy(tmp_path, "v", Exploration(strategy=strategy, **EXPLORATION), 0, OFFERS[offer].masked)
    windows, window = log(tmp_path, policy, OFFERS[offer], 100)
    on = judged(tmp_path, windows, window, policy)
    weight, place = weights(policy, on)
    assert on.left_out == 0
    assert np.unique(place).tolist() == list(range(OFFERS[offer].slate_size))
    np.testing.assert_allclose(weight, 1, rtol=1e-5)  # trajectories hold float32


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("strategy", ["uniform", "epsilon_greedy", "ucb", "softmax", "inverse_gap"])
def test_another_policys_mean_weight_is_one_at_every_place(tmp_path: Path, strategy: Strategy, offer: str) -> None:
    policy = make_policy(tmp_path, "v", Exploration(strategy=strategy, **EXPLORATION), 0, OFFERS[offer].masked)
    windows, window = log(tmp_path, policy, OFFERS[offer], 3000)
    other = make_policy(tmp_path, "other", Exploration(strategy="softmax", temperature=1.0), 1, masked=False)
    weight, place = weights(other, judged(tmp_path, windows, window, other))
    for each in np.unique(place):
        here = weight[place == each]
        # Beyond 4, as a sample without the rarest, largest weights has too small a standard error.
        assert abs(here.mean() - 1) < 6 * here.std() / np.sqrt(len(here))


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_audit_replays_every_place(tmp_path: Path, strategy: Strategy, offer: str) -> None:
    policy = make_policy(tmp_path, "v", Exploration(strategy=strategy, **EXPLORATION), 0, OFFERS[offer].masked)
    rows = joined(served(policy, OFFERS[offer], 100)).rows
    found = evidence.gather(rows, 2.0, lambda _: evidence.Decider(policy, np.full(K, 100.0)))
    own = found.versions["v"]
    assert (own.replayed, own.propensity_differs, own.action_differs) == (rows.num_rows, 0, 0)
    assert sum(found.expected) == pytest.approx(rows.num_rows)


def test_the_gate_finds_what_slates_earned(tmp_path: Path) -> None:
    """The value of the policy that made them is the mean reward that they had."""
    exploration = Exploration(strategy="softmax", **EXPLORATION)
    policy = make_policy(tmp_path, "v", exploration, 0, masked=True)
    windows, window = log(tmp_path, policy, OFFERS["slates of candidates, some masked"], 2000)
    card = msgspec.structs.replace(policy.card, trained_on=[TrainedWindow(window=window, split="train", records=1)])
    (tmp_path / "v" / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    result = gate.evaluate(tmp_path, windows, "v", None)
    earned = float(held_back.read(tmp_path, windows, card).decisions.reward.mean())
    assert result.evaluation is not None and result.evaluation.reliable
    assert result.evaluation.low < earned < result.evaluation.high
    assert result.evaluation.value == pytest.approx(earned, abs=0.02)


def test_without_what_was_on_offer_a_slates_weights_are_wrong(tmp_path: Path) -> None:
    """So that the tests above could fail: over all arms, the weight falls from place to place."""
    exploration = Exploration(strategy="epsilon_greedy", **EXPLORATION)
    policy = make_policy(tmp_path, "v", exploration, 0, masked=False)
    windows, window = log(tmp_path, policy, OFFERS["slates"], 1000)
    on = judged(tmp_path, windows, window, policy)
    weight, place = weights(policy, on._replace(offered=np.ones_like(on.offered)))
    means = [weight[place == each].mean() for each in range(3)]
    assert means[0] == pytest.approx(1, abs=1e-5)
    assert means[1] < 0.5 and means[2] < 0.5
