"""Products whose every result is the same to the last bit, whatever else is computed beside it.

A library picks its blocking, and with it the order of additions, by the shape of a product; so the same token gets
other last bits in a batch of 1 and of 16, in a whole prompt and in a piece of one. Here every product of tokens with a
weight has `TILE` rows, filled up with zeros, and every attention is that of one token: a shape depends on the token
alone. Functions like exp and sums go over whole tiles too, for a library treats the rest of a vector in another way.
That a row's bits do not depend on its place in the tile or on its neighbours is a property of the library, to be
checked by `rows_are_independent` before these functions are relied on.

The price is paid in calls and in zeros; `sobre bench decode` prints it. Chosen by `select.override`, never by itself.

Shapes: N tokens, D width, E experts, A active, F expert width, P copies with their padding, T rows of a tile, H heads,
K input and W output width of a head; in attention R sequences, T new tokens, S positions, G key/value heads, J = H //
G.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.kernels import reference
from sobre.kernels.moe import plan_rows

TILE = 16
"""Rows of every product."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same function as `reference.linear`."""
    x_ND = x.reshape(-1, x.shape[-1])
    tiles = [F.linear(tile_TD, weight, bias) for tile_TD in _tiles(x_ND)]
    return torch.cat(tiles)[: x_ND.shape[0]].view(*x.shape[:-1], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same function as `reference.rms_norm`."""
    x_ND = x.reshape(-1, x.shape[-1])
    flat = torch.cat([reference.rms_norm(tile_TD, weight, eps) for tile_TD in _tiles(x_ND)])
    return flat[: x_ND.shape[0]].view(x.shape)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The same function as `reference.swiglu`, with one more rounding in bfloat16."""
    flat = torch.cat([F.silu(tile_TD) for tile_TD in _tiles(gate.reshape(-1, gate.shape[-1]))])
    return flat[: gate[..., 0].numel()].view_as(gate) * up


def router_scores(x_ND: Tensor, weight_ED: Tensor, score: str) -> Tensor:
    """The same function as `reference.router_scores`."""
    tiles = [reference.router_scores(tile_TD, weight_ED, score) for tile_TD in _tiles(x_ND)]
    return torch.cat(tiles)[: x_ND.shape[0]]


def heads_linear(x_NHK: Tensor, weight_HKW: Tensor) -> Tensor:
    """The same function as `reference.heads_linear`."""
    tiles = [torch.bmm(tile.transpose(0, 1), weight_HKW).transpose(0, 1) for tile in _tiles(x_NHK)]
    return torch.cat(tiles)[: x_NHK.shape[0]]


def cached_attention(q_RTHK: Tensor, k_RSGK: Tensor, v_RSGW: Tensor, later_RTS: Tensor, scale: float) -> Tensor:
    """The same function as `cached.cached_attention`, one token at a time over exactly what it sees."""
    n_groups = k_RSGK.shape[2]
    n_seen_RT = (later_RTS == 0).sum(-1).tolist()
    outs = []
    for row, n_seen_T in enumerate(n_seen_RT):
        for t, n_seen in enumerate(n_seen_T):
            q_GJK = q_RTHK[row, t].unflatten(0, (n_groups, -1)).contiguous()
            k_GSK = k_RSGK[row, :n_seen].transpose(0, 1).contiguous()
            v_GSW = v_RSGW[row, :n_seen].transpose(0, 1).contiguous()
            probs_GJS = (torch.bmm(q_GJK, k_GSK.mT) * scale).softmax(-1)
            outs.append(torch.bmm(probs_GJS, v_GSW).flatten(0, 1))
    return torch.stack(outs).unflatten(0, q_RTHK.shape[:2])


def moe_ffn(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The same function as `reference.moe_ffn`."""
    plan = plan_rows(experts_NA, gate_EFD.shape[0], TILE)
    x_PD = x_ND.index_select(0, plan.token_P)
    y_PD = torch.empty_like(x_PD)
    for expert, rows in plan.rows:
        for first in range(rows.start, rows.stop, TILE):
            tile_TD = x_PD[first : first + TILE]
            inner_TF = F.silu(F.linear(tile_TD, gate_EFD[expert])) * F.linear(tile_TD, up_EFD[expert])
            y_PD[first : first + TILE] = F.linear(inner_TF, down_EDF[expert])
    weights_NA = weights_NA.to(x_ND.dtype)
    y_ND = torch.zeros_like(x_ND)
    for a in range(experts_NA.shape[1]):  # in the order of the router's choice
        y_ND += y_PD[plan.place_NA[:, a]] * weights_NA[:, a : a + 1]
    return y_ND


def rows_are_independent(n_in: int, n_out: int, dtype: torch.dtype, device: str | torch.device) -> bool:
    """Whether a row of a product of this shape has the same bits at every place and beside any neighbours."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_out, n_in, generator=generator).to(device, dtype)
    row = torch.randn(n_in, generator=generator).to(device, dtype)
    alone = torch.zeros(TILE, n_in, dtype=dtype, device=device)
    alone[0] = row
    expected = F.linear(alone, weight)[0]
    for place in range(TILE):
        tile = torch.randn(TILE, n_in, generator=generator).to(device, dtype)
        tile[place] = row
        if not torch.equal(F.linear(tile, weight)[place], expected):
            return False
    return True


def _tiles(x_N: Tensor) -> Iterator[Tensor]:
    """Tiles of TILE rows, each in memory of its own, the last one filled up with zeros."""
    padded_N = torch.cat([x_N, x_N.new_zeros(-x_N.shape[0] % TILE, *x_N.shape[1:])]).contiguous()
    yield from padded_N.split(TILE)
