"""Watches live versions while they serve, and holds live learning when something is wrong.

    python -m orchestration.live_watch --events runs/latest/events --live runs/latest/live --policies runs/latest/policies
    python -m orchestration.live_watch --live runs/latest/live --release "the feed was mended"

It reads the event log as it grows, joins decisions with their rewards, and looks at each pair once, see
`orchestration.live_evidence`. At an alarm it writes `<live>/control.json`: within a poll the predictors let the base decide,
and nothing is learned live. If live versions earn less than the anchor, the base gives way to the anchor. An audited window that reaches beyond the
alarm ends the hold, or a person does, with `--release`.

It keeps no state of its own: started again, it reads the log from the newest window that the champion was trained on.
"""

import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from contracts import id_hashes, live_versions, policies, reward_rules
from contracts.command_line import FlagParser, add_flags, from_flags, run_main
from contracts.errors import InputError
from contracts.live_versions import VERSIONS_NAME
from contracts.policies import CHAMPION_NAME, Champion, split_version
from contracts.policy_arrays import Scorer
from contracts.records import UNREADABLE, Decision, Event, Status, StatusEvent, event_decoder, utc_microseconds
from contracts.windows import WindowSettings
from orchestration import live_control
from orchestration.event_tail import EventTail
from orchestration.live_evidence import Alarm, Decided, LiveCaution, LiveEvidence
from orchestration.watch import Rows
from predictor import live as live_serving
from predictor import policy as serving
from predictor.line_up import takes
from predictor.live import LiveServing
from predictor.policy import Policy

PROGRAM = "orchestration.live_watch"
KEPT_VERSIONS = 64
# More decisions than these of one look are left out: they would show little more, and the next look would be late.
DECISIONS_PER_LOOK = 2000


class WatchPace(msgspec.Struct, frozen=True, kw_only=True):
    """How often the watch looks; each field is a flag. The bounds are declared here alone."""

    look_seconds: Annotated[float, Meta(gt=0, le=10, description="look at what is new in the log this often")] = 0.1


class Beside(NamedTuple):
    """What serves, as the pointer of the policy store says."""

    base: Policy
    anchor: Policy  # or the base, which keeps a share while there is no anchor
    role: str
    share: float


class _Open(NamedTuple):
    """A decision that has no reward yet."""

    decision: Decision
    by_anchor: bool
    live: str | None  # the live version that decided, or would have
    rewards: list[tuple[datetime, float]]  # that came, where more of them may count
    statuses: list[Status]  # that came in time


class OpenDecisions:
    """Decisions that wait for their reward: the first one that comes in time, or what the rule makes of all of them."""

    def __init__(self, settings: WindowSettings) -> None:
        self._settings = settings
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._live: str | None = None  # the live version that made the last decision of the live share

    def __len__(self) -> int:
        return len(self._open)

    def take(self, events: Sequence[Event], beside: Beside) -> list[tuple[_Open, float]]:
        """The decisions whose reward is known with these events, in the order in which it came to be known.

        Where several rewards make one, silence counts, or the decision is deferred, it is among them once the reward window
        has passed, by the time of the newest decision. One that was cancelled or not activated by then never happened. A decision that is no live version's, though its id falls to them, says that none was serving.
        """
        ids = [_deciding_id(event) for event in events if isinstance(event, Decision)]
        sides = iter(takes(beside.role, beside.share, ids).tolist())
        found = []
        for event in events:
            if isinstance(event, Decision):
                self._take_decision(event, next(sides), beside)
                found += self._expired(event.decided_at)
            elif (waiting := self._open.get(event.decision_id)) is not None:
                delay = (event.occurred_at - waiting.decision.decided_at).total_seconds()
                if not 0 <= delay <= self._settings.reward_window_seconds:
                    continue
                if isinstance(event, StatusEvent):
                    waiting.statuses.append(event.status)
                elif self._settings.reward_rule == "first" and not (waiting.decision.deferred or waiting.statuses):
                    del self._open[event.decision_id]
                    found.append((waiting, event.reward))
                else:
                    waiting.rewards.append((event.occurred_at, event.reward))
        return found

    def _take_decision(self, decision: Decision, side: bool, beside: Beside) -> None:
        base, sequence = split_version(decision.policy_version)
        if not side:
            is_live = sequence is not None and base == beside.base.card.version
            self._live = decision.policy_version if is_live else None
        by_anchor = side and decision.policy_version == beside.anchor.card.version
        live = self._live if by_anchor or not side else None
        if decision.decision_id not in self._open and not decision.place:  # of a slate, its first place
            self._open[decision.decision_id] = _Open(decision, by_anchor, live, [], [])

    def _expired(self, now: datetime) -> list[tuple[_Open, float]]:
        found = []
        while self._open:
            name, waiting = next(iter(self._open.items()))
            if (now - waiting.decision.decided_at).total_seconds() <= self._settings.reward_window_seconds:
                break
            del self._open[name]
            if not reward_rules.happened(waiting.decision.deferred, waiting.statuses):
                continue
            if waiting.rewards:
                found.append((waiting, reward_rules.combine(self._settings.reward_rule, waiting.rewards)[1]))
            elif self._settings.missing_reward == "default":
                found.append((waiting, self._settings.default_reward))
        return found


