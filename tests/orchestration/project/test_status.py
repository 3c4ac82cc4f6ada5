from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from contracts.command_line import HELD, OVERDUE
from contracts.errors import InputError, OperationError
from orchestration.audit import guard
from orchestration.places import append_line
from orchestration.project import status
from orchestration.project.folder import LearnerState, Part, Problem, ProjectFolder, UpState
from orchestration.project.learner import Learner
from tests.orchestration.project.projects import make, past, traffic

NOW = datetime.now(UTC)


def look(folder, now=NOW):
    told, code = status.lines(folder, now)
    return "\n".join(told), code


def test_a_new_project_that_is_not_up(tmp_path):
    text, code = look(make(tmp_path / "shop"))
    assert code == OperationError.exit_code
    assert "✗ processes   none; start them with the command up" in text
    assert "serves      uniform-" in text
    assert "0 decisions and 0 rewards in the last minute" in text
    assert len(text.splitlines()) <= 10


def test_a_project_that_is_up_and_learns(tmp_path):
    folder = make(tmp_path / "shop")
    start = past(20)
    traffic(folder, start, count=300)
    Learner(folder).step(start)
    now = datetime.now(UTC)
    parts = [Part(name="predictor", running=True, since=now - timedelta(hours=3), restarts=2)]
    folder.write(UpState(since=now, predictor="http://127.0.0.1:1", parts=parts))
    with folder.alone():
        text, code = look(folder, now)
    assert code == 0
    assert "processes   predictor up for 3 h (2 restarts); http://127.0.0.1:1" in text
    assert "serves      lin_ucb-" in text
    assert "300 decisions and " in text
    assert "300 decisions, " in text
    assert "watermark   complete up to " in text
    assert "guard       not held; 0 windows refused" in text


def test_what_is_wrong_has_its_exit_code(tmp_path):
    folder = make(tmp_path / "shop")
    folder.write(
        UpState(since=NOW, predictor="http://x", parts=[Part(name="page", running=True, since=NOW, restarts=0)])
    )
    late = LearnerState(
        at=NOW, complete_until=NOW - timedelta(seconds=90), held_by="segment x", waits_for=NOW, overdue=True
    )
    folder.write(late)
    with folder.alone():
        text, code = look(folder)
        assert (code, "✗ watermark   complete up to 90 s ago, held by segment x" in text) == (OVERDUE, True)
        folder.write(msgspec.structs.replace(late, overdue=False))
        assert look(folder)[1] == 0
        text, code = look(folder, NOW + timedelta(minutes=5))
        assert "the learner has said nothing for 5 min" in text
        guard.hold(folder, "a look", NOW)
        text, code = look(folder)
        assert (code, "✗ guard       held since " in text) == (HELD, True)
        down = Part(name="page", running=False, since=NOW, restarts=3)
        folder.write(UpState(since=NOW, predictor="http://x", parts=[down]))
        append_line(folder.problems, msgspec.json.encode(Problem(at=NOW, fact="page was ended by SIGKILL")))
        text, code = look(folder)
    assert code == OperationError.exit_code
    assert "page down for 0 s (3 restarts)" in text
    assert "page was ended by SIGKILL" in text


def test_a_folder_that_is_no_project(tmp_path):
    with pytest.raises(InputError, match="make a project folder with the command init"):
        status.lines(ProjectFolder(tmp_path), NOW)
