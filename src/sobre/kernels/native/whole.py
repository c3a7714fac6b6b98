"""Parts of a decoder layer in one call each, for the few tokens of a decode step, on a CPU: `latent.c` and `routed.c`.

With so little to compute, what lies between the products costs as much as they do: some fifty calls of torch a layer.
Here the same functions run one after the other in C. The specification is the layer's own parts (`models/`).

Shapes: N tokens, D width, E experts, A active, F expert width, H heads, X widths of a head's key and value together, C
latent width, M cells.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sobre.kernels.native.build import call
from sobre.kernels.paged import Places

FEW_ROWS = 16
"""Tokens that a call takes, at most: the library is faster beyond."""


class Matrix(NamedTuple):
    """Weights as products of few rows read them: numbers, or codes and their scales."""

    weights: Tensor
    scales: Tensor | None = None
    form: str = ""
    """What the name of a function in C ends with: nothing, _int8 or _int4."""


def of_one_form(matrices: Sequence[Matrix | None]) -> list[Matrix] | None:
    """The matrices, where all are there and read alike."""
    there = [matrix for matrix in matrices if matrix is not None]
    return there if len(there) == len(matrices) and len({matrix.form for matrix in there}) == 1 else None


class Cells(NamedTuple):
    """The cache of all layers: where this step's entries go, and where those that they attend to lie."""

    cells_LMC: Tensor
    cell_N: Tensor
    places: Places
    """Of each token, as if it were a sequence's only new one; those of the same sequence name the same blocks."""
    scales_LMP: Tensor | None = None
    """Where the cells hold codes: a scale for each vector (kernels/int8_entries.py)."""


class Latent(NamedTuple):
    """Latent attention with its matrices (models/mla.py)."""

    q_down: Matrix | None
    q_norm: Tensor | None
    q: Matrix
    kv_down: Matrix
    kv_norm: Tensor
    maps_HXC: Tensor
    """From the latent to a head's keys and values: (H, P + W, C)."""
    o: Matrix
    rope_dim: int
    v_dim: int
    interleaved: bool
    norm_eps: float
    scale: float


class Grouped(NamedTuple):
    """Grouped-query attention with its matrices (models/gqa.py)."""

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    n_heads: int
    n_groups: int
    head_dim: int
    rotary_dim: int
    norms_all: bool
    """The norms run over all heads together."""
    interleaved: bool
    norm_eps: float
    scale: float


class Gated(NamedTuple):
    """A gated layer (models/ffn.py)."""

    gate: Matrix
    up: Matrix
    down: Matrix


class Routed(NamedTuple):
    """A layer of experts: the router (float32), the stacked experts, and the shared one."""

    router_ED: Tensor
    bias_E: Tensor | None
    experts: Gated
    """Each matrix of all experts."""
    shared: Gated | None
    n_active: int
    is_softmax: bool
    is_normed: bool
    scale: float


def latent_step(x_ND: Tensor, layer: Latent, rope: tuple[Tensor, Tensor], at: Cells, number: int) -> Tensor:
    """One new token of each of N sequences, normed, to what attention adds to it; its entry is written in the cache's
    layer of this number."""
    (n, d), (n_heads, of_head, c_width), places = x_ND.shape, layer.maps_HXC.shape, at.places
    cells_MC = at.cells_LMC[number]
    y_ND = torch.empty_like(x_ND)
    q_rank = 0 if layer.q_norm is None else len(layer.q_norm)
    down = (None, None) if layer.q_down is None else layer.q_down[:2]
    matrices = (*down, layer.q_norm, *layer.q[:2], *layer.kv_down[:2], layer.kv_norm, layer.maps_HXC, *layer.o[:2])
    angles = [table_N2.float().contiguous() for table_N2 in rope]
    given = (*angles, cells_MC, None, at.cell_N, places.table_RB, places.lengths_R, y_ND)
    widths = (n, d, q_rank, n_heads, of_head - layer.v_dim, layer.rope_dim, layer.v_dim, c_width, cells_MC.shape[1])
    numbers = (*widths, places.table_RB.shape[1], places.block, places.longest, int(layer.interleaved))
    if call(f"latent_step{layer.o.form}", x_ND, *matrices, *given, *numbers, layer.norm_eps, layer.scale):
        raise MemoryError(f"latent attention of {n} tokens to {places.longest:,} positions found no memory")
    return y_ND


def routed(x_ND: Tensor, layer: Routed) -> tuple[Tensor, Tensor, Tensor]:
    """y_ND of the chosen experts and the shared one, weights_NA and experts_NA."""
    (n, d), gate = x_ND.shape, layer.experts.gate
    n_experts, d_expert = gate.weights.shape[:2]
    y_ND, weights_NA = torch.empty_like(x_ND), x_ND.new_empty(n, layer.n_active, dtype=torch.float32)
    experts_NA = x_ND.new_empty(n, layer.n_active, dtype=torch.int64)
    d_shared = 0 if layer.shared is None else len(layer.shared.gate.weights)
    matrices = (*_pointers(layer.experts), *_pointers(layer.shared))
    numbers = (n, layer.n_active, n_experts, d, d_expert, d_shared, int(layer.is_softmax), int(layer.is_normed))
    given = (x_ND, layer.router_ED, layer.bias_E, *matrices, experts_NA, weights_NA, y_ND)
    if call(f"routed{gate.form}", *given, *numbers, layer.scale):
        raise MemoryError(f"the experts of {n:,} tokens found no memory for their inputs in bytes")
    return y_ND, weights_NA, experts_NA


def gated(x_ND: Tensor, layer: Gated) -> Tensor:
    """down(silu(gate x) * up x)."""
    y_ND, d_inner = torch.empty_like(x_ND), len(layer.gate.weights)
    if call(f"gated{layer.gate.form}", x_ND, *_pointers(layer), y_ND, *x_ND.shape, d_inner):
        raise MemoryError(f"a gated layer of {len(x_ND):,} tokens found no memory for its inputs in bytes")
    return y_ND


def _pointers(matrices: Gated | None) -> list[Tensor | None]:
    if matrices is None:
        return [None] * 6
    return [part for matrix in matrices for part in matrix[:2]]
