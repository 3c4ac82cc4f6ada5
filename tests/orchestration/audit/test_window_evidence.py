"""The evidence of rows as they are in the tables."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from beam_jobs.tables import arrow_schema, record_batch
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import TrainingWindow, WindowSettings
from orchestration.audit.window_evidence import Question, gather_window
from predictor.deciding import new_decision_ids

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))


def decision(number: int, **changes: object) -> Decision:
    moment = START + timedelta(milliseconds=number)
    fields = {
        "decision_id": IDS[number],
        "decided_at": moment,
        "policy_version": "v",
        "observation": [1.0, 2.0],
        "action": 0,
        "propensity": 0.5,
    }
    return Decision(**(fields | changes))  # type: ignore[arg-type]


IDS = [new_decision_ids(round(START.timestamp() * 1e3) + number, 1)[0] for number in range(20)]


def gathered(decisions: list[Decision], rewards: list[RewardEvent]):  # type: ignore[no-untyped-def]
    tables = {
        "decisions": pa.Table.from_batches([record_batch(DECISIONS, decisions)]),
        "earlier": arrow_schema(DECISIONS, ("decision_id", "decided_at")).empty_table(),
        "rewards": pa.Table.from_batches([record_batch(REWARDS, rewards)]),
        "statuses": arrow_schema(STATUSES).empty_table(),
    }
    return gather_window(tables, Question(WINDOW, WindowSettings(missing_reward="drop"), 2, []), lambda _: None)


def test_rows_that_came_again_and_rows_that_changed() -> None:
    decisions = [decision(number) for number in range(20)]
    found = gathered([*decisions, decisions[0], decisions[1], decision(2, action=1)], [])
    assert (found.evidence.decisions, found.evidence.duplicates, found.evidence.conflicting) == (20, 3, 1)


def test_rewards_before_decisions_and_other_lengths() -> None:
    rewards = [
        RewardEvent(decision_id=IDS[0], occurred_at=START - timedelta(milliseconds=100), reward=1.0),
        RewardEvent(decision_id=IDS[1], occurred_at=START + timedelta(seconds=1), reward=1.0),
    ]
    found = gathered([decision(0), decision(1), decision(2, observation=[1.0])], rewards)
    assert (found.evidence.decisions, found.evidence.rewarded, found.evidence.early_rewards) == (2, 1, 1)
    assert found.interactions.num_rows == 2
