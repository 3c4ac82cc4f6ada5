"""What really happened, as the viewers know it: the ground truth that the loop's figures are held against.

The simulator writes it, beside and independent of the event log; the report reads it. JSON lines in files that are only
appended to; a line that a killed simulator left torn is passed over (its decisions are then unknown here, never lost).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

Fault = Literal["", "twice", "late"]


class ServedDecision(msgspec.Struct, frozen=True, array_like=True, tag="served"):
    """An answered request: who asked, what was chosen, what it was worth."""

    decision_id: str
    policy_version: str
    user: int
    action: int
    propensity: float
    expected_reward: float  # of that user and that action
    oracle_reward: float  # of that user and the best action
    asked_at: float  # seconds since the epoch


class SentReward(msgspec.Struct, frozen=True, array_like=True, tag="sent"):
    """A reward that the predictor accepted, sent for a decision (`fault` "twice": two copies of it)."""

    decision_id: str
    reward: float
    occurred_at: int  # microseconds since the epoch, as in the event
    sent_at: float  # seconds since the epoch
    fault: Fault


class InjectedFaults(msgspec.Struct, frozen=True, array_like=True, tag="faults"):
    """How many bad events were put among the good ones."""

    orphan_rewards: int = 0
    redelivered_decisions: int = 0
    redelivered_rewards: int = 0
    malformed: int = 0
    refused_requests: int = 0  # malformed requests that the predictor answered with 4xx, so nothing was logged


class RequestFailure(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """A request that got no proper answer."""

    reason: str
    decisions: int


Entry = ServedDecision | SentReward | InjectedFaults | RequestFailure

_decoder = msgspec.json.Decoder(Entry)
_encoder = msgspec.json.Encoder()


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
        """New entries, in the order of files and lines."""
        entries: list[Entry] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            complete = data.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + complete
            entries.extend(_decoder.decode(line) for line in data[:complete].splitlines())
        return entries
