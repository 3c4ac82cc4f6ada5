"""Probation: a new version serves, the last confirmed one (the anchor) keeps a share, and the log decides which stays.

    enter    puts a version on probation beside the anchor. An update of a version that is on probation takes its place,
             against the same anchor, and the evidence goes on: a chain of updates, each a little worse, adds up.
    step     adds a window's decisions to the evidence, and moves the pointer when they carry a verdict
               confirmed    the version is not worse: it serves alone, and is the anchor of the next one
               rolled back  it is worse: the anchor serves alone, and windows that only the versions on probation were
                            trained on are set aside, so the next training starts from the anchor without them

The state is `<root>/probation.json`, written before the pointer moves; `<root>/probation.jsonl` holds every look.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from contracts import documents
from contracts.errors import InputError
from contracts.policies import Champion, base_of
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import policy_store, watch
from orchestration.places import Places, append_line, replace_file, whole_lines
from orchestration.watch import Caution, Evidence, Look, Rows
from predictor import live as live_serving
from predictor import policy as serving
from predictor.line_up import check_alike
from predictor.policy import Policy

if TYPE_CHECKING:  # Beam: only reading decisions needs it
    import pyarrow as pa

    from beam_jobs.warehouses import Warehouse

STATE_NAME, HISTORY_NAME = "probation.json", "probation.jsonl"
SCHEMA_VERSION = 1


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """`probation.json`: versions that serve, or served, beside one anchor, and the evidence about them."""

    schema_version: int = SCHEMA_VERSION
    anchor: str
    versions: list[str]  # each an update of the one before it; the last one serves
    counted_until: datetime  # decisions from then on are not in the evidence
    evidence: Evidence
    look: Look

    def concerns(self, pointer: Champion) -> bool:
        """Whether this is the trial of what `pointer` names."""
        return pointer.anchor is not None and pointer.anchor == self.anchor and pointer.version in self.versions


class Logged(NamedTuple):
    """The decisions of a window that have a reward, or count as one, ordered by time."""

    version: np.ndarray  # [N] text
    propensity: np.ndarray  # [N], of the action
    rows: Rows

    def by(self, anchor: str) -> Rows:
        """The rows, in which `anchor` is the anchor."""
        return self.rows._replace(by_anchor=self.version == anchor)


class Source(NamedTuple):
    """Where decisions and rewards are read from, and how they become records."""

    warehouse: "Warehouse"
    settings: WindowSettings

    def read(self, window: TrainingWindow) -> Logged:
        """The decisions of `window`, with rewards as the export counts them for training."""
        from beam_jobs.reward_join import join_rewards
        from beam_jobs.window_rows import read_tables

        tables = read_tables(self.warehouse, window, self.settings)
        joined, _ = join_rewards(tables["decisions"], tables["earlier"], tables["rewards"], window, self.settings)
        return logged(joined)


def logged(interactions: "pa.RecordBatch") -> Logged:
    """Joined decisions (columns of `Interaction`) as arrays; of a slate, its first place.

    What is left for the later places depends on who chose the first, so there the anchor's share is not its own.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    interactions = interactions.filter(pc.less(pc.fill_null(interactions.column("place"), 0), 1))
    lengths = [len(observation) for observation in interactions.column("observation").to_pylist()]
    if lengths:  # decisions of another shape are not of these policies
        sizes, often = np.unique(lengths, return_counts=True)
        interactions = interactions.filter(pa.array(np.array(lengths) == sizes[often.argmax()]))
    return Logged(
        interactions.column("policy_version").to_numpy(zero_copy_only=False).astype(str),
        interactions.column("propensity").to_numpy(),
        Rows(
            np.array(interactions.column("observation").to_pylist(), np.float32),
            interactions.column("candidates").to_pylist(),
            interactions.column("action").to_numpy().astype(np.int64),
            interactions.column("reward").to_numpy().astype(np.float64),
            np.zeros(interactions.num_rows, bool),
        ),
    )


def enter(places: Places, source: Source, version: str, caution: Caution, reason: str, now: datetime) -> Champion:
    """Lets `version` serve: on probation, or at once where there is nothing to watch it by. Returns the pointer.

    It serves at once if it is the first version, if the anchor's share is 0, if it has other observations or actions than
    the anchor, or if all rewards of the newest window that it was trained on are alike: they show on what scale rewards are.

    Args:
      places: the root.
      source: of the log.
      version: in the policy store.
      caution: the anchor's share, and the margin.
      reason: of the gate.
      now: the time of the change, for the record.
    """
    store = places.policies
    current = policy_store.champion(store)
    if current is None or not caution.anchor_share:
        return policy_store.roll_out(store, version, reason, now)
    anchor = serving.load(store / (current.anchor or current.version))
    trial = read(places.root)
    try:
        new = serving.load(store / version)
        check_alike(new, anchor)
        window = max((one.window for one in new.card.trained_on), default=None)
        if window is None:
            raise InputError(f"{version}: must have been trained on a window to be watched, got none")
        if trial is None or not trial.concerns(current):
            found = source.read(window)
            scale = watch.scale_of(found.rows, found.propensity, new, anchor)
            evidence = watch.nothing_yet(scale, caution.anchor_share, caution.margin)
            versions: list[str] = []
        else:
            evidence, versions = trial.evidence, [one for one in trial.versions if one != version]
    except InputError as error:
        return policy_store.roll_out(store, version, f"{reason}; no probation: {error}", now)
    look = evidence.look(version, anchor.card.version)
    _write(
        places.root,
        Trial(
            anchor=anchor.card.version,
            versions=[*versions, version],
            counted_until=window.end if trial is None else max(window.end, trial.counted_until),
            evidence=evidence,
            look=look,
        ),
    )
    return policy_store.roll_out(store, version, reason, now, anchor_share=evidence.anchor_share)


