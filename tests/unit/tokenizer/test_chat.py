"""The chat layout, its mask, and that prompt and completion make the whole."""

import random

import pytest

from sobre.errors import DataError
from sobre.tasks.config import TasksConfig
from sobre.tasks.sampling import chat as example

BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\none and one\n</think>\n<answer>2</answer>"},
    {"role": "user", "content": "and 2 + 2?"},
    {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n<answer>4</answer>"},
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **fields}


def trained_text(tokenizer, messages, **options) -> str:
    ids, mask = tokenizer.render_with_mask(messages, **options)
    return tokenizer.decode(i for i, counts in zip(ids, mask, strict=True) if counts)


def test_a_chat_is_laid_out_as_documented(tokenizer):
    assert tokenizer.decode(tokenizer.render(TWO_TURNS)) == (
        f"{BOS}Be brief.{USER}1 + 1?{ASSISTANT}</think>\n<answer>2</answer>{EOS}"
        f"{USER}and 2 + 2?{ASSISTANT}<think>\ntwo and two\n</think>\n<answer>4</answer>{EOS}"
    )


def test_thoughts_are_dropped_once_a_user_message_follows(tokenizer):
    text = tokenizer.decode(tokenizer.render([*TWO_TURNS, user("thanks")], generation_prompt=True))
    assert "two and two" not in text
    assert text.endswith(f"<answer>4</answer>{EOS}{USER}thanks{ASSISTANT}<think>\n")


def test_the_generation_prompt_says_whether_to_think(tokenizer):
    thinking = tokenizer.render([user("hi")], generation_prompt=True)
    plain = tokenizer.render([user("hi")], generation_prompt=True, thinking=False)
    newline = tokenizer.encode("\n")
    assert thinking[-3:] == [tokenizer.assistant_id, tokenizer.think_open_id, *newline]
    assert plain[-3:] == [tokenizer.assistant_id, tokenizer.think_close_id, *newline]
    assert thinking.count(tokenizer.bos_id) == 1


def test_reasoning_content_is_the_thought(tokenizer):
    given = tokenizer.render([user("q"), assistant("a", reasoning_content="because")])
    assert given == tokenizer.render([user("q"), assistant("<think>because</think>a")])


def test_an_empty_thought_is_no_thought(tokenizer):
    assert tokenizer.render([user("q"), assistant("<think>\n\n</think>\n\na")]) == tokenizer.render(
        [user("q"), assistant("a")]
    )


def test_the_loss_counts_what_the_assistant_wrote_and_nothing_else(tokenizer):
    assert trained_text(tokenizer, TWO_TURNS[1:3]) == f"one and one\n</think>\n<answer>2</answer>{EOS}"
    assert trained_text(tokenizer, [user("q"), assistant("a"), user("r"), assistant("b")]) == f"a{EOS}b{EOS}"


def test_a_turn_whose_thought_is_dropped_is_context(tokenizer):
    assert trained_text(tokenizer, TWO_TURNS) == f"two and two\n</think>\n<answer>4</answer>{EOS}"


def test_messages_before_train_from_are_context(tokenizer):
    chat = [user("q"), assistant("a"), user("r"), assistant("b")]
    assert trained_text(tokenizer, chat, train_from=2) == f"b{EOS}"


def test_prompt_and_completion_are_the_whole_for_many_chats(tokenizer):
    rng = random.Random(3)
    ends = ["", ".", "。", ")", " ", "\n", ".\n", "\n\n", "!?\n ", "\t", "é", "3", "-", "\u3000"]
    for _ in range(1500):
        thought = rng.choice(ends) + "so 1 + 2 = 3\n\nthen 计算" + rng.choice(ends)
        answer = rng.choice(ends) + "<answer>12</answer>" + rng.choice(ends)
        question = rng.choice(ends) + "the sum" + rng.choice(ends)
        chat = [user(question), assistant(f"<think>{thought}</think>{answer}")]
        prompt = tokenizer.render(chat[:1], generation_prompt=True)
        whole, mask = tokenizer.render_with_mask(chat)
        assert whole == prompt + tokenizer.encode_completion(f"{thought}</think>{answer}")
        assert mask == [0] * len(prompt) + [1] * (len(whole) - len(prompt))
        plain = tokenizer.render(chat[:1], generation_prompt=True, thinking=False)
        whole, mask = tokenizer.render_with_mask([chat[0], assistant(answer)])
        assert whole[: len(plain)] == plain
        assert sum(mask) == len(whole) - len(plain)


def test_prompt_and_completion_are_the_whole_for_the_problems_of_the_tasks(tokenizer):
    for index in range(400):
        messages = example(TasksConfig(), "seed", index)
        completion = messages[-1]["content"].removeprefix("<think>\n")
        prompt = tokenizer.render(messages[:-1], generation_prompt=True)
        assert tokenizer.render(messages) == prompt + tokenizer.encode_completion(completion)


def test_rendering_many_equals_rendering_each(tokenizer):
    chats = [TWO_TURNS, [user("a"), assistant("b")], TWO_TURNS[:3]]
    assert tokenizer.render_batch_with_mask(chats, train_from=[0, 0, 2]) == [
        tokenizer.render_with_mask(chats[0]),
        tokenizer.render_with_mask(chats[1]),
        tokenizer.render_with_mask(chats[2], train_from=2),
    ]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ([{"role": "robot", "content": "x"}], "'robot'.*system, user, assistant"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user"}], "content of type NoneType"),
        (["hello"], "message 0 is of type str"),
        ([user("x"), {"role": "system", "content": "y"}], "system messages come first"),
        ([user("x"), assistant("<think>never closed")], "never closes"),
        ([user("x"), assistant("<think>a</think>b", reasoning_content="c")], "twice"),
        ([user("x"), assistant("", tool_calls=[{}])], "tool call"),
        ([user("x"), assistant("y", reasoning_content=3)], "reasoning_content that is not a string"),
    ],
)
def test_a_chat_that_cannot_be_laid_out_is_refused(tokenizer, messages, said):
    with pytest.raises(DataError, match=said):
        tokenizer.render(messages)


ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = [user("1 + 1?"), assistant("", reasoning_content="I ask", tool_calls=[CALL])]
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "2"}


def test_tools_stand_after_the_systems_text_and_calls_at_the_end_of_the_answer(tokenizer):
    text = tokenizer.decode(tokenizer.render([TWO_TURNS[0], *CALLED, RESULT], tools=[ADD], generation_prompt=True))
    assert text.startswith(f'{BOS}Be brief.\n\nTools:\n{{"type": "function", "function": {{"name": "add"')
    assert text.endswith(
        f"{USER}1 + 1?{ASSISTANT}<think>\nI ask\n</think>\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
        f'{{"a": 1}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>{EOS}{USER}<｜tool▁output▁begin｜>2{ASSISTANT}<think>\n'
    )


def test_with_tools_no_thought_is_dropped(tokenizer):
    chat = [*CALLED, RESULT, assistant("2", reasoning_content="done"), user("thanks")]
    assert "I ask" not in tokenizer.decode(tokenizer.render(chat))
    text = tokenizer.decode(tokenizer.render(chat, tools=[ADD]))
    assert "I ask" in text
    assert "done" in text


@pytest.mark.parametrize(
    "chat",
    [[user("q") | {"tool_calls": [CALL]}], [user("q"), assistant("", tool_calls=[{"function": {"name": "add"}}])]],
)
def test_calls_that_are_none_are_refused(tokenizer, chat):
    with pytest.raises(DataError, match="message"):
        tokenizer.render(chat)
