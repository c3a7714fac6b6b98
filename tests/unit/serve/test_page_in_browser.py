"""The chat page in a real browser: chromium, driven over the WebDriver protocol by plain HTTP."""

import base64
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="no chromium and chromedriver on this machine"),
]
EVIL = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>[x](javascript:alert(1))"
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the WebDriver standard's name for "this is an element"


class Browser:
    """One window of a headless chromium."""

    def __init__(self, *, width=1100, height=800, dark=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        for _ in range(100):
            try:
                self.http.get("/status")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}", "--lang=en"]
        flags += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
        options = {
            "binary": CHROMIUM,
            "args": flags,
            "mobileEmulation": {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1.0, "touch": False}},
        }
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session = f"/session/{self.call('POST', '/session', capabilities=wanted)['sessionId']}"

    def call(self, method, path, **body):
        response = self.http.request(method, path, json=body if method == "POST" else None)
        value = response.json()["value"]
        assert response.is_success, value
        return value

    def open(self, url):
        self.call("POST", f"{self.session}/url", url=url)

    def run(self, script, *arguments):
        return self.call("POST", f"{self.session}/execute/sync", script=f"return {script}", args=list(arguments))

    def find(self, selector):
        found = self.call("POST", f"{self.session}/element", using="css selector", value=selector)
        return f"{self.session}/element/{found[ELEMENT]}"

    def type(self, selector, text):
        self.call("POST", f"{self.find(selector)}/value", text=text)

    def click(self, selector):
        self.call("POST", f"{self.find(selector)}/click")

    def text(self, selector):
        return self.run("document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def wait(self, script, timeout_s=20):
        deadline = time.monotonic() + timeout_s
        while not self.run(script):
            assert time.monotonic() < deadline, f"never came true: {script}"
            time.sleep(0.03)

    def console(self):
        """What the browser complained about, refused requests included."""
        return [entry["message"] for entry in self.call("POST", f"{self.session}/se/log", type="browser")]

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("GET", f"{self.session}/screenshot")))

    def close(self):
        try:
            self.call("DELETE", self.session)
        finally:
            self.http.close()
            self.driver.terminate()
            self.driver.wait(10)


@pytest.fixture(scope="module")
def browser():
    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def phone():
    made = Browser(width=390, height=800, dark=True)
    yield made
    made.close()


@pytest.fixture
def thinker(scripted, answer_ids):
    """Thinks two lines, then answers with mark-up that must stay text."""
    return scripted(
        lambda request: answer_ids("three and four\nmake seven", f"<answer>{EVIL} 七</answer>"), delay_s=0.01
    )


def ask(browser, question):
    browser.type("#question", question + ENTER)
    browser.wait("document.querySelectorAll('.figures, .problem').length === document.querySelectorAll('.user').length")


def test_a_question_is_answered_with_its_thought_folded_and_its_figures_shown(serving, thinker, browser):
    with serving(thinker) as live:
        browser.open(live.url)
        browser.wait("document.querySelectorAll('.examples button').length === 1")
        assert "scripted" in browser.text("#model")
        browser.type("#question", "3+4?" + ENTER)
        browser.wait("document.querySelector('.thinking summary')?.textContent.includes('Thinking')")
        assert browser.run("document.querySelector('details').open"), "the thought is open while it is written"
        browser.wait("document.querySelector('.figures') !== null")
        assert browser.text(".thought") == "three and four\nmake seven"
        assert browser.text(".answer") == f"{EVIL} 七", "shown as text, without the marks around it"
        assert not browser.run("document.querySelector('details').open"), "and folded once the answer is there"
        assert "Thought for" in browser.text("summary")
        assert "tokens/s" in browser.text(".figures")
        assert "$" in browser.text(".figures")
        assert "Answer:" in browser.text("#status")
        assert browser.run("document.querySelector('#status').getAttribute('aria-live')") == "polite"
        assert browser.run("document.activeElement.id") == "question"


def test_nothing_that_the_model_writes_is_run_or_loaded(serving, thinker, browser):
    with serving(thinker) as live:
        browser.open(live.url)
        ask(browser, EVIL)
        assert "pwned" not in browser.run("document.title")
        assert browser.run("document.querySelectorAll('.turns img, .turns script, .turns a').length") == 0
        hosts = browser.run("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)")
        assert set(hosts) == {live.url.removeprefix("http://")}
        assert browser.console() == []


