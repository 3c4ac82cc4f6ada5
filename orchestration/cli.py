"""The command line of the project: `python -m orchestration.cli <command> --help`.

init       make a project folder: your items, your context, and a first policy
up         run everything for a project folder, and keep it running
status     show what goes on in a project folder, in ten lines

loop       run the closed loop on this machine and write its report
report     write the report of a run again, from its data
compare    compare runs: settings that differ, rewards, counts, freshness
evaluate   judge a policy on the log, alone or against another one
rollback   make the previous champion serve again; each call goes one further back
promote    make a policy the champion
audit      check a log against itself and against its policies, without any other truth
guard      show whether the loop is held, hold it, or release it
catalogue  add, change, mask and retire items, while traffic flows
erase      remove a user from the log, the tables, the windows and the policies below a root

Pipelines, on this machine or on Vertex AI:

run-local  run a pipeline here, with KFP's local runner
check      check the configurations against the pipelines, and compile each
compile    write a pipeline's YAML
history    what each run of a pipeline did, and which policy served when
submit     run a pipeline on Vertex AI
cost       estimate what an environment on Google Cloud costs per month
schedule   create, pause, resume, delete or list the schedules on Vertex AI

rollback and promote take a policy store (--policies) or an environment on Vertex AI (--config), and status does too, to show
which policy serves and which ones served before; history, a root folder (--root) or such an environment.
"""

import argparse
import logging
import resource
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import msgspec

from contracts.command_line import HELD, INTERRUPTED, OVERDUE, ROLLED_BACK, UNACCOUNTED, FlagParser, add_flags, run_main
from contracts.errors import InputError
from orchestration import catalogue, erasure, evaluation, policy_store
from orchestration.audit import commands as audit_commands
from orchestration.cloud import cost
from orchestration.loop.run_folder import LATEST_NAME, RunFolder, latest_folder, new_folder
from orchestration.loop.settings import LoopSettings, loop_settings
from orchestration.pipelines import commands
from orchestration.processes import native_messages_withheld
from orchestration.project import commands as project_commands
from orchestration.project import creation

if TYPE_CHECKING:
    from orchestration.cloud.target import VertexTarget

PROGRAM = "orchestration.cli"
_LOOP = """Runs the closed loop on this machine: real ratings, a real predictor, simulated viewers.

    generate -> train -> serve -> (simulate -> ingest -> export -> train -> evaluate -> roll out) for each window

Each window prints one line. The run's folder holds report.html (a page), report.json (the same figures) and the data that
they are counted from. Each run has a folder of its own in runs/, named after its time and settings, and runs/latest is a
link to the last one; --out names another folder. Ctrl-C ends the run and its processes; --resume continues it.

    python -m orchestration.cli loop
    python -m orchestration.cli loop --ratings ~/ml-100k --num-actions 500 --windows 20 --out runs/500
    python -m orchestration.cli loop --algorithm lin_ts --no-reward-probability 0.3 --fault-rate 0.1 --out runs/rough
    python -m orchestration.cli loop --resume --out runs/rough --windows 30
"""

_COMPARE = """Compares runs: the settings that differ, rewards, counts, freshness, and cost in seconds.

Runs with the same settings but for the seed share a column: the mean, with a 95% interval over seeds. The page holds the
same table and the curves, window by window.

    python -m orchestration.cli compare runs/20261128T093000Z-lin_ucb-100-seed0 runs/latest
"""


