"""The process that makes a running loop's log wrong."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.segment_proxy import Proxy
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.records import Decision, RewardEvent, encoder, event_decoder
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import SessionStart, TruthLog
from predictor.deciding import new_decision_ids

START = datetime(2026, 1, 1, tzinfo=UTC)
FIRST_BAD = 2  # from 5 s on


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.create(LoopSettings(num_actions=4), [])
    truth = TruthLog(folder.truth / "viewers-0001.jsonl")
    truth.append([SessionStart(START.timestamp(), 1)])
    truth.close()
    return folder


def events(seconds: float) -> list[Decision | RewardEvent]:
    """A decision every 10 ms, and its reward 300 ms later."""
    found: list[Decision | RewardEvent] = []
    for number in range(20):
        moment = START + timedelta(seconds=seconds + number / 100)
        decision = Decision(
            decision_id=new_decision_ids(round(moment.timestamp() * 1e3), 1)[0],
            decided_at=moment,
            policy_version="v",
            observation=[1.0, float(number)],
            action=number % 4,
            propensity=0.5,
        )
        reward = RewardEvent(
            decision_id=decision.decision_id, occurred_at=moment + timedelta(seconds=0.3), reward=float(number)
        )
        found += [decision, reward]
    return found


def write(folder: RunFolder, number: int, lines: list[bytes]) -> Path:
    path = folder.events / f"{segment_name(START + timedelta(seconds=number), 'test')}{SEALED_SUFFIX}"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_events_are_changed_from_the_first_bad_window_on(folder: RunFolder) -> None:
    good, bad = events(4.5), events(5.5)
    proxy = Proxy(folder, "rewards flipped", FIRST_BAD, seed=0)
    before = write(folder, 1, [encoder.encode(event) for event in good])
    kept = before.read_bytes()
    after = write(folder, 2, [*(encoder.encode(event) for event in bad), b"{broken"])
    proxy.look()
    assert before.read_bytes() == kept
    *lines, last = after.read_bytes().splitlines()
    found = [event_decoder.decode(line) for line in lines]
    assert last == b"{broken"
    assert [one.reward for one in found if isinstance(one, RewardEvent)] == [-float(number) for number in range(20)]
    assert [one for one in found if isinstance(one, Decision)] == [one for one in bad if isinstance(one, Decision)]
    assert (proxy.segments, proxy.too_late) == (1, 0)


def test_lost_rewards_and_events_that_come_again(folder: RunFolder) -> None:
    bad = events(5.5)
    proxy = Proxy(folder, "rewards of half of the arms dropped", FIRST_BAD, seed=0)
    first = write(folder, 1, [encoder.encode(event) for event in bad])
    proxy.look()
    found = [event_decoder.decode(line) for line in first.read_bytes().splitlines()]
    assert [one.reward for one in found if isinstance(one, RewardEvent)] == [float(n) for n in range(0, 20, 2)]
    again = write(folder, 2, [encoder.encode(bad[1]), encoder.encode(bad[3])])  # rewards of actions 0 and 1
    proxy.look()
    assert [event_decoder.decode(line) for line in again.read_bytes().splitlines()] == [bad[1]]
    (folder.warehouse / "ingested").mkdir(parents=True)
    late = write(folder, 3, [encoder.encode(event) for event in bad[4:]])
    (folder.warehouse / "ingested" / f"{late.stem}.json").touch()
    proxy.look()
    assert (proxy.segments, proxy.too_late) == (3, 1)
