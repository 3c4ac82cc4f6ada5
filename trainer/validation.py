"""Checks windows against their manifests and the contract, before anything is trained on them.

    python -m trainer.validation --windows runs/latest/windows --num-actions 100

TFXIO's decoder turns the records into Arrow without a schema. So this module finds a feature that is missing, unknown,
of another type or of another length, where a parser with a schema would fail or ignore it. Then it checks ranges,
counts and propensities. The error about a wrong window names the fact, the file and the record.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError
from contracts.offers import Offers
from contracts.records import INT32_MAX
from contracts.windows import MANIFEST_NAME, Split, WindowFile
from trainer import dataset
from trainer.dataset import ReadyWindow
from trainer.mounts import mounted

# name: (Arrow type of a value, how many of them; None: the observation's dimension)
FEATURES: dict[str, tuple[str, int | None]] = {
    "observation": ("float", None),
    "action": ("int64", 1),
    "reward": ("float", 1),
    "propensity": ("float", 1),
    "defaulted": ("int64", 1),
}
# Not in every record. name: (Arrow type of a value, how many of them where there are any; None: any number)
OPTIONAL_FEATURES: dict[str, tuple[str, int | None]] = {
    "candidates": ("int64", None),
    "slate_id": ("binary", 1),
    "place": ("int64", 1),
}
# Standard errors by which the mean of uniform / propensity may exceed 1, its largest possible expectation.
MAX_WEIGHT_EXCESS = 6.0
MIN_RECORDS_FOR_PROPENSITIES = 100


class Findings(NamedTuple):
    """The counts and means of a window or a split."""

    records: int
    defaulted: int
    mean_reward: float
    # Of 1 / (K propensity), with K the arms on offer: 1 if every one could be drawn, less if some could not.
    mean_uniform_weight: float


def validate(window: ReadyWindow, num_actions: int, splits: tuple[Split, ...] = dataset.SPLITS) -> Findings:
    """Checks the splits of a window, and the manifest's counts against each other and against its files.

    Raises:
      InputError: names the file, the record and the fact.
    """
    check_counts(window)
    total = _Totals(num_actions)
    for split in splits:
        for file in window.files(split):
            _check_file(window, file, total)
    said = window.manifest.counts.defaulted
    if total.defaulted > said or (total.records == window.manifest.records(*dataset.SPLITS) and total.defaulted < said):
        raise InputError(
            f"{window.folder / MANIFEST_NAME}: counts say {said} defaulted, the files hold {total.defaulted}"
        )
    findings = total.findings()
    excess = findings.mean_uniform_weight - 1
    if total.records >= MIN_RECORDS_FOR_PROPENSITIES and excess > MAX_WEIGHT_EXCESS * total.weight_error():
        raise InputError(
            f"{window.folder}: propensities are too small to be those of the actions taken: 1 / (K propensity), where K"
            f" of {num_actions} arms were on offer, is {findings.mean_uniform_weight:.3f} on average, and at most 1 is"
            " possible"
        )
    return findings


def check_counts(window: ReadyWindow) -> None:
    """Checks the manifest's counts against each other and against its list of files. Raises InputError."""
    counts = window.manifest.counts
    where = window.folder / MANIFEST_NAME
    if counts.decisions != counts.accounted:
        raise InputError(
            f"{where}: {counts.decisions} decisions are not {counts.rewards} with a reward, {counts.defaulted}"
            f" defaulted, {counts.dropped} dropped, {counts.set_aside} set aside, {counts.not_activated} not activated and"
            f" {counts.cancelled} cancelled"
        )
    if (said := counts.rewards + counts.defaulted) != (listed := window.manifest.records(*dataset.SPLITS)):
        raise InputError(f"{where}: counts say {said} records, the files hold {listed}")


def _check_file(window: ReadyWindow, file: WindowFile, total: "_Totals") -> None:
    path = str(window.folder / file.name)
    first = total.records
    for serialized in dataset.read_serialized(path, file):
        try:
            _check(path, serialized, total.records - first, window.manifest.observation_dim, total)
        except InputError:
            # A flipped byte makes a record unreadable or a reward infinite: report the cause, not its effect.
            if corruption := dataset.first_corruption(path):
                raise InputError(f"{path}{corruption}") from None
            raise
    if (found := total.records - first) != file.records:
        raise InputError(f"{path}: manifest says {file.records} records, found {found}")


