"""The pipeline commands of `python -m orchestration.cli`: run-local, check, compile, submit, schedule and history."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.command_line import FlagParser
from contracts.errors import InputError
from orchestration import policy_store
from orchestration.places import Places

if TYPE_CHECKING:
    from contracts.policies import Champion
    from orchestration.cloud.target import VertexTarget
    from orchestration.cloud.vertex_models import Promotion


def add_commands(commands: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds the pipeline commands to the command line."""
    run_local = commands.add_parser("run-local", description="run a pipeline on this machine, with KFP's local runner")
    _add_pipeline(run_local)
    run_local.set_defaults(command=_run_local)
    check = commands.add_parser(
        "check", description="check configurations against the pipelines, and compile each pipeline"
    )
    check.add_argument(
        "--config",
        action="append",
        help="a configuration or a TOML file; can be repeated (default: all that come with the project)",
    )
    check.set_defaults(command=_check)
    compile_ = commands.add_parser("compile", description="write a pipeline's YAML")
    _add_pipeline(compile_)
    compile_.add_argument("--out", type=Path, required=True, help="the file to write")
    compile_.set_defaults(command=_compile)
    submit = commands.add_parser("submit", description="run a pipeline on Vertex AI")
    _add_pipeline(submit)
    submit.add_argument(
        "--job-id", help="id of the run; a run with this id is not started again (default: made from the time)"
    )
    submit.set_defaults(command=_submit)
    schedule = commands.add_parser(
        "schedule", description="create, pause, resume, delete or list the schedules on Vertex AI"
    )
    schedule.add_argument("action", choices=("create", "pause", "resume", "delete", "list"))
    _add_pipeline(schedule, optional=True)
    schedule.set_defaults(command=_schedule)
    history = commands.add_parser("history", description="list the runs of the pipelines, and which policy served when")
    where = history.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", type=Path, help="the root folder of the environment")
    add_environment(history, where)
    history.set_defaults(command=_history)


def add_environment(parser: argparse.ArgumentParser, where: argparse._MutuallyExclusiveGroup) -> None:
    """Adds `--config` to `where` and `--project` to `parser`."""
    where.add_argument("--config", help="an environment on Vertex AI: dev, prod, or a TOML file")
    parser.add_argument("--project", default="", help="id of the Google Cloud project (default: the configuration's)")


def target_of(arguments: argparse.Namespace) -> "VertexTarget":
    """The environment in `--config` and `--project`. Raises InputError if it is not on Google Cloud."""
    from orchestration.cloud import configuration

    return configuration.load(arguments.config, arguments.project).needed_cloud().target


def _add_pipeline(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    if optional:
        parser.add_argument(
            "pipeline", nargs="?", default="retrain", help="bootstrap, retrain or tune (default: retrain)"
        )
    else:
        parser.add_argument("pipeline", help="bootstrap, retrain or tune")
    # No default, because an environment may cost money.
    parser.add_argument("--config", required=True, help="local, emulators, dev, prod, or a TOML file")
    parser.add_argument("--project", default="", help="id of the Google Cloud project (default: the configuration's)")
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
    return report.exit_code


def _check(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import definitions

    for name in arguments.config or configuration.names():
        compiled = definitions.check(configuration.load(name))
        print(f"{name}: {', '.join(compiled)} compile")
    return 0


def _compile(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import definitions, parameters

    loaded = configuration.load(arguments.config, arguments.project)
    pipeline = definitions.build(arguments.pipeline, loaded)
    parameters.values(pipeline, loaded, _given(arguments))
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
    environment = loaded.needed_cloud().name
    name = arguments.job_id or triggers.job_id(environment, arguments.pipeline, f"{datetime.now(UTC):%Y%m%dt%H%M%S}")
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
    from orchestration.cloud.vertex_jobs import VertexJobs

    jobs = VertexJobs(target_of(arguments))
    if arguments.action == "list":
        for one in jobs.schedules():
            print(f"{one.name}  {one.state}  {one.cron}  next: {one.next_run or 'unknown'}")
        return 0
    change = {"pause": jobs.pause_schedule, "resume": jobs.resume_schedule, "delete": jobs.delete_schedule}
    print(change[arguments.action](arguments.pipeline))
    return 0


def _history(arguments: argparse.Namespace) -> int:
    from orchestration.cloud import configuration
    from orchestration.pipelines import runs

    if arguments.config:
        from orchestration.cloud.vertex_jobs import VertexJobs
        from orchestration.cloud.vertex_models import VertexModels

        target = target_of(arguments)
        print("Runs")
        for pipeline in configuration.PIPELINES:
            for name, state in reversed(VertexJobs(target).runs(pipeline)):
                print(f"  {name}  {state}")
        _print_champions(VertexModels(target).history())
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