def test_the_next_question_brings_the_answers_but_not_the_thoughts(serving, thinker, browser, tokenizer):
    with serving(thinker) as live:
        browser.open(live.url)
        ask(browser, "first")
        ask(browser, "second")
        prompt = tokenizer.decode(thinker.asked[-1].prompt_ids)
        assert "first" in prompt
        assert "七" in prompt
        assert "make seven" not in prompt
        browser.click("#restart")
        assert browser.run("document.querySelectorAll('.turns > li').length") == 0
        ask(browser, "third")
        assert "first" not in tokenizer.decode(thinker.asked[-1].prompt_ids)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_answer_here_and_in_the_engine(serving, scripted, tokenizer, browser, eventually, how):
    endless = scripted(lambda request: tokenizer.encode("hm ") * 1000, delay_s=0.05)
    with serving(endless) as live:
        browser.open(live.url)
        browser.wait("document.querySelector('#model').textContent.includes('scripted')")
        browser.type("#question", "forever" + ENTER)
        browser.wait("document.querySelector('.thought')?.textContent.length > 10")
        browser.click("#stop") if how == "button" else browser.type("body", ESCAPE)
        browser.wait("document.querySelector('.figures')?.textContent.includes('stopped')")
        assert eventually(lambda: len(endless.aborted) == 1)
        assert browser.run("document.querySelector('#stop').hidden")


def test_an_example_is_asked_by_a_click(serving, thinker, browser):
    with serving(thinker) as live:
        browser.open(live.url)
        browser.wait("document.querySelectorAll('.examples button').length === 1")
        browser.click(".examples button")
        browser.wait("document.querySelector('.figures') !== null")
        assert browser.text(".user") == "1+1?"


def test_the_key_is_asked_for_kept_for_the_tab_and_asked_again_when_wrong(serving, thinker, browser):
    with serving(thinker, api_key=("right",)) as live:
        browser.open(live.url)
        browser.wait("document.querySelector('#key-dialog').open")
        browser.type("#key", "wrong" + ENTER)
        browser.wait("document.querySelector('#key-title').textContent.includes('not accepted')")
        browser.type("#key", "right" + ENTER)
        browser.wait("document.querySelector('#model').textContent.includes('scripted')")
        ask(browser, "3+4?")
        assert "七" in browser.text(".answer")
        assert browser.run("[sessionStorage.getItem('sobre.key'), localStorage.length]") == ["right", 0]
        assert "right" not in browser.run("document.documentElement.outerHTML")


def test_an_error_is_shown_with_its_request_id_and_the_question_can_be_asked_again(serving, thinker, browser):
    with serving(thinker) as live:
        browser.open(live.url)
        ask(browser, "x " * 300)
        assert "maximum context length" in browser.text(".problem")
        assert "req-" in browser.text(".problem")
        ask(browser, "short")
        assert "七" in browser.text(".answer") or browser.run("document.querySelectorAll('.figures').length") == 1


def test_on_a_phone_in_the_dark_nothing_overflows_and_contrast_is_readable(serving, thinker, phone):
    with serving(thinker) as live:
        phone.open(live.url)
        ask(phone, "a long question " * 3 + "W" * 60)
        assert phone.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert phone.run("matchMedia('(prefers-color-scheme: dark)').matches")
        for selector in (".answer", "summary", ".figures", ".hint", ".user"):
            assert contrast(phone, selector) >= 4.5, selector


def contrast(browser, selector):
    """WCAG contrast of an element's text with the page or the card behind it."""
    colours = browser.run(
        "((element) => { const ink = getComputedStyle(element).color; let behind = element, paper = '';"
        " for (; behind; behind = behind.parentElement) { paper = getComputedStyle(behind).backgroundColor;"
        " if (paper !== 'rgba(0, 0, 0, 0)') break; } return [ink, paper]; })(document.querySelector(arguments[0]))",
        selector,
    )

    def luminance(colour):
        channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(colour) for colour in colours), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
