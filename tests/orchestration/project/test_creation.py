import io
import re

import numpy as np
import pytest

from contracts import items
from contracts.errors import InputError
from contracts.features import Category, FeatureSpec, Hashed, Number
from orchestration import cli, policy_store
from orchestration.project import creation
from orchestration.project.folder import ProjectFolder
from predictor import policy as serving

CSV = "item_id,title,price,brand,status,views\na,Rain,9.5,north,,3\nb,Sun,2,,masked,0\nc,,1e3,north,active,1\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def csv_file(tmp_path, text=CSV):
    path = tmp_path / "items.csv"
    path.write_text(text)
    return path


def test_a_csv_file_is_a_catalogue(tmp_path):
    catalogue = creation.read_csv(csv_file(tmp_path))
    assert [one.item_id for one in catalogue] == ["a", "b", "c"]
    assert catalogue[0].attributes == {"title": "Rain", "price": 9.5, "brand": "north", "views": 3}
    assert catalogue[1].attributes == {"title": "Sun", "price": 2, "views": 0}
    assert [one.status for one in catalogue] == ["active", "masked", "active"]
    assert items.decode(items.encode(catalogue), "again") == catalogue


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("item_id,", "id,", "line 1: different column names expected, one of them item_id, got ['id', "),
        ("b,Sun,2,", "b,Sun,cheap,", "line 3, price: a number expected as in the first row, got 'cheap'"),
        ("c,,1e3,north", "c,1e3,north", "line 4: 6 fields expected, got 5"),
        (",masked,", ",gone,", "line 3: item 'b', status: Invalid enum value 'gone'"),
        ("c,", "a,", "item 'a' is both action 0 and 2"),
        ("a,Rain", ",Rain", "line 2: item ''"),
        ("north,,3", '"north,,3', "not a CSV file"),
        ("brand", "a brand", "line 2: item 'a', "),
    ],
)
def test_a_wrong_row_is_named(tmp_path, old, new, message):
    assert old in CSV
    path = csv_file(tmp_path, CSV.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        creation.read_csv(path)
    assert str(caught.value).startswith(f"catalogue: {path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "feature"),
    [
        ("hour=number", Number(name="hour")),
        ("hour=number:12:6", Number(name="hour", mean=12, scale=6)),
        ("device=phone,desktop", Category(name="device", values=["phone", "desktop"])),
        ("city=hashed:16", Hashed(name="city", buckets=16)),
    ],
)
def test_features_are_words(word, feature):
    assert creation.parse_feature(word) == feature


@pytest.mark.parametrize(
    "word",
    ["hour", "hour=", "hour=number:x:1", "hour=number:1:0", "city=hashed:0", "a b=number", "device=phone", "x=,"],
)
def test_a_wrong_feature_is_named(word):
    if word == "x=,":
        with pytest.raises(InputError, match=r"^--context: "):
            creation.parse_context([word])
        return
    with pytest.raises(InputError, match=re.escape(f"got {word!r}")):
        creation.parse_feature(word)


def test_init_makes_a_project_that_serves_at_once(tmp_path, capsys):
    folder = tmp_path / "shop"
    flags = ["--catalogue", str(csv_file(tmp_path)), "--context", "hour=number:12:6", "device=phone,desktop"]
    flags += ["--popularity", "views", "--reward-window-seconds", "5", "--window-seconds", "20"]
    assert cli.main(["init", str(folder), *flags]) == 0
    said = capsys.readouterr().out
    made = ProjectFolder(folder)
    champion = policy_store.champion(made.policies)
    assert f"3 items, 5 numbers per context, first policy {champion.version}" in said
    assert f"python -m orchestration.cli up {folder}" in said
    windows = made.project().windows
    assert (windows.window_seconds, windows.reward_window_seconds, windows.missing_reward) == (20, 5, "default")
    policy = serving.load(made.policies / champion.version)
    observation = policy.encoder.encode({"hour": 18, "device": "tv"})
    assert observation == [1.0, 1.0, 0.0, 0.0, 1.0]
    [probabilities] = policy.probabilities(np.array([observation], np.float32))
    assert probabilities == pytest.approx([4 / 6, 0, 2 / 6], abs=1e-6)  # b is masked
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", creation.examples())
def test_every_example_makes_a_project(tmp_path, name):
    assert cli.main(["init", str(tmp_path / name), "--example", name]) == 0
    made = ProjectFolder(tmp_path / name)
    assert policy_store.champion(made.policies).version.startswith("uniform-")
    code = (creation.EXAMPLES / name / "app.py").read_text().splitlines()
    own = [line for line in code if line.strip() and not line.startswith(("import ", "from ", "#", '"""'))]
    assert len(own) <= 30
    made.recipe()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--example", "news", "--window-seconds", "3"], "--window-seconds: not with --example"),
        ([], "--example or --catalogue: one of them expected where there is no terminal to ask on, got none"),
        (["--catalogue", "items.txt"], "--catalogue: a .csv or a .json file expected, got items.txt"),
        (["--catalogue", "missing.csv"], "catalogue: missing.csv: No such file or directory"),
        (
            ["--catalogue", "CSV", "--popularity", "brand"],
            "--popularity: a count of at least 0 expected in attributes.br",
        ),
        (
            ["--catalogue", "CSV", "--window-seconds", "0"],
            "project.toml: windows.window_seconds: Expected `float` > 0.0",
        ),
        (["--catalogue", "CSV", "--context", "a=number", "a=number"], "--context: features: names must differ, got a"),
    ],
)
def test_wrong_input_leaves_nothing(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    flags = [str(csv_file(tmp_path)) if flag == "CSV" else flag for flag in flags]
    before = sorted(tmp_path.iterdir())
    assert cli.main(["init", str(tmp_path / "shop"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / "x").write_text("mine")
    assert cli.main(["init", str(tmp_path), "--example", "news"]) == 2
    assert f"FOLDER: an empty folder, or one that does not exist, expected, got {tmp_path}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_in_a_terminal_it_asks(tmp_path, monkeypatch, capsys):
    answers = iter(["nothing.csv", str(csv_file(tmp_path)), "hour", "hour=number", "hour=number", "", "soon", "7"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    monkeypatch.setattr("sys.stdin", Terminal())
    assert cli.main(["init", str(tmp_path / "shop")]) == 0
    made = ProjectFolder(tmp_path / "shop")
    assert made.spec() == FeatureSpec(features=[Number(name="hour")])
    assert made.project().windows.reward_window_seconds == 7
    said = capsys.readouterr().out
    assert "nothing.csv: No such file" in said
    assert "names must differ, got hour twice" in said
