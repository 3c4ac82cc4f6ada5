"""Every program's command line: a mistake is one line on stderr and exit code 2, whichever program it is."""

import importlib
import os
import signal

import pytest

PROGRAMS = [
    *(
        f"beam_jobs.{job}"
        for job in ("generate_movielens", "ingest_events", "export_trajectories", "learn_live", "replay_dead_letters")
    ),
    *(f"beam_jobs.{tool}" for tool in ("table_schemas", "templates")),
    *(
        f"orchestration.{name}"
        for name in (
            *("cli", "page.__main__", "emulators.__main__", "emulators.ingest"),
            *("live_watch", "loop.simulator", "traffic"),
        )
    ),
    *(f"predictor.{name}" for name in ("app", "publisher")),
    *(f"trainer.{name}" for name in ("live", "task", "tune", "validation")),
    *(
        f"bench.{name}"
        for name in (
            "__main__",
            "ingest",
            "learning",
            "live",
            "live_kills",
            "live_watch",
            "live_watch_processes",
            "reference_predictor",
        )
    ),
]


@pytest.fixture(autouse=True)
def the_process_stays_as_it_was():
    def state():
        return os.nice(0), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flags", [["--no-such-flag"], ["--help-me", "x"]])
def test_an_unknown_flag_is_one_line(program, flags, capsys):
    assert importlib.import_module(program).main(flags) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert "error: " in line and not out


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_shown(program, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main(["--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: ") and not err
