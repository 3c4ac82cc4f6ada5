"""The command line of the whole: `python -m orchestration.cli <command> --help`.

loop       run the closed loop on this machine and write its report
report     write the report of a run again, from its data
status     what a policy store serves, and what it served before
rollback   make the champion before this one serve again
promote    make a policy the champion by hand

Pipelines, on this machine or on Vertex AI:

run-local  run a pipeline here, with KFP's local runner
check      check the configurations against the pipelines, and compile each
compile    write a pipeline's YAML
history    what each run of a pipeline did, and which policy served when
submit     run a pipeline on Vertex AI
schedule   create, pause, resume, delete or list the schedules on Vertex AI

status, rollback and promote take a policy store (--policies) or an environment on Vertex AI (--config); history, a root
folder (--root) or such an environment.
"""

import argparse
import resource
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import msgspec

from contracts.command_line import FlagParser, add_flags
from contracts.errors import InputError
from orchestration import policy_store
from orchestration.loop.settings import LoopSettings, loop_settings
from orchestration.pipelines import commands
from orchestration.processes import native_messages_withheld

PROGRAM = "orchestration.cli"
_LOOP = """Runs the closed loop on this machine: real ratings, a real predictor, simulated viewers.

    generate -> train -> serve -> (simulate -> ingest -> export -> train -> evaluate -> roll out) for each window

A line is printed for each window. --out gets report.html, a page to look at, report.json, the same in numbers, and all
that they were counted from. Ctrl-C ends the run and its processes; --resume goes on with it.

    python -m orchestration.cli loop
    python -m orchestration.cli loop --ratings ~/ml-100k --num-actions 500 --windows 20 --out runs/500
    python -m orchestration.cli loop --algorithm lin_ts --no-reward-probability 0.3 --fault-rate 0.1 --out runs/rough
    python -m orchestration.cli loop --resume --out runs/rough --windows 30
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit code 0 when done, 1 when a pipeline failed, 2 after wrong input, 130 after ctrl-C."""
    try:
        arguments = build_parser().parse_args(argv)
    except InputError as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 2
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        code: int = arguments.command(arguments)
    except BaseException as error:
        # Native code that is interrupted (a query, a pipeline) may end with an error of its own.
        if interrupted:
            sys.stderr.write(f"\n{PROGRAM}: interrupted; its processes have ended.{_how_to_go_on(arguments)}\n")
            return 130
        if isinstance(error, InputError):
            sys.stderr.write(f"{PROGRAM}: error: {error}\n")
            return 2
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
    loop.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, which was interrupted, with its settings"
    )
    loop.set_defaults(command=_loop)
    report = subparsers.add_parser("report", description="write the report of a run again, from its data")
    report.add_argument("--out", default="runs/loop", help="folder of the run (default: runs/loop)")
    report.set_defaults(command=_report)
    status = subparsers.add_parser("status", description="what a policy store serves, and what it served before")
    _add_store_or_config(status)
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
    commands.add_commands(subparsers)
    return parser


def _add_store_or_config(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--policies", type=Path, help="the policy store")
    commands.add_environment(parser, where)


def _promote(arguments: argparse.Namespace) -> int:

    if arguments.config:
        print(commands.vertex_of(arguments).promote(arguments.version, arguments.reason))
        return 0
    champion = policy_store.roll_out(arguments.policies, arguments.version, arguments.reason, datetime.now(UTC))
    print(f"{champion.version} is the champion")
    return 0


def _loop(arguments: argparse.Namespace) -> int:
    settings = loop_settings(arguments)
    begin = time.monotonic()
    print("Loading Beam and TensorFlow …", flush=True)
    with native_messages_withheld():
        import tensorflow as tf

        tf.config.list_physical_devices()
        from orchestration.loop import local_loop
        from orchestration.loop.run_folder import RunFolder
    if arguments.resume:
        started_with = RunFolder(Path(settings.out)).settings()
        settings = loop_settings(arguments, msgspec.structs.replace(started_with, out=settings.out))
    page = local_loop.run(settings, resume=arguments.resume)
    seconds = time.monotonic() - begin
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"Done in {seconds:.0f} s; largest process {largest * unit / 2**20:.0f} MB")
    print(f"Report: {page} and {page.with_suffix('.json')}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from orchestration.loop import local_loop

    print(f"Report: {local_loop.write_report(Path(arguments.out))}")
    return 0


def _status(arguments: argparse.Namespace) -> int:

    if arguments.config:
        vertex = commands.vertex_of(arguments)
        champion = vertex.champion()
        for one in vertex.deployed():
            print(f"{'→' if one.version == champion else ' '} {one.version}  {one.traffic}% of the traffic")
        for last in vertex.history()[-1:]:
            print(f"  since {last.promoted_at:%Y-%m-%d %H:%M:%S}: {last.reason}")
        for name, state in vertex.runs("retrain")[:10]:
            print(f"  {name}  {state}")
        return 0
    current = policy_store.champion(arguments.policies)
    if current is None:
        raise InputError(f"{arguments.policies} has no champion")
    past_champions = policy_store.history(arguments.policies)
    for position, past in enumerate(past_champions, start=1):
        mark = "→" if position == len(past_champions) else " "
        print(f"{mark} {past.promoted_at:%Y-%m-%d %H:%M:%S} {past.version}  {past.reason}")
    if current.candidate is not None:
        print(f"  {current.mode} beside it: {current.candidate}, share {current.candidate_share:g}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:

    if arguments.config:
        print(commands.vertex_of(arguments).roll_back(arguments.reason))
        return 0
    champion = policy_store.roll_back(arguments.policies, arguments.reason, datetime.now(UTC))
    print(f"{champion.version} is the champion")
    return 0


if __name__ == "__main__":
    sys.exit(main())
