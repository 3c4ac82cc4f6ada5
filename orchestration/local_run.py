"""Runs a pipeline on this machine with KFP's local runner: the same steps, each in a process of its own, no cloud.

KFP's own words go to `<root>/runs/kfp.log`; what the steps say, to the terminal.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from contracts.errors import InputError
from orchestration import pipelines, runs
from orchestration.configuration import Configuration
from orchestration.plan import Places
from orchestration.runs import RunReport

LOG_NAME = "kfp.log"
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
    if configuration.backend != "local":
        raise InputError(f"run-local runs backend local, but that of {configuration.name} is {configuration.backend}")
    pipeline = pipelines.build(name, configuration)
    parameters = pipelines.parameters(name, configuration, given, pipeline)
    root = Path(str(parameters["root"])).resolve()
    parameters["root"] = str(root)
    folder = Places(root).runs
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"root: {root} cannot be created: {error.strerror}") from None
    before = {report.run_id for report in runs.reports(root)}
    begin = time.monotonic()
    _run(pipeline, parameters, folder)
    seconds = time.monotonic() - begin
    ended = [report for report in runs.reports(root) if report.run_id not in before]
    if not ended:
        raise InputError(f"{name} ended without a report: see {folder / LOG_NAME}")
    report = ended[-1]
    for record in runs.records(root, report.run_id):
        print(f"  {record.step:16}{record.seconds:6.1f} s  {record.error or record.said}")
    inside = sum(report.seconds.values())
    print(f"{name} {report.outcome}: {report.reason}")
    print(f"{seconds:.1f} s, {seconds - inside:.1f} s of them outside of the steps")
    return report


def _run(pipeline: Any, parameters: dict[str, Any], folder: Path) -> None:
    from kfp import local

    # The steps' processes find this package wherever they are started, and TensorFlow keeps to what matters.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    log = folder / LOG_NAME
    said_before = log.stat().st_size if log.exists() else 0
    with log.open("a") as file, contextlib.redirect_stdout(file):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=False)
        pipeline(**parameters)
    with log.open() as file:
        file.seek(said_before)
        text = file.read()
    for warning in WRONG_BRANCH:
        if warning in text:
            raise RuntimeError(f"KFP took a branch without knowing which: see {warning!r} in {log}")
