"""Attention of one new token per sequence over the cells of the cache, through `paged.c`, on a CPU.

Shapes: R sequences, H query heads, G key/value heads, K query/key width, W value width, M cells, C entry width.
"""

from torch import Tensor

from sobre.kernels.native.build import call
from sobre.kernels.paged import Places


def latent_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """The same function as `reference.latent_decode`."""
    return _attend(q_RHC, cells_MC, places, 1, rank, 0, scale)


def grouped_decode(
    q_RHK: Tensor, cells_MC: Tensor, places: Places, n_groups: int, v_width: int, scale: float
) -> Tensor:
    """The same function as `reference.grouped_decode`."""
    return _attend(q_RHK, cells_MC, places, n_groups, v_width, n_groups * q_RHK.shape[2], scale)


def takes(q_RHK: Tensor, cells_MC: Tensor) -> bool:
    """Whether the cells can be read where they lie."""
    return cells_MC.dtype == q_RHK.dtype and cells_MC.is_contiguous()


def _attend(
    q_RHK: Tensor, cells_MC: Tensor, places: Places, n_groups: int, v_width: int, value_at: int, scale: float
) -> Tensor:
    n, n_heads, k_width = q_RHK.shape
    out_RHW = q_RHK.new_empty(n, n_heads, v_width)
    table_RB = places.table_RB
    of_cells = (table_RB.shape[1], places.block, places.longest, cells_MC.shape[1], k_width)
    numbers = (n, *of_cells, n_heads, n_groups, k_width, v_width, value_at)
    given = (q_RHK.contiguous(), cells_MC, None, table_RB, places.lengths_R, out_RHW, *numbers)
    if call("paged_attention", *given, float(scale)):
        raise MemoryError(f"attention over {places.longest:,} cached tokens found no memory for its scores")
    return out_RHW
