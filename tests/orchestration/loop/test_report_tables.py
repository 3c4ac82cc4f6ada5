"""The tables of the report's page."""

from contracts.items import Item
from orchestration.loop import report_page, report_tables
from orchestration.loop.report import VersionShare
from tests.orchestration.loop.reports import report, window


def test_reasons_in_words_come_before_versions():
    refused = window(1, promoted=False, reason="worse: gain -0.3", candidate="lin_ucb-x-abc", policy_version="v-old")
    html = report_tables.gate_table([refused])
    assert html.index("✗ kept the champion: worse: gain -0.3") < html.index("abc") < html.index("100%")


def test_each_cell_carries_the_name_of_its_column():
    html = report_tables.table(["a", "b <i>"], [["1", "2"], ["3", "4"]])
    assert html.count('data-name="b &lt;i&gt;"') == 2
    assert 'data-name="a"' not in html  # the first cell is the row's own name


def test_versions_that_served_are_shown_by_share_and_whole_on_hovering():
    shares = {
        "lin_ucb-2026-aaa": VersionShare(decisions=75, mean_expected_reward=1.0),
        "lin_ucb-2026-bbb": VersionShare(decisions=25, mean_expected_reward=1.0),
    }
    html = report_tables.gate_table([window(1, policy_versions=shares)])
    assert '75% <abbr title="lin_ucb-2026-aaa">aaa</abbr>, 25% <abbr' in html


def test_a_window_without_decisions_has_no_share():
    empty = window(1, decisions=0, oracle_reward=0.0)
    assert (report_tables.share(empty), report_tables.share_of_best_fixed(empty)) == (0.0, 0.0)
    assert report_tables.seconds_text(None) == ""


def test_names_are_shown_as_text():
    html = report_page.render(report([window(1, reason="<script>x</script>")]), [Item(action=0, item_id="<b>")])
    assert "<script>" not in html and "<b>;" not in html
