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
import os
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import msgspec

from contracts.command_line import FlagParser, add_flags
from contracts.errors import InputError
from orchestration import policy_store
from orchestration.loop.settings import LoopSettings, loop_settings
from orchestration.places import Places

if TYPE_CHECKING:
    from contracts.policies import Champion
    from orchestration.cloud.vertex import Promotion, Vertex

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
    commands = parser.add_subparsers(required=True, metavar="command")
    loop = commands.add_parser("loop", description=_LOOP, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(loop, LoopSettings)
    loop.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, which was interrupted, with its settings"
    )
    loop.set_defaults(command=_loop)
    report = commands.add_parser("report", description="write the report of a run again, from its data")
    report.add_argument("--out", default="runs/loop", help="folder of the run (default: runs/loop)")
    report.set_defaults(command=_report)
    status = commands.add_parser("status", description="what a policy store serves, and what it served before")
    _add_store_or_config(status)
    status.set_defaults(command=_status)
    rollback = commands.add_parser("rollback", description="make the champion before this one serve again")
    _add_store_or_config(rollback)
    rollback.add_argument("--reason", required=True, help="why, for the history")
    rollback.set_defaults(command=_rollback)
    promote = commands.add_parser("promote", description="make a policy the champion by hand")
    promote.add_argument("version", help="of the policy")
    _add_store_or_config(promote)
    promote.add_argument("--reason", required=True, help="why, for the history")
    promote.set_defaults(command=_promote)
    _add_pipeline_commands(commands)
    return parser


