from orchestration import cli
from tests.orchestration.project.projects import make


def test_status_prints_its_lines_and_exits_with_their_code(tmp_path, capsys):
    folder = make(tmp_path / "shop")
    assert cli.main(["status", str(folder.root)]) == 3
    assert "✗ processes   none" in capsys.readouterr().out


def test_status_takes_one_place(tmp_path, capsys):
    assert cli.main(["status"]) == 2
    assert "one of the arguments" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path), "--policies", str(tmp_path)]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_up_refuses_a_folder_that_is_no_project(tmp_path, capsys):
    assert cli.main(["up", str(tmp_path)]) == 2
    assert "has no project.toml; make a project folder with the command init" in capsys.readouterr().err
