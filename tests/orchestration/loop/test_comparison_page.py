"""The page of a comparison."""

import re

from orchestration.loop import comparison_page
from orchestration.loop.runs import Run
from orchestration.loop.settings import LoopSettings
from tests.orchestration.loop.reports import report, window


def run(name: str, reward: float, **settings) -> Run:
    windows = [window(number, mean_expected_reward=reward) for number in range(1, 4)]
    return Run(name, report(windows, LoopSettings(**settings)))


def test_the_page_holds_the_table_and_a_plot_per_curve_and_refers_to_nothing_outside(tmp_path):
    path = tmp_path / "new" / "comparison.html"
    comparison_page.write(path, [run("a", 2.0), run("b", 2.5, seed=1), run("c", 2.9, alpha=0.5)])
    html = path.read_text()
    assert html.count("<svg ") == len(comparison_page.CURVES)
    assert "alpha=0.2" in html and "alpha=0.5" in html
    assert "95% interval over seeds" in html
    assert not re.search(r'(?:src|href)="(?!#)', html)
    assert 'content="width=device-width' in html


def test_names_and_settings_are_shown_as_text():
    html = comparison_page.render([run("<script>a</script>", 2.0, ratings="<b>$x$</b>"), run("b", 2.5)])
    assert "<script" not in html
    assert "&lt;script&gt;a&lt;/script&gt;" in html
    assert "<b>$x$" not in html


def test_runs_without_windows_make_a_page_too():
    assert "unknown" in comparison_page.render([Run("a", report([], LoopSettings()))])
