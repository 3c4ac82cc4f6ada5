"""Every component only calls the task of its name, with the same parameters."""

import inspect

import pytest

from orchestration.pipelines import components, probation_tasks, rollout_tasks, training_tasks, window_tasks

TASKS = (window_tasks, probation_tasks, training_tasks, rollout_tasks)
STEPS = [
    function
    for name, function in inspect.getmembers(components, inspect.isfunction)
    if function.__module__ == components.__name__ and name != "make"
]
# Inputs that only order the tasks, or that KFP gives in its own form.
OTHERWISE = {"exported": {"jobs"}, "report_outcome": {"status"}}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_component_calls_the_task_of_its_name_with_its_parameters(step, monkeypatch):
    (owner,) = [module for module in TASKS if hasattr(module, step.__name__)]
    wanted = list(inspect.signature(getattr(owner, step.__name__)).parameters)
    called = []
    monkeypatch.setattr(owner, step.__name__, lambda *arguments: called.append(arguments) or "answer")
    given = {name: object() for name in inspect.signature(step).parameters}
    if step.__name__ == "report_outcome":
        given["status"] = type("Status", (), {"state": "FAILED", "error_message": None})
    answer = step(**given)
    (arguments,) = called
    passed = [value for name, value in given.items() if name not in OTHERWISE.get(step.__name__, ())]
    if step.__name__ == "report_outcome":
        passed += ["FAILED", ""]
    assert list(arguments) == passed
    assert len(arguments) == len(wanted)
    assert answer == (None if step.__name__ == "report_outcome" else "answer")