def step(places: Places, source: Source, window: TrainingWindow, now: datetime) -> Look | None:
    """Adds the decisions of `window` to the evidence, and confirms or rolls back if they decide it.

    Returns what is known then; None while nothing is on probation. It is safe to call again: a window counts once.
    """
    pointer, trial = policy_store.champion(places.policies), read(places.root)
    if pointer is None or trial is None or not trial.concerns(pointer):
        return None
    if window.start >= trial.counted_until and trial.look.outcome == "on probation":
        evidence = _added(places, trial, source.read(window))
        look = evidence.look(pointer.version, trial.anchor)
        trial = msgspec.structs.replace(trial, evidence=evidence, look=look, counted_until=window.end)
        _write(places.root, trial)
        append_line(places.root / HISTORY_NAME, msgspec.json.encode(look))
    _settle(places, trial, now)
    return trial.look


def read(root: Path) -> Trial | None:
    """The newest trial; None if there never was one. Raises InputError when the file cannot be read."""
    path = root / STATE_NAME
    if not path.is_file():
        return None
    return documents.decode(path.read_bytes(), Trial, "probation", str(path), SCHEMA_VERSION)


def history(root: Path) -> list[Look]:
    """Every look, oldest first. Raises InputError that names a line which is not one."""
    looks = []
    for number, line in enumerate(whole_lines(root / HISTORY_NAME), start=1):
        try:
            looks.append(msgspec.json.decode(line, type=Look))
        except msgspec.DecodeError as error:
            raise InputError(f"{root / HISTORY_NAME}, line {number}: {error}") from None
    return looks


def _added(places: Places, trial: Trial, found: Logged) -> Evidence:
    """The evidence with a window's decisions of the anchor and of the versions on probation.

    A live version is an update of its base, as the next version is, so its decisions count as well, while its files are
    kept. The anchor's decisions belong to the version that served beside it at the time: that of the last decision before
    which was not the anchor's. Those before the first one of a window belong to the version that the window began with.
    """
    names, first = np.unique(found.version, return_index=True)
    in_time = [str(names[place]) for place in np.argsort(first, kind="stable")]
    served = [version for version in in_time if base_of(version) in trial.versions]
    order = {version: place for place, version in enumerate(served)}
    own = np.array([order.get(version, -1) for version in found.version.tolist()], np.int64)
    beside = np.maximum.accumulate(own) if len(own) else own
    if trial.evidence.sequence.count:
        beside = np.maximum(beside, 0)
    elif len(beside):
        # The first decision of a trial is never the anchor's, so it must not count.
        beside[int((beside >= 0).argmax())] = -1
    ours = (found.version == trial.anchor) | (own == beside)
    anchor, evidence = serving.load(places.policies / trial.anchor), trial.evidence
    for place, version in enumerate(served):
        rows = watch.take(found.by(trial.anchor), np.flatnonzero(ours & (beside == place)))
        if (candidate := _loaded(places, version)) is not None:
            evidence = evidence.add(rows, candidate, anchor)
    return evidence


def _loaded(places: Places, version: str) -> Policy | None:
    """The policy of that version; None for a live version whose files are gone."""
    if base_of(version) == version:
        return serving.load(places.policies / version)
    live = live_serving.load(places.policies, places.live, version)
    return live[0] if live is not None else None


def _settle(places: Places, trial: Trial, now: datetime) -> None:
    """Moves the pointer to what the verdict asks for. It is safe to do again."""
    match trial.look.outcome:
        case "confirmed":
            policy_store.confirm(places.policies)
        case "rolled back":
            from orchestration.audit import guard  # needs Beam

            known = {one.window for one in serving.read_card(places.policies / trial.anchor).trained_on}
            learned = {
                one.window
                for version in trial.versions
                for one in serving.read_card(places.policies / version).trained_on
            }
            why = f"{trial.versions[-1]}, trained on it, was rolled back: {trial.look.reason}"
            guard.set_aside(places, sorted(learned - known), why)
            policy_store.roll_back(places.policies, f"probation: {trial.look.reason}", now)
        case "on probation":
            pass


def _write(root: Path, trial: Trial) -> None:
    replace_file(root / STATE_NAME, documents.encode(trial))
