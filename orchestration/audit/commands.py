"""The commands `audit` and `guard` of `orchestration.cli`."""

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from contracts.command_line import HELD, FlagParser, add_flags, time_flag
from contracts.errors import InputError
from contracts.windows import WindowSettings
from orchestration.places import Places

_AUDIT = """Checks a log against itself and against the policies it names, window by window.

Nothing but the log is needed: decisions are replayed by the version that they name, and each window is compared with
those before it. A check is a contradiction (the log disagrees with itself), a break (rewards stopped meaning what they
meant) or a warning. The exit code is 0 when no window is refused, and 5 otherwise.

    python -m orchestration.cli audit --root runs/latest
    python -m orchestration.cli audit --root runs/latest --accept 20260101T000005.000000Z --reason "the price list changed"
    python -m orchestration.cli audit --events runs/latest/events --policies runs/latest/policies \\
        --start 2026-01-01T00:00:00Z --end 2026-01-01T00:01:00Z --window-seconds 5
    python -m orchestration.cli audit --warehouse bigquery:PROJECT.bandit --policies /gcs/BUCKET/policies \\
        --start 2026-01-01T00:00:00Z --end 2026-01-02T00:00:00Z --window-seconds 3600 \\
        --beam="--runner=DataflowRunner --project=PROJECT --region=europe-west1 --temp_location=gs://BUCKET/tmp"

Only the windows of a root are kept, with what was found. Elsewhere each call reads the range again.
"""
_GUARD = """Shows whether the loop is held, holds it by hand, or releases it.

    python -m orchestration.cli guard status --root runs/latest
    python -m orchestration.cli guard hold --root runs/latest --reason "the catalogue is being replaced"
    python -m orchestration.cli guard release --root runs/latest --reason "the feed is repaired"

After a release training goes on without the refused windows; `audit --accept` counts one of them as good after all.
"""


def add_commands(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds both commands."""
    audit = subparsers.add_parser("audit", description=_AUDIT, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = audit.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", type=Path, help="the folder of a loop or of the pipelines")
    where.add_argument("--warehouse", help="a folder of tables, or bigquery:PROJECT.DATASET")
    where.add_argument("--events", type=Path, help="a folder of sealed segments")
    audit.add_argument("--policies", type=Path, help="the policy store (without --root)")
    audit.add_argument("--start", type=time_flag, metavar="TIME", help="start of the first window (without --root)")
    audit.add_argument("--end", type=time_flag, metavar="TIME", help="end of the last window (without --root)")
    audit.add_argument("--window-seconds", type=float, metavar="SECONDS", help="length of a window (without --root)")
    audit.add_argument(
        "--beam", metavar="OPTIONS", help="sum up each window by a Beam job with these options of Beam, for a large log"
    )
    add_flags(audit, WindowSettings)
    audit.add_argument("--json", action="store_true", help="print the audits as JSON lines")
    audit.add_argument("--accept", metavar="WINDOW", help="count a refused window as good (its start or folder name)")
    audit.add_argument("--reason", help="why, for the record (with --accept)")
    audit.set_defaults(command=_audit)
    guard = subparsers.add_parser("guard", description=_GUARD, formatter_class=argparse.RawDescriptionHelpFormatter)
    guard.add_argument("action", choices=("status", "hold", "release"))
    guard.add_argument("--root", type=Path, required=True, help="the folder of a loop or of the pipelines")
    guard.add_argument("--reason", help="why, for the record (with hold and release)")
    guard.set_defaults(command=_guard)


def _audit(arguments: argparse.Namespace) -> int:
    if arguments.accept is not None:
        return _accept(arguments)
    from orchestration.audit import sources

    refused, windows = 0, []
    for audit in sources.audits(arguments):
        refused += not audit.accepted
        windows.append(audit.window.folder)
        print(msgspec.json.encode(audit).decode() if arguments.json else "\n".join(_lines(audit, windows)), flush=True)
    if not arguments.json:
        print(f"{refused} window(s) refused" if refused else "no window refused")
    return HELD if refused else 0


def _accept(arguments: argparse.Namespace) -> int:
    from orchestration.audit import guard

    if arguments.root is None or not arguments.reason:
        raise InputError("--accept: needs --root and --reason")
    places = Places(arguments.root)
    audit = guard.accept(places, guard.find_window(places, arguments.accept), arguments.reason, datetime.now(UTC))
    print(f"{audit.window.folder} is accepted: {audit.reason}")
    return 0


def _lines(audit: Any, windows: list[str]) -> Iterator[str]:
    """The audit as text; `windows`: the folders of all windows up to this one."""
    light = "✓" if audit.accepted else "✗"
    count = audit.evidence.decisions
    replayed = sum(one.replayed for one in audit.evidence.versions.values())
    found = audit.evidence
    yield (
        f"{light} {audit.name}  {count} decisions, {replayed} replayed, {found.rewarded} with a reward,"
        f" {found.late_rewards} late rewards, {found.duplicates} duplicates"
    )
    for finding in audit.findings:
        if finding.alarm:
            mark = "!" if finding.kind == "warning" else "✗"
            since = f", began in {windows[-1 - finding.began]}" if 0 < finding.began < len(windows) else ""
            yield f"    {mark} {finding.kind}: {finding.check}: {finding.fact}{since}"
            yield f"      statistic {finding.statistic:.3g}, threshold {finding.threshold:.3g}. Most likely: {finding.meaning}."
    if audit.accepted and audit.reason:
        yield f"    accepted: {audit.reason}"
    if audit.examination is not None:
        yield f"    examined: {audit.examination}"


def _guard(arguments: argparse.Namespace) -> int:
    from orchestration.audit import guard

    places = Places(arguments.root)
    if arguments.action != "status":
        if not arguments.reason:
            raise InputError(f"--reason: needed to {arguments.action}")
        change = guard.hold if arguments.action == "hold" else guard.release
        change(places, arguments.reason, datetime.now(UTC))
    found = guard.state(arguments.root)
    if found is None:
        print("never held")
        return 0
    print(f"{'held' if found.held else 'not held'} since {found.changed_at:%Y-%m-%d %H:%M:%S}: {found.reason}")
    if found.began is not None:
        print(f"began in {found.began.folder}")
    if found.rolled_back_to is not None:
        print(f"{found.rolled_back_to} serves since")
    for start in guard.refused_windows(places):
        print(f"refused: window that starts at {start.isoformat()}")
    return HELD if found.held else 0
