"""The page beside a run."""

from beam_jobs.movielens import Reference
from orchestration.loop import live_page
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from tests.orchestration.page.pages import ask
from tests.orchestration.page.roots import make

REFERENCE = Reference(oracle=3.0, best_fixed_action=2.0, best_fixed=0, uniform=1.0)


def test_the_page_is_up_while_the_block_runs_and_its_address_is_printed(tmp_path, capsys):
    folder = make(tmp_path / "run")
    with live_page.shown(folder, LoopSettings(out=str(folder.root)), REFERENCE):
        page = folder.read_page()
        assert page is not None
        assert capsys.readouterr().out == f"Live page: {page.address}\n"
        assert ask(page.url)[0] == 200
        live_page.tell(folder, REFERENCE, "http://127.0.0.1:9")
        assert folder.read_running().predictor == "http://127.0.0.1:9"
    assert folder.read_page() is None
    live = folder.read_running()
    assert (live.predictor, live.oracle) == (None, 3.0)


def test_a_page_that_does_not_start_stops_nothing(tmp_path, capsys):
    folder = make(tmp_path / "run")
    settings = LoopSettings(out=str(folder.root), page_host="no.such.host.invalid")
    with live_page.shown(folder, settings, REFERENCE):
        assert "Live page: it does not start; see " in capsys.readouterr().out
    assert "cannot listen" in (folder.logs / "page.log").read_text()


def test_without_a_page_nothing_is_printed_and_the_references_are_kept(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    with live_page.shown(folder, LoopSettings(out=str(tmp_path), page="off"), REFERENCE):
        assert capsys.readouterr().out == ""
    assert folder.read_running().best_fixed == 2.0
