"""The held-out split, duplicates, test problems, the report, and folders that are whole or absent."""

import json
import random

import jsonschema
import numpy as np
import pytest

from sobre.data.config import DataConfig
from sobre.data.corpus import Corpus, is_held_out, prepare, training_texts
from sobre.data.events import Events
from sobre.data.overlap import TestOverlap as Overlap
from sobre.data.sources import Document
from sobre.errors import DataError
from sobre.schemas import schema


def documents(n: int = 200) -> list[Document]:
    return [Document(f"number {i} and {i * i}", f"source {i % 3}", "en", f"file:{i}") for i in range(n)]


CFG = DataConfig(holdout_fraction=0.2)


def test_train_and_held_out_are_the_documents_and_nothing_else(tokenizer, tmp_path):
    given = documents()
    corpus = prepare(given, tokenizer, tmp_path / "c", CFG)
    held_out = [document for document in given if is_held_out(document.text, 0.2)]
    train = [document for document in given if document not in held_out]
    starts = [0, *corpus.shards.ends[:-1]]
    spans = zip(starts, corpus.shards.ends, strict=True)
    decoded = [tokenizer.decode(corpus.shards.read(start, end - 1).tolist()) for start, end in spans]
    assert decoded == [document.text for document in train]
    assert corpus.held_out == {
        source: [document.text for document in held_out if document.source == source] for source in corpus.held_out
    }
    assert 20 < len(held_out) < 60
    assert sum(map(len, corpus.held_out.values())) == len(held_out)


def test_the_split_is_fixed_by_content_alone(tokenizer, tmp_path):
    given = documents()
    shuffled = random.Random(0).sample(given, len(given)) + documents(300)[200:]
    one, other = (prepare(docs, tokenizer, tmp_path / str(i), CFG) for i, docs in enumerate((given, shuffled)))
    for source, texts in one.held_out.items():
        assert set(texts) <= set(other.held_out[source])
    assert set(training_texts(given, CFG)) == {d.text for d in given} - {t for ts in one.held_out.values() for t in ts}
    assert not any(is_held_out(document.text, 0.0) for document in given)


def test_the_held_out_share_is_the_one_asked_for():
    for fraction in (0.02, 0.2, 0.5):
        share = sum(is_held_out(f"document {i}", fraction) for i in range(20_000)) / 20_000
        assert share == pytest.approx(fraction, abs=0.01)


def test_the_report_counts_everything(tokenizer, tmp_path):
    events = Events("count")
    corpus = prepare(documents(), tokenizer, tmp_path / "c", CFG, events=events)
    report = corpus.report
    sizes = [len(document.text) for document in documents()]
    assert report["train"]["documents"] + report["held_out"]["documents"] == 200
    assert report["train"]["size_bytes"] + report["held_out"]["size_bytes"] == sum(sizes)
    assert sum(share["documents"] for share in report["train"]["by_source"].values()) == report["train"]["documents"]
    assert report["documents_by_lang"] == {"en": 200}
    jsonschema.validate({**report, "generated": False}, schema("data"))
    assert report["tokens"] == corpus.shards.n_tokens
    assert report == json.loads((tmp_path / "c" / "report.json").read_text()) == Corpus.open(tmp_path / "c").report


@pytest.mark.parametrize("remove", [False, True])
def test_duplicates_are_counted_and_named_and_removed_only_if_asked(tokenizer, tmp_path, remove):
    copies = [Document(document.text, "copy", where=f"copy:{i}") for i, document in enumerate(documents(50))]
    cfg = DataConfig(holdout_fraction=0.2, remove_duplicates=remove)
    corpus = prepare([*documents(50), *copies], tokenizer, tmp_path / "c", cfg)
    found = corpus.report["duplicates"]
    assert (found["count"], found["removed"], found["first"][0]) == (50, remove, "copy:0 equals file:0")
    assert corpus.report["train"]["documents"] + corpus.report["held_out"]["documents"] == (50 if remove else 100)


def test_duplicates_without_a_place_are_counted_too(tokenizer, tmp_path):
    corpus = prepare([Document("same")] * 3, tokenizer, tmp_path / "c", DataConfig(holdout_fraction=0))
    assert corpus.report["duplicates"]["count"] == 2


@pytest.mark.parametrize("remove", [False, True])
def test_test_problems_in_the_text_are_counted_and_removed_only_if_asked(tokenizer, tmp_path, remove):
    leaked = Document("So: what is 12 +  34 * 5? It is 182.", "leak", where="leak:1")
    cfg = DataConfig(holdout_fraction=0, remove_test_overlap=remove)
    prompts = ["Sort 3 1 2", "What is 12 + 34 * 5?"]
    corpus = prepare([*documents(9), leaked], tokenizer, tmp_path / "c", cfg, test_prompts=prompts)
    found = corpus.report["test_overlap"]
    assert (found["count"], found["first"], found["problems"]) == (1, ["leak:1 holds test problem 1"], 2)
    assert ("leak" in corpus.report["train"]["by_source"]) == (not remove)


