"""Token ids to thought and answer."""

import itertools

import pytest

from sobre.serve.events import AnswerReader
from sobre.tokenizer.tool_calls import overlap


def read(tokenizer, ids, stop=(), prompt=None):
    """(reasoning, content) of a whole answer, and the reader."""
    prompt = [tokenizer.assistant_id, tokenizer.think_open_id] if prompt is None else prompt
    reader, text = AnswerReader(tokenizer, prompt, stop), {"reasoning": "", "content": ""}
    deltas = []
    for token_id in ids:
        if not reader.stopped:
            deltas += reader.push(token_id)
    deltas += reader.close()
    for delta in deltas:
        assert delta.text
        text[delta.kind] += delta.text
    kinds = [kind for kind, _ in itertools.groupby(delta.kind for delta in deltas)]
    assert kinds in ([], ["reasoning"], ["content"], ["reasoning", "content"]), "a thought never follows the answer"
    return text["reasoning"], text["content"], reader


def spelt(tokenizer, text):
    """One token per byte, so that every character and word is cut."""
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [table[bytes([byte])] for byte in text.encode()]


@pytest.mark.parametrize("cut", ["words", "bytes"])
@pytest.mark.parametrize(
    ("thought", "answer"),
    [("3+4\nis 7", "It is 7."), ("想一想 🙂", "七 🧑‍🚀 é"), (" \n x \n\n", "\n\n 7 \n"), ("", "7"), ("x", "")],
)
def test_the_newlines_beside_the_tag_are_layout_and_everything_else_is_kept(tokenizer, thought, answer, cut):
    encode = tokenizer.encode if cut == "words" else lambda text: spelt(tokenizer, text)
    ids = [*encode(thought + "\n"), tokenizer.think_close_id, *encode("\n" + answer), tokenizer.eos_id]
    assert read(tokenizer, ids)[:2] == (thought, answer)


def test_without_layout_newlines_nothing_is_dropped(tokenizer):
    ids = [*tokenizer.encode("thought"), tokenizer.think_close_id, *tokenizer.encode("answer")]
    assert read(tokenizer, ids)[:2] == ("thought", "answer")


def test_a_thought_that_never_ends_is_all_thought_with_its_last_newline(tokenizer):
    reasoning, content, reader = read(tokenizer, tokenizer.encode("on and on\n"))
    assert (reasoning, content) == ("on and on\n", "")
    assert reader.n_reasoning == reader.n_tokens


def test_tokens_of_the_thought_are_counted_with_its_end_tag(tokenizer):
    ids = [*tokenizer.encode("abc\n"), tokenizer.think_close_id, *tokenizer.encode("\n7"), tokenizer.eos_id]
    *_, reader = read(tokenizer, ids)
    assert reader.n_reasoning == len(tokenizer.encode("abc\n")) + 1
    assert reader.n_tokens == len(ids)


def test_special_tokens_never_show_wherever_they_come(tokenizer):
    t = tokenizer
    junk = [t.bos_id, t.pad_id, t.assistant_id, t.think_open_id, t.user_id]
    ids = [
        *junk,
        *t.encode("a"),
        *junk,
        t.think_close_id,
        *junk,
        *t.encode("b"),
        t.think_close_id,
        *junk,
        *t.encode("c"),
    ]
    assert read(t, ids)[:2] == ("a", "bc")


def test_a_character_that_never_completes_is_shown_as_the_replacement_sign_on_its_side_of_the_tag(tokenizer):
    half = spelt(tokenizer, "七")[:2]
    ids = [*half, tokenizer.think_close_id, *half]
    assert read(tokenizer, ids)[:2] == ("\ufffd", "\ufffd")


def test_a_prompt_without_a_thought_gives_an_answer_and_a_model_may_open_the_thought_itself(tokenizer):
    t = tokenizer
    closed = [t.assistant_id, t.think_open_id, t.think_close_id]
    assert read(t, t.encode("plain"), prompt=closed)[:2] == ("", "plain")
    ids = [t.think_open_id, *t.encode("\nhm\n"), t.think_close_id, *t.encode("\n7")]
    assert read(t, ids, prompt=[t.assistant_id])[:2] == ("hm", "7")


@pytest.mark.parametrize("cut", ["words", "bytes"])
@pytest.mark.parametrize(
    ("answer", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["two three four", "zzz"], "one two three"),
        ("ab abc", ["abc"], "ab "),
        ("aaab", ["aab"], "a"),
        ("七八九", ["八"], "七"),
        ("END", ["END"], ""),
        ("line\n\nnext", ["\n\n"], "line"),
    ],
)
def test_stop_strings_end_the_answer_across_token_borders(tokenizer, answer, stop, shown, cut):
    encode = tokenizer.encode if cut == "words" else lambda text: spelt(tokenizer, text)
    ids = [*encode("t\n"), tokenizer.think_close_id, *encode("\n" + answer), tokenizer.eos_id]
    _, content, reader = read(tokenizer, ids, stop)
    assert content == shown
    assert reader.stopped == any(each in answer for each in stop)


def test_what_a_stop_string_might_begin_with_is_held_back_until_it_is_clear(tokenizer):
    reader = AnswerReader(tokenizer, [tokenizer.think_close_id], ["STOP"])
    shown = [reader.push(token_id) for token_id in spelt(tokenizer, "aSTx")]
    assert [[delta.text for delta in deltas] for deltas in shown] == [["a"], [], [], ["STx"]]


def test_stop_strings_inside_the_thought_do_not_count(tokenizer):
    ids = [*tokenizer.encode("STOP here\n"), tokenizer.think_close_id, *tokenizer.encode("\nfine")]
    reasoning, content, reader = read(tokenizer, ids, ["STOP"])
    assert (reasoning, content, reader.stopped) == ("STOP here", "fine", False)


def test_overlap_is_the_longest_end_that_begins_the_stop_string():
    assert [overlap(text, "aab") for text in ("", "b", "a", "aa", "baa", "aab")] == [0, 0, 1, 2, 2, 0]
