"""The decoding rows as arrays: built when they change, carried from one decode step to the next otherwise.

A row brings its last token and its drafts, each at its own place: what is sampled at a place is the token after it.

Shapes: R rows, N places.
"""

from collections.abc import Sequence

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

    def __init__(self, rows: Sequence[Row], run_seed: int, vocab_size: int, device: torch.device) -> None:
        self.rows = list(rows)
        self.lengths = tuple(1 + len(row.drafts) for row in rows)
        self.firsts = np.cumsum((0, *self.lengths[:-1])).tolist()
        self.has_drafts = max(self.lengths) > 1
        self.tokens_N = carried(torch.tensor([t for row in rows for t in (row.context[-1], *row.drafts)]), device)
        self.starts_R = np.array([len(row.context) - 1 for row in rows])
        self.positions_N = np.array([len(row.context) - 1 + j for row in rows for j in range(1 + len(row.drafts))])
        params = [row.request.params for row in rows for _ in range(1 + len(row.drafts))]
        self.choice = Choice.of(params, run_seed, vocab_size, device)
        self.shaped = [i for i, row in enumerate(rows) if is_shaped(row.request)]
        self.listed = [place for place, p in enumerate(params) if p.n_logprobs is not None]
        self._slots = tuple(row.slot for row in rows)
        self._request_ids = tuple(row.request.id for row in rows)

    def step(self) -> StepInput:
        """The last token of every row and its drafts, at their positions."""
        starts = tuple(self.starts_R.tolist())
        return StepInput(self.tokens_N, self.lengths, starts, self._slots, self._request_ids)

    def advance(self, tokens_N: Tensor) -> None:
        """Every row grew by the token that was sampled for it; none had drafts."""
        self.tokens_N = tokens_N
        self.starts_R += 1
        self.positions_N += 1
