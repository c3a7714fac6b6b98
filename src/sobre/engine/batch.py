"""The decoding rows as arrays: built when they change, carried from one decode step to the next otherwise.

A row brings what is not in the cache yet (its last token, and before its first step the last piece of its prompt) and
its drafts. What is sampled at a place, the last token's or a draft's, is the token after it.

Shapes: R rows, T tokens read, N places, D width.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from sobre.engine.sampling import Choice
from sobre.engine.scheduler import Row
from sobre.engine.shaping import is_shaped
from sobre.models.step import StepInput
from sobre.runtime.device import carried


class Batch:
    """One decode step after another over the same rows."""

    def __init__(
        self, rows: Sequence[Row], run_seed: int, vocab_size: int, device: torch.device, *, keeps: bool = False
    ) -> None:
        self.rows = list(rows)
        self.lengths = tuple(1 + len(row.drafts) for row in rows)
        self.firsts = _firsts(self.lengths)
        self.late = tuple(row.goal - row.n_cached for row in rows)
        """Tokens of each row's prompt that the step reads before its first place."""
        self.n_read = tuple(late + n for late, n in zip(self.late, self.lengths, strict=True))
        self.firsts_read = _firsts(self.n_read)
        self.is_once = max(self.n_read) > 1
        """Whether the step after it reads other numbers of tokens, so that no batch carries over."""
        tokens = [token for row in rows for token in (*row.context[row.n_cached :], *row.drafts)]
        self.tokens_T = carried(torch.tensor(tokens), device)
        self.starts_R = np.array([row.n_cached for row in rows])
        self.positions_N = np.array([len(row.context) - 1 + j for row in rows for j in range(1 + len(row.drafts))])
        params = [row.request.params for row in rows for _ in range(1 + len(row.drafts))]
        self.choice = Choice.of(params, run_seed, vocab_size, device, keeps=keeps)
        self.shaped = [i for i, row in enumerate(rows) if is_shaped(row.request)]
        self.listed = [place for place, p in enumerate(params) if p.n_logprobs is not None]
        self.slots = tuple(row.slot for row in rows)
        self._request_ids = tuple(row.request.id for row in rows)

    def step(self) -> StepInput:
        """What every row brings, at its positions."""
        starts = tuple(self.starts_R.tolist())
        return StepInput(self.tokens_T, self.n_read, starts, self.slots, self._request_ids)

    def at_places(self, hidden_TD: Tensor) -> Tensor:
        """Of what the model made of the step, the rows that tokens are sampled from."""
        if not any(self.late):
            return hidden_TD
        first_places = [first + late for first, late in zip(self.firsts_read, self.late, strict=True)]
        places = [first + j for first, n in zip(first_places, self.lengths, strict=True) for j in range(n)]
        return hidden_TD[carried(torch.tensor(places), hidden_TD.device)]

    def advance(self, tokens_N: Tensor) -> None:
        """Every row grew by the token that was sampled for it; none brought more than its last token."""
        self.tokens_T = tokens_N
        self.starts_R += 1
        self.positions_N += 1


def _firsts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths[:-1])]
