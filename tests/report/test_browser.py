"""report.html in a headless browser: Chromium with its driver, where they are installed."""

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.browser import complaints, open_browser, requests, set_width

pytestmark = pytest.mark.slow


@pytest.fixture
def browser(tmp_path):
    yield from open_browser(tmp_path)


@pytest.fixture
def page(finished, tmp_path) -> Path:
    """The report of a small run, with the evaluation's rows given two question types."""
    from ecgbyte_jax.run.workdir import Workdir
    from ecgbyte_jax.settings import Settings
    from ecgbyte_jax.stages.report import report
    from tests.stages.test_report import small_settings

    workdir = tmp_path / "w"
    shutil.copytree(finished[0], workdir)
    rows = [json.loads(line) for line in (workdir / "eval/generations.jsonl").open()]
    for number, row in enumerate(rows):
        row["meta"] = {"question_type": ("single-verify", "single-choose <b>")[number % 2]}
    (workdir / "eval/generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(Settings.of(small_settings()), Workdir(workdir))
    return workdir / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_shows_and_filters_and_asks_for_nothing(browser, page, width):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    set_width(browser, width)
    browser.get(page.as_uri())
    pictures = browser.find_elements(By.TAG_NAME, "img")
    assert len(pictures) == 5 and all(int(p.get_property("naturalWidth")) > 100 for p in pictures)
    assert all(p.get_attribute("alt") for p in pictures)
    drawn = browser.find_elements(By.CSS_SELECTOR, ".trace svg")
    assert len(drawn) == 12 and all("12 leads" in one.get_attribute("aria-label") for one in drawn)
    root = "return document.documentElement"
    assert browser.execute_script(f"{root}.scrollWidth") <= width, "the page itself must not scroll sideways"

    def shown() -> list:
        return [a for a in browser.find_elements(By.TAG_NAME, "article") if a.is_displayed()]

    assert len(shown()) == 12

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    press(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip"
    select = browser.find_element(By.ID, "type")
    for _ in range(40):  # to the filter by the keyboard alone
        if browser.switch_to.active_element == select:
            break
        press(Keys.TAB)
    assert browser.switch_to.active_element == select
    press("single-c")
    chosen = shown()
    assert 0 < len(chosen) < 12 and {a.get_attribute("data-type") for a in chosen} == {"single-choose <b>"}
    assert browser.find_element(By.ID, "count").text == f"{len(chosen)} of 12 shown"
    press(Keys.HOME)
    assert len(shown()) == 12
    press(Keys.TAB, "wrong")
    assert {a.get_attribute("data-verdict") for a in shown()} == {"wrong"}
    shown()[0].find_element(By.TAG_NAME, "summary").click()
    assert shown()[0].find_elements(By.CSS_SELECTOR, ".trace .attention path")
    shown()[0].find_element(By.CSS_SELECTOR, ".trace [data-action=attention]").click()
    assert not shown()[0].find_elements(By.CSS_SELECTOR, ".trace .attention path")
    term, tip = browser.find_element(By.CSS_SELECTOR, "th a.term:not([tabindex])"), browser.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    browser.execute_script("arguments[0].scrollIntoView()", term)
    time.sleep(0.3)  # scrolling hides an explanation
    browser.execute_script("arguments[0].focus({preventScroll: true})", term)
    assert tip.is_displayed() and len(tip.text) > 20 and term.get_attribute("aria-describedby") == "tip"
    press(Keys.ESCAPE)
    assert not tip.is_displayed()
    boxes = [box for box in browser.find_elements(By.CSS_SELECTOR, ".scroll") if box.is_displayed()]
    sizes = [(b.get_property("scrollWidth") > b.get_property("clientWidth"), b.get_attribute("tabindex")) for b in boxes]
    assert {scrolls for scrolls, stop in sizes if stop == "0"} <= {True} and (None in {stop for _, stop in sizes})
    if width == 390:
        assert all(stop == "0" for scrolls, stop in sizes if scrolls) and any(scrolls for scrolls, _ in sizes)
    time.sleep(0.3)  # for what would still be asked for
    asked = requests(browser)
    assert asked and all(url.startswith("data:") or url == page.as_uri() for url in asked), asked
    assert complaints(browser) == []
