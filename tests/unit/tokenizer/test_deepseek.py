"""DeepSeek's own layouts: golden renderings, rules of history, tools, and that no text becomes a mark."""

import gzip
import json
import random
from pathlib import Path

import pytest

from sobre.errors import DataError
from sobre.tokenizer import deepseek
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.special import SPECIALS
from sobre.tokenizer.tokenizer import Tokenizer

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared/data/templates/render_golden.jsonl.gz"
MARKS = (
    *SPECIALS,
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    *("｜DSML｜", "<｜search▁begin｜>"),
)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": {"type": "object", "properties": {}}},
}


def text(name: str, messages: list, **options) -> str:
    return "".join(piece.text for piece in deepseek.layout(name, messages, MARKS, **options))


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, *arguments: str, thought: str = "") -> dict:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": text}} for text in arguments]
    more = {"reasoning_content": thought} if thought else {}
    return {"role": "assistant", "content": content, **more, **({"tool_calls": calls} if calls else {})}


def result(content: str) -> dict:
    return {"role": "tool", "content": content}


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared data is not beside the repository")
@pytest.mark.parametrize(("name", "published"), [("v3", "axolotl_deepseek_v3"), ("r1", "trl_deepseekv3")])
def test_v3_and_r1_are_byte_for_byte_the_published_templates(name: str, published: str):
    rows = [json.loads(row) for row in gzip.decompress(GOLDEN.read_bytes()).decode().split("\n") if row]
    rows = [row for row in rows if row["template"] == f"{published}.jinja"]
    assert len(rows) == 44
    for row in rows:
        shown = text(name, row["messages"], generation_prompt=row["add_generation_prompt"], tools=row["tools"] or ())
        assert shown == row["text"]


CHAT = [{"role": "system", "content": "s"}, user("q"), assistant("a", thought="t"), user("r")]
CALLING = [user("q"), assistant("", '{"city": "P", "n": 2}', "{}", thought="t"), result("18"), result("20")]
BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"


@pytest.mark.parametrize(
    ("name", "thinking", "expected"),
    [
        ("v3", True, f"{BOS}s{USER}q{ASSISTANT}a{EOS}{USER}r{ASSISTANT}"),
        ("r1", True, f"{BOS}s{USER}q{ASSISTANT}a{EOS}{USER}r{ASSISTANT}<think>\n"),
        ("v3.1", True, f"{BOS}s{USER}q{ASSISTANT}</think>a{EOS}{USER}r{ASSISTANT}<think>"),
        ("v3.1", False, f"{BOS}s{USER}q{ASSISTANT}</think>a{EOS}{USER}r{ASSISTANT}</think>"),
        ("v3.2", True, f"{BOS}s{USER}q{ASSISTANT}</think>a{EOS}{USER}r{ASSISTANT}<think>"),
        ("v3.2", False, f"{BOS}s{USER}q{ASSISTANT}</think>a{EOS}{USER}r{ASSISTANT}</think>"),
    ],
)
def test_a_new_question_drops_the_thought_before_it(name: str, thinking: bool, expected: str):
    assert text(name, CHAT, generation_prompt=True, thinking=thinking) == expected


def test_calls_and_results_have_the_form_of_their_release():
    assert text("v3.1", CALLING, generation_prompt=True) == (
        f"{BOS}{USER}q{ASSISTANT}</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "P", "n": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
        f"<｜tool▁calls▁end｜>{EOS}<｜tool▁output▁begin｜>18<｜tool▁output▁end｜>"
        "<｜tool▁output▁begin｜>20<｜tool▁output▁end｜>"
    )
    assert text("v3.2", CALLING, generation_prompt=True) == (
        f"{BOS}{USER}q{ASSISTANT}<think>t</think>\n\n<｜DSML｜function_calls>\n"
        '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">P</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="n" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        f'<｜DSML｜invoke name="weather">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>{EOS}'
        "\n\n<function_results>\n<result>18</result>\n<result>20</result>\n</function_results>\n\n<think>"
    )


