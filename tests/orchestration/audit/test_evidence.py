"""The evidence of a window: replayed by a real policy, and the same whether it is summed whole or in parts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.tables import record_schema
from contracts.policies import Exploration
from contracts.records import Interaction
from orchestration.audit.deciders import load_decider
from orchestration.audit.evidence import Decider, Evidence, calibration_sums, gather, prediction_bins
from predictor import deciding, exploration
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
DIM, COUNT = 2, 300


@pytest.fixture(scope="module")
def decider(tmp_path_factory: pytest.TempPathFactory) -> Decider:
    store: Path = tmp_path_factory.mktemp("store")
    write_policy(store / "v", exploration=Exploration(strategy="epsilon_greedy", epsilon=0.3))
    loaded = load_decider(store, "v")
    assert loaded is not None
    return Decider(loaded.policy, np.full(loaded.policy.card.num_actions, 100.0))


def logged(decider: Decider) -> list[Interaction]:
    """Decisions of the policy, drawn as the predictor draws them."""
    rng = np.random.default_rng(1)
    policy = decider.policy
    observations = rng.normal(0, 1, (COUNT, policy.card.observation_dim)).astype(np.float32)
    moments = [START + timedelta(milliseconds=10 * row) for row in range(COUNT)]
    ids = [deciding.new_decision_ids(round(moment.timestamp() * 1e3), 1)[0] for moment in moments]
    candidates = [[] if row % 2 else list(range(policy.card.num_actions - 1)) for row in range(COUNT)]
    probabilities = policy.probabilities(observations, candidates)
    actions = exploration.draw(probabilities, ids, "v")
    return [
        Interaction(
            decision_id=ids[row],
            decided_at=moments[row],
            policy_version="v",
            observation=observations[row].tolist(),
            candidates=candidates[row],
            action=int(actions[row]),
            propensity=float(probabilities[row, actions[row]]),
            reward=1.0,
            rewarded_at=moments[row] + timedelta(seconds=0.5) if row % 3 else None,
            defaulted=row % 3 == 0,
        )
        for row in range(COUNT)
    ]


def batch(rows: list[Interaction]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([msgspec.structs.asdict(row) for row in rows], record_schema(Interaction))


def of(rows: list[Interaction], decider: Decider | None) -> Evidence:
    return gather(batch(rows), 2.0, lambda _: decider)


def test_an_honest_log_replays(decider: Decider) -> None:
    found = of(logged(decider), decider)
    own = found.versions["v"]
    assert (own.decisions, own.replayed) == (COUNT, COUNT)
    assert (own.propensity_differs, own.action_differs, found.times_differ) == (0, 0, 0)
    assert found.rewarded == sum(found.rewarded_by_action) == COUNT - COUNT // 3
    assert sum(found.taken) == pytest.approx(sum(found.expected)) == COUNT
    assert sum(found.delays) == found.rewarded
    assert own.judged == found.rewarded


@pytest.mark.parametrize(
    ("changes", "propensity", "action", "times"),
    [
        ({"propensity": 0.1234}, 1, 0, 0),
        ({"decided_at": START + timedelta(seconds=4.9)}, 0, 0, 1),
    ],
)
def test_one_altered_decision_is_counted(
    decider: Decider, changes: dict[str, object], propensity: int, action: int, times: int
) -> None:
    rows = logged(decider)
    rows[0] = msgspec.structs.replace(rows[0], **changes)
    found = of(rows, decider)
    own = found.versions["v"]
    assert (own.propensity_differs, own.action_differs, found.times_differ) == (propensity, action, times)


def test_an_altered_action_is_counted(decider: Decider) -> None:
    rows = logged(decider)
    rows[1] = msgspec.structs.replace(rows[1], action=(rows[1].action + 1) % decider.policy.card.num_actions)
    assert of(rows, decider).versions["v"].action_differs == 1


def test_another_observation_does_not_replay(decider: Decider) -> None:
    rows = logged(decider)
    shifted = [
        msgspec.structs.replace(row, observation=other.observation)
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    own = of(shifted, decider).versions["v"]
    assert own.propensity_differs + own.action_differs > COUNT / 4


def test_candidates_that_cannot_have_been_offered_do_not_replay(decider: Decider) -> None:
    rows = logged(decider)
    rows[0] = msgspec.structs.replace(rows[0], candidates=[rows[0].action, 1_000_000])
    own = of(rows, decider).versions["v"]
    assert (own.replayed, own.propensity_differs, own.action_differs) == (COUNT, 1, 1)


def test_silence_is_judged_where_it_counts(decider: Decider) -> None:
    rows = batch(logged(decider))
    silent = gather(rows, 2.0, lambda _: decider).versions["v"]
    counted = gather(rows, 2.0, lambda _: decider, silence_counts=True).versions["v"]
    assert (silent.judged, counted.judged) == (COUNT - COUNT // 3, COUNT)


def test_a_version_that_is_gone_is_not_replayed(decider: Decider) -> None:
    own = of(logged(decider), None).versions["v"]
    assert (own.decisions, own.replayed, own.judged) == (COUNT, 0, 0)


def test_parts_add_up(decider: Decider) -> None:
    rows = logged(decider)
    whole = of(rows, decider)
    parts = of(rows[:100], decider).merge(of(rows[100:], decider))
    for name in Evidence.__struct_fields__:
        one, other = getattr(whole, name), getattr(parts, name)
        if name == "versions":
            bins = [dict(sorted(versions["v"].calibration.items())) for versions in (one, other)]
            assert list(bins[0]) == list(bins[1])
            np.testing.assert_allclose(list(bins[0].values()), list(bins[1].values()), rtol=1e-9)
            one, other = (
                [value for key, value in msgspec.structs.asdict(versions["v"]).items() if key != "calibration"]
                for versions in (one, other)
            )
        elif name == "shares":
            continue  # tests/orchestration/audit/test_shares.py
        np.testing.assert_allclose(one, other, rtol=1e-9, err_msg=name)


def test_bins_of_predictions_keep_their_order_and_their_sums() -> None:
    rng = np.random.default_rng(0)
    predicted = np.sort(np.concatenate([rng.normal(0, 3, 500), [0.0, 1e-300, -1e-300, 1e300]]))
    assert (np.diff(prediction_bins(predicted)) >= 0).all()
    reward = predicted[1:-1]
    sums = np.array(list(calibration_sums(reward, reward).values())).sum(axis=0)
    np.testing.assert_allclose(sums, [len(reward), reward.sum(), reward.sum(), 0.0])


def test_only_replayed_decisions_count_for_their_propensities(decider: Decider) -> None:
    rows = logged(decider)
    mixed = [msgspec.structs.replace(row, policy_version="gone") for row in rows[:100]] + rows[100:]
    found = gather(batch(mixed), 2.0, lambda version: decider if version == "v" else None)
    alone = of(rows[100:], decider)
    assert (found.inverse_propensity, found.on_offer) == (alone.inverse_propensity, alone.on_offer)
    assert abs(found.bet) < 4 * np.sqrt(found.bet_variance)


def test_an_empty_window_has_no_evidence() -> None:
    assert of([], None) == Evidence()
