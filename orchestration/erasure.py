"""The command `erase`: removes a user from the event log, the tables, the windows and the linear policies below a root.

Policies come first and tables last, because the tables tell what is the user's: an erasure that died is repeated with the
same command, and takes nothing out twice.
"""

import argparse
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from contracts.command_line import FlagParser
from contracts.errors import InputError, OperationError
from contracts.event_segments import open_segments
from contracts.policies import CARD_NAME, decode_card
from contracts.windows import MANIFEST_NAME, decode_manifest
from orchestration import policy_store
from orchestration.places import Places, append_line
from orchestration.processes import native_messages_withheld

if TYPE_CHECKING:
    from beam_jobs.erasure import UserRows, WindowShare
    from contracts.windows import Manifest
    from trainer.erasure import Part

RECORD_NAME = "erasures.jsonl"
_HELP = """Removes a user: the decisions, their rewards and the dead letters in the event log and the tables, the trajectories in
the training windows, and what they added to the sums of linear policies. Stop the loop, the pipelines and the
predictors first, and start them again afterwards: a policy keeps its version, so a running predictor would not load it
again.

    python -m orchestration.cli erase --root runs/latest --user 0a1b2c3d-user

Prints what was removed, and what could not be and why. The exit code is 0 when nothing names the user any more, and 3
otherwise. Counts are kept in erasures.jsonl below the root, without the user's id. The root must be on this machine: the
tables in BigQuery and files in a bucket are not covered.
"""


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What one erasure removed. It does not name the user."""

    erased_at: datetime
    events: int  # lines of the log
    rows: dict[str, int]  # by table
    trajectories: dict[str, int]  # by window
    policies: list[str]  # from whose sums the user was taken out
    left: list[str]  # what was not erased, and why

    @property
    def lines(self) -> Iterator[str]:
        """The erasure as a person reads it."""
        yield f"event log: {self.events} events removed"
        yield f"tables: {', '.join(f'{count} {name}' for name, count in self.rows.items())} removed"
        for window, count in self.trajectories.items():
            yield f"{window}: {count} trajectories removed"
        for version in self.policies:
            yield f"{version}: taken out of its sums"
        for reason in self.left:
            yield f"NOT erased: {reason}"


def add_command(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds the command."""
    erase_ = subparsers.add_parser("erase", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    erase_.add_argument("--root", type=Path, required=True, help="the folder of a loop or of the pipelines")
    erase_.add_argument("--user", required=True, help="the user_id in the decisions")
    erase_.set_defaults(command=_erase)


def _erase(arguments: argparse.Namespace) -> int:
    with native_messages_withheld():
        done = erase(Places(arguments.root), arguments.user, datetime.now(UTC))
    for line in done.lines:
        print(line)
    return OperationError.exit_code if done.left else 0


def erase(places: Places, user: str, now: datetime) -> Erasure:
    """Removes a user from everything below a root, and records it without naming the user.

    Raises InputError: the root has no tables, or a process still writes to it. OperationError: a file cannot be written.
    """
    from beam_jobs import erasure as data

    if not user:
        raise InputError("--user: the id of a user, got ''")
    with _alone(places):
        rows = data.rows_of(places.warehouse, user)
        traces = data.Traces(user, rows.decision_ids | data.decisions_in_log(places.events, user))
        shares = _shares(places, rows)
        changed, left = _from_policies(places.policies, _parts(shares))
        trajectories = {}
        for folder, manifest, share in shares:
            data.remove_from_window(folder, manifest, share)
            trajectories[folder.name] = sum(map(len, share.records.values()))
            if share.missing:
                left.append(f"{folder.name}: {share.missing} trajectories whose rewards came after the export")
        events = data.remove_from_log(places.events, places.warehouse, traces)
        removed = data.remove_from_tables(places.warehouse, traces)
        left += [
            f"{path.relative_to(places.root)} names the user or a decision of the user"
            for path in data.holders(places.root, traces)
        ]
    done = Erasure(
        erased_at=now,
        events=events,
        rows=removed,
        trajectories={name: count for name, count in trajectories.items() if count},
        policies=changed,
        left=left,
    )
    append_line(places.root / RECORD_NAME, msgspec.json.encode(done))
    return done


@contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Keeps exports out until the block ends. Raises InputError if a process writes events or exports a window."""
    if not places.warehouse.is_dir():
        raise InputError(f"--root: {places.root} has no tables")
    if written := open_segments(places.events):
        raise InputError(f"--root: {written[0]} is being written: stop the predictors and the loop first")
    places.windows.mkdir(exist_ok=True)
    with (places.windows / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--root: a window is being exported to {places.windows}: try again later") from None
        yield


def _shares(places: Places, rows: "UserRows") -> "list[tuple[Path, Manifest, WindowShare]]":
    """The windows, in all revisions, that the user may have contributed to, and what the user contributed."""
    from beam_jobs import erasure as data

    paths = sorted(places.windows.glob(f"window=*/{MANIFEST_NAME}"))
    manifests = [(path.parent, decode_manifest(path.read_bytes(), str(path))) for path in paths]
    return [
        (folder, manifest, data.share_of(folder, manifest, rows))
        for folder, manifest in manifests
        if data.touches(manifest, rows)
    ]


def _parts(shares: "list[tuple[Path, Manifest, WindowShare]]") -> "list[Part]":
    """The user's interactions by split of a window, as the trainer takes them."""
    from contracts.trajectories import decode
    from trainer.erasure import Part

    parts = []
    for _, manifest, share in shares:
        versions = tuple(manifest.policy_versions)
        for split in ("train", "holdback"):
            names = [file.name for file in manifest.files if file.split == split]
            records: list[bytes] = [record for name in names for record in share.records.get(name, [])]
            if records:
                batch = decode(records, manifest.observation_dim)
                parts.append(Part(manifest.window, split, manifest.records(split), batch, manifest.revision, versions))
    return parts


def _from_policies(policies: Path, parts: "list[Part]") -> tuple[list[str], list[str]]:
    """Takes the interactions out of every policy. Returns the versions changed, and what was left and why."""
    from trainer import erasure as learned

    changed: list[str] = []
    left: list[str] = []
    if not policies.is_dir():
        return changed, left
    learned.restore(policies)
    for version in policy_store.versions(policies):
        path = policies / version / CARD_NAME
        outcome: Any = learned.subtract(policies, decode_card(path.read_bytes(), str(path)), parts)
        if outcome == "subtracted":
            changed.append(version)
        elif outcome != "not trained on them":
            left.append(f"{version}: {outcome}")
    return changed, left
