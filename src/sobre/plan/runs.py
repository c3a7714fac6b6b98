"""Published runs, and the rule that says which of them measure plain pretraining. Written before anything was fitted.

A row is scored when four things hold, all of them read from runs.toml and none of them from a prediction:

1. its figures stand in a primary source: a paper (P), or the repository or card of the model (R);
2. its hours are not known to include other work than pretraining on text;
3. its tokens are exact within 10 % ("more than 15T" is not);
4. its hours are stated for this run: not a bound, not somebody else's assumption, not rounded by more than 10 %.

Every other row is predicted and shown, with the reason why it is not scored.
"""

import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Run:
    """One published run. 0 and empty stand for what was not published."""

    name: str
    model: str
    """Its architecture, by the name that the planner knows."""
    date: str
    """Year and month of the publication."""
    tokens: float
    hours: float
    """Device-hours."""
    chip: str
    chips: int = 0
    seq_len: int
    batch_tokens: int = 0
    """At the end of training, when the batch grew."""
    precision: str
    """Of the matrix products: bf16, fp16 or fp8."""
    layout: dict[str, Any] = field(default_factory=dict)
    """How the model was divided over the chips, as far as published."""
    recompute: str = ""
    """What the backward pass computed again: none, selective or full."""
    phases: list[list[float]] = field(default_factory=list)
    """(tokens, length of the sequences) of each phase, if there were several."""
    mark: str
    """Where tokens, hours and chips stand: P paper, R repository or official card, S secondary, M not read again."""
    source: str
    tokens_exact: bool = True
    """Within 10 %."""
    hours_are: str = ""
    """What is wrong with the hours as a measurement of this run; empty when nothing is."""
    other_work: str = ""
    """What the hours or tokens include beside pretraining on text."""

    @property
    def year(self) -> int:
        return int(self.date[:4])

    @property
    def paper(self) -> str:
        """The source, without the place in it: runs of one paper share their software."""
        return self.source.partition(",")[0].partition(":")[0].partition(";")[0]

    @property
    def unscored(self) -> str:
        """Why the row is not scored; empty for plain pretraining."""
        if self.mark not in ("P", "R"):
            return "no primary source"
        if self.other_work:
            return self.other_work
        if not self.tokens_exact:
            return "tokens are a bound, not a count"
        return self.hours_are and f"hours are {self.hours_are}"


def published() -> tuple[Run, ...]:
    """Every run of the table, in its order."""
    text = resources.files(__package__).joinpath("runs.toml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = tomllib.loads(text)
    return tuple(Run(**{"name": name, "model": name, **row}) for name, row in rows.items())
