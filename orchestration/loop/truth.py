"""The ground truth, recorded by the viewers, with which the loop's figures are compared.

The simulator writes it, beside and independent of the event log; the report reads it. JSON lines in files that are only
appended to; a line that a killed simulator left torn is passed over (its decisions are then unknown here, never lost).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from contracts.errors import InputError

Fault = Literal["", "twice", "late"]


class SessionStart(msgspec.Struct, frozen=True, array_like=True, tag="session"):
    """The viewers of the first run, or of a resumed one, began to ask."""

    start: float  # seconds since the epoch, of the first window
    first_window: int  # its number


class ServedDecision(msgspec.Struct, frozen=True, array_like=True, tag="served"):
    """A decision that the predictor served: its user, its action, and its expected reward."""

    decision_id: str
    policy_version: str
    user: int
    action: int
    propensity: float
    expected_reward: float  # of that user and that action
    oracle_reward: float  # of that user and the best action
    asked_at: float  # seconds since the epoch


class OfferedReward(msgspec.Struct, frozen=True, array_like=True, tag="offered"):
    """A reward about to be sent. When no `SentReward` follows, the viewer was killed and it perhaps arrived."""

    decision_id: str
    reward: float
    occurred_at: int  # microseconds since the epoch


class SentReward(msgspec.Struct, frozen=True, array_like=True, tag="sent"):
    """A reward that the predictor accepted, sent for a decision (`fault` "twice": two copies of it)."""

    decision_id: str
    reward: float
    occurred_at: int  # microseconds since the epoch, as in the event
    sent_at: float  # seconds since the epoch
    fault: Fault


class InjectedFaults(msgspec.Struct, frozen=True, array_like=True, tag="faults"):
    """The number of faulty events of each kind that were added to the log."""

    orphan_rewards: int = 0
    redelivered_decisions: int = 0
    redelivered_rewards: int = 0
    malformed: int = 0
    refused_requests: int = 0  # malformed requests that the predictor answered with 4xx, so nothing was logged


class RequestFailure(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """A request without a successful answer."""

    reason: str
    decisions: int


Entry = SessionStart | ServedDecision | OfferedReward | SentReward | InjectedFaults | RequestFailure

_decoder = msgspec.json.Decoder(Entry)
_encoder = msgspec.json.Encoder()


def decided_milliseconds(decision_id: str) -> int:
    """When the decision was made, since the epoch: the time part of its UUIDv7 (RFC 9562, section 5.7)."""
    return int(decision_id[:8] + decision_id[9:13], 16)


def windows_passed(sessions: Sequence[SessionStart], moments: np.ndarray, window_seconds: float) -> np.ndarray:
    """The number of windows served before each moment: the clock by which tastes drift.

    It stands still while no viewer comes: a resumed run goes on at the first window that it serves.

    Args:
      sessions: in the order of their starts.
      moments: [N] seconds since the epoch.
      window_seconds: length of a window.

    Returns:
      [N] float64, 0 before the first session.
    """
    if not sessions:
        return np.zeros(len(moments))
    starts = np.array([session.start for session in sessions])
    done = np.array([session.first_window - 1 for session in sessions])
    latest = np.searchsorted(starts, moments, side="right") - 1
    return np.where(latest < 0, 0.0, done[latest] + (moments - starts[latest]) / window_seconds)


class TruthLog:
    """Appends entries to a file, each batch in one write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def append(self, entries: Iterable[Entry]) -> None:
        """Writes the entries through to the operating system before it returns."""
        self._file.write(_encoder.encode_lines(entries))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TruthReader:
    """Reads what was appended to the truth files of a folder since the last call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}

    def read(self) -> list[Entry]:
        """New entries, in the order of files and lines. Raises InputError that names a file with a line that is not one."""
        entries: list[Entry] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            complete = data.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + complete
            try:
                entries.extend(_decoder.decode(line) for line in data[:complete].splitlines())
            except msgspec.DecodeError as error:
                raise InputError(f"{path}: not what viewers write down: {error}") from None
        return entries
