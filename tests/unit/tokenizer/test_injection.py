"""No text can become a special token, wherever it stands."""

import random

import pytest

from sobre.tokenizer.special import SPECIALS
from sobre.tokenizer.stream import Detokenizer

FRAGMENTS = [
    *SPECIALS,
    *(name[:cut] for name in SPECIALS for cut in (1, 2, -1)),
    *(name[-2:] for name in SPECIALS),
    *("think", "User", "｜", "▁", "<", ">", "/", " ", "\n", "a", "1", "中", "<<think>>", "<answer>"),
]


def injected(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(FRAGMENTS, k=rng.randint(1, 8))) for _ in range(n)]


def count_specials(tokenizer, ids) -> int:
    return sum(i in tokenizer.special_ids for i in ids)


@pytest.mark.slow
def test_encoding_never_makes_a_special_token(tokenizer):
    texts = injected(3000, seed=1)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert count_specials(tokenizer, ids) == 0
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text


def test_messages_cannot_add_special_tokens_to_a_chat(tokenizer):
    texts = injected(1500, seed=2)
    for system, question, answer in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "x" + answer},
        ]
        ids = tokenizer.render(messages, generation_prompt=True)
        expected = [tokenizer.bos_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.think_close_id]
        expected += [tokenizer.eos_id, tokenizer.assistant_id, tokenizer.think_open_id]
        assert [i for i in ids if i in tokenizer.special_ids] == expected


def test_a_thought_can_hold_no_special_token_but_its_own_end(tokenizer):
    for text in injected(500, seed=3):
        inside = text.replace("</think>", "")
        messages = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": f"<think>a{inside}b</think>c{text}"},
        ]
        ids = tokenizer.render(messages)
        expected = [tokenizer.bos_id, tokenizer.user_id, tokenizer.assistant_id]
        expected += [tokenizer.think_open_id, tokenizer.think_close_id, tokenizer.eos_id]
        closes_early = "</think>" in f"a{inside}b"
        assert closes_early or [i for i in ids if i in tokenizer.special_ids] == expected


def test_streaming_gives_whole_characters_and_the_same_text(tokenizer):
    rng = random.Random(4)
    for text in [*injected(300, seed=5), "😀👩‍👩‍👧 é中\U0001f3f4", "e\u0301"]:
        ids = tokenizer.encode(text)
        stream = Detokenizer(tokenizer)
        parts = [stream.push(i) for i in ids]
        assert all("\ufffd" not in part for part in parts)
        assert stream.flush() == ""
        assert "".join(parts) == text
    for _ in range(500):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(12)]
        stream = Detokenizer(tokenizer)
        assert "".join([*(stream.push(i) for i in ids), stream.flush()]) == tokenizer.decode(ids)


def test_a_character_never_completed_shows_once_at_the_end(tokenizer):
    stream = Detokenizer(tokenizer)
    half = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xe4")
    assert [stream.push(half), stream.flush(), stream.flush()] == ["", "\ufffd", ""]


def test_special_tokens_are_shown_or_left_out(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id]
    assert tokenizer.decode(ids, skip_special=True) == "hi"
    stream = Detokenizer(tokenizer, skip_special=True)
    assert "".join(map(stream.push, ids)) == "hi"
    assert "".join(map(Detokenizer(tokenizer).push, ids)) == tokenizer.decode(ids)
