"""Probation: a new version serves, the last confirmed one (the anchor) keeps a share, and the log decides which stays.

    enter    puts a version on probation beside the anchor. An update of a version that is on probation takes its place,
             against the same anchor, and the evidence goes on: a chain of updates, each a little worse, adds up.
    step     adds a window's decisions to the evidence, and moves the pointer when they carry a verdict
               confirmed    the version is not worse: it serves alone, and is the anchor of the next one
               rolled back  it is worse: the anchor serves alone, and windows that only the versions on probation were
                            trained on are set aside, so the next training starts from the anchor without them

`enter` is `prepare` and `commit`, `step` is `add` and `settle`: where an endpoint shares the decisions, it changes between
the two. The state is `<root>/probation.json`, written before the pointer moves; `<root>/probation.jsonl` holds every look.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from contracts import documents
from contracts.errors import InputError
from contracts.policies import Champion, SharedBy, base_of
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
    decided_at: np.ndarray  # [N], in microseconds since the epoch
    rows: Rows

    def by(self, anchor: str) -> Rows:
        """The rows, in which `anchor` is the anchor."""
        return self.rows._replace(by_anchor=self.version == anchor)

    def shared(self, by: SharedBy) -> "Logged":
        """The decisions that were given to one of two versions independently of each other.

        An endpoint that splits its traffic gives all decisions of a request to one version. They are made at one moment,
        and the first of them counts.
        """
        if by == "ids":
            return self
        _, first = np.unique(self.decided_at, return_index=True)
        rows = watch.take(self.rows, first)
        return Logged(self.version[first], self.propensity[first], self.decided_at[first], rows)


class Source(NamedTuple):
    """Where decisions and rewards are read from, and how they become records."""

    warehouse: "Warehouse"
    settings: WindowSettings

    def read(self, window: TrainingWindow, since: datetime | None = None) -> Logged:
        """The decisions of `window`, from `since` on, with rewards as the export counts them for training."""
        from beam_jobs.window_rows import read_tables

        joined = _joined(read_tables(self.warehouse, window, self.settings), window, self.settings)
        if since is not None and since > window.start:
            import pyarrow.compute as pc

            joined = joined.filter(pc.greater_equal(joined.column("decided_at"), since))
        return logged(joined)

    def held_back(self, window: TrainingWindow, settings: WindowSettings) -> tuple["pa.RecordBatch", list[str | None]]:
        """The interactions that an export of `window` with `settings` holds back, and the user of each."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from beam_jobs.reward_join import holdback_ids, in_holdback
        from beam_jobs.window_rows import read_tables

        tables = read_tables(self.warehouse, window, settings)
        decisions = tables["decisions"]
        decisions = decisions.filter(pa.array(in_holdback(holdback_ids(decisions), settings.holdback_share)))
        ids = decisions["decision_id"].combine_chunks()
        # Each decision is joined on its own, so the others need not be.
        others = {name: tables[name] for name in ("earlier", "rewards", "statuses")}
        mine = {name: rows.filter(pc.is_in(rows["decision_id"], value_set=ids)) for name, rows in others.items()}
        joined = _joined(mine | {"decisions": decisions}, window, settings)
        users: list[str | None] = decisions["user_id"].take(pc.index_in(joined.column("decision_id"), ids)).to_pylist()
        return joined, users


def _joined(tables: "dict[str, pa.Table]", window: TrainingWindow, settings: WindowSettings) -> "pa.RecordBatch":
    from beam_jobs.reward_join import join_rewards

    return join_rewards(**tables, window=window, settings=settings)[0]


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
        interactions.column("decided_at").cast(pa.int64()).to_numpy(),
        Rows(
            np.array(interactions.column("observation").to_pylist(), np.float32),
            interactions.column("candidates").to_pylist(),
            interactions.column("action").to_numpy().astype(np.int64),
            interactions.column("reward").to_numpy().astype(np.float64),
            np.zeros(interactions.num_rows, bool),
        ),
    )


class Entry(NamedTuple):
    """How a version will serve: on probation by `trial`, or alone."""

    version: str
    reason: str
    trial: Trial | None = None


def enter(places: Places, source: Source, version: str, caution: Caution, reason: str, now: datetime) -> Champion:
    """Lets `version` serve: on probation, or at once where there is nothing to watch it by. Returns the pointer.

    See `prepare` for the arguments; `now` is the time of the change, for the record.
    """
    return commit(places, prepare(places, source, version, caution, reason), now)


