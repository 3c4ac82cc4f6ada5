"""What the report says about versions on probation: what became of them, and what caution cost."""

from collections.abc import Sequence

import msgspec

from orchestration.watch import Look


class Trials(msgspec.Struct, frozen=True, kw_only=True):
    """The versions that were on probation in a run.

    `cost`: an estimate from the log, in reward over the whole run; negative where the anchor's share earned more.
    """

    confirmed: int = 0
    rolled_back: int = 0
    on_probation: Look | None = None  # as the run ended
    cost: float = 0.0
    decisions: int = 0  # in all trials


def trials(looks: Sequence[Look | None]) -> Trials:
    """Adds up the looks after each window, oldest first; None where nothing was on probation."""
    found = [look for look in looks if look is not None]
    # The evidence about an anchor goes on from look to look until it is decided.
    afterwards = [*found[1:], None][: len(found)]
    ends = [one for one, after in zip(found, afterwards, strict=True) if after is None or _is_new(one, after)]
    return Trials(
        confirmed=sum(look.outcome == "confirmed" for look in ends),
        rolled_back=sum(look.outcome == "rolled back" for look in ends),
        on_probation=ends[-1] if ends and ends[-1].outcome == "on probation" else None,
        cost=sum(look.cost for look in ends),
        decisions=sum(look.decisions for look in ends),
    )


def _is_new(look: Look, after: Look) -> bool:
    """Whether `after` belongs to another trial."""
    return look.outcome != "on probation" or look.anchor != after.anchor
