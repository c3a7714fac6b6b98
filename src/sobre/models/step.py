"""What goes into a forward pass and what comes out: the same for training, prefill and decode.

A step is a ragged list of tokens: R sequences, the r-th bringing `lengths[r]` new tokens that start at position
`starts[r]`. A training batch of B rows is B sequences that start at 0; a decode step is R sequences of one token; a
chunk of a prefill is a sequence that starts where the last chunk ended. Only attention looks across tokens.

Shapes (docs/shapes.md): N tokens, R sequences, D width, A active experts, E experts.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from sobre.kernels.moe import counted
from sobre.runtime.device import carried


class Pieces(Protocol):
    """The rest of the sequences of which a step brings pieces; other processes bring it (parallel/context.py)."""

    lengths: tuple[int, ...]
    """Tokens of each whole sequence."""
    sequences: tuple[int, ...]
    """Of each piece of this step: which sequence it is of."""

    def whole(self, x_NX: Tensor) -> Tensor:
        """x of all tokens of all sequences, in order; gradients come back from every process."""

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the processes, without a gradient."""

    def added(self, x: Tensor) -> Tensor:
        """The sum over the processes; its gradient comes back from every process."""


@dataclass(frozen=True)
class StepInput:
    """N tokens of R sequences, concatenated.

    Example: a decode step of two requests, 7 and 3 tokens old, in cache rows 0 and 1:
        StepInput(torch.tensor([5, 9]), lengths=(1, 1), starts=(7, 3), slots=(0, 1), request_ids=("a", "b"))
    """

    tokens_N: Tensor
    lengths: tuple[int, ...]
    """New tokens of each sequence; they sum to N."""
    starts: tuple[int, ...] = ()
    """Position of each sequence's first new token; empty means all 0."""
    slots: tuple[int, ...] = ()
    """Cache row of each sequence; empty when there is no cache."""
    request_ids: tuple[str, ...] = field(default=())
    """Who asked, for logs and errors; empty in training."""
    n_filler: int = 0
    """Tokens of the last sequences when those only fill the step up to a size that was met before (a new size costs a
    CPU library its preparation anew): they count in no load, no balance and no loss. 0: every sequence is real."""
    pieces: Pieces | None = None
    """When every "sequence" here is a piece of one, whose other pieces other processes have; None: they are whole."""

    def __post_init__(self) -> None:
        assert sum(self.lengths) == self.tokens_N.numel(), "lengths must sum to the number of tokens"
        assert not self.starts or len(self.starts) == len(self.lengths)
        assert not self.slots or len(self.slots) == len(self.lengths)
        assert self.n_filler == sum(self.lengths[self._n_real :]), "the filler is whole sequences, the last ones"

    def to(self, device: torch.device) -> "StepInput":
        """The same step on another device."""
        if self.tokens_N.device == device:
            return self
        return replace(self, tokens_N=carried(self.tokens_N, device))

    @property
    def n_sequences(self) -> int:
        return len(self.lengths)

    @cached_property
    def real(self) -> "StepInput":
        """The step without its filler."""
        if not self.n_filler:
            return self
        n, tokens_N = self._n_real, self.tokens_N[: -self.n_filler]
        return StepInput(tokens_N, self.lengths[:n], self.starts[:n], pieces=self.pieces)

    @cached_property
    def _n_real(self) -> int:
        """Sequences before the filler."""
        n, left = len(self.lengths), self.n_filler
        while left > 0:
            n, left = n - 1, left - self.lengths[n - 1]
        return n

    @property
    def n_begun(self) -> int:
        """Real sequences whose first token is here."""
        return self.real.n_sequences if not self.starts else self.real.starts.count(0)

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    @property
    def is_uniform(self) -> bool:
        """Every sequence brings the same number of tokens, so (N,) is a view of (R, T)."""
        return min(self.lengths) == max(self.lengths)

    @property
    def is_fresh(self) -> bool:
        """Every sequence starts at 0: nothing cached is needed."""
        return not any(self.starts)

    @cached_property
    def starts_R(self) -> Tensor:
        starts = self.starts or (0,) * self.n_sequences
        return carried(torch.tensor(starts), self.tokens_N.device)

    @cached_property
    def lengths_R(self) -> Tensor:
        return carried(torch.tensor(self.lengths, dtype=torch.long), self.tokens_N.device)

    @cached_property
    def sequence_N(self) -> Tensor:
        """Which sequence each token belongs to."""
        sequence_R = torch.arange(self.n_sequences, device=self.tokens_N.device)
        return torch.repeat_interleave(sequence_R, self.lengths_R, output_size=self.tokens_N.numel())

    @cached_property
    def offset_N(self) -> Tensor:
        """How many new tokens of the same sequence come before each token."""
        if self.is_uniform:
            return torch.arange(self.max_length, device=self.tokens_N.device).repeat(self.n_sequences)
        firsts_R = self.lengths_R.cumsum(0) - self.lengths_R
        return torch.arange(self.tokens_N.numel(), device=self.tokens_N.device) - firsts_R[self.sequence_N]

    @cached_property
    def positions_N(self) -> Tensor:
        """Position of each token in its own sequence."""
        return self.offset_N if self.is_fresh else self.offset_N + self.starts_R[self.sequence_N]

    def pad(self, x_N: Tensor) -> Tensor:
        """(N, ...) to (R, T, ...) with T the longest sequence; the padding, on the right, is zero."""
        if self.is_uniform:
            return x_N.unflatten(0, (self.n_sequences, self.max_length))
        padded = x_N.new_zeros(self.n_sequences * self.max_length, *x_N.shape[1:])
        return padded.index_copy(0, self._cells_N, x_N).unflatten(0, (self.n_sequences, self.max_length))

    def unpad(self, x_RT: Tensor) -> Tensor:
        """(R, T, ...) back to (N, ...)."""
        flat = x_RT.flatten(0, 1)
        return flat if self.is_uniform else flat.index_select(0, self._cells_N)

    @cached_property
    def context(self) -> int:
        """Longest context of the step: cached positions and new ones."""
        starts = self.starts or (0,) * self.n_sequences
        return max(start + length for start, length in zip(starts, self.lengths, strict=True))

    @cached_property
    def later_RTS(self) -> Tensor:
        """Minus infinity where position s lies after token t of sequence r, else 0 (float32): a bias on scores."""
        last_RT = self.starts_R[:, None] + torch.arange(self.max_length, device=self.tokens_N.device)
        is_later_RTS = torch.arange(self.context, device=self.tokens_N.device) > last_RT[..., None]
        return torch.zeros(is_later_RTS.shape, device=self.tokens_N.device).masked_fill_(is_later_RTS, -torch.inf)

    @cached_property
    def _cells_N(self) -> Tensor:
        return self.sequence_N * self.max_length + self.offset_N


@dataclass(frozen=True)
class StepOutput:
    """What a forward pass of the decoder returns."""

    hidden_ND: Tensor
    """After the final norm: what the output head and the MTP module read."""
    routes: tuple[Tensor, ...]
    """Experts of every real token (experts_NA), one tensor for each routing layer; none in a dense model."""
    n_experts: int
    balance_loss: Tensor
    """Sequence-wise balance loss, summed over sequences and layers (scalar, already times alpha); 0 in eval mode."""

    @property
    def routes_LNA(self) -> Tensor | None:
        """All routes in one tensor (int64); None in a dense model."""
        return torch.stack(self.routes) if self.routes else None

    @property
    def load_LE(self) -> Tensor | None:
        """Tokens each expert received; the bias update sums it over the whole batch."""
        if not self.routes:
            return None
        return torch.stack([counted(experts.flatten(), self.n_experts) for experts in self.routes])
