"""Tensor parallelism of a dense model: each process keeps some heads and some inner columns of every layer.

Queries, keys, values, gate and up are cut by rows, the two maps back by columns, and their sums are taken before a bias
is added. Embedding, norms and head stay whole: the same work in each process, and no sum over a divided vocabulary.
torch's ColwiseParallel cuts nn.Linear and computes with DTensors; our layers and kernels are neither.
"""

from dataclasses import replace
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn

from sobre.models.decoder import Block, Decoder
from sobre.models.ffn import SwiGLU
from sobre.models.gqa import GQA
from sobre.models.layers import Linear
from sobre.parallel.grid import Grid
from sobre.parallel.tensor import shared, summed


class SummedLinear(Linear):
    """y = sum over the processes of x W^T, then + b: each has some columns of W and those numbers of x."""

    def __init__(self, whole: Linear, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.register_buffer("weight_factors", None)
        self.weight, self.bias, self.lora, self.precision = whole.weight, whole.bias, None, whole.precision
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y = summed(self.product(x, None), self.group)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def divide_heads(model: Decoder, grid: Grid) -> tuple[dict[str, int], set[str]]:
    """Cut the layers in place. Returns the dimension along which each parameter is divided, and the names of those
    that are whole but get only the gradient of this process's heads."""
    dims: dict[str, int] = {}
    partial_names: set[str] = set()
    for name, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        attn, ffn = block.attn, block.ffn
        assert isinstance(attn, GQA), "check_model has refused others"
        assert isinstance(ffn, SwiGLU), "check_model has refused others"
        for owner, columns, back in ((attn, ("q", "k", "v"), "o"), (ffn, ("gate", "up"), "down")):
            path = f"{name}.{'attn' if owner is attn else 'ffn'}"
            for leaf in columns:
                dims |= {f"{path}.{leaf}.{kind}": 0 for kind in _cut(getattr(owner, leaf), 0, grid)}
            _cut(getattr(owner, back), 1, grid)
            dims[f"{path}.{back}.weight"] = 1
            setattr(owner, back, SummedLinear(getattr(owner, back), grid.tensor))
            owner.register_forward_pre_hook(partial(_share, grid.tensor))
        heads = attn.cfg
        attn.cfg = replace(heads, n_heads=heads.n_heads // grid.n_places, n_kv_heads=heads.n_kv_heads // grid.n_places)
        if heads.qk_norm:
            partial_names |= {f"{name}.attn.q_norm.weight", f"{name}.attn.k_norm.weight"}
    return dims, partial_names


def _share(group: dist.ProcessGroup, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return shared(args[0], group), *args[1:]


def _cut(linear: Linear, dim: int, grid: Grid) -> list[str]:
    """Keep this process's rows (0) or columns (1); returns what was cut. A bias belongs to the rows."""
    found = ["weight"] if linear.bias is None or dim == 1 else ["weight", "bias"]
    for leaf in found:
        whole = getattr(linear, leaf)
        mine = whole.detach().chunk(grid.n_places, dim)[grid.place].clone()
        setattr(linear, leaf, nn.Parameter(mine))
    return found