def test_special_tokens_in_the_text_are_counted_and_stay_text(tokenizer, tmp_path):
    events, text = Events(), "a <think> b </think> <｜User｜>"
    corpus = prepare(
        [Document(text, where="f:1")], tokenizer, tmp_path / "c", DataConfig(holdout_fraction=0), events=events
    )
    ids = corpus.shards.read(0, corpus.shards.n_tokens).tolist()
    assert tokenizer.decode(ids[:-1]) == text
    assert tokenizer.special_ids & set(ids) == {tokenizer.eos_id} == {ids[-1]}
    assert sum(note["count"] for note in corpus.report["notes"].values()) == 1


def test_a_killed_preparation_leaves_no_corpus_and_can_be_done_again(tokenizer, tmp_path):
    def broken():
        yield from documents(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(broken(), tokenizer, tmp_path / "c", CFG)
    assert not (tmp_path / "c").exists()
    corpus = prepare(documents(), tokenizer, tmp_path / "c", CFG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    with pytest.raises(DataError, match="exists already"):
        prepare(documents(), tokenizer, tmp_path / "c", CFG)
    np.testing.assert_array_equal(Corpus.open(tmp_path / "c").shards.read(0, 50), corpus.shards.read(0, 50))


def test_nothing_to_train_on_is_an_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no document is left to train on"):
        prepare([], tokenizer, tmp_path / "c", CFG)
    with pytest.raises(DataError, match="holds no complete corpus"):
        Corpus.open(tmp_path / "c")


LONG = "Janet has sixteen ducks, and each of them lays three eggs a day for the baker next door."


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (LONG, True),
        ("Before. " + LONG.upper().replace(",", " -") + " After.", True),
        (" ".join(LONG.split()[:13]), True),
        (" ".join(LONG.split()[:12]), False),
        (LONG.replace("them", "these"), False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row_are_an_overlap(text, holds):
    assert (Overlap([LONG]).find(text) == 0) == holds


def test_short_problems_are_found_whole_with_their_signs():
    overlap = Overlap(["Compute 3 + 4 * 5.", "计算 12 + 34", "x y"])
    assert overlap.find("please compute  3 + 4 * 5. now") == 0
    assert overlap.find("compute 3 * 4 + 5.") is None
    assert overlap.find("compute 3 + 4 * 5") is None
    assert overlap.find("请计算12 + 34。") == 1
    assert (overlap.find("x y"), overlap.n_too_short) == (None, 1)


def test_what_is_too_short_or_stands_twice_is_not_looked_for_and_said():
    other = LONG.replace(" ", ", ")
    overlap = Overlap(["Compute 3 + 4 * 5.", LONG, "x y", other, "compute 3 + 4 * 5."])
    assert overlap.not_looked_for == {1, 2, 3}
    assert overlap.find_all(f"{LONG} Compute 3 + 4 * 5.") == {0, 4}


def test_the_wording_that_problems_share_is_no_overlap():
    tail = " Give the final number inside the answer tag and write nothing else after it, please, at all."
    overlap = Overlap([f"Take {a} from {b} and halve what is left of it today." + tail for a, b in ((5, 9), (7, 30))])
    assert overlap.n_template_runs > 0
    assert overlap.find("Any other problem." + tail) is None
    assert overlap.find("Take 7 from 30 and halve what is left of it today." + tail) == 1


def test_overlaps_are_those_that_a_plain_search_finds():
    rng = random.Random(5)
    words = "one two three four five six".split()
    prompts = [" ".join(rng.choices(words, k=rng.choice([3, 5, 13, 16]))) for _ in range(40)]
    overlap = Overlap(prompts)
    runs: dict[str, set[int]] = {}
    for i, prompt in enumerate(prompts):
        parts = prompt.split()
        size = min(13, len(parts))
        for start in range(len(parts) - size + 1):
            runs.setdefault(" ".join(parts[start : start + size]), set()).add(i)
    for _ in range(300):
        text = " ".join(rng.choices(words, k=rng.randint(0, 60)))
        found = [min(owners) for run, owners in runs.items() if len(owners) == 1 and f" {run} " in f" {text} "]
        assert overlap.find(text) == min(found, default=None)
        assert overlap.find_all(text) == set(found)


def test_a_chat_among_the_documents_is_written_in_the_chat_layout_and_never_held_out(tokenizer, tmp_path):
    messages = [
        {"role": "user", "content": "Which is larger, 3 or 5?"},
        {"role": "assistant", "content": "<think>\n3<5\n</think>\n<answer>5</answer>"},
    ]
    chats = [Document(f"said {i}", "chat", messages=messages) for i in range(50)]
    corpus = prepare(chats, tokenizer, tmp_path / "c", CFG)
    assert corpus.shards.read(0, corpus.shards.n_tokens).tolist() == 50 * tokenizer.render(messages)
    assert corpus.held_out == {}
