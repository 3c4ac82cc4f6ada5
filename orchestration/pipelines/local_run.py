"""Runs a pipeline on this machine with KFP's local runner: the same steps, no cloud.

On the embedded backend each step is a process of its own. On the emulators all run in this process, whose clients are
pointed at them: what they need beyond Google Cloud is no business of the steps.

KFP's own words, and standard error meanwhile, go to `<root>/runs/kfp.log`; what the steps say, to the terminal.
"""

import contextlib
import fcntl
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from contracts.errors import InputError
from orchestration.cloud.configuration import Configuration
from orchestration.pipelines import definitions, runs, tasks
from orchestration.pipelines.runs import RunReport
from orchestration.places import Places

LOG_NAME = "kfp.log"
LOCK_NAME = ".lock"
# What KFP's local runner says when it could not tell which branch to take, and then takes one.
WRONG_BRANCH = ("Condition evaluation failed", "Could not resolve")


def run(name: str, configuration: Configuration, given: dict[str, str]) -> RunReport:
    """Runs the pipeline `name` to its end and says what came of it.

    Args:
      name: bootstrap, retrain or tune.
      configuration: of a backend that runs here.
      given: parameters that take precedence, as text.

    Raises:
      InputError: the environment is not of this machine, a parameter is wrong, or no step of ours could run.
    """
    if configuration.backend == "gcp":
        raise InputError(f"run-local runs on this machine, but the backend of {configuration.name} is gcp: submit it")
    pipeline = definitions.build(name, configuration)
    parameters = definitions.parameters(name, configuration, given, pipeline)
    root = Path(str(parameters["root"])).resolve()
    parameters["root"] = str(root)
    with _backend(configuration, root):
        return _report(name, pipeline, parameters, root)


@contextlib.contextmanager
def steps_in_this_process() -> Iterator[None]:
    """KFP's tasks in this process instead of one each: they share its clients, and what it has imported."""
    from kfp.dsl.executor_main import executor_main
    from kfp.local import subprocess_task_handler

    def run_here(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        # sh -c SCRIPT SOURCE ARGUMENTS…: the script writes the component's source into a file, and runs it.
        source, arguments = full_command[3], full_command[4:]
        before = sys.argv
        with tempfile.TemporaryDirectory() as folder:
            component = Path(folder) / "ephemeral_component.py"
            component.write_text(source)
            sys.argv = ["executor_main", "--component_module_path", str(component), *arguments]
            try:
                executor_main()
            except Exception:  # noqa: BLE001 - a process would end with 1, whatever it was
                traceback.print_exc(file=sys.stdout)
                return 1
            finally:
                sys.argv = before
        return 0

    original = subprocess_task_handler.run_local_subprocess
    subprocess_task_handler.run_local_subprocess = run_here
    try:
        yield
    finally:
        subprocess_task_handler.run_local_subprocess = original


@contextlib.contextmanager
def _backend(configuration: Configuration, root: Path) -> Iterator[None]:
    """Raises InputError when it takes emulators, and they are not up."""
    if configuration.backend == "local":
        yield
        return
    from orchestration.emulators import servers
    from orchestration.emulators.redirect import redirect

    up = servers.running(root)
    with redirect(up.pubsub, up.bigquery), steps_in_this_process():
        yield


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[Path]:
    """Keeps the root to one run at a time, and closes runs that were killed: their canaries end. Gives the runs' folder.

    Raises InputError when another run goes on there, or the folder cannot be made.
    """
    folder = Places(root).runs
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("ab")
    except OSError as error:
        raise InputError(f"root: {root} cannot be created: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            raise InputError(f"root: {root} is in use by another run: wait until it has ended") from None
        _close_unreported(root)
        try:
            yield folder
        finally:
            _close_unreported(root)


def _close_unreported(root: Path) -> None:
    for run_id in runs.unreported(root):
        tasks.report_outcome(str(root), run_id, run_id.partition("-")[0], "", "CANCELLED", "it was interrupted")


def _report(name: str, pipeline: Any, parameters: dict[str, Any], root: Path) -> RunReport:
    """Runs the pipeline, and says what each step did."""
    with _alone(root) as folder:
        before = {report.run_id for report in runs.reports(root)}
        begin, used = time.monotonic(), _cpu_seconds()
        _run(pipeline, parameters, folder)
        seconds, used = time.monotonic() - begin, _cpu_seconds() - used
    ended = [report for report in runs.reports(root) if report.run_id not in before]
    if not ended:
        raise InputError(f"{name} ended without a report: see {folder / LOG_NAME}")
    report = ended[-1]
    for record in runs.records(root, report.run_id):
        print(f"  {record.step:16}{record.seconds:6.1f} s  {record.error or record.said}")
    inside = sum(report.seconds.values())
    print(f"{name} {report.outcome}: {report.reason}")
    print(f"{seconds:.1f} s, {seconds - inside:.1f} s of them outside of the steps")
    if report.windows:
        each, cpu = seconds / report.windows, used / report.windows
        print(
            f"{report.windows} window(s) of {report.decisions} decisions: {each:.1f} s, {cpu:.1f} CPU seconds a window"
        )
    return report


def _cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


@contextlib.contextmanager
def _standard_error_in(file: IO[str]) -> Iterator[None]:
    """Also what native code writes: TensorFlow tells of the CPU as it is loaded, whatever TF_CPP_MIN_LOG_LEVEL says."""
    terminal = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _run(pipeline: Any, parameters: dict[str, Any], folder: Path) -> None:
    from kfp import local

    # The steps' processes find this package wherever they are started, and TensorFlow keeps to what matters.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    log = folder / LOG_NAME
    said_before = log.stat().st_size if log.exists() else 0
    with log.open("a") as file, contextlib.redirect_stdout(file), _standard_error_in(file):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=False)
        pipeline(**parameters)
    with log.open() as file:
        file.seek(said_before)
        text = file.read()
    for warning in WRONG_BRANCH:
        if warning in text:
            raise RuntimeError(f"KFP took a branch without knowing which: see {warning!r} in {log}")