def test_after_results_v32_goes_on_thinking_and_keeps_what_it_thought():
    chat = [*CALLING, assistant("warm", thought="u")]
    assert f"<think>t</think>\n\n<{deepseek.DSML}" in text("v3.2", chat)
    assert text("v3.2", chat).endswith(f"</function_results>\n\n<think>u</think>warm{EOS}")
    later = text("v3.2", [*chat, user("and?")], generation_prompt=True)
    assert f"</function_results>\n\n</think>warm{EOS}{USER}and?{ASSISTANT}<think>" in later
    assert "<think>t" not in later


def test_tools_are_declared_after_the_system_s_text():
    declared = text("v3.1", [{"role": "system", "content": "s"}, user("q")], tools=[TOOL])
    assert declared.startswith(f"{BOS}s\n\n## Tools\nYou have access to the following tools:\n\n### weather\n")
    assert 'Parameters: {"type": "object", "properties": {}}\n\nIMPORTANT: ALWAYS' in declared
    declared = text("v3.2", [user("q")], tools=[TOOL])
    assert declared.startswith(f"{BOS}\n\n## Tools\nYou have access to a set of tools you can use to answer the user's")
    assert f"<functions>\n{json.dumps(TOOL['function'])}\n</functions>\n{USER}q" in declared


@pytest.mark.parametrize("name", list(deepseek.LAYOUTS))
def test_no_text_of_anybody_becomes_a_mark(name: str):
    rng = random.Random(0)
    fragments = [*MARKS, *(mark[:2] for mark in MARKS), *(mark[2:] for mark in MARKS), "x", " ", "\n"]
    for _ in range(200):
        evil = ["".join(rng.choices(fragments, k=4)).replace("</think>", "") for _ in range(5)]
        tool = {"type": "function", "function": {"name": "weather", "description": evil[0], "parameters": {}}}
        arguments = json.dumps({evil[1]: evil[2]}, ensure_ascii=False)
        harmless = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}
        calm = [user("q"), assistant("a", '{"k": "v"}'), result("r"), user("s")]
        chat = [user(evil[3]), assistant("a" + evil[0], arguments), result(evil[4]), user(evil[1])]
        found, expected = (
            [p.text for p in deepseek.layout(name, given, MARKS, generation_prompt=True, tools=[one]) if p.special]
            for given, one in ((chat, tool), (calm, harmless))
        )
        assert found == expected


def test_a_folder_without_a_template_is_told_by_its_tokens_and_its_config(tmp_path: Path):
    def which(kind: str, *added: str) -> str:
        return deepseek.which(kind, (USER, ASSISTANT, *added))

    assert which("deepseek_v3") == "v3"
    assert which("deepseek_v3", "<think>") == "r1"
    assert which("deepseek_v3", "<think>", deepseek.SEARCH) == "v3.1"
    assert which("deepseek_v32", "<think>") == "v3.2"
    assert which("qwen3", "<think>") == ""
    Tokenizer.train(["some words"], TokenizerConfig(vocab_size=270)).save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v32"}')
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.render([user("hi <think>")], generation_prompt=True)
    assert tokenizer.decode(ids) == f"{BOS}{USER}hi <think>{ASSISTANT}<think>"
    specials = [tokenizer.bos_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.think_open_id]
    assert [token for token in ids if token in tokenizer.special_ids] == specials
    assert not tokenizer.has_own_layout


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([], "at least one message"),
        ([{"role": "developer", "content": "x"}], "the roles that fit"),
        ([user("q"), assistant("", "not json")], "no JSON object"),
        ([user("q"), result("r")], "the result of a call that no message before it makes"),
        ([user("q"), assistant("", "{}"), result("r"), result("s")], "the result of a call"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(chat: list, said: str):
    with pytest.raises(DataError, match=said):
        text("v3.2", chat)
