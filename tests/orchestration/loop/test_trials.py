import msgspec

from orchestration.loop.trials import Trials, trials
from orchestration.watch import Look, Outcome


def look(version: str, anchor: str, outcome: Outcome, decisions: int, cost: float) -> Look:
    undecided = outcome == "on probation"
    return Look(
        version=version,
        anchor=anchor,
        anchor_share=0.1,
        outcome=outcome,
        decisions=decisions,
        gain=cost / decisions * 10 if decisions else None,
        low=-0.4,
        high=0.6,
        margin=0.05,
        needed=1234 if undecided else None,
        needed_at_equal_share=567 if undecided else None,
        cost=cost,
        reason="",
    )


LOOKS = [
    None,
    look("v-2", "v-1", "on probation", 900, 5.0),
    look("v-3", "v-1", "confirmed", 2000, 20.0),
    look("v-4", "v-3", "on probation", 1500, 3.0),
    look("v-5", "v-3", "rolled back", 2500, -30.0),
    None,
    look("v-6", "v-3", "on probation", 0, 0.0),
    look("v-7", "v-3", "on probation", 700, 4.0),
]


def test_each_trial_counts_once_as_it_ended():
    """The third trial has the anchor of the second, which was rolled back: it begins anew."""
    assert trials(LOOKS) == Trials(
        confirmed=1, rolled_back=1, on_probation=LOOKS[-1], cost=20.0 - 30.0 + 4.0, decisions=2000 + 2500 + 700
    )
    assert trials(LOOKS[:3]).on_probation is None
    assert trials([]) == trials([None]) == Trials()


def test_looks_survive_the_report():
    made = trials(LOOKS)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Trials) == made
