"""What the parts write down, read when it has changed."""

import msgspec
import pytest

from contracts.errors import InputError
from orchestration.audit import guard, window_audits
from orchestration.page.sources import Sources
from tests.orchestration.page.events import START
from tests.orchestration.page.roots import audit, finding, make


def test_everything_of_a_run_is_read(tmp_path):
    sources = Sources(make(tmp_path / "run").root)
    assert sources.settings().num_actions == 5
    assert sources.running().oracle == 3.0
    assert len(sources.catalogue()) == 5
    assert [entry.number for entry in sources.journal()] == [0, 1]
    assert sources.champion().version == "v1"
    assert [past.version for past in sources.history()] == ["v0", "v1"]
    assert sources.card("v1").trained_on[-1].records == 3
    assert len(sources.audits()) == 2
    assert (sources.guard(), sources.guard_changes(), sources.health()) == (None, [], None)


def test_a_root_that_holds_nothing_yet_is_empty_and_not_an_error(tmp_path):
    sources = Sources(tmp_path)
    assert (sources.settings(), sources.running(), sources.champion(), sources.guard()) == (None, None, None, None)
    assert (sources.catalogue(), sources.journal(), sources.history(), sources.audits()) == ([], [], [], [])


def test_changes_are_seen_and_what_is_the_same_is_not_read_again(tmp_path, monkeypatch):
    folder = make(tmp_path / "run")
    sources = Sources(folder.root)
    first = sources.audits()
    assert sources.audits() is first
    window_audits.write(folder.audit, audit(1, finding("residual", alarm=True)))
    assert [one.accepted for one in sources.audits()] == [True, False]
    guard.hold(folder, "a look", START)
    assert sources.guard().held and [one.verb for one in sources.guard_changes()] == ["hold"]


def test_a_broken_file_is_named(tmp_path):
    folder = make(tmp_path / "run")
    folder.running.write_bytes(b"{")
    with pytest.raises(InputError, match=r"running\.json"):
        Sources(folder.root).running()


def test_a_predictor_that_does_not_answer_is_none(tmp_path):
    folder = make(tmp_path / "run")
    folder.write_running(msgspec.structs.replace(folder.read_running(), predictor="http://127.0.0.1:9"))
    assert Sources(folder.root).health() is None
