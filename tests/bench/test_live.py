import json

from bench import live
from orchestration.loop.settings import LoopSettings

SETTING = {
    "measured": "regret",
    "ratings": "sample",
    "num_actions": 20,
    "arm_features": "none",
    "windows": 3,
    "backend": "local",
    "drift": 0.0,
}


def found(*pairs):
    return [
        {
            "setting": SETTING,
            "seed": seed,
            "row": {"windows": windows, "live": learned, "less": round(1 - learned / windows, 4)},
        }
        for seed, (windows, learned) in enumerate(pairs)
    ]


def test_a_row_has_the_median_and_the_range_of_its_seeds():
    *_, row = live.table(found((400.0, 300.0), (500.0, 250.0), (600.0, 150.0))).splitlines()
    assert row == "| sample | 20 | none | 3 | local | 0.0 | 3 | 500 (400-600) | 250 (150-300) | 50% (25%-75%) |"


def test_what_is_measured_again_replaces_what_was_known(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "RESULTS", tmp_path / "live.json")
    monkeypatch.setattr(live, "PAGE", tmp_path / "live.md")
    names = ("live freshness", "live regret")
    live.PAGE.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in names) + "The end.\n")
    live.RESULTS.write_text(json.dumps(found((400.0, 300.0), (500.0, 250.0))))
    monkeypatch.setitem(live.ROWS, "regret", lambda *_: {"windows": 100.0, "live": 80.0, "less": 0.2})
    flags = ["--only", "regret", "--ratings", "sample", "--num-actions", "20", "--arm-features", "none"]
    assert live.main([*flags, "--windows", "3", "--seeds", "1", "--first-seed", "1"]) == 0
    rows = json.loads(live.RESULTS.read_text())
    assert [(one["seed"], one["row"]["live"]) for one in rows] == [(0, 300.0), (1, 80.0)]
    assert "| 2 | 250 (100-400) | 190 (80-300) |" in live.PAGE.read_text()
    assert live.PAGE.read_text().endswith("The end.\n")


def test_a_setting_is_one_of_the_loop():
    flags = live._flags(SETTING)
    named = dict(zip(flags[::2], flags[1::2], strict=True))
    assert named == {
        "--num-actions": "20",
        "--arm-features": "none",
        "--windows": "3",
        "--backend": "local",
        "--drift": "0.0",
    }
    assert {name.removeprefix("--").replace("-", "_") for name in named} <= set(LoopSettings.__struct_fields__)
