"""Generated pretraining text: addressed by index, true, of the training split, never in chat form."""

import itertools
import random
import re
from collections import Counter

import pytest

from sobre.errors import ConfigError
from sobre.tasks import sentences, text
from sobre.tasks.config import LANGS, TextConfig
from sobre.tasks.format import extract_answer, format_ok
from sobre.tasks.sampling import sample_problem, test_set
from sobre.tasks.text import document, documents, small_talk

ONLY_WORKED = TextConfig(facts_share=0, sentences_share=0)


def test_a_document_depends_on_its_index_alone():
    cfg = TextConfig()
    first = list(itertools.islice(documents(3, cfg), 50))
    assert [document(3, i, cfg) for i in reversed(range(50))] == first[::-1]
    assert list(itertools.islice(documents(3, cfg, start=40), 10)) == first[40:]
    assert list(itertools.islice(documents(4, cfg), 50)) != first
    assert all(each.strip() for each in first)


def test_the_text_holds_no_tag_and_no_test_problem():
    asked = {problem.prompt for problem in test_set()}
    for each in itertools.islice(documents(0, ONLY_WORKED), 1500):
        assert not re.search(r"</?(think|answer)>|<｜", each)
        assert not any(prompt in each for prompt in asked & set(each.split("\n")))
        first_line = each.split("\n")[0]
        assert (
            not {first_line, *(first_line[len(before) :] for frames in text.FRAMES.values() for before, _ in frames)}
            & asked
        )


def test_worked_problems_are_of_the_asked_tasks_languages_and_difficulty():
    cfg = TextConfig(names=("sorting",), langs=("fr",), difficulty=(1, 1), facts_share=0, sentences_share=0)
    problems = {sample_problem("sorting", "fr", (1, 1), "train", "0/text", i).prompt for i in range(100)}
    assert all(any(prompt in each for prompt in problems) for each in itertools.islice(documents(0, cfg), 100))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_worked_problems_shows_the_steps(share):
    cfg = TextConfig(names=("arithmetic",), facts_share=0, sentences_share=0, steps_share=share)
    shown = [each.count("\n") > 1 for each in itertools.islice(documents(0, cfg), 400)]
    assert sum(shown) / 400 == pytest.approx(share, abs=0.08)


def test_every_fact_is_true():
    rng, n = random.Random(0), 0
    for index in range(6000):
        fact = text.fact(rng, LANGS[index % 3])
        if "=" in fact:
            values = {eval(part.replace("/", "//"), {"__builtins__": {}}) for part in fact.split("=")}  # our own text
            assert len(values) == 1, fact
        else:
            x, y = map(int, re.findall(r"\d+", fact))
            larger = ">" in fact or any(word in fact for word in ("larger", "grand", "大"))
            assert (x > y) == larger
            assert x != y
            n += 1
    assert 500 < n < 1500


@pytest.mark.parametrize("lang", LANGS)
def test_sentences_join_one_phrase_of_each_column(lang):
    for index in range(200):
        each = sentences.sentence(random.Random(index), lang)
        assert each[-1] in ".。"
        for column in sentences.COLUMNS[lang]:
            assert any(phrase in each for phrase in column)
            assert len(set(column)) == len(column) > 10


def test_the_shares_are_those_of_the_config():
    kinds = {"worked": 0, "facts": 0, "sentences": 0}
    phrases = {phrase for columns in sentences.COLUMNS.values() for phrase in columns[1]}
    for each in itertools.islice(documents(0, TextConfig(worked_share=2, facts_share=1, sentences_share=1)), 2000):
        plain = not re.search(r"\d", each) and any(phrase in each for phrase in phrases)
        framed = any(after in each for frames in text.FRAMES.values() for _, after in frames)
        kinds["sentences" if plain else "worked" if framed else "facts"] += 1
    assert kinds["worked"] / 2000 == pytest.approx(0.5, abs=0.04)
    assert kinds["facts"] / 2000 == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(
    "wrong",
    [{"worked_share": -1.0}, {"worked_share": 0.0, "facts_share": 0.0, "sentences_share": 0.0}, {"steps_share": 1.5}]
    + [{"names": ()}, {"langs": ("en", "en")}, {"difficulty": (2, 6)}],
)
def test_text_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        TextConfig(**wrong)


@pytest.mark.slow
def numbers_of(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)]


def kind_of(question: str, answer: str) -> str:
    """Which small talk this is, by what makes its answer right; "" for none."""
    asked, found = numbers_of(question), numbers_of(answer)
    if found == [max(asked)]:
        return "larger"
    return "sums" if found == [sum(asked)] else "reverse" if found == asked[::-1] else ""


@pytest.mark.parametrize("names", [(), ("reverse", "sums")])
def test_small_talk_is_right_in_equal_parts_and_asks_no_evaluated_task(names: tuple[str, ...]):
    cfg = TextConfig(chat_share=0.5, chat_names=names)
    prompts = {problem.prompt for problem in test_set(1000)}
    kinds = Counter()
    for index in range(600):
        user, assistant = small_talk(3, index, cfg)
        assert user["content"] not in prompts
        completion = assistant["content"].removeprefix("<think>\n")
        assert format_ok(completion)
        kinds[kind_of(user["content"], extract_answer(completion) or "")] += 1
    assert set(kinds) == {"larger", *names}
    assert all(abs(n - 600 / len(kinds)) < 60 for n in kinds.values()), kinds
    assert small_talk(3, 7, cfg) == small_talk(3, 7, cfg) != small_talk(4, 7, cfg)


def test_small_talk_names_each_task_once():
    with pytest.raises(ConfigError, match=r"chat_names=\['copy', 'copy'\] must hold each task once"):
        TextConfig(chat_names=("copy", "copy"))
