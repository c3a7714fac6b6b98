"""Which implementation of each operation runs: chosen once per (operation, device, dtype), stated, and overridable.

The model calls the functions at the end of this page. `describe()` says what was chosen and why; `override(op, name)`
forces one in tests and benchmarks, and asking for one that cannot run there is an error.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sobre.errors import ConfigError
from sobre.kernels import attention, cached, loss, moe, pointwise, reference, tiled


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operation, and where it may run."""

    op: str
    name: str
    call: Callable[..., Tensor]
    devices: tuple[str, ...] = ()
    """Device types it runs on; empty means all."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Element types it takes; empty means all."""
    reason: str = "the plain formula"

    def refuses(self, device: str, dtype: torch.dtype) -> str | None:
        """Why it cannot run there, or None."""
        if self.devices and device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        if self.dtypes and dtype not in self.dtypes:
            return f"takes {', '.join(map(str, self.dtypes))}, not {dtype}"
        return None


# In order of preference: the first that does not refuse is taken.
KERNELS: tuple[Kernel, ...] = (
    Kernel("rms_norm", "fused", pointwise.rms_norm, reason="one autograd node, half the passes"),
    Kernel("rms_norm", "reference", reference.rms_norm),
    Kernel("rms_norm", "tiled", tiled.rms_norm, reason="the same bits in every batch"),
    Kernel("swiglu", "fused", pointwise.swiglu, reason="no float32 copies"),
    Kernel("swiglu", "reference", reference.swiglu),
    Kernel("swiglu", "tiled", tiled.swiglu, reason="the same bits in every batch"),
    Kernel("rope", "fused", pointwise.rope, reason="one complex product, one autograd node"),
    Kernel("rope", "reference", reference.rope),
    Kernel("linear", "reference", reference.linear, reason="the library's product"),
    Kernel("linear", "tiled", tiled.linear, reason="the same bits in every batch"),
    Kernel("router_scores", "reference", reference.router_scores, reason="the library's product"),
    Kernel("router_scores", "tiled", tiled.router_scores, reason="the same bits in every batch"),
    Kernel("heads_linear", "reference", reference.heads_linear, reason="the library's product"),
    Kernel("heads_linear", "tiled", tiled.heads_linear, reason="the same bits in every batch"),
    Kernel("cached_attention", "batched", cached.cached_attention, reason="keys are read where they lie"),
    Kernel("cached_attention", "reference", reference.cached_attention),
    Kernel("cached_attention", "tiled", tiled.cached_attention, reason="the same bits in every batch"),
    Kernel(
        "causal_attention",
        "block",
        attention.causal_attention,
        reason="half the square, batched products, sequences of like length together",
    ),
    Kernel("causal_attention", "reference", reference.causal_attention),
    Kernel("grouped_linear", "grouped", moe.grouped_linear, reason="torch's grouped product"),
    Kernel("grouped_linear", "reference", reference.grouped_linear),
    Kernel("moe_ffn", "routed", moe.moe_ffn, ("cpu",), reason="one sort, one autograd node, padded row counts"),
    Kernel("moe_ffn", "reference", reference.moe_ffn),
    Kernel("moe_ffn", "tiled", tiled.moe_ffn, reason="the same bits in every batch"),
    Kernel("linear_nll", "chunked", loss.linear_nll, reason="no N x V float32 tensor"),
    Kernel("linear_nll", "reference", reference.linear_nll),
)
OPS = tuple(dict.fromkeys(kernel.op for kernel in KERNELS))

_chosen: dict[tuple[str, str, torch.dtype], Kernel] = {}
_forced: dict[str, str] = {}


def choose(op: str, device: str, dtype: torch.dtype) -> Kernel:
    """The kernel that runs `op` there."""
    for kernel in KERNELS:
        if kernel.op != op or (op in _forced and kernel.name != _forced[op]):
            continue
        refusal = kernel.refuses(device, dtype)
        if refusal is None:
            return kernel
        if op in _forced:
            raise ConfigError(f"kernel {op}={kernel.name!r} {refusal}")
    raise ConfigError(f"no kernel for {op} on {device} in {dtype}; known operations: {', '.join(OPS)}")


@contextmanager
def override(op: str, name: str) -> Iterator[None]:
    """Run `op` with the implementation `name` inside the block, wherever it is called."""
    names = [kernel.name for kernel in KERNELS if kernel.op == op]
    if name not in names:
        fits = f"it has: {', '.join(names)}" if names else f"known operations: {', '.join(OPS)}"
        raise ConfigError(f"no implementation {name!r} of operation {op!r}; {fits}")
    before = _forced.get(op)
    _force(op, name)
    try:
        yield
    finally:
        _force(op, before)


def describe() -> list[tuple[str, str, str]]:
    """(operation on device in dtype, implementation, reason) of everything chosen so far."""
    return [
        (f"{op} on {device} in {str(dtype).removeprefix('torch.')}", kernel.name, kernel.reason)
        for (op, device, dtype), kernel in sorted(_chosen.items(), key=str)
    ]


def _force(op: str, name: str | None) -> None:
    _forced.pop(op, None)
    if name is not None:
        _forced[op] = name
    for key in [key for key in _chosen if key[0] == op]:
        del _chosen[key]


def _kernel(op: str, x: Tensor) -> Callable[..., Tensor]:
    key = (op, x.device.type, x.dtype)
    kernel = _chosen.get(key)
    if kernel is None:
        kernel = _chosen[key] = choose(*key)
    return kernel.call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension."""
    return _kernel("rms_norm", x)(x, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return _kernel("swiglu", gate)(gate, up)


def rope(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of the last dimension by the angle of each token."""
    return _kernel("rope", x_NHR)(x_NHR, cos_NR2, sin_NR2, interleaved)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T (+ b), with W stored (out, in)."""
    return _kernel("linear", x)(x, weight, bias)


def router_scores(x_ND: Tensor, weight_ED: Tensor, score: str) -> Tensor:
    """How well each expert fits each token: sigmoid or softmax of its affinities, in float32."""
    return _kernel("router_scores", x_ND)(x_ND, weight_ED, score)


def heads_linear(x_NHK: Tensor, weight_HKW: Tensor) -> Tensor:
    """Every head of every token times the matrix of its head."""
    return _kernel("heads_linear", x_NHK)(x_NHK, weight_HKW)


def cached_attention(q_RTHK: Tensor, k_RSGK: Tensor, v_RSGW: Tensor, later_RTS: Tensor, scale: float) -> Tensor:
    """Attention of new tokens to cached ones."""
    return _kernel("cached_attention", q_RTHK)(q_RTHK, k_RSGK, v_RSGW, later_RTS, scale)


def causal_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each of the sequences; k and v may have fewer heads, and values another width."""
    return _kernel("causal_attention", q_NHK)(q_NHK, k_NGK, v_NGW, lengths, scale)


def grouped_linear(x_MD: Tensor, weight_EFD: Tensor, counts_E: Tensor | Sequence[int]) -> Tensor:
    """Rows sorted by expert times the matrix of their expert."""
    return _kernel("grouped_linear", x_MD)(x_MD, weight_EFD, counts_E)


def moe_ffn(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The routed experts of every token, weighted and summed."""
    return _kernel("moe_ffn", x_ND)(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)


def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target under the output head, in float32."""
    return _kernel("linear_nll", hidden_ND)(hidden_ND, weight_VD, targets_N)
