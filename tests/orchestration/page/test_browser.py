"""The page in a real browser: the system's Chromium, driven by Playwright."""

import contextlib
import shutil
import time
from collections.abc import Iterator

import msgspec
import pytest

from contracts.items import MAX_TEXT_LENGTH, Item
from orchestration import policy_store
from orchestration.audit import guard, window_audits
from orchestration.event_tail import moment_of
from orchestration.loop import comparison_page, report_page
from orchestration.loop.runs import Run
from orchestration.loop.settings import LoopSettings
from tests import servers
from tests.orchestration.loop.reports import report
from tests.orchestration.loop.reports import window as report_window
from tests.orchestration.page.events import decision, lines, reward, segment
from tests.orchestration.page.pages import page
from tests.orchestration.page.roots import HOSTILE, audit, finding, make

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Chromium looks for updates and for its maker's hosts otherwise.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextlib.contextmanager
def tab(browser, address: str, width: int = 1400, scheme: str = "light") -> Iterator:
    """The page in a window of that width; its console must stay empty."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    opened.goto(address)
    opened.wait_for_selector("#decisions li", timeout=30_000)
    yield opened
    context.close()
    assert complaints == []


def wait_for(opened, selector: str, text: str) -> None:
    """Waits until an element holds the text. Not by a function: the page's own policy forbids to evaluate text."""
    opened.locator(selector, has_text=text).wait_for(state="attached", timeout=15_000)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("browser") / "run")
    with page(folder.root) as live:
        yield folder, live


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_the_page_fits_and_has_no_serious_fault_for_assistive_technology(browser, shown, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with tab(browser, shown[1].address, width, scheme) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        # axe is put into the page by the driver, past the page's own policy.
        found = Axe().run(opened).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_the_key_leaves_the_address_bar(browser, shown):
    with tab(browser, shown[1].address) as opened:
        assert opened.url == shown[1].url


def test_names_are_shown_as_text(browser, shown):
    with tab(browser, shown[1].address, 380) as opened:
        assert opened.query_selector("main script, main img") is None
        text = opened.inner_text("#choices-table")
        assert "<script>alert(1)</script>" in text and "שלום" in text
        opened.click(f'#decisions button[data-id="{decision(2, 3.0).decision_id}"]')
        opened.wait_for_selector("#decision-body table")
        body = opened.inner_text("#decision-body")
        assert '"><img src=x onerror=alert(1)>' in body and "<script>alert(1)</script>" in body
        assert opened.query_selector("dialog script, dialog img") is None
        assert opened.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
        assert len(HOSTILE[2]) == MAX_TEXT_LENGTH


def test_a_decision_is_opened_and_closed_by_keyboard(browser, shown):
    with tab(browser, shown[1].address) as opened:
        opened.focus("#decisions button")
        opened.keyboard.press("Enter")
        opened.wait_for_selector("dialog[open] #decision-body table")
        body = opened.inner_text("#decision-body")
        assert "Why: what each feature added" in body and "Every candidate" in body
        opened.keyboard.press("Escape")
        assert opened.query_selector("dialog[open]") is None


def test_decisions_appear_while_the_page_is_open_and_wait_while_it_is_paused(browser, shown):
    folder, live = shown
    with tab(browser, live.address) as opened:
        made = decision(50, 20.0)
        segment(folder.events, 20.0, lines(made), writer="first")
        opened.wait_for_selector(f'#decisions button[data-id="{made.decision_id}"]', timeout=10_000)
        opened.click("#pause")
        later = decision(51, 21.0)
        segment(folder.events, 21.0, lines(later, reward(made, 3.25)), writer="second")
        wait_for(opened, "#reward-table", "3.25")
        assert opened.query_selector(f'#decisions button[data-id="{later.decision_id}"]') is None
        opened.click("#pause")
        opened.wait_for_selector(f'#decisions button[data-id="{later.decision_id}"]', timeout=10_000)


def test_a_light_turns_red_and_says_what_to_do(browser, tmp_path):
    folder = make(tmp_path / "run")
    with page(folder.root) as live, tab(browser, live.address) as opened:
        assert "Nothing is wrong" in opened.inner_text("#verdict")
        window_audits.write(folder.audit, audit(2, finding("prediction: residual", alarm=True)))
        guard.hold(folder, "prediction: residual: fact", audit(2).window.end)
        opened.wait_for_selector("#lights li.bad", timeout=10_000)
        wait_for(opened, "#lights", "prediction: residual")
        assert "the guard holds the loop" in opened.inner_text("#verdict")
        assert "What to do" in opened.inner_text("#lights li.bad >> nth=0")


def test_rolling_back_and_holding_by_the_page(browser, tmp_path):
    folder = make(tmp_path / "run")
    with page(folder.root) as live, tab(browser, live.address) as opened:
        opened.click('[data-action="roll-back"]')  # without a reason nothing happens
        assert policy_store.champion(folder.policies).version == "v1"
        opened.fill("#reason", "reward fell <b>")
        opened.click('[data-action="roll-back"]')
        wait_for(opened, "#events", "reward fell <b>")
        assert policy_store.champion(folder.policies).version == "v0"
        opened.fill("#reason", "a look")
        opened.click('[data-action="hold"]')
        opened.wait_for_selector("#lights li.bad", timeout=10_000)
        assert guard.is_held(folder.root)


def test_without_the_key_nothing_changes(browser, tmp_path):
    folder = make(tmp_path / "run")
    with page(folder.root) as live:
        context = browser.new_context()
        opened = context.new_page()
        opened.goto(live.url)
        opened.fill("#reason", "x")
        opened.click('[data-action="hold"]')
        wait_for(opened, "#control-answer", "key")
        context.close()
    assert not guard.is_held(folder.root)


def test_a_viewer_asks_rewards_and_is_followed(browser, tmp_path):
    folder = make(tmp_path / "run")
    folder.write_settings(msgspec.structs.replace(folder.settings(), reward_window_seconds=60.0))
    with servers.predictor(folder.policies, folder.events) as server:
        folder.write_running(msgspec.structs.replace(folder.read_running(), predictor=server.url))
        with page(folder.root) as live, tab(browser, live.address, 380) as opened:
            opened.click("#make-viewer summary")
            opened.wait_for_selector("#rating-fields input", timeout=60_000)
            opened.fill("#rating-fields input >> nth=0", "5")
            opened.press("#rating-fields input >> nth=0", "Tab")
            wait_for(opened, "#viewer-answer", "1 ratings")
            assert len(opened.input_value("#observation").split(",")) == 3
            opened.click("#viewer-form [type=submit]")
            opened.wait_for_selector("#reward-buttons button")
            wait_for(opened, "#time-left", "s left")
            opened.click("#recommendation summary")
            identity = opened.inner_text("#curl").split('"decision_id":"')[1][:36]
            opened.click("#reward-buttons button >> nth=4")
            wait_for(opened, "#rewarded", "Reward 4: waits")
    assert time.time() - moment_of(identity).timestamp() < 120


@pytest.mark.parametrize("width", [380, 400])
def test_the_report_and_a_comparison_have_no_column_off_a_narrow_screen(browser, tmp_path, width):
    windows = [report_window(number, reason="worse: " + "gain " * 20, promoted=False) for number in range(1, 4)]
    made = report(windows, lost_rewards=2, lost=2)
    pages = {
        "report": report_page.render(made, [Item(action=0, item_id="0", attributes={"title": "long " * 100})]),
        "comparison": comparison_page.render([Run("a", made), Run("b" * 60, report(windows, LoopSettings(alpha=0.7)))]),
    }
    context = browser.new_context(viewport={"width": width, "height": 900})
    opened = context.new_page()
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text)
        opened.goto((tmp_path / f"{name}.html").as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, name
        cells = "[...document.querySelectorAll('td, tbody th')].map((cell) => cell.getBoundingClientRect().right)"
        if name == "report":
            assert max(opened.evaluate(cells)) <= width
    context.close()
