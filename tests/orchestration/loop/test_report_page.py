"""The page, made of reports as they may come out: what a person reads first is on it, and nothing breaks it."""

import re
from html.parser import HTMLParser

import pytest

from contracts.items import Item
from orchestration.loop import report_page
from orchestration.loop.report import OffPolicy, Seconds, VersionShare, WindowReport
from orchestration.loop.settings import LoopSettings
from tests.orchestration.loop.reports import report, window

CATALOGUE = [
    Item(action=action, item_id=str(action), attributes={"title": "A <b>bold</b> & free title"}) for action in range(2)
]


def page(windows: list[WindowReport], settings: LoopSettings | None = None, **totals: int) -> str:
    return report_page.render(report(windows, settings, **totals), CATALOGUE)


def tiles(html: str) -> list[str]:
    return re.findall(r"<div><b[^>]*>(.*?)</b>", html)


def test_the_answers_come_first():
    html = page([window(1, mean_expected_reward=2.5), window(2, promoted=False, reason="worse: …")])
    assert tiles(html) == ["✓ 93.3% of the oracle", "✓ 0 lost, 0 duplicated", "1 of 2 promoted", "fresh after 6.0 s"]
    assert "not promoted: 1" in html
    assert "next policy not promoted" in html and "kept the champion: worse: …" in html


@pytest.mark.parametrize(
    ("totals", "tile"),
    [
        ({"lost": 3}, "✗ 3 lost, 0 duplicated"),
        ({"duplicated": 2}, "✗ 0 lost, 2 duplicated"),
        ({"misattributed_rewards": 1}, "✗ 0 lost, 0 duplicated"),
    ],
)
def test_what_is_not_sound_does_not_look_so(totals, tile):
    assert tiles(page([window(1)], **totals))[0] == tile  # what is wrong comes first


def test_a_policy_below_the_best_fixed_movie_has_not_learned():
    assert tiles(page([window(1, mean_expected_reward=1.9)]))[0].startswith("✗")


def test_an_estimate_that_is_not_reliable_is_marked():
    doubted = OffPolicy(estimate=2, low=1, high=3, effective_sample_size=1.0, truth=None, reliable=False)
    assert "2.00 [1.00, 3.00], not reliable" in page([window(1, off_policy=doubted)])
    assert "not reliable" not in page([window(1)])


@pytest.mark.parametrize(
    "windows",
    [
        [],
        [window(1, decisions=0, policy_versions={}, mean_expected_reward=0.0, oracle_reward=0.0)],
        [window(1, off_policy=None, freshness_seconds=Seconds(None, None))],
        [window(1, off_policy=OffPolicy(estimate=2, low=-9e9, high=9e9, effective_sample_size=1.0, truth=None))],
        [window(1), window(1, interrupted=True), window(2)],
    ],
)
def test_a_report_without_some_figures_has_a_page(windows):
    html = page(windows)
    assert html.count("<svg") == html.count('role="img" aria-label=') == 4
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)


def test_many_windows_have_few_labels():
    html = page([window(number) for number in range(1, 201)])
    for plot in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert 3 < plot.count('id="xtick_') <= 13


def test_columns_and_names_are_there_where_they_say_something():
    plain, other = page([window(1)]), LoopSettings(exploration="ucb", new_movies=2, missing_reward="default")
    assert "<th>dropped</th>" in plain and "<th>defaulted</th>" not in plain and "new movies shown" not in plain
    html = page([window(1)], other)
    assert "<th>defaulted</th>" in html and "<th>dropped</th>" not in html and "new movies shown" in html


def test_what_others_wrote_is_text_and_tags_are_closed():
    html = page(
        [window(1, reason="<script>", policy_versions={'"><i>': VersionShare(decisions=1, mean_expected_reward=1)})]
    )
    assert "<script>" not in html and "<i>" not in html and "<b>bold" not in html
    stack: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "br"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("p",) or tag in stack:
                assert stack.pop() == tag

    Tags().feed(html)
    assert stack == []
