import re
from datetime import UTC, datetime

import pytest

from contracts.errors import InputError
from orchestration.project.folder import (
    LearnerState,
    Part,
    ProjectFolder,
    ProjectSettings,
    UpState,
    decode_settings,
)
from tests.orchestration.project.projects import make

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_project_is_read_as_it_was_made(tmp_path):
    folder = make(tmp_path / "shop")
    recipe = folder.recipe()
    assert [item.item_id for item in recipe.catalogue] == ["a", "b", "c"]
    assert recipe.features == folder.spec()
    assert recipe.windows.reward_window_seconds == folder.project().windows.reward_window_seconds == 0.5


def test_what_is_left_out_has_its_default():
    assert decode_settings("", "x") == ProjectSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[windows]\nwindow_seconds = -1", "x: windows.window_seconds: Expected `float` > 0.0, got -1"),
        ("[serving]\nprot = 80", "x: serving: Object contains unknown field `prot`"),
        ("[exploration]\nepsilon = 2", "x: exploration.epsilon: Expected `float` <= 1.0, got 2"),
        ("[windows", "x: Expected ']' at the end of a table declaration (at end of document)"),
    ],
)
def test_a_wrong_setting_is_named(text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        decode_settings(text, "x")


def test_a_folder_that_is_no_project(tmp_path):
    with pytest.raises(InputError, match=r"has no project.toml; make a project folder with the command init$"):
        ProjectFolder(tmp_path).project()


def test_a_folder_is_up_while_one_caller_has_it(tmp_path):
    folder = make(tmp_path / "shop")
    assert not folder.is_up()
    with folder.alone():
        assert folder.is_up()
        with pytest.raises(InputError, match="is up already"), ProjectFolder(folder.root).alone():
            pass
    assert not folder.is_up()


def test_states_survive_the_way_through_their_files(tmp_path):
    folder = make(tmp_path / "shop")
    assert (folder.read_learner(), folder.read_up(), folder.last_problem()) == (None, None, None)
    learner = LearnerState(at=NOW, complete_until=NOW, held_by="x", waits_for=NOW, overdue=True)
    up = UpState(since=NOW, predictor="http://x", parts=[Part(name="page", running=True, since=NOW, restarts=2)])
    folder.write(learner)
    folder.write(up)
    assert (folder.read_learner(), folder.read_up()) == (learner, up)
    folder.up.write_text("{")
    with pytest.raises(InputError, match=r"up.json: "):
        folder.read_up()
