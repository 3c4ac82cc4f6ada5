"""The commands `audit` and `guard` of `orchestration.cli`."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from contracts.command_line import HELD, FlagParser, add_flags, from_flags, time_flag
from contracts.errors import InputError
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, WindowSettings, decode_manifest
from orchestration.places import Places

_AUDIT = """Checks a log against itself and against the policies it names, window by window.

Nothing but the log is needed: decisions are replayed by the version that they name, and each window is compared with
those before it. A check is a contradiction (the log disagrees with itself), a break (rewards stopped meaning what they
meant) or a warning. The exit code is 0 when no window is refused, and 5 otherwise.

    python -m orchestration.cli audit --root runs/latest
    python -m orchestration.cli audit --root runs/latest --accept 20260101T000005.000000Z --reason "the price list changed"
    python -m orchestration.cli audit --warehouse bigquery:PROJECT.bandit --policies /gcs/BUCKET/policies \\
        --start 2026-01-01T00:00:00Z --end 2026-01-02T00:00:00Z --window-seconds 3600
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
    audit.add_argument("--policies", type=Path, help="the policy store (with --warehouse)")
    audit.add_argument("--start", type=time_flag, metavar="TIME", help="start of the first window (with --warehouse)")
    audit.add_argument("--end", type=time_flag, metavar="TIME", help="end of the last window (with --warehouse)")
    audit.add_argument("--window-seconds", type=float, metavar="SECONDS", help="length of a window (with --warehouse)")
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
    audits = _of_root(arguments) if arguments.root is not None else _of_warehouse(arguments)
    refused = 0
    for audit in audits:
        refused += not audit.accepted
        print(msgspec.json.encode(audit).decode() if arguments.json else "\n".join(_lines(audit)), flush=True)
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


def _of_root(arguments: argparse.Namespace) -> "Iterator[Any]":
    """Audits the exported windows below a root, each with the settings that it was exported with."""
    from beam_jobs.warehouses import EmbeddedWarehouse
    from orchestration.audit.auditor import Auditor

    places = Places(arguments.root)
    manifests = sorted(_manifests(places.windows), key=lambda manifest: manifest.window)
    if not manifests:
        raise InputError(f"--root: {arguments.root} has no exported window")
    _check_versions(manifests, places.policies)
    for manifest in manifests:
        source = EmbeddedWarehouse(places.warehouse)
        yield Auditor(source, places.policies, places.audit, manifest.settings, places.live).audit(manifest.window)


def _of_warehouse(arguments: argparse.Namespace) -> "Iterator[Any]":
    """Audits a range of a warehouse in windows of one length. Keeps nothing."""
    from apache_beam.options.pipeline_options import PipelineOptions

    from beam_jobs.warehouses import open_warehouse
    from orchestration.audit.auditor import Auditor

    for name in ("policies", "start", "end", "window_seconds"):
        if getattr(arguments, name) is None:
            raise InputError(f"--{name.replace('_', '-')}: needed with --warehouse")
    if not arguments.window_seconds > 0 or arguments.end <= arguments.start:
        raise InputError(
            f"--window-seconds: above 0 expected, and --end after --start, got {arguments.window_seconds},"
            f" {arguments.start.isoformat()} and {arguments.end.isoformat()}"
        )
    if not arguments.policies.is_dir():
        raise InputError(f"--policies: {arguments.policies} is not a folder")
    settings = from_flags(arguments, WindowSettings)
    source = open_warehouse(arguments.warehouse, PipelineOptions([]))
    source.check()
    length = timedelta(seconds=arguments.window_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        auditor = Auditor(source, arguments.policies, Path(scratch), settings)
        start = arguments.start
        while start < arguments.end:
            yield auditor.audit(TrainingWindow(start, min(start + length, arguments.end)))
            start += length


def _manifests(windows: Path) -> Iterator[Manifest]:
    for path in windows.glob(f"window=*/{MANIFEST_NAME}"):
        yield decode_manifest(path.read_bytes(), str(path))


def _check_versions(manifests: Sequence[Manifest], store: Path) -> None:
    """Says which versions decided and are gone: their decisions cannot be replayed."""
    from beam_jobs.generate_movielens import POLICY_VERSION
    from orchestration import policy_store

    decided = {version for manifest in manifests for version in manifest.policy_versions} - {POLICY_VERSION}
    gone = sorted(decided - set(policy_store.versions(store)))
    if decided and len(gone) == len(decided):
        raise InputError(f"--root: {store} has none of the {len(gone)} versions that decided, such as {gone[0]}")
    if gone:
        print(f"{len(gone)} of {len(decided)} versions that decided are gone, such as {gone[0]}: not replayed")


def _lines(audit: Any) -> Iterator[str]:
    light = "✓" if audit.accepted else "✗"
    count = audit.evidence.decisions
    replayed = sum(one.replayed for one in audit.evidence.versions.values())
    found = audit.evidence
    yield (
        f"{light} {audit.window.folder}  {count} decisions, {replayed} replayed, {found.rewarded} with a reward,"
        f" {found.late_rewards} late rewards, {found.duplicates} duplicates"
    )
    for finding in audit.findings:
        if finding.alarm:
            mark = "!" if finding.kind == "warning" else "✗"
            since = f", began {finding.began} window(s) before" if finding.began else ""
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
