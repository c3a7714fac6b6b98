"""Chats become samples: the loss on the assistant's tokens, each once; nothing is truncated."""

import numpy as np
import pytest

from sobre.data.chats import ChatCounts, ChatLoader, ChatSamples, tokenize_chats, trained_parts
from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.sources import Chat
from sobre.errors import DataError


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def samples_of(tokenizer, chats, max_len=1000, events=None) -> ChatSamples:
    return tokenize_chats(chats, tokenizer, max_len=max_len, events=events or Events())


def trained_texts(tokenizer, samples) -> list[str]:
    return [tokenizer.decode(sample.ids[sample.mask].tolist(), skip_special=True) for sample in samples]


def numbered(n: int) -> list[Chat]:
    return [Chat(turn(f"number {i}", "ab" * (i % 13)), where=f"file:{i}") for i in range(n)]


def test_samples_are_what_the_tokenizer_renders(tokenizer):
    chats = numbered(600)
    samples = samples_of(tokenizer, chats)
    assert len(samples) == 600
    for i in (0, 1, 511, 512, 599):
        ids, mask = tokenizer.render_with_mask(chats[i].messages)
        assert samples[i].ids.tolist() == ids
        assert samples[i].mask.tolist() == [bool(m) for m in mask]
        assert samples[i].where == f"file:{i}"
    assert samples.n_trained == sum(int(samples[i].mask.sum()) for i in range(600))


def test_every_thought_and_every_answer_is_trained_on_once(tokenizer):
    chat = [
        *turn("a", "plain one"),
        *turn("b", "<think>thought two</think>answer two"),
        *turn("c", "plain three"),
        *turn("d", "<think>thought four</think>answer four"),
        *turn("e", "plain five"),
    ]
    texts = trained_texts(tokenizer, samples_of(tokenizer, [Chat(chat)]))
    assert texts == ["plain onethought two\n\nanswer two", "plain threethought four\n\nanswer four", "plain five"]


def test_a_chat_without_earlier_thoughts_is_one_sample(tokenizer):
    chat = [*turn("a", "one"), *turn("b", "<think>t</think>two")]
    assert list(trained_parts(chat)) == [(chat, 0)]
    assert trained_texts(tokenizer, samples_of(tokenizer, [Chat(chat)])) == ["onet\n\ntwo"]


def test_a_chat_that_is_too_long_is_refused_or_counted_by_name(tokenizer):
    chats = [*numbered(3), Chat(turn("q", "long " * 100), where="file:99")]
    with pytest.raises(DataError, match=r"file:99: the chat is \d+ tokens long; a sequence has at most 50"):
        samples_of(tokenizer, chats, max_len=50)
    events = Events("count")
    assert len(samples_of(tokenizer, chats, max_len=50, events=events)) == 3
    assert events.bad["chat too long"].count == 1
    with pytest.raises(DataError, match="no chat"):
        samples_of(tokenizer, [])


def test_the_order_of_samples_does_not_depend_on_the_batches(tokenizer):
    samples = samples_of(tokenizer, numbered(60))
    orders = []
    for sizes in ([40], [100], [60, 200, 45]):
        loader, taken, i = ChatLoader(samples, seed=3), [], 0
        while len(taken) < 130:
            batch = loader.take_tokens(sizes[i % len(sizes)])
            assert sum(len(sample.ids) for sample in batch) <= sizes[i % len(sizes)]
            taken, i = taken + [sample.where for sample in batch], i + 1
        orders.append(taken[:130])
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0][:60]) == sorted(f"file:{i}" for i in range(60))
    assert orders[0][:60] != orders[0][60:120]


def test_a_batch_is_as_full_as_whole_samples_allow(tokenizer):
    samples = samples_of(tokenizer, numbered(60))
    loader, other = ChatLoader(samples, seed=3), ChatLoader(samples, seed=3)
    batch = loader.take_tokens(100)
    size = sum(len(sample.ids) for sample in batch)
    following = loader.take_tokens(1000)[0]
    assert size + len(following.ids) > 100
    assert len(other.take_tokens(size)) == len(batch)


def test_a_restored_chat_loader_goes_on_where_it_was(tokenizer):
    samples = samples_of(tokenizer, numbered(30))
    loader = ChatLoader(samples, seed=3)
    loader.take_tokens(500)
    state = loader.state()
    expected = [sample.where for sample in loader.take_tokens(300)]
    again = ChatLoader(samples, seed=3)
    again.restore(state)
    assert [sample.where for sample in again.take_tokens(300)] == expected
    assert all(type(value) is int for value in state.values())


def test_a_sample_that_fits_no_batch_is_an_error_that_names_it(tokenizer):
    samples = samples_of(tokenizer, [Chat(turn("q", "long " * 30), where="file:7")])
    loader = ChatLoader(samples, seed=0)
    with pytest.raises(DataError, match=r"file:7: \d+ tokens do not fit into a batch of 20; .* at least \d+"):
        loader.take_tokens(20)
    assert loader.state() == {"epoch": 0, "row": 0}
    assert np.array_equal(loader.take_tokens(1000)[0].ids, samples[0].ids)


@pytest.mark.parametrize("remove", ["remove_duplicates", "remove_test_overlap", ""])
def test_equal_chats_and_test_problems_are_counted_and_left_out_only_if_asked(remove):
    leaked = Chat(turn("So: what is 12 +  34 * 5?", "182"), where="file:leak")
    copy = Chat(numbered(2)[1].messages, where="file:copy")
    counts = ChatCounts(["Sort 3 1 2", "What is 12 + 34 * 5?"])
    cfg = DataConfig(**{remove: True} if remove else {})
    kept = [chat.where for chat in counts.keep([*numbered(2), leaked, copy], cfg)]
    left_out = {"remove_duplicates": ["file:copy"], "remove_test_overlap": ["file:leak"], "": []}[remove]
    assert kept == [where for where in ("file:0", "file:1", "file:leak", "file:copy") if where not in left_out]
    assert counts.to_json(cfg) == {
        "chats": 4,
        "duplicates": {"count": 1, "first": ["file:copy equals file:1"], "removed": remove == "remove_duplicates"},
        "test_overlap": {
            "count": 1,
            "first": ["file:leak holds test problem 1"],
            "removed": remove == "remove_test_overlap",
            "problems": 2,
        },
    }
