"""The chat page in a real browser: Debian's chromium, driven by Playwright."""

import json
import os
import re
import shutil

import pytest

from sobre.serve.config import ServeConfig
from sobre.serve.keys import Keyring
from sobre.serve.loading import Loading
from sobre.serve.server import bind

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = "needs chromium and playwright: apt-get install chromium; pip install playwright"
EVIL = (
    "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script> [x](javascript:alert(1))"
    " [d](data:text/html,x) ![i](http://evil.example/?q=1) [ok](https://example.org/a) $\\href{javascript:alert(1)}{x}$"
    " <svg onload=\"document.title='pwned'\"><use href='http://evil.example/s'/></svg>"
    ' $\\includegraphics{http://evil.example/i.png}$\n```mermaid\nclick A href "javascript:alert(1)"\n```\n'
)
ENDLESS = {
    "one block of code": ("```\n" + "x = 1\n" * 900_000, "text.length - 4"),
    "columns": ("|a" * 100_000 + "\n" + "|--" * 100_000 + "\n", "text.length - 1"),
    "marks that never close": ("**a " * 50_000, "text.length"),
    "ticks that never close": ("".join("`" * n + " " for n in range(1, 600)), "text.length"),
    "a formula": ("$$" + "x" * 100_000 + "$$", "text.length - 4"),
}
RICH = (
    "# Title\n\nSome **bold**, *slanted* and `code`.\n\n1. one\n2. two\n   - deep\n\n```python\nprint('<b>')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n$$\\frac{1}{\\sqrt{x^2}} \\le \\alpha$$\n\n> quoted\n\n```\nunclosed"
)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if not (CHROMIUM and sync_playwright):
        assert not os.environ.get("CI"), MISSING
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        with playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as opened:
            yield opened


@pytest.fixture
def spelt(tokenizer):
    """One token a byte: any text can be written with the test's small vocabulary."""
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return lambda text: [table[bytes([byte])] for byte in text.encode()]


@pytest.fixture
def writing(scripted, spelt, tokenizer):
    """An engine that thinks and answers these texts."""

    def engine(thought, answer, delay_s=0.0):
        ids = [*spelt(thought + "\n"), tokenizer.think_close_id, *spelt("\n" + answer), tokenizer.eos_id]
        return scripted(lambda request: list(ids), delay_s=delay_s, max_context=4000)

    return engine


