"""Is a thought in the language of its question? The share of its words that are not plainly of another language.

DeepSeek-R1 (arXiv 2501.12948, 2.3.2) rewards the proportion of words of the target language in the thought, to keep a
model from mixing languages. Words are told by their script, and English and French, which share one, by the small words
that only one of them has. Numbers and formulas are no words.
"""

import re

COMMAND = re.compile(r"\\[A-Za-z]+")
"""Of LaTeX; no word of any language."""
HAN = re.compile(r"[\u3400-\u9fff]")
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]{2,}")
ENGLISH = frozenset(
    "the of and to is that it was for are with as his they be at this have from or had by but what some we can out"
    " other were all there when up use your how said an each she which do their if will way about many then them would"
    " so these her him two has more could my than first been who its now did get so since because first next let us"
    " yes no wait check answer therefore".split()
)
FRENCH = frozenset(
    "le la les des du et est que qui dans pour pas sur avec il elle ils elles nous vous ce cette ces son sa ses leur"
    " leurs mais ou donc par plus comme sont était ont une un au aux je tu se être avoir fait faire tout tous alors"
    " puis si oui non très deux trois car parce ainsi réponse vérifions".split()
)


def consistency(text: str, lang: str) -> float:
    """words of `lang` / all words, where a word is of `lang` unless it is plainly of another; 1 when there is none."""
    words = WORD.findall(COMMAND.sub(" ", text).lower())
    return 1 - sum(is_foreign(word, lang) for word in words) / len(words) if words else 1.0


def is_foreign(word: str, lang: str) -> bool:
    """Whether a word is plainly of another language. In a Chinese text every Latin word is, Chinese ones elsewhere."""
    if HAN.match(word):
        return lang != "zh"
    if lang == "zh":
        return True
    only = (FRENCH - ENGLISH) if lang == "en" else (ENGLISH - FRENCH)
    return word in only