class LiveWatch:
    """Follows the pointer, the live versions and the event log of one run."""

    def __init__(
        self, events: Path, live: Path, store: Path, window: WindowSettings, caution: LiveCaution, base_share: float
    ) -> None:
        """Raises InputError for a store without a champion, or whose champion cannot be loaded."""
        self._live, self._store = live, store
        self._window, self._caution, self._base_share = window, caution, base_share
        self._pointer = b""
        self._beside = self._what_serves()
        self._open = OpenDecisions(window)
        self._versions: OrderedDict[str, Policy] = OrderedDict()
        self._evidence = LiveEvidence(caution)
        self._was_held = live_control.read(live).held
        trained = [one.window.start for one in self._beside.base.card.trained_on]
        self._tail = EventTail(events, since=max(trained, default=None))
        self._refused_pointer = ""

    @property
    def evidence(self) -> LiveEvidence:
        """What the log says so far."""
        return self._evidence

    def step(self) -> Alarm | None:
        """Looks at what is new. Returns why it held live learning now, if it did."""
        events = list(self._events())
        rewarded = self._open.take(events, self._beside)
        held = live_control.read(self._live).held
        if self._was_held and not held:  # what was seen before the release has been dealt with
            self._evidence = self._evidence.again()
            self._begin()
        self._was_held = held
        decided = self._decided(rewarded[:DECISIONS_PER_LOOK])
        if held:
            self._evidence.remember(decided)
        elif len(decided.live):
            names = [name for name in dict.fromkeys(decided.live) if name is not None]
            named = {name: policy for name in names if (policy := self._version(name)) is not None}
            self._evidence.add(decided, self._beside.base, self._beside.anchor, named)
        self._follow_pointer()
        alarm = None if held else self._evidence.alarm()
        if alarm is not None:
            live_control.hold(self._live, alarm.reason, datetime.now(UTC), anchor_alone=alarm.of_versions)
        return alarm

    def _events(self) -> Iterable[Event]:
        for line in self._tail.read():
            try:
                yield event_decoder.decode(line)
            except UNREADABLE:
                continue  # ingestion counts it

    def _decided(self, rewarded: Sequence[tuple[_Open, float]]) -> Decided:
        dim = self._beside.base.card.observation_dim
        rewarded = [one for one in rewarded if len(one[0].decision.observation) == dim]
        decisions = [one.decision for one, _ in rewarded]
        hashes = id_hashes.lasting([(one.slate_id or one.decision_id).encode() for one in decisions])
        return Decided(
            rows=Rows(
                np.array([one.observation for one in decisions], np.float32).reshape(-1, dim),
                [one.candidates for one in decisions],
                np.array([one.action for one in decisions], np.int64),
                np.array([reward for _, reward in rewarded], np.float64),
                np.array([one.by_anchor for one, _ in rewarded], bool),
            ),
            propensity=np.array([one.propensity for one in decisions]),
            decided_at=np.array([utc_microseconds(one.decided_at) for one in decisions], np.int64),
            held_back=id_hashes.held_back(hashes, self._window.holdback_share),
            live=[one.live for one, _ in rewarded],
        )

    def _version(self, name: str) -> Policy | None:
        """The live version, if its files are there."""
        base, sequence = split_version(name)
        assert sequence is not None
        if name not in self._versions:
            try:
                policy = self._next_version(base, sequence) or self._from_snapshot(name)
            except InputError:
                policy = None  # the file is broken; the predictor says so
            if policy is None:
                return None
            self._versions[name] = policy
            while len(self._versions) > KEPT_VERSIONS:
                self._versions.popitem(last=False)
        self._versions.move_to_end(name)
        return self._versions[name]

    def _next_version(self, base: str, sequence: int) -> Policy | None:
        before = self._versions.get(policies.live_version(base, sequence - 1))
        path = self._live / VERSIONS_NAME / live_versions.file_name(sequence, "delta")
        if before is None or not path.is_file() or not isinstance(before.scorer, Scorer):
            return None
        return live_serving.apply(live_versions.read(path), before, before.scorer)

    def _from_snapshot(self, name: str) -> Policy | None:
        found = live_serving.load(self._store, self._live, name)
        return found[0] if found is not None else None

    def _follow_pointer(self) -> None:
        before = self._beside
        try:
            self._beside = self._what_serves()
        except InputError as error:
            if str(error) != self._refused_pointer:
                _say(f"{before.base.card.version} is watched still: {error}")
            self._refused_pointer, self._pointer = str(error), b""  # it is tried again
            return
        if self._beside is not before or self._evidence.surprise is None:
            self._begin()

    def _begin(self) -> None:
        self._evidence.begin(self._beside.base, self._beside.anchor, self._beside.share)

    def _what_serves(self) -> Beside:
        path = self._store / CHAMPION_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"--policies: a store with a champion, got {self._store}: {error.strerror}") from None
        if data == self._pointer:
            return self._beside
        beside = self._loaded(policies.decode_champion(data, str(path)))
        self._pointer, self._refused_pointer = data, ""
        return beside

    def _loaded(self, pointer: Champion) -> Beside:
        base = serving.load(self._store / pointer.version)
        if pointer.anchor is None:
            return Beside(base, base, "base", self._base_share)
        return Beside(base, serving.load(self._store / pointer.anchor), "anchor", pointer.anchor_share)


