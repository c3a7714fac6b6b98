"""All layers of a decode step in one call: the table that `layers.c` reads, made once for as long as the weights stay.

A step of one token has so little to compute that going from layer to layer in Python takes as long. The specification
is the decoder's own parts (models/).

Shapes: N tokens, D width, L layers, M cells of a layer, C entry width, T positions, R2 rotary pairs, A active experts.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_long, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sobre.kernels.native.build import call
from sobre.kernels.native.whole import Cells, Gated, Grouped, Latent, Matrix, Routed


class Layer(NamedTuple):
    """What a layer is made of."""

    attn_norm: Tensor
    attention: Latent | Grouped
    ffn_norm: Tensor
    ffn: Routed | Gated
    norm_eps: float

    @property
    def forms(self) -> set[str]:
        """Of its matrices: those of either half are alike."""
        gated = self.ffn.experts if isinstance(self.ffn, Routed) else self.ffn
        return {self.attention.o.form, gated.gate.form}


class _Matrix(ctypes.Structure):
    _fields_ = [("codes", c_void_p), ("scales", c_void_p)]


class _Latent(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("q_down", "q", "kv_down", "o")),
        *((name, c_void_p) for name in ("q_norm", "kv_norm", "maps")),
        *((name, c_long) for name in ("q_rank", "h", "p", "r", "w", "c", "interleaved")),
        *((name, c_float) for name in ("norm_eps", "scale")),
    ]


class _Grouped(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("q", "k", "v", "o")),
        *((name, c_void_p) for name in ("q_norm", "k_norm")),
        *((name, c_long) for name in ("h", "g", "k_width", "r", "norms_all", "interleaved")),
        *((name, c_float) for name in ("norm_eps", "scale")),
    ]


class _Gated(ctypes.Structure):
    _fields_ = [*((name, _Matrix) for name in ("gate", "up", "down")), ("f", c_long)]


class _Routed(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("router", "bias")),
        *((name, _Matrix) for name in ("gate", "up", "down")),
        ("shared", _Gated),
        *((name, c_long) for name in ("active", "all_experts", "f", "is_softmax", "is_normed")),
        ("scale", c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("attn_norm", "ffn_norm")),
        *((name, ctypes.POINTER(kind)) for name, kind in (("latent", _Latent), ("grouped", _Grouped))),
        *((name, ctypes.POINTER(kind)) for name, kind in (("gated", _Gated), ("routed", _Routed))),
        ("eps", c_float),
    ]


STRUCTURES = (_Layer, _Latent, _Grouped, _Gated, _Routed)


class Table:
    """The layers as `layers.c` reads them; what they are made of lives as long as the table does."""

    def __init__(self, layers: Sequence[Layer], norm_D: Tensor, norm_eps: float) -> None:
        self.form = layers[0].attention.o.form
        """Of all matrices."""
        self.n_routing = sum(isinstance(layer.ffn, Routed) for layer in layers)
        self.n_active = max((layer.ffn.n_active for layer in layers if isinstance(layer.ffn, Routed)), default=0)
        self.norm_D, self.norm_eps = norm_D, norm_eps
        self.rows = (_Layer * len(layers))(*(_layer(layer) for layer in layers))
        self._owned = [tuple(layers), norm_D]


def layers(x_ND: Tensor, table: Table, rope_T2: tuple[Tensor, Tensor], at: Cells) -> tuple[Tensor, Tensor]:
    """Embedded tokens to their states after the final norm, and the experts that they chose in each routing layer
    (L, N, A); entries are written. `at` places each token by itself. x_ND is overwritten."""
    (n, d), places, cells_LMC = x_ND.shape, at.places, at.cells_LMC
    y_ND = torch.empty_like(x_ND)
    experts_LNA = x_ND.new_empty(table.n_routing, n, table.n_active, dtype=torch.int64)
    cells = (cells_LMC, at.scales_LMP, at.cell_N)
    given = (x_ND, table.rows, table.norm_D, *rope_T2, *cells, places.table_RB, places.lengths_R)
    of_scales = 0 if at.scales_LMP is None else at.scales_LMP.stride(0)
    of_cells = (rope_T2[0].shape[1], cells_LMC.stride(0), of_scales, cells_LMC.shape[2])
    numbers = (len(table.rows), n, d, *of_cells, places.table_RB.shape[1], places.block, places.longest, table.n_active)
    if call(f"layers{table.form}", *given, experts_LNA, y_ND, *numbers, table.norm_eps):
        raise MemoryError(f"a step of {n} tokens after up to {places.longest - 1:,} positions found no memory")
    return y_ND, experts_LNA


def _layer(layer: Layer) -> _Layer:
    row: dict[str, Any] = {"attn_norm": _at(layer.attn_norm), "ffn_norm": _at(layer.ffn_norm), "eps": layer.norm_eps}
    row |= _latent(layer.attention) if isinstance(layer.attention, Latent) else _grouped(layer.attention)
    row |= _routed(layer.ffn) if isinstance(layer.ffn, Routed) else {"gated": ctypes.pointer(_gated(layer.ffn))}
    return _Layer(**row)


def _latent(layer: Latent) -> dict[str, Any]:
    n_heads, of_head, c_width = layer.maps_HXC.shape
    return {
        "latent": ctypes.pointer(
            _Latent(
                q_down=_matrix(layer.q_down),
                q=_matrix(layer.q),
                kv_down=_matrix(layer.kv_down),
                o=_matrix(layer.o),
                q_norm=_at(layer.q_norm),
                kv_norm=_at(layer.kv_norm),
                maps=_at(layer.maps_HXC),
                q_rank=0 if layer.q_norm is None else len(layer.q_norm),
                h=n_heads,
                p=of_head - layer.v_dim,
                r=layer.rope_dim,
                w=layer.v_dim,
                c=c_width,
                interleaved=layer.interleaved,
                norm_eps=layer.norm_eps,
                scale=layer.scale,
            )
        )
    }


def _grouped(layer: Grouped) -> dict[str, Any]:
    return {
        "grouped": ctypes.pointer(
            _Grouped(
                q=_matrix(layer.q),
                k=_matrix(layer.k),
                v=_matrix(layer.v),
                o=_matrix(layer.o),
                q_norm=_at(layer.q_norm),
                k_norm=_at(layer.k_norm),
                h=layer.n_heads,
                g=layer.n_groups,
                k_width=layer.head_dim,
                r=layer.rotary_dim,
                norms_all=layer.norms_all,
                interleaved=layer.interleaved,
                norm_eps=layer.norm_eps,
                scale=layer.scale,
            )
        )
    }


def _gated(layer: Gated) -> _Gated:
    return _Gated(*map(_matrix, layer), len(layer.gate.weights))


def _routed(layer: Routed) -> dict[str, Any]:
    gate, up, down = map(_matrix, layer.experts)
    n_experts, d_expert = layer.experts.gate.weights.shape[:2]
    return {
        "routed": ctypes.pointer(
            _Routed(
                router=_at(layer.router_ED),
                bias=_at(layer.bias_E),
                gate=gate,
                up=up,
                down=down,
                shared=_Gated() if layer.shared is None else _gated(layer.shared),
                active=layer.n_active,
                all_experts=n_experts,
                f=d_expert,
                is_softmax=layer.is_softmax,
                is_normed=layer.is_normed,
                scale=layer.scale,
            )
        )
    }


def _matrix(matrix: Matrix | None) -> _Matrix:
    return _Matrix() if matrix is None else _Matrix(_at(matrix.weights), _at(matrix.scales))


def _at(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()
