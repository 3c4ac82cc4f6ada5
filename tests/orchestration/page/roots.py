"""A run of the loop as its parts would leave it, small and made at once: two versions, two windows, events."""

from datetime import timedelta
from pathlib import Path

import msgspec

from contracts import policies
from contracts.items import Item
from contracts.policies import TrainedWindow
from contracts.windows import TrainingWindow
from orchestration import policy_store
from orchestration.audit import window_audits
from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import Finding
from orchestration.audit.window_audits import WindowAudit
from orchestration.gate import GateResult
from orchestration.loop.run_folder import JournalEntry, RunFolder, Running
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import ServedDecision, SessionStart, TruthLog
from tests.linear_policies import write_policy
from tests.orchestration.page.events import START, decision, lines, reward, segment

HOSTILE = [
    "<script>alert(1)</script>",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "long " * 200,  # as long as a text may be
    '"><img src=x onerror=alert(1)>',
    "${7*7} {{7*7}} \u0000",
]


def window(number: int) -> TrainingWindow:
    """Window 0 is the bootstrap; window 1 starts at START."""
    return TrainingWindow(START + timedelta(seconds=5 * (number - 1)), START + timedelta(seconds=5 * number))


def audit(number: int, *findings: Finding) -> WindowAudit:
    refused = any(one.alarm and one.kind != "warning" for one in findings)
    reason = findings[0].fact if refused else ""
    return WindowAudit(
        window=window(number), accepted=not refused, reason=reason, findings=list(findings), evidence=Evidence()
    )


def finding(check: str, *, alarm: bool = False, kind: str = "break") -> Finding:
    return Finding(
        check=check, kind=kind, alarm=alarm, statistic=1.0, threshold=2.0, fact=f"fact of {check}", meaning="a fault"
    )


def add_version(folder: RunFolder, number: int, trained: list[TrainedWindow]) -> str:
    """A version trained on these windows becomes the champion, and the journal notes its window."""
    version = f"v{number}"
    card = write_policy(folder.policies / version, seed=number)
    catalogue = [
        Item(action=action, item_id=str(action), attributes={"title": title}) for action, title in enumerate(HOSTILE)
    ]
    card = msgspec.structs.replace(card, trained_on=trained, catalogue=catalogue)
    (folder.policies / version / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    served_at = window(number).end + timedelta(seconds=4)
    policy_store.roll_out(folder.policies, version, f"reason {number}", served_at)
    folder.append(
        JournalEntry(
            number=number,
            window=window(number),
            interrupted=False,
            candidate=version,
            gate=GateResult(verdict="undecided", promoted=True, reason=f"reason {number}", evaluation=None),
            true_value=None,
            ingest_seconds=0.1,
            export_seconds=0.1,
            train_seconds=0.1,
            gate_seconds=0.1,
            serving_at=served_at,
        )
    )
    return version


def make(root: Path, predictor: str | None = None) -> RunFolder:
    """The run: v0 and v1 in the store, window 1 audited, three decisions of it with two rewards."""
    folder = RunFolder(root)
    settings = LoopSettings(
        out=str(root), num_actions=5, rank=3, window_seconds=5.0, holdback_share=0.2, fault_rate=0.0
    )
    with folder.locked():
        catalogue = [
            Item(action=action, item_id=str(action), attributes={"title": title})
            for action, title in enumerate(HOSTILE)
        ]
        folder.create(settings, catalogue)
    before = TrainedWindow(window=window(0), split="train", records=100)
    add_version(folder, 0, [before])
    add_version(folder, 1, [before, TrainedWindow(window=window(1), split="train", records=3)])
    window_audits.write(folder.audit, audit(0))
    window_audits.write(
        folder.audit, audit(1, finding("reward delay"), finding("observations", alarm=True, kind="warning"))
    )
    folder.write_running(Running(predictor=predictor, oracle=3.0, best_fixed=2.0, uniform=1.0))
    made = [decision(number, 1.0 + number, action=number, policy_version="v0") for number in range(3)]
    segment(folder.events, 0.5, lines(*made, reward(made[0], 4.0), reward(made[1], 2.0)))
    truth = TruthLog(folder.truth / "viewers-0000.jsonl")
    truth.append([SessionStart(START.timestamp(), 1)])
    truth.append(ServedDecision(one.decision_id, "v0", 0, one.action, 0.9, 2.0, 2.5, START.timestamp()) for one in made)
    truth.close()
    return folder
