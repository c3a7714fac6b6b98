"""How often a response looks back: results that are called right or wrong, and words of reflection.

Worked thoughts say yes or no after a result that is compared with what was asked. The words are those whose rise
DeepSeek-R1 shows (Nature 645, 633, Extended Data Fig. 1a), and their like in French and Chinese. Nothing is earned by
them: they are counted to see whether a model comes to check more.
"""

import re

from sobre.tasks.base import NO, YES
from sobre.tasks.format import THINK_CLOSE

VERDICT = re.compile(rf"(?<=[\d+-] )(?:{'|'.join((*YES.values(), *NO.values()))})(?!\S)")
REFLECTION = re.compile(
    r"\b(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check"
    r"|attends|attendez|erreur|cependant|mais|vérifions|vérifie|faux)\b"
    r"|等等|错误|然而|但是|验证|检查",
    re.IGNORECASE,
)


def n_checks(text: str) -> int:
    """Verdicts and words of reflection in the thought of a response; one without an end of thought is all thought."""
    thought = text.partition(THINK_CLOSE)[0]
    return len(VERDICT.findall(thought)) + len(REFLECTION.findall(thought))