def _deciding_id(decision: Decision) -> str:
    return decision.slate_id or decision.decision_id


def build_parser() -> FlagParser:
    """The flags."""
    parser = FlagParser(documentation=__doc__, prog=f"python -m {PROGRAM}")
    parser.add_argument("--live", type=Path, required=True, help="folder of live learning: versions/ and control.json")
    parser.add_argument("--policies", type=Path, help="policy store, whose champion is the base")
    parser.add_argument("--events", type=Path, help="event log")
    parser.add_argument(
        "--base-share",
        type=float,
        default=LiveServing().base_share,
        help="as the predictor has it (default: %(default)s)",
    )
    parser.add_argument("--release", metavar="REASON", help="ends a hold of live learning, and does nothing else")
    parser.add_argument("--hold", metavar="REASON", help="holds live learning, and does nothing else")
    for struct in (WindowSettings, LiveCaution, WatchPace):
        add_flags(parser, struct)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Watches until SIGTERM or SIGINT, and returns the exit code."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    given = build_parser().parse_args(argv)
    now = datetime.now(UTC)
    if given.release is not None:
        _say("released" if live_control.release(given.live, given.release, now) else "was not held")
        return
    if given.hold is not None:
        _say("held" if live_control.hold(given.live, given.hold, now) else "was held already")
        return
    for name in ("events", "policies"):
        if getattr(given, name) is None:
            raise InputError(f"--{name}: is needed to watch, got none")
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    window, caution = from_flags(given, WindowSettings), from_flags(given, LiveCaution)
    look_seconds = from_flags(given, WatchPace).look_seconds
    watch = LiveWatch(given.events, given.live, given.policies, window, caution, given.base_share)
    _say("watches")
    while not stopped:
        if (alarm := watch.step()) is not None:
            _say(f"HELD live learning: {alarm.reason}")
        time.sleep(look_seconds)


def _say(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
