"""The running rows as arrays: built when they change, carried from one decode step to the next otherwise.

Shapes: R running rows, one new token each.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sobre.engine.sampling import Choice
from sobre.engine.scheduler import Row
from sobre.engine.shaping import is_shaped
from sobre.models.step import StepInput


class Batch:
    """One decode step after another over the same rows."""

    def __init__(self, rows: Sequence[Row], run_seed: int, vocab_size: int, device: torch.device) -> None:
        self.rows = list(rows)
        self.tokens_R = torch.tensor([row.context[-1] for row in rows], device=device)
        self.positions_R = np.array([len(row.context) - 1 for row in rows])
        self.choice = Choice.of([row.request.params for row in rows], run_seed, vocab_size, device)
        self.shaped = [i for i, row in enumerate(rows) if is_shaped(row.request)]
        self.listed = [i for i, row in enumerate(rows) if row.request.params.n_logprobs is not None]
        self._lengths = (1,) * len(rows)
        self._slots = tuple(row.slot for row in rows)
        self._request_ids = tuple(row.request.id for row in rows)

    def step(self) -> StepInput:
        """The last token of every row, at its position."""
        starts = tuple(self.positions_R.tolist())
        return StepInput(self.tokens_R, self._lengths, starts, self._slots, self._request_ids)

    def advance(self, tokens_R: Tensor) -> None:
        """Every row grew by the token that was sampled for it."""
        self.tokens_R = tokens_R
        self.positions_R += 1
