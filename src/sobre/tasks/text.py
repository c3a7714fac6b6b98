"""Generated pretraining text: worked problems in plain text, facts about small numbers, plain sentences.

Document i is a function of (seed, i, config) alone, so that any worker can make any part of the text. Problems come
from the training split only, and never in chat form; the only chats are small talk, and only if the config asks: of
which two numbers is larger, and of the tasks that it names for this, which a recipe does not examine. The
facts are single operations; as such they belong to no split, since every worked step is one.
"""

import random
from collections.abc import Iterator

from sobre.tasks.config import TextConfig
from sobre.tasks.format import THINK_OPEN, completion, response
from sobre.tasks.registry import task, worked_answer
from sobre.tasks.sampling import Message, sample_problem
from sobre.tasks.sentences import paragraph
from sobre.tasks.steps import line

FRAMES = {
    "en": (("Problem: ", "Answer: "), ("Question: ", "So the answer is "), ("", "Result: ")),
    "fr": (("Problème : ", "Réponse : "), ("Question : ", "La réponse est donc "), ("", "Résultat : ")),
    "zh": (("问题：", "答案："), ("题目：", "所以答案是"), ("", "结果：")),
}
WHICH = {"en": "Which is larger, {} or {}?", "fr": "Lequel est plus grand, {} ou {} ?", "zh": "{}和{}哪个大？"}
LARGER = {"en": "{} is larger than {}", "fr": "{} est plus grand que {}", "zh": "{}大于{}"}
SMALLER = {"en": "{} is smaller than {}", "fr": "{} est plus petit que {}", "zh": "{}小于{}"}


def worked(rng: random.Random, lang: str, cfg: TextConfig, seed: int | str, index: int) -> str:
    """A training problem, its steps (for a share of them) and its answer, in plain text."""
    chosen = task(rng.choice(cfg.names))
    problem = sample_problem(chosen.name, lang, cfg.difficulty, "train", f"{seed}/text", index)
    before, after = rng.choice(FRAMES[lang])
    steps = f"{chosen.thought(problem, rng)}\n" if rng.random() < cfg.steps_share else ""
    return f"{before}{problem.prompt}\n{steps}{after}{worked_answer(problem)}"


def fact(rng: random.Random, lang: str) -> str:
    """One line about two numbers below a hundred."""
    x, y, kind = int(rng.random() * 100), int(rng.random() * 100), rng.random()
    if kind < 0.3:
        return line("+", x, y)
    if kind < 0.55:
        return line("-", max(x, y), min(x, y))
    if kind < 0.75:
        return line("*", x, y % 8 + 2)
    if kind < 0.85:
        divisor = y % 8 + 2
        return line("/", x * divisor, divisor)
    if x == y:
        return f"{x}={y}"
    if kind < 0.9:
        return f"{x}>{y}" if x > y else f"{x}<{y}"
    return (LARGER if x > y else SMALLER)[lang].format(x, y)


def facts(rng: random.Random, lang: str) -> str:
    """Six to twelve facts, one a line."""
    return "\n".join([fact(rng, lang) for _ in range(rng.randint(6, 12))])


def small_talk(seed: int | str, index: int, cfg: TextConfig) -> list[Message]:
    """Chat `index`: which of two numbers is larger, thought about in one line, or a problem of `chat_names`, worked."""
    rng = random.Random(f"{seed}/small talk/{index}")
    lang, name = rng.choice(cfg.langs), rng.choice((None, *cfg.chat_names))
    if name is None:
        question, answer = comparison(rng, lang)
    else:
        problem = sample_problem(name, lang, cfg.difficulty, "train", f"{seed}/small talk", index)
        question, answer = problem.prompt, response(problem, task(name).thought(problem, rng))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def comparison(rng: random.Random, lang: str) -> tuple[str, str]:
    """Which of two numbers is larger, and a response that thinks for one line. No task of ours asks this."""
    x, y = rng.sample(range(100), 2)
    thought = f"{x}>{y}" if x > y else f"{x}<{y}"
    return WHICH[lang].format(x, y), f"{THINK_OPEN}\n{completion(thought, str(max(x, y)))}"


def document(seed: int | str, index: int, cfg: TextConfig) -> str:
    """Document `index`."""
    rng = random.Random(f"{seed}/text/{index}")
    lang = rng.choice(cfg.langs)
    shares = (cfg.worked_share, cfg.facts_share, cfg.sentences_share)
    point = rng.random() * sum(shares)
    if point < shares[0]:
        return worked(rng, lang, cfg, seed, index)
    return facts(rng, lang) if point < shares[0] + shares[1] else paragraph(rng, lang)


def documents(seed: int | str, cfg: TextConfig, start: int = 0) -> Iterator[str]:
    """Documents without end, from number `start` on."""
    index = start
    while True:
        yield document(seed, index, cfg)
        index += 1