_STATUS = """Shows what goes on in a project folder: processes, policy, traffic, learning, and the last problem.

    status news

The exit code is 0 when nothing is wrong, 3 when a process does not run, 5 when the guard holds, and 6 when a window waits for
its events too long. With --policies or --config: what a policy store or an environment serves, and what it served before.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit codes as in `contracts.command_line`, and 1 when a pipeline failed."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        code: int = arguments.command(arguments)
    except BaseException:
        # Native code that is interrupted (a query, a Beam pipeline) may raise another exception.
        if interrupted:
            sys.stderr.write(f"\n{PROGRAM}: interrupted; its processes have ended.{_how_to_go_on(arguments)}\n")
            return INTERRUPTED
        raise
    return code


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    if arguments.command is not _loop:
        return ""
    settings = loop_settings(arguments)
    if settings.backend != "local" or not (Path(settings.out) / "journal.jsonl").is_file():
        return ""
    return f' It can go on: make loop LOOP_ARGS="--resume --out {shlex.quote(settings.out)}"'


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(required=True, metavar="command")
    loop = subparsers.add_parser("loop", description=_LOOP, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(loop, LoopSettings)
    loop.add_argument("--resume", action="store_true", help="continue the interrupted run in --out with its settings")
    loop.set_defaults(command=_loop)
    report = subparsers.add_parser("report", description="write the report of a run again, from its data")
    report.add_argument("--out", default="runs/latest", help="folder of the run (default: runs/latest, the last one)")
    report.set_defaults(command=_report)
    compare = subparsers.add_parser(
        "compare", description=_COMPARE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="folders of runs that have ended")
    compare.add_argument(
        "--page", type=Path, default=Path("runs/comparison.html"), help="page to write (default: %(default)s)"
    )
    compare.set_defaults(command=_compare)
    creation.add_command(subparsers)
    project_commands.add_commands(subparsers)
    status = subparsers.add_parser("status", description=_STATUS, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_store_or_config(status, project_folder=True)
    status.set_defaults(command=_status)
    rollback = subparsers.add_parser("rollback", description="make the champion before this one serve again")
    _add_store_or_config(rollback)
    rollback.add_argument("--reason", required=True, help="why, for the history")
    rollback.set_defaults(command=_rollback)
    promote = subparsers.add_parser("promote", description="make a policy the champion by hand")
    promote.add_argument("version", help="of the policy")
    _add_store_or_config(promote)
    promote.add_argument("--reason", required=True, help="why, for the history")
    promote.set_defaults(command=_promote)
    audit_commands.add_commands(subparsers)
    catalogue.add_command(subparsers)
    erasure.add_command(subparsers)
    evaluation.add_command(subparsers)
    cost.add_command(subparsers)
    commands.add_commands(subparsers)
    return parser


def _add_store_or_config(parser: argparse.ArgumentParser, project_folder: bool = False) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    if project_folder:
        where.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a project folder")
    where.add_argument("--policies", type=Path, help="the policy store")
    commands.add_environment(parser, where)


def _promote(arguments: argparse.Namespace) -> int:
    if arguments.config:
        from orchestration.cloud.vertex_endpoint import VertexEndpoint

        print(VertexEndpoint(commands.target_of(arguments)).promote(arguments.version, arguments.reason))
        return 0
    champion = policy_store.roll_out(arguments.policies, arguments.version, arguments.reason, datetime.now(UTC))
    print(f"{champion.version} is the champion")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    if arguments.config:
        from orchestration.cloud.vertex_endpoint import VertexEndpoint

        print(VertexEndpoint(commands.target_of(arguments)).roll_back(arguments.reason))
        return 0
    champion = policy_store.roll_back(arguments.policies, arguments.reason, datetime.now(UTC))
    print(f"{champion.version} is the champion")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    if arguments.folder is not None:
        return project_commands.show_status(arguments.folder)
    if arguments.config:
        _print_deployed(commands.target_of(arguments))
        return 0
    current = policy_store.champion(arguments.policies)
    if current is None:
        raise InputError(f"--policies: {arguments.policies} has no champion")
    *earlier, last = policy_store.history(arguments.policies)
    for mark, past in [*((" ", one) for one in earlier), ("→", last)]:
        print(f"{mark} {past.promoted_at:%Y-%m-%d %H:%M:%S} {past.version}  {past.reason}")
    if current.candidate is not None:
        print(f"  {current.mode} beside it: {current.candidate}, share {current.candidate_share:g}")
    if current.anchor is not None:
        print(f"  on probation beside its anchor: {current.anchor}, share {current.anchor_share:g}")
    return 0


def _print_deployed(target: "VertexTarget") -> None:
    from orchestration.cloud.vertex_endpoint import VertexEndpoint
    from orchestration.cloud.vertex_jobs import VertexJobs

    endpoint = VertexEndpoint(target)
    champion = endpoint.champion()
    for one in endpoint.deployed():
        print(f"{'→' if one.version == champion else ' '} {one.version}  {one.traffic}% of the traffic")
    for last in endpoint.history()[-1:]:
        print(f"  since {last.promoted_at:%Y-%m-%d %H:%M:%S}: {last.reason}")
    for name, state in VertexJobs(target).runs("retrain")[:10]:
        print(f"  {name}  {state}")


def _loop(arguments: argparse.Namespace) -> int:
    settings = loop_settings(arguments)
    latest = Path(settings.out).name == LATEST_NAME
    path = latest_folder(settings.out) if arguments.resume else new_folder(settings, datetime.now(UTC))
    arguments.out = str(path)  # where the link points to, or will, also in a message about an interruption
    settings = msgspec.structs.replace(settings, out=arguments.out)
    folder = RunFolder(path)
    folder.check_usable()
    if arguments.resume:
        settings = loop_settings(arguments, msgspec.structs.replace(folder.settings(), out=settings.out))
    begin = time.monotonic()
    print("Loading Beam and TensorFlow …", flush=True)
    _load_tensorflow()
    from orchestration.loop import local_loop

    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # it logs the exceptions that it raises
    page = local_loop.run(settings, resume=arguments.resume, latest=latest)
    seconds = time.monotonic() - begin
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"Done in {seconds:.0f} s; largest process {largest * unit / 2**20:.0f} MB")
    print(f"Report: {page} and {page.with_suffix('.json')}")
    print(f"Look into it: python -m orchestration.page --root {path}")
    print(f"Compare it:   python -m orchestration.cli compare {path} …")
    unaccounted = _unaccounted(folder)
    overdue, rolled_back = _overdue(folder), _rolled_back(folder)
    return _held(folder) or unaccounted or overdue or rolled_back


def _unaccounted(folder: RunFolder) -> int:
    """Prints what was lost, doubled, misattributed or late, and returns the exit code."""
    from orchestration.loop import accounting, report

    found = accounting.problems(report.read(folder).totals)
    for problem in found:
        print(f"✗ {problem}")
    return UNACCOUNTED if found else 0


def _overdue(folder: RunFolder) -> int:
    """Prints which windows waited for their events longer than they may, and returns the exit code."""
    from orchestration.loop import report

    found = report.read(folder)
    overdue = [window for window in found.windows if window.overdue]
    for window in overdue:
        print(f"✗ {report.waited(window)}; the limit is {found.settings.watermark_limit_seconds:g} s")
    return OVERDUE if overdue else 0


def _rolled_back(folder: RunFolder) -> int:
    """Prints which versions were rolled back on probation, and returns the exit code."""
    looks = [entry.look for entry in folder.journal() if entry.look and entry.look.outcome == "rolled back"]
    for look in looks:
        print(f"ROLLED BACK {look.version} to {look.anchor}: {look.reason}")
    if looks:
        print("Windows that only such versions were trained on are set aside; audit --accept WINDOW accepts one again")
    return ROLLED_BACK if looks else 0


def _held(folder: RunFolder) -> int:
    """Prints that the guard holds the run, if it does, and returns the exit code."""
    from orchestration.audit import guard

    found = guard.state(folder.root)
    if found is None or not found.held:
        return 0
    print(f"HELD by the guard since {found.changed_at:%Y-%m-%d %H:%M:%S}: {found.reason}")
    print(f"To go on: python -m {PROGRAM} audit --root {folder.root}, then guard release, then loop --resume")
    return HELD


def _report(arguments: argparse.Namespace) -> int:
    folder = RunFolder(Path(arguments.out))
    settings = folder.settings()
    _load_tensorflow()
    from orchestration.loop import audience, report_page

    report_page.write(folder, audience.load_movielens(settings))
    print(f"Report: {folder.report_html}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from orchestration.loop import comparison, comparison_page, runs

    compared = runs.load_all(arguments.runs)
    print(*comparison.in_columns(*comparison.table(compared)), sep="\n")
    comparison_page.write(arguments.page, compared)
    print(f"Page: {arguments.page}")
    return 0


def _load_tensorflow() -> None:
    """Imports TensorFlow without what its native code writes to standard error."""
    with native_messages_withheld():
        import tensorflow as tf

        tf.config.list_physical_devices()


if __name__ == "__main__":
    sys.exit(main())