def prepare(
    places: Places,
    source: Source,
    version: str,
    caution: Caution,
    reason: str,
    begun: tuple[Evidence, datetime] | None = None,
) -> Entry:
    """How `version` is to serve. Nothing changes yet.

    It serves at once if it is the first version, if the anchor's share is 0, if it has other observations or actions than
    the anchor, or if all rewards of the newest window that it was trained on are alike: they show on what scale rewards are.

    Args:
      places: the root.
      source: of the log.
      version: in the policy store.
      caution: the anchor's share, and the margin.
      reason: of the gate.
      begun: evidence that a canary beside the champion left, which goes on, and from when on its decisions count.
    """
    store = places.policies
    current = policy_store.champion(store)
    if current is None or not caution.anchor_share:
        return Entry(version, reason)
    anchor, trial = current.anchor or current.version, read(places.root)
    going_on = trial is not None and trial.concerns(current)
    try:
        if trial is not None and going_on:
            new, _ = _alike(store, version, anchor)
            evidence, until = trial.evidence, max(_newest_window(new).end, trial.counted_until)
            versions = [one for one in trial.versions if one != version]
        elif begun is not None and begun[0].may_have(caution.anchor_share):
            evidence, until, versions = begun[0].at_share(caution.anchor_share), begun[1], []
        else:
            evidence = first_evidence(store, source, version, anchor, caution)
            until, versions = _newest_window(serving.load(store / version)).end, []
            until = until if trial is None else max(until, trial.counted_until)
    except InputError as error:
        return Entry(version, f"{reason}; no probation: {error}")
    look = evidence.look(version, anchor)
    versions = [*versions, version]
    return Entry(
        version,
        reason,
        Trial(anchor=anchor, versions=versions, counted_until=until, evidence=evidence, look=look),
    )


def commit(places: Places, entry: Entry, now: datetime, shared_by: SharedBy = "ids") -> Champion:
    """Moves the pointer as `prepare` said, and returns it. `shared_by` says who picks the anchor's decisions."""
    if entry.trial is None:
        return policy_store.roll_out(places.policies, entry.version, entry.reason, now)
    _write(places.root, entry.trial)
    share = entry.trial.evidence.anchor_share
    return policy_store.roll_out(places.policies, entry.version, entry.reason, now, share, shared_by)


def first_evidence(
    store: Path, source: Source, version: str, anchor: str, caution: Caution, anchor_share: float | None = None
) -> Evidence:
    """No evidence yet about `version` beside `anchor`, on the scale of the newest window that `version` was trained on.

    With `anchor_share`, the trial begins with that share, and may go on with the share of `caution`. Raises InputError
    where there is nothing to watch it by, as in `prepare`.
    """
    new, old = _alike(store, version, anchor)
    found = source.read(_newest_window(new))
    scale = watch.scale_of(found.rows, found.propensity, new, old)
    if anchor_share is None:
        return watch.nothing_yet(scale, caution.anchor_share, caution.margin)
    return watch.nothing_yet(scale, anchor_share, caution.margin, caution.anchor_share or None)


def _alike(store: Path, version: str, anchor: str) -> tuple[serving.Policy, serving.Policy]:
    new, old = serving.load(store / version), serving.load(store / anchor)
    check_alike(new, old)
    if not old.card.trained_on:
        raise InputError(f"{anchor}: must have learned something to be watched by, got nothing")
    return new, old


def _newest_window(policy: serving.Policy) -> TrainingWindow:
    window = max((one.window for one in policy.card.trained_on), default=None)
    if window is None:
        raise InputError(f"{policy.card.version}: must have been trained on a window to be watched, got none")
    return window


def step(places: Places, source: Source, window: TrainingWindow, now: datetime) -> Look | None:
    """Adds the decisions of `window` to the evidence, and confirms or rolls back if they decide it.

    Returns what is known then; None while nothing is on probation. It is safe to call again: a decision counts once.
    """
    trial = add(places, source, window)
    if trial is None:
        return None
    settle(places, trial, now)
    return trial.look


def add(places: Places, source: Source, window: TrainingWindow) -> Trial | None:
    """The trial of what serves, with the decisions of `window`; None while nothing is on probation.

    Once there is a verdict, nothing is added.
    """
    pointer, trial = policy_store.champion(places.policies), current_trial(places)
    if pointer is None or trial is None or window.end <= trial.counted_until or trial.look.outcome != "on probation":
        return trial
    evidence = _added(places, trial, source.read(window, trial.counted_until).shared(pointer.shared_by))
    look = evidence.look(trial.versions[-1], trial.anchor)
    trial = msgspec.structs.replace(trial, evidence=evidence, look=look, counted_until=window.end)
    _write(places.root, trial)
    append_line(places.root / HISTORY_NAME, msgspec.json.encode(look))
    return trial


def current_trial(places: Places) -> Trial | None:
    """The trial of what the pointer names; None while nothing is on probation."""
    pointer, trial = policy_store.champion(places.policies), read(places.root)
    return trial if pointer is not None and trial is not None and trial.concerns(pointer) else None


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


def settle(places: Places, trial: Trial, now: datetime) -> None:
    """Moves the pointer to what the verdict asks for. It is safe to do again."""
    match trial.look.outcome:
        case "confirmed":
            policy_store.confirm(places.policies, now)
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
