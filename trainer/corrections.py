"""What a policy has to change when a window that it was trained on was exported again, as a revision with late rows.

Linear policies subtract the sums of the revision that they were trained on, and add those of the new one. The sums are
of float64 numbers, so the result is that of training from scratch on the revised windows except for rounding: about 1e-16
of the largest sum. Where no sum needs to be rounded, the two are equal to the last bit.

A network cannot forget a record. It goes on training on the records that only the new revision has.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import PolicyCard, TrainedWindow
from contracts.windows import Split, revision_folder
from trainer import dataset
from trainer.dataset import ReadyWindow

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch


class Correction(NamedTuple):
    """One split of a window: the revision that the parent was trained on, and the one to train on instead."""

    before: ReadyWindow
    after: ReadyWindow
    split: Split


def needed(windows: Path, ready: Sequence[ReadyWindow], parent: PolicyCard | None) -> list[Correction]:
    """A correction for each split that `parent` was trained on in an earlier revision than the one in `ready`.

    Raises InputError when that earlier revision is gone: its sums cannot be subtracted.
    """
    newest = {window.start: window for window in ready}
    found = []
    for trained in parent.trained_on if parent is not None else []:
        after = newest.get(trained.window.start)
        if after is not None and after.manifest.revision != trained.revision:
            folder = windows / revision_folder(trained.window, trained.revision)
            if not folder.is_dir():
                raise InputError(f"{folder}: is gone, and {after.folder.name} replaces it: keep every revision")
            found.append(Correction(dataset.read_window(folder), after, trained.split))
    return found


def applied(trained_on: Sequence[TrainedWindow], corrections: Sequence[Correction]) -> list[TrainedWindow]:
    """What the policy was trained on once the corrections are made."""
    corrected = {
        (correction.after.start, correction.split): TrainedWindow(
            window=correction.after.manifest.window,
            split=correction.split,
            records=correction.after.manifest.records(correction.split),
            revision=correction.after.manifest.revision,
        )
        for correction in corrections
    }
    return [
        msgspec.structs.replace(corrected.get((trained.window.start, trained.split), trained), kept=trained.kept)
        for trained in trained_on
    ]


def signed(corrections: Sequence[Correction]) -> Iterator[tuple[ReadyWindow, Split, datetime, float]]:
    """What to add to linear sums: each split, the start of its window, and its sign."""
    for correction in corrections:
        yield correction.before, correction.split, correction.after.start, -1.0
        yield correction.after, correction.split, correction.after.start, 1.0


def added(correction: Correction, num_actions: int) -> "Iterator[TrajectoryBatch]":
    """The records that only the new revision has: of late decisions, and with late rewards."""
    had = Counter(
        key for batch in dataset.read(correction.before, correction.split, num_actions) for key in _keys(batch)
    )
    for batch in dataset.read(correction.after, correction.split, num_actions):
        keep = []
        for row, key in enumerate(_keys(batch)):
            if had[key]:
                had[key] -= 1
            else:
                keep.append(row)
        if keep:
            yield batch.take(np.array(keep))


def _keys(batch: "TrajectoryBatch") -> list[bytes]:
    """A record of each row that is equal where everything that a policy learns from is."""
    rest = np.stack([batch.action.astype(np.float64), batch.reward, batch.propensity], axis=1)
    return [
        observation.tobytes() + values.tobytes() for observation, values in zip(batch.observation, rest, strict=True)
    ]
