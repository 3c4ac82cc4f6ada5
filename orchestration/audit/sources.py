"""What the command `audit` can look at: the windows of a root, a range of a warehouse, or a range of an event log."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import ingest_events
from beam_jobs.generate_movielens import POLICY_VERSION
from beam_jobs.options import JobParser
from beam_jobs.warehouses import EmbeddedWarehouse, Warehouse, open_warehouse
from contracts.command_line import from_flags
from contracts.errors import InputError
from contracts.event_segments import sealed_segments
from contracts.policies import base_of
from contracts.schemas import DEAD_LETTERS, DECISIONS
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, WindowSettings, decode_manifest
from orchestration import policy_store
from orchestration.audit.auditor import Auditor
from orchestration.audit.window_audits import WindowAudit
from orchestration.places import Places

_RANGE = ("policies", "start", "end", "window_seconds")


def audits(arguments: argparse.Namespace) -> Iterator[WindowAudit]:
    """The audits that the flags of the command ask for, window by window.

    Raises InputError for a folder or a range that holds nothing to audit, and for a store without the versions that decided.
    """
    beam = None
    if arguments.beam is not None:
        _, beam = JobParser("audit", "").parse_with_beam(shlex.split(arguments.beam))
    if arguments.root is not None:
        yield from _of_root(Places(arguments.root), beam)
        return
    flag = "--warehouse" if arguments.warehouse is not None else "--events"
    for name in _RANGE:
        if getattr(arguments, name) is None:
            raise InputError(f"--{name.replace('_', '-')}: needed with {flag}")
    if not arguments.window_seconds > 0 or arguments.end <= arguments.start:
        raise InputError(
            f"--window-seconds: above 0 expected, and --end after --start, got {arguments.window_seconds},"
            f" {arguments.start.isoformat()} and {arguments.end.isoformat()}"
        )
    if not arguments.policies.is_dir():
        raise InputError(f"--policies: a policy store expected, got {arguments.policies}, which is not a folder")
    if arguments.warehouse is not None:
        source = open_warehouse(arguments.warehouse, beam or PipelineOptions([]))
        source.check()
        yield from _of_range(source, flag, arguments, beam)
        return
    with _ingested(arguments.events) as source:
        yield from _of_range(source, flag, arguments, beam)


def _of_root(places: Places, beam: PipelineOptions | None) -> Iterator[WindowAudit]:
    """Audits the exported windows, each with the settings that it was exported with, and keeps the audits."""
    every = sorted(_manifests(places.windows), key=lambda manifest: (manifest.window, manifest.revision))
    manifests = list({manifest.window: manifest for manifest in every}.values())  # the newest revision of each
    if not manifests:
        raise InputError(f"--root: {places.root} has no exported window")
    decided = {version for manifest in manifests for version in manifest.policy_versions}
    _check_versions("--root", decided, places.policies)
    for manifest in manifests:
        source = EmbeddedWarehouse(places.warehouse)
        auditor = Auditor(source, places.policies, places.audit, manifest.settings, places.live, beam)
        yield auditor.audit(manifest.window, revision=manifest.revision)


def _of_range(
    source: Warehouse, flag: str, arguments: argparse.Namespace, beam: PipelineOptions | None
) -> Iterator[WindowAudit]:
    """Audits a range in windows of one length. Keeps nothing."""
    settings = from_flags(arguments, WindowSettings)
    decided = _decided(source, arguments.start, arguments.end)
    if not decided:
        raise InputError(
            f"--start, --end: the {flag.removeprefix('--')} has no decisions in [{arguments.start.isoformat()},"
            f" {arguments.end.isoformat()})"
        )
    _check_versions("--policies", decided, arguments.policies)
    length = timedelta(seconds=arguments.window_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        auditor = Auditor(source, arguments.policies, Path(scratch), settings, beam=beam)
        start = arguments.start
        while start < arguments.end:
            yield auditor.audit(TrainingWindow(start, min(start + length, arguments.end)))
            start += length


@contextmanager
def _ingested(events: Path) -> Iterator[Warehouse]:
    """The sealed segments of an event log as tables, in a folder that is removed afterwards. Raises InputError."""
    if not events.is_dir() or not sealed_segments(events):
        raise InputError(f"--events: a folder with sealed segments expected, got {events}")
    with tempfile.TemporaryDirectory() as scratch:
        warehouse = EmbeddedWarehouse(Path(scratch))
        warehouse.create()
        counts = ingest_events.ingest(events, warehouse)
        if not counts.decisions:
            raise InputError(
                f"--events: decisions expected, got {events} with none and {counts.dead_letters} unreadable events"
                f"{_first_error(warehouse)}"
            )
        yield warehouse


def _first_error(warehouse: EmbeddedWarehouse) -> str:
    always = (datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
    rows = [batch for part in warehouse.parts(DEAD_LETTERS, *always, ("error_message",)) for batch in part.read()]
    messages = sorted(message for batch in rows for message in batch.column("error_message").to_pylist())
    return f", such as: {messages[0]}" if messages else ""


def _decided(source: Warehouse, start: datetime, end: datetime) -> set[str]:
    """The versions that decided in the range; a live version counts as its base."""
    parts = source.parts(DECISIONS, start, end, ("policy_version",))
    columns = (batch.column("policy_version") for part in parts for batch in part.read())
    return {base_of(version) for column in columns for version in column.unique().to_pylist()}


def _manifests(windows: Path) -> Iterator[Manifest]:
    for path in windows.glob(f"window=*/{MANIFEST_NAME}"):
        yield decode_manifest(path.read_bytes(), str(path))


def _check_versions(flag: str, decided: Iterable[str], store: Path) -> None:
    """Prints which versions decided and are gone; their decisions cannot be replayed. InputError when all of them are."""
    known = set(policy_store.versions(store)) | {POLICY_VERSION}
    wanted = sorted(set(decided) - {POLICY_VERSION})
    gone = [version for version in wanted if version not in known]
    if wanted and len(gone) == len(wanted):
        raise InputError(f"{flag}: {store} has none of the {len(gone)} versions that decided, such as {gone[0]}")
    if gone:
        print(
            f"{len(gone)} of {len(wanted)} versions that decided are gone, such as {gone[0]}: not replayed",
            file=sys.stderr,
        )
