"""The page of --stage=serve in a headless browser: files of people's own, questions, attention, by mouse and by keys."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.browser import complaints, open_browser, requests, set_width
from tests.test_main import small_demo

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKEN, QUESTION = "page-token", "What rhythm-related symptom does this ECG show?"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a run that is small but answers in words, served to those who know its token."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[test]'")
    run = tmp_path_factory.mktemp("run") / "served"
    trained = small_demo(run, "--stage=prepare,train", "--config.train.epochs=8", "--config.train.checkpoint_every=100")
    assert trained.returncode == 0, trained.stderr
    settings = ("--config.serve.port=0", f"--config.serve.token={TOKEN}")
    command = [sys.executable, "main.py", f"--run={run}", "--stage=serve", *settings]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        printed = ""
        for line in server.stdout:
            printed += line
            if found := re.search(r"http://\S+", line):
                break
        else:
            pytest.fail(f"the server ended: {printed}")
        yield found[0]
        server.terminate()


@pytest.fixture
def browser(tmp_path):
    yield from open_browser(tmp_path)


class PageOf:
    """The page as somebody uses it."""

    def __init__(self, browser, url: str, width: int):
        from selenium.webdriver.common.by import By

        self.browser, self.css = browser, By.CSS_SELECTOR
        set_width(browser, width)
        browser.get(url)
        self.wait("#token-dialog[open]")
        self.press(TOKEN, "\ue007")
        self.wait(".start button")

    def all(self, selector: str) -> list:
        return self.browser.find_elements(self.css, selector)

    def wait(self, selector: str, number: int = 1, seconds: float = 60):
        """The elements, once there are so many of them that can be seen."""
        until = time.monotonic() + seconds
        while True:
            found = [one for one in self.all(selector) if one.is_displayed()]
            if len(found) >= number:
                return found
            assert time.monotonic() < until, (selector, complaints(self.browser), self.all("body")[0].text)
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def press_on(self, button) -> None:
        """By its key, wherever the page is scrolled to: a browser saves several files for people alone, not for scripts."""
        self.browser.execute_script("arguments[0].focus()", button)
        self.press("\ue007")

    def open(self, *paths: Path) -> None:
        self.all("#file")[0].send_keys("\n".join(map(str, paths)))

    def ask(self, question: str) -> None:
        """Asks, and waits for the attention of the answer."""
        asked = len(self.all(".exchange"))
        field = self.all("#question")[0]
        field.clear()
        field.send_keys(question, "\ue007")
        self.wait(".exchange.current:last-child:not([aria-busy]) .vote[aria-pressed=true]", 1)
        assert len(self.all(".exchange")) == asked + 1

    def focus_by_tab(self, selector: str) -> None:
        for _ in range(60):
            if self.browser.switch_to.active_element in self.all(selector):
                return
            self.press("\ue004")
        raise AssertionError(f"{selector}: not reached by the tab key")

    def faults(self) -> list:
        """axe's serious and critical findings."""
        script = Path(find_spec("axe_core_python").submodule_search_locations[0]) / "axe.min.js"
        self.browser.execute_script(script.read_text(encoding="utf-8"))
        found = self.browser.execute_async_script("axe.run().then(arguments[0])")
        return [(one["id"], one["nodes"]) for one in found["violations"] if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("width", [1280, 390])
def test_own_recordings_are_shown_and_asked_about(browser, url, shared, width, tmp_path):
    page = PageOf(browser, url, width)
    broken = tmp_path / "letter.pdf"
    broken.write_bytes(b"%PDF-1.4 no ECG")
    page.open(broken)
    assert "letter.pdf" in page.wait("#upload-error p")[0].text

    page.open(shared / "data/formats/anonymous_ecg.dcm")
    (drawn,) = page.wait(".trace svg")
    assert "12 leads" in drawn.get_attribute("aria-label") and "1000 Hz" in page.all(".facts")[0].text
    assert not page.all("#upload-error p")
    watch = """window.seen = [];
        new MutationObserver(() => {
            const answer = document.querySelector('.exchange');
            if (answer) seen.push([answer.ariaBusy, answer.querySelectorAll('.word').length]);
        }).observe(document.getElementById('log'), {childList: true, subtree: true});"""
    browser.execute_script(watch)
    page.ask(QUESTION)
    assert ["true", 1] in browser.execute_script("return seen"), "words are there before the answer is complete"
    words = page.wait(".word")
    assert all(re.search(r"\d\.\d\d", word.get_attribute("aria-label")) for word in words)
    assert page.wait(".trace .attention path", 12) and "probability" in page.wait(".sum")[0].text
    assert "attention of the answer" in page.all(".trace svg")[0].get_attribute("aria-label")
    browser.execute_script("arguments[0].focus()", words[0])
    assert "attention of the word" in page.all(".trace svg")[0].get_attribute("aria-label")
    assert re.fullmatch("“.*” 0[.]\\d\\d|“.*” 1[.]00", page.all(".sum")[0].text)

    record = shared / "data/ptbxl/records500/00000/00005_hr"
    page.open(record.with_suffix(".hea"), record.with_suffix(".dat"))
    page.wait(".trace svg", 2)
    page.ask("How do both ECGs differ?")
    assert all(trace.find_elements(page.css, ".attention path") for trace in page.all(".trace svg"))
    assert page.wait(".exchange:last-child .warned"), "the run was not trained on such a question"
    page.press_on(page.all(".exchange:last-child .acts button")[1])
    assert "To another ECG" in page.wait(".exchange:last-child .controlled dl")[0].text

    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (
        "the page itself must not scroll sideways"
    )
    assert "no medical device" in page.wait("header .device strong")[0].text and page.faults() == []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    assert page.faults() == []
    asked = requests(browser)
    assert asked and all(one.startswith((url, "blob:")) for one in asked), asked
    sizes = "performance.getEntriesByType('resource').map((one) => [one.name, one.encodedBodySize])"
    loaded = browser.execute_script(f"return {sizes}")
    assert 10_000 < sum(size for name, size in loaded if "/static/" in name) < 500_000
    # The refusals are those of the token and of the letter.
    assert all("status of 4" in one["message"] for one in complaints(browser))


def test_a_keyboard_is_enough(browser, url, tmp_path):
    page = PageOf(browser, url, 1280)
    tab, enter, right, escape = "\ue004", "\ue007", "\ue014", "\ue00c"
    page.focus_by_tab("#demos button")
    page.press(enter)
    page.wait(".trace svg")
    page.focus_by_tab(".trace-tools select")
    page.press(right, right)
    assert browser.switch_to.active_element.get_attribute("data-action") == "segment", "the arrow keys go on in the tools"
    page.press(enter)
    assert "0\u20132 s" in page.all(".trace svg")[0].get_attribute("aria-label")
    page.press(tab, "c")  # the picture: with the calipers out
    first = page.wait(".trace-values strong")[0].text
    page.press(*[right] * 5)
    second = page.all(".trace-values strong")[0].text
    assert re.fullmatch(r"Lead II: \d+ ms.*, \d\.\d\d mV", second) and first != second
    page.wait(".trace .calipers path", 3)
    page.press(" ", "\ue00f", escape)  # the other end, the next lead, no calipers
    assert not page.all(".trace .calipers path")
    page.press("+")
    assert page.all("[data-action=fit]")[0].text.endswith("%")

    page.focus_by_tab("#question")
    page.press("rhythm", "\ue015", enter)
    assert page.all("#question")[0].get_attribute("value") == QUESTION
    page.press(enter)
    page.wait(".exchange.current .vote[aria-pressed=true]")
    page.focus_by_tab(".vote")
    page.press(tab, enter)
    page.wait("li:nth-child(2) .vote[aria-pressed=true]")
    assert "segment 2 of" in page.all(".trace svg")[0].get_attribute("aria-label")

    for kind, begins in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF-1.4")):
        page.press_on(page.all(f"[data-action={kind}]")[0])
        data = downloaded(tmp_path, kind)
        assert data.startswith(begins) and len(data) > 10_000
        if kind == "svg":
            assert ElementTree.fromstring(data).get("width").endswith("mm")
    page.press_on(page.all(".acts button")[2])
    answer = json.loads(downloaded(tmp_path, "json"))
    assert answer["question"] == QUESTION and "no medical device" in answer["note"] and len(answer["segments"]) > 1


def downloaded(folder: Path, kind: str) -> bytes:
    until = time.monotonic() + 20
    while not (found := list(folder.glob(f"*.{kind}"))):
        assert time.monotonic() < until, f"no {kind} was saved"
        time.sleep(0.1)
    return found[0].read_bytes()
