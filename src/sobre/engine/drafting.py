"""Guesses at the next tokens, to be checked by one forward pass instead of one pass each (arXiv 2211.17192).

A guess never changes what a request gets. The engine samples every token from the model's own distribution with the
number that belongs to (seed, position), and a guess is right when it is that token: the text is the one without
guesses, in sampling as in greedy decoding, and a guess is right as often as the model's probability of it, which is
what rejection sampling accepts of a single guess.

Two sources: the model's own MTP module (DeepSeek-V3, arXiv 2412.19437, 2.2), one token from the hidden state of the
last one, sampled with the number of its own position, so that both sides lean the same way; and, for models without
one, what followed the last tokens when they last stood in the context (prompt lookup).

Shapes: N tokens read, D width, V vocabulary, R rows.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sobre.engine.sampling import Choice, sample
from sobre.engine.scheduler import Piece, Row
from sobre.engine.shaping import is_shaped, shape
from sobre.errors import EngineError
from sobre.models.cache import KVCache
from sobre.models.step import StepInput, StepOutput
from sobre.models.whole_step import WholeStep
from sobre.runtime.device import carried

MATCH = 3
"""Last tokens that must stand earlier in the context."""
N_LOOKUP = 4
"""Tokens guessed from a match."""


class SecondToken(Protocol):
    """A decoder with an MTP module."""

    def predict_second(
        self, hidden_ND: Tensor, next_tokens_N: Tensor, step: StepInput, cache: KVCache | None = None
    ) -> StepOutput: ...

    def logits(self, hidden_ND: Tensor) -> Tensor: ...


def room(row: Row) -> int:
    """How many guesses the row can use: within its length, and before its thought is closed by force."""
    if not row.request.speculate:
        return 0
    left = row.request.params.max_tokens - row.n_generated - 1
    if row.thought is not None and row.thought.is_open and row.thought.limit is not None:
        left = min(left, row.thought.limit - row.n_generated - 1)
    return max(left, 0)


class Lookup:
    """Guesses what followed the last `MATCH` tokens when they last stood in the context."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Row, int, dict[tuple[int, ...], int]]] = {}

    def draft(self, rows: Sequence[Row]) -> None:
        """Set the drafts of these rows; forgets every row that is not among them."""
        seen = {}
        for row in rows:
            known = self._seen.get(row.request.id)
            _, n_read, places = known if known is not None and known[0] is row else (row, MATCH, {})
            context = row.context
            for end in range(n_read, len(context)):
                places[tuple(context[end - MATCH : end])] = end
            at = places.get(tuple(context[-MATCH:]))
            row.drafts = [] if at is None else _following(context, at, min(N_LOOKUP, room(row)))
            seen[row.request.id] = (row, max(n_read, len(context)), places)
        self._seen = seen


def _following(context: Sequence[int], at: int, n: int) -> list[int]:
    """`n` tokens from place `at` on; at the end of the context the passage begins anew."""
    period = len(context) - at
    return [context[at + i % period] for i in range(n)]


class OwnHead:
    """Guesses one token with the MTP module, whose cache is the layer after the model's last."""

    def __init__(self, model: SecondToken, cache: KVCache, run_seed: int, device: torch.device) -> None:
        self.model, self.cache, self.run_seed, self.device = model, cache, run_seed, device
        self._whole = WholeStep(model, ahead=True)

    def weights_changed(self) -> None:
        """The model's weights are others now."""
        self._whole.forget()

    def read(self, step: StepInput, hidden_ND: Tensor, pieces: Sequence[Piece]) -> None:
        """See a stretch of prompts go by: hidden states and the tokens that follow."""
        following = [token for p in pieces for token in p.row.context[p.start + 1 : p.start + p.length + 1]]
        self.model.predict_second(hidden_ND, carried(torch.tensor(following), self.device), step, self.cache)

    def draft(self, rows: Sequence[Row], hidden_ND: Tensor, n_new: Sequence[int]) -> None:
        """Set the drafts of rows that just got `n_new` tokens each, from the hidden states that these came of."""
        lengths = tuple(n_new)
        following = [token for row, n in zip(rows, lengths, strict=True) for token in row.context[-n:]]
        starts = tuple(len(row.context) - 1 - n for row, n in zip(rows, lengths, strict=True))
        step = StepInput(
            carried(torch.tensor(following), self.device), lengths, starts, tuple(row.slot for row in rows)
        )
        ahead = self._whole.predict_second(hidden_ND, step.tokens_N, step, self.cache)
        if ahead is None:
            ahead = self.model.predict_second(hidden_ND, step.tokens_N, step, self.cache)
        ahead_ND = ahead.hidden_ND
        last_R = step.lengths_R.cumsum(0) - 1
        logits_RV = self.model.logits(ahead_ND[last_R])
        failed = self._shape(logits_RV, rows)
        choice = Choice.of([row.request.params for row in rows], self.run_seed, logits_RV.shape[1], self.device)
        positions_R = np.array([len(row.context) for row in rows])
        tokens_R, *_ = sample(logits_RV, choice, positions_R)
        for i, (row, token) in enumerate(zip(rows, tokens_R.tolist(), strict=True)):
            row.drafts = [token] if room(row) and i not in failed else []

    def _shape(self, logits_RV: Tensor, rows: Sequence[Row]) -> set[int]:
        """What the requests want done to their logits, so that a guess is a token that may come."""
        failed = set()
        for i, row in enumerate(rows):
            if is_shaped(row.request):
                try:
                    shape(logits_RV[i], row.request, row.answer, None)
                except EngineError:  # the step that samples this token will say so
                    failed.add(i)
        return failed
