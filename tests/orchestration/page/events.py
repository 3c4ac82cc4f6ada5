"""Events as they stand in the log, for what follows it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts.event_segments import OPEN_SUFFIX, SEALED_SUFFIX, segment_name
from contracts.records import Decision, RewardEvent, encoder

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def identity(number: int, at: datetime) -> str:
    milliseconds = f"{int(at.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-{number:012x}"


def decision(number: int, seconds: float = 0.0, **changed) -> Decision:
    at = START + timedelta(seconds=seconds)
    values = {
        "decision_id": identity(number, at),
        "decided_at": at,
        "policy_version": "v1",
        "user_id": f"u{number}",
        "observation": [1.0, 0.5, -0.25],
        "action": 0,
        "propensity": 0.9,
    }
    return Decision(**(values | changed))


def reward(of: Decision, value: float, after: float = 1.0) -> RewardEvent:
    return RewardEvent(decision_id=of.decision_id, occurred_at=of.decided_at + timedelta(seconds=after), reward=value)


def lines(*events: Decision | RewardEvent) -> list[bytes]:
    return [encoder.encode(event) for event in events]


def segment(
    folder: Path, seconds: float, data: list[bytes], *, sealed: bool = True, writer: str = "predictor-1"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = segment_name(START + timedelta(seconds=seconds), writer)
    path = folder / f"{name}{SEALED_SUFFIX if sealed else OPEN_SUFFIX}"
    path.write_bytes(b"".join(line + b"\n" for line in data))
    return path