class _Totals:
    """Sums over what was read."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.records = self.defaulted = 0
        self._reward = self._weight = self._squared_weight = 0.0

    def add(self, columns: dict[str, np.ndarray], offers: Offers) -> None:
        weight = 1 / (offers.counts(self.num_actions) * columns["propensity"].astype(np.float64))
        self.records += len(weight)
        self.defaulted += int(columns["defaulted"].sum())
        self._reward += float(columns["reward"].sum(dtype=np.float64))
        self._weight += float(weight.sum())
        self._squared_weight += float(weight @ weight)

    def findings(self) -> Findings:
        count = max(self.records, 1)
        return Findings(self.records, self.defaulted, self._reward / count, self._weight / count)

    def weight_error(self) -> float:
        """Standard error of the mean weight; slightly above 0, because equal float32 propensities are rounded too."""
        mean = self._weight / self.records
        return math.sqrt(max(self._squared_weight / self.records - mean**2, 0) / self.records) + 1e-6


def _check(path: str, serialized: list[bytes], first: int, observation_dim: int, total: _Totals) -> None:
    where = f"{path}: records {first} to {first + len(serialized) - 1}"
    try:
        batch = _decoder().DecodeBatch(serialized)
    except RuntimeError as error:  # a record is no Example, or two records differ in the type of a feature
        raise InputError(f"{where}: {str(error).removeprefix('INVALID_ARGUMENT: ')}") from None
    names = set(batch.schema.names)
    if missing := sorted(FEATURES.keys() - names):
        raise InputError(f"{where}: feature {missing[0]!r} is missing")
    if unknown := sorted(names - FEATURES.keys() - OPTIONAL_FEATURES.keys()):
        raise InputError(f"{where}: feature {unknown[0]!r} is not known")
    columns = {}
    for name, (value_type, length) in FEATURES.items():
        expected = observation_dim if length is None else length
        values, lengths = _column(batch.column(name), name, value_type, where)
        if (wrong := lengths != expected).any():
            row = int(wrong.argmax())
            raise InputError(f"{path}: record {first + row}: {name} must have {expected} values, got {lengths[row]}")
        columns[name] = values.reshape(len(serialized), expected)
    offers = _check_optional(path, batch, first, where)
    for name, fact, holds in (
        ("observation", "be finite", np.isfinite(columns["observation"])),
        (
            "action",
            f"be in [0, {total.num_actions})",
            (columns["action"] >= 0) & (columns["action"] < total.num_actions),
        ),
        ("action", "be one of candidates", offers.include(columns["action"][:, 0])[:, np.newaxis]),
        ("reward", "be finite", np.isfinite(columns["reward"])),
        ("propensity", "be in (0, 1]", (columns["propensity"] > 0) & (columns["propensity"] <= 1)),
        ("defaulted", "be 0 or 1", (columns["defaulted"] == 0) | (columns["defaulted"] == 1)),
    ):
        if not holds.all():
            row, place = (int(index[0]) for index in np.nonzero(~holds))
            raise InputError(f"{path}: record {first + row}: {name} must {fact}, got {columns[name][row, place]}")
    total.add({name: values[:, 0] for name, values in columns.items() if name != "observation"}, offers)


def _column(column: Any, name: str, value_type: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A feature's values one after the other, and how many each record has. Raises InputError for another type."""
    # "null": no record has a value for it.
    found = str(column.type.value_type) if str(column.type) != "null" else "nothing"
    if found.removeprefix("large_") != value_type:
        raise InputError(f"{where}: feature {name!r} must be of type {value_type}, got {found}")
    return np.asarray(column.flatten()), np.asarray(column.value_lengths().fill_null(0))


def _check_optional(path: str, batch: Any, first: int, where: str) -> Offers:
    """What was on offer in each record. Raises InputError for an optional feature that is wrong."""
    columns = {}
    for name, (value_type, length) in OPTIONAL_FEATURES.items():
        if name not in batch.schema.names:
            columns[name] = np.zeros(0, np.int64), np.zeros(batch.num_rows, np.int64)
            continue
        values, lengths = columns[name] = _column(batch.column(name), name, value_type, where)
        if length is not None and (wrong := lengths > length).any():
            row = int(wrong.argmax())
            raise InputError(f"{path}: record {first + row}: {name} must have {length} values, got {lengths[row]}")
        if value_type == "int64" and (wrong := (values < 0) | (values > INT32_MAX)).any():
            row = int(np.repeat(np.arange(len(lengths)), lengths)[wrong.argmax()])
            raise InputError(
                f"{path}: record {first + row}: {name} must be in [0, {INT32_MAX}], got {values[wrong.argmax()]}"
            )
    if (wrong := columns["slate_id"][1] != columns["place"][1]).any():
        raise InputError(f"{path}: record {first + int(wrong.argmax())}: slate_id and place must be given together")
    values, lengths = columns["candidates"]
    return Offers(values.astype(np.int32), lengths.astype(np.int64))


def _decoder() -> Any:
    from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

    return ExamplesToRecordBatchDecoder()


def _lines(windows: Path, num_actions: int) -> Iterator[str]:
    for window in dataset.ready_windows(windows):
        found = validate(window, num_actions)
        yield (
            f"{window.folder.name}: {found.records} records, {found.defaulted} defaulted, mean reward"
            f" {found.mean_reward:.4f}, mean 1 / (K propensity) {found.mean_uniform_weight:.3f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: prints one line per window, until a window is wrong."""
    return run_main("trainer.validation", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(documentation=__doc__, prog="python -m trainer.validation")
    parser.add_argument("--windows", type=mounted, required=True, help="folder of training windows (window=<start>/)")
    parser.add_argument("--num-actions", type=int, required=True, help="number of actions K")
    arguments = parser.parse_args(argv)
    for line in _lines(arguments.windows, arguments.num_actions):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
