"""Few-shot mode: true examples that are never asked, in turns or in text; and the page of an evaluation."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from sobre.engine.request import Thought
from sobre.errors import ConfigError
from sobre.eval.answer import Local, Reply, Sampling
from sobre.eval.measure import marks, measure, summary, to_dict
from sobre.eval.shots import cut_plain, generated_examples, hold_back, plain, turns, worked
from sobre.report.evaluation import render
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.registry import TASKS
from sobre.tasks.sampling import split_of
from sobre.tasks.sampling import test_set as fixed_problems
from sobre.tokenizer.config import SMALLEST, TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

MATH = Problem("set", "en", 3, "6*7?", "42", "set:1", {"judge": "math", "solution": "Six sevens."})
CHOICE = Problem("set", "en", 3, "Which?", "B", "set:2", {"judge": "choice", "choices": ["x", "y"]})
CODE = Problem(
    "set",
    "en",
    3,
    "def f():\n",
    "    return 1\n",
    "set:3",
    {"judge": "code", "entry_point": "f", "test": "assert f() == 1", "head": "", "shown": []},
)


@pytest.mark.parametrize("thinks", [True, False])
def test_every_worked_example_is_judged_right(thinks):
    problems = [
        *(each for name in TASKS for each in generated_examples(name, 3, ("en", "fr", "zh"))),
        MATH,
        CHOICE,
        CODE,
    ]
    for problem in problems:
        text = worked(problem, thinks=thinks).removeprefix("<think>\n")
        assert marks([problem], [[Reply(text, True, 1)]])[0][0].right, text


def test_examples_come_from_training_and_are_never_asked():
    examples = generated_examples("sorting", 6, ("en", "fr", "zh"))
    assert all(split_of(problem.key) == "train" for problem in examples)
    assert [problem.lang for problem in examples] == ["en", "fr", "zh"] * 2
    asked, held = hold_back([MATH, CHOICE, CODE], 1, "set")
    assert (asked, held) == ([MATH, CHOICE], [CODE])
    assert hold_back([MATH], 0, "set") == ([MATH], [])
    with pytest.raises(ConfigError, match=r"--shots=3: set has 3 problems"):
        hold_back([MATH, CHOICE, CODE], 3, "set")


def test_plain_text_puts_question_after_answer_and_ends_where_an_answer_begins():
    shots = turns([replace(MATH, prompt="1+1?", answer="2", data={"judge": "math"})], thinks=False)
    text = plain([*shots, {"role": "user", "content": "3+3?"}])
    first, second = text.split("\n\nQuestion: ", 1)
    assert first.startswith("Question: 1+1?")
    assert first.endswith("Answer: The answer is \\boxed{2}.")
    assert second == "3+3?\nAnswer:"


def test_a_base_model_is_done_where_it_begins_the_next_question():
    assert cut_plain(" six\n#### 6\n\nQuestion: what next?") == ("six\n#### 6", True)
    assert cut_plain("six and") == ("six and", False)


class Echo:
    """Reads and writes characters; answers 42 and goes on asking."""

    eos_id = think_open_id = think_close_id = -1

    def __init__(self):
        self.seen = []

    def encode(self, text):
        self.seen.append(text)
        return [ord(letter) for letter in text]

    def render(self, messages, *, generation_prompt, thinking):
        return self.encode("".join(f"[{m['role']}]{m['content']}" for m in messages))

    def decode(self, ids):
        return "".join(map(chr, ids))

    def generate(self, requests):
        self.limits = [request.params.max_tokens for request in requests]
        text = " #### 42\n\nQuestion: and"
        ids = [ord(letter) for letter in text]
        return [SimpleNamespace(request_id=r.id, token_ids=ids, finish_reason="length") for r in requests]


def test_without_a_limit_a_reply_may_fill_the_context_up_to_1024_tokens():
    echo, how = Echo(), Sampling(max_tokens=0, temperature=0, top_p=1)
    for context, limits in ((100, [92, 91]), (5000, [1024, 1024])):
        echo.max_len = context
        Local(echo, echo).answer(["?2", "?22"], 1, how)
        assert echo.limits == limits
    Local(echo, echo).answer(["?2"], 1, replace(how, max_tokens=7))
    assert echo.limits == [7]


class Asked:
    """An engine that keeps what it is asked."""

    max_len = 100

    def generate(self, requests):
        self.requests = requests
        return [SimpleNamespace(request_id=r.id, token_ids=[65], finish_reason="length") for r in requests]


def test_a_model_of_ours_thinks_as_long_as_it_is_told_and_not_where_that_means_nothing():
    tokenizer, engine = Tokenizer.train(["ab"], TokenizerConfig(vocab_size=SMALLEST)), Asked()
    local, how = Local(engine, tokenizer), Sampling(max_tokens=40, temperature=0, top_p=1)
    open_id, close_id = tokenizer.think_open_id, tokenizer.think_close_id
    thoughts = {"auto": (open_id, None), "on": (open_id, None), "off": (close_id, None)}
    thoughts[30] = (open_id, Thought(end_ids=(close_id,), max_tokens=30))
    for thinking, (mark, thought) in thoughts.items():
        local.answer(["?"], 1, replace(how, thinking=thinking))
        (request,) = engine.requests
        assert [token for token in request.prompt_ids if token in (open_id, close_id)] == [mark], thinking
        assert request.thought == thought
    with pytest.raises(ConfigError, match="thinking=31 leaves less than a quarter of a reply of 40 .* at most 30 fit"):
        local.answer(["?"], 1, replace(how, thinking=31))
    echo = Echo()
    for thinking, message in (("on", "is the same with it"), ("off", "is the same with it"), (8, "opens no thought")):
        with pytest.raises(ConfigError, match=message):
            Local(echo, echo).answer(["?"], 1, replace(how, thinking=thinking))


def test_the_examples_stand_before_every_question_in_both_styles():
    echo, how = Echo(), Sampling(max_tokens=9, temperature=0, top_p=1)
    shots = turns([CHOICE], thinks=False)
    items = measure([MATH, MATH], Local(echo, echo, shots=shots, is_plain=True), 1, how)
    assert [item.replies[0].right for item in items] == [True, True]
    assert all(text.startswith("Question: Which?") and text.endswith("\nAnswer:") for text in echo.seen)
    measure([MATH], Local(echo, echo, shots=shots), 1, how)
    assert echo.seen[-1].startswith("[user]Which?")
    assert "[assistant]" in echo.seen[-1]
    assert echo.seen[-1].count("[user]") == 2


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        self.open += [tag] if tag != "meta" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_the_table_and_every_reply_and_escapes_what_a_model_wrote():
    problems = fixed_problems(3, TasksConfig(names=("sorting",)))
    echo = Echo()
    items = measure(problems, Local(echo, echo), 2, Sampling(max_tokens=9, temperature=0.5, top_p=1))
    wild = replace(
        items[0], replies=(replace(items[0].replies[0], text="<script>alert(1)</script>"), items[0].replies[1])
    )
    options = {"folder": "out/x", "k": 2, "temperature": 0.5, "top_p": 1, "max_tokens": 9, "shots": 0, "style": "chat"}
    items = [wild, *items[1:]]
    result = {
        "options": {**options, "seed": 0, "model": "", "endpoint": "", "omit": ["top_p"], "thinking": 64},
        "tasks": {"sorting": summary(items, seed=0)},
        "items": to_dict(items),
    }
    page = Balanced()
    page.feed(render(json.loads(json.dumps(result))))
    assert not page.open
    text = "".join(page.text)
    assert "<script>alert(1)</script>" in text
    for item in items:
        assert item.prompt in text
        assert item.reference in text
    assert text.count("✗ wrong") == 6
    assert "0.0 % (0.0–0.0)" in text
    assert "at temperature 0.5, the top_p of the service, at most 64 tokens of thought, at most 9 tokens;" in text