def _add_store_or_config(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--policies", type=Path, help="the policy store")
    _add_environment(parser, where)


def _add_environment(parser: argparse.ArgumentParser, where: argparse._MutuallyExclusiveGroup) -> None:
    where.add_argument("--config", help="an environment on Vertex AI: dev, prod, or a TOML file")
    parser.add_argument("--project", default="", help="in place of the configuration's")


def _add_pipeline_commands(commands: "argparse._SubParsersAction[FlagParser]") -> None:
    run_local = commands.add_parser("run-local", description="run a pipeline here, with KFP's local runner")
    _add_pipeline(run_local)
    run_local.set_defaults(command=_run_local)
    check = commands.add_parser("check", description="check the configurations against the pipelines, and compile each")
    check.add_argument("--config", action="append", help="a configuration, or a TOML file (default: all there are)")
    check.set_defaults(command=_check)
    compile_ = commands.add_parser("compile", description="write a pipeline's YAML")
    _add_pipeline(compile_)
    compile_.add_argument("--out", type=Path, required=True, help="the file to write")
    compile_.set_defaults(command=_compile)
    submit = commands.add_parser("submit", description="run a pipeline on Vertex AI")
    _add_pipeline(submit)
    submit.add_argument(
        "--job-id", help="of the run; one that is there already is not started again (default: by time)"
    )
    submit.set_defaults(command=_submit)
    schedule = commands.add_parser(
        "schedule", description="create, pause, resume, delete or list the schedules on Vertex AI"
    )
    schedule.add_argument("action", choices=("create", "pause", "resume", "delete", "list"))
    _add_pipeline(schedule, optional=True)
    schedule.set_defaults(command=_schedule)
    history = commands.add_parser(
        "history", description="what each run of a pipeline did, and which policy served when"
    )
    where = history.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", type=Path, help="the root folder of the environment")
    _add_environment(history, where)
    history.set_defaults(command=_history)


def _add_pipeline(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    if optional:
        parser.add_argument("pipeline", nargs="?", default="retrain", help="default: retrain")
    else:
        parser.add_argument("pipeline", help="bootstrap, retrain or tune")
    # No default: an environment may cost money.
    parser.add_argument("--config", required=True, help="local, emulators, dev, prod, or a TOML file")
    parser.add_argument("--project", default="", help="in place of the configuration's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the pipeline; can be repeated"
    )


def _given(arguments: argparse.Namespace) -> dict[str, str]:
    given = {}
    for setting in arguments.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set: NAME=VALUE expected, got {setting!r}")
        given[name] = value
    return given


def _run_local(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import local_run

    loaded = configuration.load(arguments.config, arguments.project)
    report = local_run.run(arguments.pipeline, loaded, _given(arguments))
    if report.wrong_input:
        return 2
    return 1 if report.outcome == "failed" else 0


def _check(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import definitions

    for name in arguments.config or configuration.names():
        compiled = definitions.check(configuration.load(name))
        print(f"{name}: {', '.join(compiled)} compile")
    return 0


def _compile(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import definitions

    loaded = configuration.load(arguments.config, arguments.project)
    pipeline = definitions.build(arguments.pipeline, loaded)
    definitions.parameters(arguments.pipeline, loaded, _given(arguments), pipeline)
    try:
        arguments.out.write_text(definitions.compiled(pipeline))
    except OSError as error:
        raise InputError(f"--out: {arguments.out}: {error.strerror}") from None
    print(arguments.out)
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import triggers

    loaded = configuration.load(arguments.config, arguments.project)
    name = arguments.job_id or triggers.job_id(arguments.pipeline, f"{datetime.now(UTC):%Y%m%dt%H%M%S}")
    print(triggers.submit(arguments.pipeline, loaded, _given(arguments), name))
    return 0


def _schedule(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import triggers

    loaded = configuration.load(arguments.config, arguments.project)
    loaded.needed_cloud()
    if arguments.action == "create":
        print(triggers.schedule(arguments.pipeline, loaded, _given(arguments)))
        return 0
    vertex = _vertex(arguments)
    if arguments.action == "list":
        for one in vertex.schedules():
            print(f"{one.name}  {one.state}  {one.cron}  next: {one.next_run or 'unknown'}")
        return 0
    change = {"pause": vertex.pause_schedule, "resume": vertex.resume_schedule, "delete": vertex.delete_schedule}
    print(change[arguments.action](arguments.pipeline))
    return 0


def _vertex(arguments: argparse.Namespace) -> "Vertex":
    from orchestration.cloud import configuration
    from orchestration.cloud.vertex import Vertex
    from orchestration.pipelines import definitions

    return Vertex(definitions.place(configuration.load(arguments.config, arguments.project).needed_cloud()))


def _promote(arguments: argparse.Namespace) -> int:

    if arguments.config:
        print(_vertex(arguments).promote(arguments.version, arguments.reason))
        return 0
    champion = policy_store.roll_out(arguments.policies, arguments.version, arguments.reason, datetime.now(UTC))
    print(f"{champion.version} is the champion")
    return 0


def _history(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import runs

    if arguments.config:
        vertex = _vertex(arguments)
        print("Runs")
        for pipeline in configuration.PIPELINES:
            for name, state in reversed(vertex.runs(pipeline)):
                print(f"  {name}  {state}")
        _print_champions(vertex.history())
        return 0
    places = Places(arguments.root)
    if not places.policies.is_dir():
        raise InputError(f"--root: {arguments.root} has no policy store")
    print("Runs")
    for report in runs.reports(arguments.root):
        print(f"  {report.ended_at:%Y-%m-%d %H:%M:%S} {report.line}")
    _print_champions(policy_store.history(places.policies))
    return 0


def _print_champions(champions: "Sequence[Champion | Promotion]") -> None:
    print("Champions")
    for past in champions:
        print(f"  {past.promoted_at:%Y-%m-%d %H:%M:%S} {past.version}  {past.reason}")


def _loop(arguments: argparse.Namespace) -> int:
    settings = loop_settings(arguments)
    begin = time.monotonic()
    print("Loading Beam and TensorFlow …", flush=True)
    with _native_messages_withheld():
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
        vertex = _vertex(arguments)
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
    for past in policy_store.history(arguments.policies):
        mark = "→" if past.promoted_at == current.promoted_at else " "
        print(f"{mark} {past.promoted_at:%Y-%m-%d %H:%M:%S} {past.version}  {past.reason}")
    if current.candidate is not None:
        print(f"  {current.mode} beside it: {current.candidate}, share {current.candidate_share:g}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:

    if arguments.config:
        print(_vertex(arguments).roll_back(arguments.reason))
        return 0
    champion = policy_store.roll_back(arguments.policies, arguments.reason, datetime.now(UTC))
    print(f"{champion.version} is the champion")
    return 0


@contextmanager
def _native_messages_withheld() -> Iterator[None]:
    """Keeps what native code writes to standard error from the terminal, unless an error leaves the block.

    TensorFlow 2.21 tells of oneDNN, CUDA and the CPU as it is loaded, whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    with tempfile.TemporaryFile() as withheld:
        terminal = os.dup(2)
        os.dup2(withheld.fileno(), 2)
        try:
            yield
        except Exception:  # not an interruption: what was said before has no part in it
            withheld.seek(0)
            os.write(terminal, withheld.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


if __name__ == "__main__":
    sys.exit(main())
