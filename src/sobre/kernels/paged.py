"""Where the cached entries of a decode step lie, and attention over them after gathering them.

Shapes: M cells, C entry width, R sequences, H query heads, G key/value heads, K query/key width, W value width, T new
tokens (one), B blocks of the longest context, S positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """The same in every layer: entry (r, s) is cell table_RB[r, s // block] * block + s % block."""

    table_RB: Tensor
    lengths_R: Tensor
    """Entries of each sequence, those of the step included."""
    longest: int
    """The largest of them."""
    block: int
    first: int | None = None
    """The first block when all lie in one run, sequence after sequence: those of a single one mostly do."""

    @cached_property
    def later_RTS(self) -> Tensor:
        """Minus infinity beyond a sequence's end, else 0 (float32): a bias on the scores of its one new token."""
        is_later_RS = torch.arange(self.longest, device=self.lengths_R.device) >= self.lengths_R.unsqueeze(1)
        bias_RS = torch.zeros(is_later_RS.shape, device=self.lengths_R.device).masked_fill_(is_later_RS, -torch.inf)
        return bias_RS.unsqueeze(1)


def gather(cells_MC: Tensor, places: Places) -> Tensor:
    """entries_RSC, S = the longest context; what lies beyond a sequence's own is undefined."""
    n_rows, n_blocks = places.table_RB.shape
    blocks = cells_MC.unflatten(0, (-1, places.block))
    if places.first is not None:
        found = blocks[places.first : places.first + n_rows * n_blocks]  # a view: read in place
    else:
        found = blocks.index_select(0, places.table_RB.flatten())
    return found.reshape(n_rows, -1, cells_MC.shape[1])[:, : places.longest]


def latent_decode(
    q_RHC: Tensor,
    cells_MC: Tensor,
    places: Places,
    rank: int,
    scale: float,
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor],
) -> Tensor:
    """The same function as `reference.latent_decode`, by an `attention` over gathered entries."""
    entries_RS1C = gather(cells_MC, places)[..., : q_RHC.shape[2]].to(q_RHC.dtype).unsqueeze(2)
    out_RTHC = attention(q_RHC.unsqueeze(1), entries_RS1C, entries_RS1C[..., :rank], places.later_RTS, scale)
    return out_RTHC.squeeze(1)


def grouped_decode(
    q_RHK: Tensor,
    cells_MC: Tensor,
    places: Places,
    n_groups: int,
    v_width: int,
    scale: float,
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor],
) -> Tensor:
    """The same function as `reference.grouped_decode`, by an `attention` over gathered entries."""
    n_keys = n_groups * q_RHK.shape[2]
    entries_RSC = gather(cells_MC, places)[..., : n_keys + n_groups * v_width].to(q_RHK.dtype)
    k_RSGK, v_RSGW = (part.unflatten(-1, (n_groups, -1)) for part in entries_RSC.tensor_split([n_keys], -1))
    return attention(q_RHK.unsqueeze(1), k_RSGK, v_RSGW, places.later_RTS, scale).squeeze(1)
