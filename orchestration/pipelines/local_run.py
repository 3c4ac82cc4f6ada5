"""Runs a pipeline on this machine with KFP's local runner: the same steps, without a cloud.

On the embedded backend each step is its own process. With the emulators all steps run in this process, whose clients
are redirected to the emulators, so the steps themselves know nothing of emulators.

KFP's output and standard error go to `<root>/runs/kfp.log`; the results of the steps go to the terminal.
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
from typing import Any

from contracts.errors import InputError, OperationError
from orchestration.cloud.configuration import Configuration
from orchestration.pipelines import definitions, parameters, rollout_tasks, runs
from orchestration.pipelines.runs import RunReport
from orchestration.places import Places
from orchestration.processes import standard_error_in

LOG_NAME = "kfp.log"
LOCK_NAME = ".lock"
# What KFP's local runner logs if it cannot evaluate a condition; it then takes one of the branches.
WRONG_BRANCH = ("Condition evaluation failed", "Could not resolve")


def run(name: str, configuration: Configuration, given: dict[str, str]) -> RunReport:
    """Runs the pipeline `name` to its end and returns its report, which it also prints.

    Args:
      name: bootstrap, retrain or tune.
      configuration: of a backend that runs here.
      given: parameters that take precedence, as text.

    Raises:
      InputError: the environment runs elsewhere, or a parameter is wrong.
      OperationError: another run uses the root, or the run ended without a report.
    """
    if configuration.backend == "gcp":
        raise InputError(f"run-local runs on this machine, but the backend of {configuration.name} is gcp: submit it")
    pipeline = definitions.build(name, configuration)
    values = parameters.values(pipeline, configuration, given)
    root = Path(values["root"]).resolve()
    values["root"] = str(root)
    with _backend(configuration, root):
        return _report(name, pipeline, values, root)


@contextlib.contextmanager
def steps_in_this_process() -> Iterator[None]:
    """Makes KFP run its tasks in this process instead of one process each, with this process's clients and imports."""
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
    """Redirects clients to the emulators if the backend needs them. Raises InputError if they are not running."""
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
    """Allows one run at a time in the root, and closes killed runs, which ends their canaries. Yields the runs' folder.

    Raises OperationError if another run uses the root, and InputError if the folder cannot be created.
    """
    folder = Places(root).runs
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("ab")
    except OSError as error:
        raise InputError(f"root: {root} cannot be created: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, even if it is killed
        except BlockingIOError:
            raise OperationError(f"root: {root} is in use by another run: wait until it has ended") from None
        _close_unreported(root)
        try:
            yield folder
        finally:
            _close_unreported(root)


def _close_unreported(root: Path) -> None:
    for run_id in runs.unreported(root):
        rollout_tasks.report_outcome(str(root), run_id, run_id.partition("-")[0], "", "CANCELLED", "it was interrupted")


def _report(name: str, pipeline: Any, parameters: dict[str, Any], root: Path) -> RunReport:
    """Runs the pipeline, and prints the result of each step."""
    with _alone(root) as folder:
        before = {report.run_id for report in runs.reports(root)}
        begin, used = time.monotonic(), _cpu_seconds()
        _run(pipeline, parameters, folder)
        seconds, used = time.monotonic() - begin, _cpu_seconds() - used
    ended = [report for report in runs.reports(root) if report.run_id not in before]
    if not ended:
        raise OperationError(f"{name} ended without a report: see {folder / LOG_NAME}")
    report = ended[-1]
    for record in runs.records(root, report.run_id):
        print(f"  {record.step:16}{record.seconds:6.1f} s  {record.error or record.said}")
    inside = sum(report.seconds.values())
    print(f"{name} {report.outcome}: {report.reason}")
    print(f"{seconds:.1f} s, {seconds - inside:.1f} s of them outside the steps")
    if report.windows:
        each, cpu = seconds / report.windows, used / report.windows
        print(
            f"{report.windows} window(s) of {report.decisions} decisions: {each:.1f} s, {cpu:.1f} CPU seconds per window"
        )
    return report


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def _run(pipeline: Any, parameters: dict[str, Any], folder: Path) -> None:
    from kfp import local

    # So that the steps' processes find this package from any folder, and TensorFlow logs errors only.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    log = folder / LOG_NAME
    said_before = log.stat().st_size if log.exists() else 0
    with log.open("a") as file, contextlib.redirect_stdout(file), standard_error_in(file):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=False)
        pipeline(**parameters)
    with log.open() as file:
        file.seek(said_before)
        text = file.read()
    for warning in WRONG_BRANCH:
        if warning in text:
            raise RuntimeError(f"KFP took a branch without evaluating its condition: see {warning!r} in {log}")