class Page:
    """One tab, and everything that it complained about."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(locale="en-US", accept_downloads=True, **options)
        self.context.set_default_timeout(120_000)
        self.page = self.context.new_page()
        self.problems, self.asked = [], []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#model option", state="attached")

    def ask(self, text):
        self.page.fill("#question", text)
        self.page.keyboard.press("Enter")

    def done(self):
        self.page.wait_for_selector("#send:not([hidden])")

    def texts(self, selector):
        return self.page.locator(selector).all_inner_texts()


@pytest.fixture
def tab(browser):
    opened = []

    def open_page(url, **options):
        opened.append(Page(browser, url, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        assert one.problems == []
        one.context.close()


def test_a_question_shows_the_thought_the_answer_and_their_figures(serving, writing, tab):
    engine = writing("let me think", "It is **7**.", 0.5)
    with serving(engine) as live:
        one = tab(live.url)
        one.ask("3+4?")
        one.page.wait_for_selector("details.thinking[open] .thought:has-text('l')")
        one.page.locator("summary", has_text=re.compile(r"^Thinking… [0-9.]+ s, [0-9]+ tokens?$")).wait_for()
        engine.delay_s = 0.001
        one.done()
        assert one.texts(".bubble") == ["3+4?"]
        assert one.texts(".answer strong") == ["7"]
        assert re.match(r"Thought for [\d.]+ s, 14 tokens", one.texts("summary")[0])
        assert not one.page.locator(".assistant details").first.evaluate("one => one.open")
        assert re.search(r"scripted · \d+ tokens · \d+ tokens/s · \$[\d.e−]+", one.texts(".figures")[0])
        assert one.page.locator("#total").inner_text().startswith("$")
        assert one.page.locator("#context").get_attribute("max") == "4000"
        assert all(url.startswith((live.url, "blob:")) for url in one.asked)


def test_a_model_that_ends_inside_its_thought_is_said_to_give_no_answer(serving, scripted, spelt, tokenizer, tab):
    with serving(scripted(lambda request: [*spelt("hm"), tokenizer.eos_id], max_context=4000)) as live:
        one = tab(live.url)
        one.ask("3+4?")
        one.done()
        assert one.texts(".figures")[0].endswith("ended without an answer")
        assert one.texts(".thought") == ["hm"]


def test_what_a_model_writes_cannot_execute_load_or_lead_astray(serving, writing, tab):
    with serving(writing(EVIL, EVIL)) as live:
        one = tab(live.url)
        one.ask("x")
        one.done()
        assert one.page.title() == "scripted · sobre chat"
        assert one.page.locator(".answer :is(img, script, iframe, svg, object, use)").count() == 0
        assert "<svg" in one.texts(".answer")[0]
        assert "includegraphics" in one.page.locator(".answer math").nth(1).text_content()
        assert one.page.locator(".answer a").evaluate_all("all => all.map(a => [a.href, a.rel])") == [
            ["https://example.org/a", "noopener noreferrer nofollow"]
        ]
        assert "<script>" in one.texts(".answer")[0]
        assert all(url.startswith(live.url) for url in one.asked)


def test_markdown_code_tables_and_mathematics_are_shown(serving, writing, tab):
    with serving(writing("hm", RICH)) as live:
        one = tab(live.url)
        one.ask("x")
        one.done()
        found = one.page.evaluate(
            """Object.fromEntries(['h3','strong','em','ol > li','ul > li','td','mfrac','msqrt','blockquote']
            .map(s => [s, document.querySelectorAll('.answer ' + s).length]))"""
        )
        assert found == {
            "h3": 1,
            "strong": 1,
            "em": 1,
            "ol > li": 2,
            "ul > li": 1,
            "td": 2,
            "mfrac": 1,
            "msqrt": 1,
            "blockquote": 1,
        }
        assert one.texts(".answer pre") == ["print('<b>')", "unclosed"]


def test_an_answer_can_be_stopped_and_a_thought_ended(serving, writing, tab, eventually):
    engine = writing("hm " * 300, "7", 0.01)
    with serving(engine) as live:
        one = tab(live.url)
        one.ask("3+4?")
        one.page.click("text=Answer now")
        assert eventually(lambda: engine.ended)
        one.page.keyboard.press("Escape")
        one.done()
        assert eventually(lambda: len(engine.aborted) == 1)
        assert re.search(r"scripted · [1-9]\d* tokens · .*\$[\d.e−]+ · stopped", one.texts(".figures")[0])
        assert one.page.locator("#total").inner_text() == re.search(r"\$[\d.e−]+", one.texts(".figures")[0])[0]
        assert int(one.page.locator("#context").get_attribute("value")) > len(engine.asked[0].prompt_ids)


@pytest.mark.parametrize("can", [True, False])
def test_a_thought_can_be_ended_where_the_engine_can_end_one(serving, writing, tab, can):
    with serving(writing("hm " * 300, "7", 0.01)) as live:
        one = tab(live.url)
        models = one.page.evaluate("fetch('v1/models').then(answer => answer.json())")
        models["data"][0]["answer_now"] = can
        one.page.route("**/v1/models", lambda route: route.fulfill(json=models))
        one.page.reload()
        one.ask("3+4?")
        one.page.locator("details.thinking").wait_for()
        one.page.locator(".thought", has_text="hm hm hm").wait_for()
        assert one.page.locator("text=Answer now").is_visible() == can
        one.page.keyboard.press("Escape")
        one.done()


def test_editing_and_regenerating_make_branches_that_survive_a_reload(serving, writing, tab):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        one.ask("first")
        one.done()
        one.page.click("text=Regenerate")
        one.done()
        assert "2 of 2" in one.texts(".assistant .tools")[0]
        one.page.click("text=Edit")
        one.page.fill(".edit", "second")
        one.page.click("text=Send the edit")
        one.done()
        assert one.texts(".bubble") == ["second"]
        assert live.engine.asked[-1].prompt_ids != live.engine.asked[0].prompt_ids
        one.page.reload()
        one.page.wait_for_selector("#model option", state="attached")
        one.page.click("#open-side")
        one.page.click(".chat")
        assert one.texts(".bubble") == ["second"]
        one.page.click("[aria-label='Previous version'] >> nth=0")
        assert one.texts(".bubble") == ["first"]
        assert "2 of 2" in one.texts(".assistant .tools")[0]


def test_chats_go_out_and_come_back_as_a_file_and_other_files_are_refused(serving, writing, tab, tmp_path):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        one.ask("kept")
        one.done()
        one.page.click("#open-side")
        with one.page.expect_download() as download:
            one.page.click("#export")
        file = tmp_path / "chats.json"
        download.value.save_as(file)
        assert json.loads(file.read_text())[0]["title"] == "kept"
        one.page.click("#delete")
        one.page.click("#open-side")
        assert one.page.locator(".chat").count() == 0
        one.page.set_input_files("#import-file", file)
        one.page.wait_for_selector(".chat:has-text('kept')")
        (tmp_path / "other.json").write_text("{")
        one.page.set_input_files("#import-file", tmp_path / "other.json")
        one.page.wait_for_selector("#import-problem:not([hidden])")


def a_chat(name="a", **answer):
    """An exported chat of one answer; `answer` are more of its fields."""
    node = {"id": "b", "parent": None, "role": "assistant", "content": "x"} | answer
    return {"id": name, "title": "t", "at": 1, "leaf": "b", "nodes": {"b": node}}


USED = {"completion_tokens": 5, "total_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 2}}
FIRED = {"n_experts": 4, "tokens": ["a"], "layers": [{"layer": 1, "experts": [[0, 3]]}]}
NO_CHATS = [
    {},
    [1],
    [a_chat() | {"leaf": "c"}],
    [a_chat() | {"leaf": "__proto__"}],
    [a_chat() | {"title": 5}],
    [a_chat(parent="__proto__")],
    [a_chat(parent="b")],
    [a_chat(role="system")],
    [a_chat(content=None)],
    [a_chat(reasoning=5)],
    [a_chat(ms="1")],
    [a_chat(usage={})],
    [a_chat(usage=USED | {"completion_tokens_details": {}})],
    [a_chat(usage=USED | {"cost_usd": "1"})],
    [a_chat(experts={})],
    [a_chat(experts=FIRED | {"n_experts": 10**9})],
    [a_chat(experts=FIRED | {"layers": [{"layer": 1, "experts": []}]})],
]


def test_a_file_of_chats_is_taken_only_if_every_part_can_be_shown(serving, writing, tab):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        taken = """async (chats) => {
            const { check } = await import("/chats.js");
            try { return Boolean(check(chats)); } catch { return false; }
        }"""
        for wrong in NO_CHATS:
            assert not one.page.evaluate(taken, wrong), wrong
        right = a_chat(usage=USED | {"cost_usd": 0.5}, experts=FIRED, reasoning="hm", ms=2.5, model="m")
        assert one.page.evaluate(taken, [right])
        stored = json.dumps([right, a_chat("broken", usage={})])
        one.page.evaluate("text => localStorage.setItem('sobre.chats', text)", stored)
        one.page.reload()
        one.page.click("#open-side")
        assert one.page.locator(".chat").count() == 1, "one that cannot be shown does not take the others with it"
        one.page.click(".chat")
        assert re.search(r"m · 5 tokens · 400 tokens/s · \$0.50", one.texts(".figures")[0])


def test_answers_without_end_are_shown_whole_and_with_few_elements(serving, writing, tab):
    """A mark that is never closed must not take a time that grows by the square of the text."""
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        for name, (text, shown) in ENDLESS.items():
            made = one.page.evaluate(
                f"""async (text) => {{
                    const {{ markdown }} = await import("/markdown.js");
                    const page = markdown(text);
                    const letters = page.textContent.replaceAll("Copy", "");
                    return [page.querySelectorAll("*").length, letters.length, {shown}];
                }}""",
                text,
            )
            assert made[0] < 60, name
            assert made[1] >= made[2], name
        rows = one.page.evaluate(
            """async () => {
                const { markdown } = await import("/markdown.js");
                const page = markdown("|a".repeat(300) + "\\n" + "|--".repeat(300) + "\\n" + "|b".repeat(300));
                return [...page.querySelectorAll("tr")].map(r => [r.cells.length, r.lastChild.textContent.length]);
            }"""
        )
        assert rows == [[50, 2 * 251 - 1]] * 2, "what is beyond the last column stays in it as text"


def test_text_that_turns_the_line_around_turns_nothing_beside_it(serving, writing, tab):
    with serving(writing("\u202ehm", "\u202eseven\n\nnext")) as live:
        one = tab(live.url)
        one.ask("\u202equestion")
        one.done()
        for selector, leftwards in ((".answer p >> nth=0", True), (".answer p >> nth=1", False), (".figures", False)):
            first, last = one.page.locator(selector).evaluate(
                """one => {
                    const text = one.firstChild, at = i => {
                        const range = document.createRange();
                        range.setStart(text, i);
                        range.setEnd(text, i + 1);
                        return range.getBoundingClientRect().left;
                    };
                    return [at(1), at(text.length - 1)];
                }"""
            )
            assert (first > last) is leftwards, selector


def test_settings_reach_the_server_and_the_page_speaks_three_languages(serving, writing, tab, tokenizer):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        one.page.click("#open-settings")
        one.page.fill("#set-temperature", "0.3")
        one.page.fill("#set-budget", "9")
        one.page.fill("#set-system", "Be brief.")
        one.page.keyboard.press("Escape")
        one.ask("x")
        one.done()
        request = live.engine.asked[-1]
        assert (request.params.temperature, request.thought.max_tokens) == (0.3, 9)
        assert "Be brief." in tokenizer.decode(request.prompt_ids)
        one.page.click("#open-settings")
        one.page.uncheck("#set-think")
        for language, word in (("fr", "Nouvelle discussion"), ("zh", "新对话"), ("en", "New chat")):
            one.page.select_option("#set-language", language)
            assert one.page.locator("#restart").inner_text() == word
            assert one.page.locator("html").get_attribute("lang") == language
        one.page.keyboard.press("Escape")
        one.ask("y")
        one.done()
        assert live.engine.asked[-1].prompt_ids[-2] == tokenizer.think_close_id


def test_two_models_answer_side_by_side(serving, writing, tab):
    with serving(writing("hm", "from one"), others={"other": writing("hm", "from two, the longer")}) as live:
        one = tab(live.url)
        one.page.click("#compare")
        assert one.page.locator("#model-2").input_value() == "other"
        one.ask("x")
        one.done()
        assert one.texts("#turns .answer") == ["from one"]
        assert one.texts("#turns-2 .answer") == ["from two, the longer"]
        chats = one.page.evaluate("JSON.parse(localStorage.getItem('sobre.chats'))")
        usages = [node["usage"] for chat in chats for node in chat["nodes"].values() if "usage" in node]
        spent = one.page.evaluate(
            "async (usd) => (await import('/format.js')).dollars(usd)", sum(usage["cost_usd"] for usage in usages)
        )
        assert one.page.locator("#total").inner_text() == spent
        assert one.page.locator("#context").get_attribute("value") == str(max(u["total_tokens"] for u in usages))
        one.page.click("#open-side")
        assert one.texts(".chat small") == ["scripted", "other"]
        with one.page.expect_download() as download:
            one.page.click("#export")
        assert len(json.loads(download.value.path().read_text())) == 2
        one.page.reload()
        one.page.wait_for_selector("#model option", state="attached")
        one.page.click("#open-side")
        one.page.click(".chat:has-text('other')")
        assert one.texts("#turns .answer") == ["from two, the longer"]
        one.page.click("#open-side")
        one.page.click("#delete")
        one.page.click("#open-side")
        assert one.page.locator(".chat").count() == 1, "only the chat on show is deleted"


def test_a_chat_that_is_left_while_it_is_answered_is_kept(serving, writing, tab, eventually):
    engine = writing("hm " * 300, "7", 0.01)
    with serving(engine) as live:
        one = tab(live.url)
        one.ask("left alone")
        one.page.wait_for_selector(".thought:has-text('hm')")
        one.page.click("#restart")
        assert eventually(lambda: engine.aborted)
        one.page.click("#open-side")
        one.page.click(".chat:has-text('left alone')")
        assert one.texts(".bubble") == ["left alone"]
        assert "stopped" in one.texts(".figures")[0]


def test_the_colours_are_those_that_are_chosen_whatever_the_system_says(serving, writing, tab):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url, color_scheme="light")

        def brightness():
            ink = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(map(int, re.findall(r"\d+", ink)[:3]))

        assert brightness() > 600
        one.page.click("#open-settings")
        one.page.select_option("#set-theme", "dark")
        assert brightness() < 150
        one.page.reload()
        assert brightness() < 150, "it is kept"
        one.page.click("#open-settings")
        assert one.page.locator("#set-theme").input_value() == "dark"
        one.page.select_option("#set-theme", "auto")
        assert brightness() > 600
        one.page.emulate_media(color_scheme="dark")
        assert brightness() < 150
        one.page.select_option("#set-theme", "light")
        assert brightness() > 600


def test_the_experts_of_each_token_are_shown_layer_by_layer_where_they_are_asked_for(serving, real_engine, tab):
    with serving(real_engine(return_routes=True), n_experts=4) as live:
        one = tab(live.url)
        one.page.click("#open-settings")
        one.page.check("#set-experts")
        one.page.uncheck("#set-think")
        one.page.fill("#set-maxTokens", "12")
        one.page.keyboard.press("Escape")
        one.ask("3+4?")
        one.done()
        one.page.click(".experts summary")
        one.page.wait_for_selector(".experts .bar")
        assert one.page.locator(".experts .bar").count() == 4
        n_tokens = one.page.locator(".experts .token").count()
        assert 1 <= n_tokens <= 11
        fired = one.page.locator(".experts .token").evaluate_all("all => all.map(token => token.title)")
        assert all(len(set(one.split(", "))) == 2 and set(one.split(", ")) <= set("0123") for one in fired)
        bars = one.page.locator(".experts .bar").evaluate_all("all => all.map(bar => Number(bar.title.split(': ')[1]))")
        assert sum(bars) == 2 * n_tokens
        layers = one.page.locator(".experts option").count()
        one.page.select_option(".experts select", str(layers - 1))
        assert one.page.locator(".experts .token").count() == n_tokens


def test_a_page_opened_while_the_model_loads_says_so_and_goes_on_by_itself(serving, writing, browser):
    with bind("127.0.0.1", 0) as listener:
        page = browser.new_page()
        with Loading(listener, ServeConfig(model=("m",)), Keyring([])) as loading:
            loading.tell("reading the weights, 43 %")
            page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}")
            page.wait_for_selector("#trouble:has-text('reading the weights, 43 %')")
            loading.tell("measuring the speed")
            page.wait_for_selector("#trouble:has-text('measuring the speed')")
            assert page.locator("#send").is_disabled()
        with serving(writing("hm", "seven"), listener=listener):
            page.wait_for_selector("#model option", state="attached")
            page.wait_for_selector("#trouble", state="hidden")
            page.fill("#question", "3+4?")
            page.keyboard.press("Enter")
            page.wait_for_selector(".answer:has-text('seven')")
        page.close()


def test_a_thought_of_white_space_opens_no_block_and_a_chosen_name_is_read(serving, writing, tab):
    with serving(writing(" \n ", "seven"), reasoning_field="reasoning") as live:
        one = tab(live.url)
        one.ask("x")
        one.done()
        assert one.texts(".answer") == ["seven"]
        assert not one.page.locator(".assistant details").first.is_visible()
    with serving(writing("let me think", "seven"), reasoning_field="reasoning") as live:
        one = tab(live.url)
        one.ask("x")
        one.done()
        assert one.page.locator(".thought").text_content() == "let me think"


def test_shift_enter_makes_a_line_and_the_context_fills(serving, writing, tab, tokenizer):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        one.page.fill("#question", "one")
        one.page.keyboard.press("Shift+Enter")
        one.page.keyboard.type("two")
        one.page.keyboard.press("Enter")
        one.done()
        assert "one\ntwo" in tokenizer.decode(live.engine.asked[-1].prompt_ids)
        used = one.page.locator("#context").get_attribute("value")
        assert int(used) == len(live.engine.asked[-1].prompt_ids) + len(live.engine.script(None))
        assert one.page.locator("#context").get_attribute("aria-label") == f"Context used: {used} of 4000"
        first = one.page.locator("#total").inner_text()
        one.ask("three")
        one.done()
        assert int(one.page.locator("#context").get_attribute("value")) > int(used)
        assert one.page.locator("#total").inner_text() != first, "the whole conversation is paid for"


def test_an_error_is_said_with_the_id_of_its_request(serving, writing, tab):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        one.ask("7" * 5000)
        one.done()
        said = one.texts(".assistant .problem")[0]
        assert re.search(r"maximum context length is 4000 .* \(req-\w+\)", said)
        one.problems.clear()  # the browser notes the 400 itself


def test_a_server_with_keys_asks_for_one_and_keeps_it_in_the_tab(serving, writing, browser):
    with serving(writing("hm", "seven"), api_key=("the-key",)) as live:
        page = browser.new_context().new_page()
        page.goto(live.url)
        for key in ("wrong", "the-key"):
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", key)
            page.keyboard.press("Enter")
        page.wait_for_selector("#model option", state="attached")
        assert page.evaluate("Object.values(sessionStorage)") == ["the-key"]
        assert "the-key" not in page.evaluate("Object.values(localStorage).join()")
        page.context.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(1200, 800), (390, 780)])
def test_the_page_fits_phone_and_desktop_in_light_and_dark(serving, writing, tab, size, dark, tmp_path):
    with serving(writing("let me think", RICH)) as live:
        width, height = size
        scheme = "dark" if dark else "light"
        one = tab(live.url, viewport={"width": width, "height": height}, color_scheme=scheme)
        shots = os.environ.get("SOBRE_SCREENSHOTS", str(tmp_path))
        one.page.screenshot(path=f"{shots}/welcome-{width}-{scheme}.png")
        one.ask("What is 3+4?")
        one.done()
        one.page.screenshot(path=f"{shots}/answer-{width}-{scheme}.png")
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        ink = one.page.evaluate("getComputedStyle(document.body).color")
        assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) is dark
        one.page.keyboard.press("Shift+Tab")
        assert one.page.evaluate("document.activeElement !== document.body")
        unnamed = one.page.evaluate(
            """[...document.querySelectorAll('button, input, select, textarea')].filter(e => e.checkVisibility()
            && !e.getAttribute('aria-label') && !e.textContent.trim() && !e.labels?.length).map(e => e.id)"""
        )
        assert unnamed == []


def test_the_first_paint_is_quick_and_the_page_small(serving, writing, tab):
    with serving(writing("hm", "seven")) as live:
        one = tab(live.url)
        paint = one.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        assert 0 < paint < 5000, "bench serve measures it; here it is only known to come"
