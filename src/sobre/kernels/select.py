"""Which implementation of each operation runs: chosen once per (operation, device, dtype), stated, and overridable.

The model calls the functions at the end of this page. `describe()` says what was chosen and why; `override(op, name)`
forces one in tests and benchmarks, and asking for one that cannot run there is an error. Each choice is logged with the
reasons of those that were preferred and cannot run.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sobre.errors import ConfigError
from sobre.kernels import (
    attention,
    cached,
    coded,
    coded_torch,
    deep_gemm,
    experts,
    flash_mla,
    flashinfer,
    fp8,
    kept,
    liger,
    likely,
    loss,
    moe,
    paged,
    pointwise,
    reference,
    scaled,
    sdpa,
    tail,
    tiled,
)
from sobre.kernels import draw as draws
from sobre.kernels.coded import Bits, Coded
from sobre.kernels.fp8 import Quantised
from sobre.kernels.kept import Blocks
from sobre.kernels.native import attention as native_attention
from sobre.kernels.native import build as native
from sobre.kernels.native import choice as native_choice
from sobre.kernels.native import coded as native_coded
from sobre.kernels.native import experts as native_experts
from sobre.kernels.native import layers as native_layers
from sobre.kernels.native import likely as native_likely
from sobre.kernels.native import linear as native_linear
from sobre.kernels.native import paged as native_paged
from sobre.kernels.native import pointwise as native_pointwise
from sobre.kernels.native import rotary as native_rotary
from sobre.kernels.native import whole as native_whole
from sobre.kernels.paged import Places

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operation, and where it may run."""

    op: str
    name: str
    call: Callable[..., Any]
    devices: tuple[str, ...] = ()
    """Device types it runs on; empty means all."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Element types it takes; empty means all."""
    reason: str = "the plain formula"
    lacks: Callable[[], str | None] = lambda: None
    """What this machine lacks for it (a library, a kind of GPU), or None."""

    def refuses(self, device: str, dtype: torch.dtype) -> str | None:
        """Why it cannot run there, or None."""
        if self.devices and device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        if self.dtypes and dtype not in self.dtypes:
            return f"takes {', '.join(map(str, self.dtypes))}, not {dtype}"
        return self.lacks()


ACCELERATORS = ("cuda", "xpu", "npu", "mps")
TRITON = ("cuda", "xpu")


def _in_triton(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that imports triton, imported when it is first called."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f"sobre.kernels.{module}"), name)(*args)

    return call


def _no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "needs triton, which is not installed"


def _no_triton_fp8() -> str | None:
    return _no_triton() or scaled.no_fp8_products()


def _scaled_kept_linear(x_NI: Tensor, weight: Blocks) -> Tensor:
    blocks = Quantised(weight.values_OI, weight.factors.float(), fp8.TILE)
    return fp8_product(fp8_quantise(x_NI, 1, False), blocks, x_NI.dtype)


def _gathered_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    return paged.latent_decode(q_RHC, cells_MC, places, rank, scale, cached_attention)


def _gathered_grouped(
    q_RHK: Tensor, cells_MC: Tensor, places: Places, n_groups: int, v_width: int, scale: float
) -> Tensor:
    return paged.grouped_decode(q_RHK, cells_MC, places, n_groups, v_width, scale, cached_attention)


def _native_latent(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """Cells of another dtype than the queries are gathered first."""
    decode = native_paged.latent_decode if native_paged.takes(q_RHC, cells_MC) else _gathered_decode
    return decode(q_RHC, cells_MC, places, rank, scale)


def _native_grouped(
    q_RHK: Tensor, cells_MC: Tensor, places: Places, n_groups: int, v_width: int, scale: float
) -> Tensor:
    decode = native_paged.grouped_decode if native_paged.takes(q_RHK, cells_MC) else _gathered_grouped
    return decode(q_RHK, cells_MC, places, n_groups, v_width, scale)


def _native_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, kept_NB: Tensor | None) -> Tensor:
    return loss.linear_nll(hidden_ND, weight_VD, targets_N, kept_NB, turn=native_pointwise.logits_to_errors)


def _native_moe(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    gated, gated_back = native_pointwise.weighted_swiglu, native_pointwise.weighted_swiglu_back
    parts = moe.Parts(gated, gated_back, native_experts.few_tokens)
    return moe.moe_ffn(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF, parts)


def _of(page: ModuleType) -> Callable[[str], Callable[..., Any]]:
    """The functions of a page, by name."""
    return partial(getattr, page)


def _no_call() -> None:
    raise AssertionError("the caller has its own parts: `whole` returns None")


def _grouped_moe(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Its memory-bound parts are operations of their own."""
    parts = experts.Parts(take_rows, weighted_swiglu, sum_rows)
    return experts.moe_ffn(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF, parts)


IN_C = "one pass over memory, in C"
IN_MEMORY = (torch.float32, torch.bfloat16)
"""What the pages in C read and write; their registers hold float32."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BF16 = (torch.bfloat16,)
HALVES = (torch.bfloat16, torch.float16)
ONE_PASS = "one pass forward, one back"

# In order of preference: the first that does not refuse is taken.
KERNELS: tuple[Kernel, ...] = (
    Kernel("rms_norm", "native", native_pointwise.rms_norm, ("cpu",), IN_MEMORY, IN_C, native.lacks),
    Kernel("rms_norm", "liger", liger.rms_norm, TRITON, FLOATS, ONE_PASS, liger.lacks),
    Kernel("rms_norm", "fused", pointwise.rms_norm, reason="one autograd node, half the passes"),
    Kernel("rms_norm", "reference", reference.rms_norm),
    Kernel("rms_norm", "tiled", tiled.rms_norm, reason="the same bits in every batch"),
    Kernel("swiglu", "native", native_pointwise.swiglu, ("cpu",), IN_MEMORY, IN_C, native.lacks),
    Kernel("swiglu", "liger", liger.swiglu, TRITON, FLOATS, ONE_PASS, liger.lacks),
    Kernel("swiglu", "fused", pointwise.swiglu, reason="no float32 copies"),
    Kernel("swiglu", "reference", reference.swiglu),
    Kernel("swiglu", "tiled", tiled.swiglu, reason="the same bits in every batch"),
    Kernel("rope", "native", native_rotary.rope, ("cpu",), IN_MEMORY, IN_C, native.lacks),
    Kernel("rope", "fused", pointwise.rope, reason="one complex product, one autograd node"),
    Kernel("rope", "reference", reference.rope),
    Kernel("latent_heads", "native", native_rotary.latent_heads, ("cpu",), IN_MEMORY, IN_C, native.lacks),
    Kernel("latent_heads", "joined", pointwise.latent_heads, reason="the rotation in one node, and copies"),
    Kernel("latent_heads", "reference", reference.latent_heads),
    Kernel(
        "linear",
        "native",
        native_linear.linear,
        ("cpu",),
        (torch.bfloat16,),
        "few rows in C: the weights at the memory's speed",
        native.lacks,
    ),
    Kernel("linear", "reference", reference.linear, reason="the library's product"),
    Kernel("linear", "tiled", tiled.linear, reason="the same bits in every batch"),
    Kernel("router_scores", "reference", reference.router_scores, reason="the library's product"),
    Kernel("router_scores", "tiled", tiled.router_scores, reason="the same bits in every batch"),
    Kernel(
        "best_experts", "native", native_choice.best_experts, ("cpu",), (torch.float32,), "one pass, in C", native.lacks
    ),
    Kernel("best_experts", "reference", reference.best_experts, reason="the library's choice"),
    Kernel("heads_linear", "native", native_linear.heads_linear, ("cpu",), IN_MEMORY, "few rows in C", native.lacks),
    Kernel("heads_linear", "reference", reference.heads_linear, reason="the library's product"),
    Kernel("heads_linear", "tiled", tiled.heads_linear, reason="the same bits in every batch"),
    Kernel("cached_attention", "batched", cached.cached_attention, reason="keys are read where they lie"),
    Kernel("cached_attention", "reference", reference.cached_attention),
    Kernel("cached_attention", "tiled", tiled.cached_attention, reason="the same bits in every batch"),
    Kernel("tail_attention", "sdpa", tail.fused, ACCELERATORS, reason="torch's fused attention"),
    Kernel("tail_attention", "native", native_attention.tail_attention, ("cpu",), (torch.float32,), IN_C, native.lacks),
    Kernel(
        "tail_attention",
        "native",
        native_attention.tail_attention,
        ("cpu",),
        (torch.bfloat16,),
        IN_C,
        native.lacks_bfloat16_products,
    ),
    Kernel("tail_attention", "block", tail.block, reason="no key after a block of queries is read"),
    Kernel("tail_attention", "reference", reference.tail_attention),
    Kernel(
        "causal_attention", "native", native_attention.causal_attention, ("cpu",), (torch.float32,), IN_C, native.lacks
    ),
    Kernel(
        "causal_attention",
        "native",
        native_attention.causal_attention,
        ("cpu",),
        (torch.bfloat16,),
        IN_C,
        native.lacks_bfloat16_products,
    ),
    Kernel("causal_attention", "sdpa", sdpa.causal_attention, ACCELERATORS, reason="torch's fused attention"),
    Kernel(
        "causal_attention",
        "block",
        attention.causal_attention,
        reason="half the square, batched products, sequences of like length together",
    ),
    Kernel("causal_attention", "reference", reference.causal_attention),
    Kernel("grouped_linear", "grouped", moe.grouped_linear, reason="torch's grouped product"),
    Kernel("grouped_linear", "reference", reference.grouped_linear),
    Kernel(
        "moe_ffn",
        "native",
        _native_moe,
        ("cpu",),
        IN_MEMORY,
        "as routed; few tokens, and what lies between the products, in C",
        native.lacks,
    ),
    Kernel("moe_ffn", "routed", moe.moe_ffn, ("cpu",), reason="one sort, one autograd node, padded row counts"),
    Kernel("moe_ffn", "grouped", _grouped_moe, reason="grouped products, nothing asked of the device"),
    Kernel("moe_ffn", "reference", reference.moe_ffn),
    Kernel("moe_ffn", "tiled", tiled.moe_ffn, reason="the same bits in every batch"),
    Kernel("take_rows", "triton", _in_triton("triton_experts", "take_rows"), TRITON, FLOATS, "one pass", _no_triton),
    Kernel("take_rows", "gathers", experts.take_rows, reason="its gradient is a gather, too"),
    Kernel("take_rows", "reference", reference.take_rows),
    Kernel(
        "weighted_swiglu",
        "triton",
        _in_triton("triton_experts", "weighted_swiglu"),
        TRITON,
        FLOATS,
        ONE_PASS,
        _no_triton,
    ),
    Kernel("weighted_swiglu", "reference", reference.weighted_swiglu),
    Kernel("sum_rows", "triton", _in_triton("triton_experts", "sum_rows"), TRITON, FLOATS, "one pass", _no_triton),
    Kernel("sum_rows", "gathers", experts.sum_rows, reason="its gradient is a gather, too"),
    Kernel("sum_rows", "reference", reference.sum_rows),
    Kernel("latent_decode", "flash_mla", flash_mla.latent_decode, ("cuda",), HALVES, "DeepSeek's own", flash_mla.lacks),
    Kernel(
        "latent_decode",
        "flashinfer",
        flashinfer.latent_decode,
        ("cuda",),
        HALVES,
        "reads the cache where it lies, work divided by the lengths",
        flashinfer.lacks,
    ),
    Kernel(
        "latent_decode",
        "triton",
        _in_triton("triton_decode", "latent_decode"),
        TRITON,
        FLOATS,
        "reads the cache where it lies, once for all heads",
        _no_triton,
    ),
    Kernel("latent_decode", "native", _native_latent, ("cpu",), IN_MEMORY, "reads the cache in place", native.lacks),
    Kernel("latent_decode", "gathered", _gathered_decode, reason="whatever attends to cached entries"),
    Kernel("latent_decode", "reference", reference.latent_decode),
    Kernel(
        "grouped_decode",
        "native",
        _native_grouped,
        ("cpu",),
        IN_MEMORY,
        "reads the cache in place",
        native.lacks,
    ),
    Kernel("grouped_decode", "gathered", _gathered_grouped, reason="whatever attends to cached entries"),
    Kernel("grouped_decode", "reference", reference.grouped_decode),
    Kernel(
        "draw",
        "triton",
        _in_triton("triton_sampling", "draw"),
        TRITON,
        (torch.float32,),
        "softmax and draw in one kernel",
        _no_triton,
    ),
    Kernel("keep_likely", "native", native_likely.keep_likely, ("cpu",), (torch.float32,), "no sorting", native.lacks),
    Kernel("keep_likely", "ranked", likely.keep_likely, reason="the most probable tokens first"),
    Kernel("keep_likely", "reference", reference.keep_likely),
    Kernel("draw", "blocks", draws.draw, reason="two levels of sums"),
    Kernel("draw", "reference", reference.draw),
    Kernel("linear_nll", "native", _native_nll, ("cpu",), IN_MEMORY, IN_C, native.lacks),
    Kernel("linear_nll", "chunked", loss.linear_nll, reason="no N x V float32 tensor"),
    Kernel("linear_nll", "reference", reference.linear_nll),
    Kernel(
        "fp8_quantise", "triton", _in_triton("triton_fp8", "quantise"), ("cuda",), FLOATS, "one pass", _no_triton_fp8
    ),
    Kernel("fp8_quantise", "reference", fp8.quantise),
    Kernel("fp8_product", "deep_gemm", deep_gemm.product, ("cuda",), reason="DeepSeek's own", lacks=deep_gemm.lacks),
    Kernel("fp8_product", "cublas", scaled.product, ("cuda",), reason="torch's scaled product", lacks=scaled.lacks),
    Kernel("fp8_product", "triton", _in_triton("triton_fp8", "product"), ("cuda",), lacks=_no_triton_fp8),
    Kernel("fp8_product", "reference", fp8.product),
    Kernel(
        "fp8_grouped_product",
        "deep_gemm",
        deep_gemm.grouped_product,
        ("cuda",),
        reason="DeepSeek's own",
        lacks=deep_gemm.lacks,
    ),
    Kernel(
        "fp8_grouped_product", "triton", _in_triton("triton_fp8", "grouped_product"), ("cuda",), lacks=_no_triton_fp8
    ),
    Kernel("fp8_grouped_product", "reference", fp8.grouped_product),
    Kernel("fp8_grouped_wgrad", "triton", _in_triton("triton_fp8", "grouped_wgrad"), ("cuda",), lacks=_no_triton_fp8),
    Kernel("fp8_grouped_wgrad", "reference", fp8.grouped_wgrad),
    Kernel(
        "kept_linear",
        "scaled",
        _scaled_kept_linear,
        ("cuda",),
        reason="the input quantised in tiles, then FP8 products",
        lacks=scaled.no_fp8_products,
    ),
    Kernel("kept_linear", "bands", kept.linear, reason="multiplied out band by band"),
    Kernel("kept_linear", "reference", kept.reference),
    *(
        Kernel(f"coded_{part}", name, call(part), devices, dtypes, reason, lacks)
        for part in ("pack", "linear", "experts")
        for name, call, devices, dtypes, reason, lacks in (
            ("native", _of(native_coded), ("cpu",), BF16, "multiplied as bytes, in C", native.lacks_bfloat16_products),
            ("torch", _of(coded_torch), ("cpu",), BF16, "torch's products in 8 and 4 bits", lambda: None),
            ("triton", partial(_in_triton, "triton_coded"), TRITON, HALVES, "few rows: the codes are read", _no_triton),
            ("reference", _of(coded), (), (), "the weights multiplied out", lambda: None),
        )
    ),
)
WHOLE: dict[str, Callable[..., Any]] = {
    "latent_step": native_whole.latent_step,
    "routed": native_whole.routed,
    "gated": native_whole.gated,
    "layers": native_layers.layers,
}
"""Operations that stand for several others, or, as `parts`, for none."""
KERNELS += tuple(
    kernel
    for op, call in WHOLE.items()
    for kernel in (
        Kernel(op, "native", call, ("cpu",), IN_MEMORY, "few tokens in one call", native.lacks),
        Kernel(op, "parts", _no_call, reason="each part by itself"),
    )
)
OPS = tuple(dict.fromkeys(kernel.op for kernel in KERNELS))

COMPILED: dict[str, Callable[..., Any]] = {
    "rms_norm": reference.rms_norm,
    "swiglu": reference.swiglu,
    "rope": reference.rope,
    "latent_heads": reference.latent_heads,
    "linear": reference.linear,
    "router_scores": reference.router_scores,
    "causal_attention": sdpa.causal_attention,
}
"""What stands in a compiled region (models/regions.py): formulas, for the compiler to fuse, and torch's attention."""

_chosen: dict[tuple[str, str, torch.dtype], tuple[Kernel, str]] = {}
"""With the reason, and why those before it cannot run."""
_forced: dict[str, str] = {}


def choose(op: str, device: str, dtype: torch.dtype) -> Kernel:
    """The kernel that runs `op` there."""
    return _choose(op, device, dtype)[0]


def _choose(op: str, device: str, dtype: torch.dtype) -> tuple[Kernel, str]:
    refusals: list[str] = []
    for kernel in KERNELS:
        if kernel.op != op or (op in _forced and kernel.name != _forced[op]):
            continue
        refusal = kernel.refuses(device, dtype)
        if refusal is None:
            return kernel, "; ".join([kernel.reason, *refusals])
        if op in _forced:
            raise ConfigError(f"kernel {op}={kernel.name!r} {refusal}")
        refusals.append(f"{kernel.name} {refusal}")
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


@contextmanager
def overrides(names: Mapping[str, str]) -> Iterator[None]:
    """`override` for several operations at once: {operation: implementation}."""
    with ExitStack() as stack:
        for op, name in names.items():
            stack.enter_context(override(op, name))
        yield


def decoding_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """What decodes fastest where training computes in `dtype` over float32 weights.

    float32 on a CPU without products of bfloat16 in C: the library lays out every weight anew at every token.
    """
    slow = device == "cpu" and dtype == torch.bfloat16 and native.lacks_bfloat16_products()
    return torch.float32 if slow else dtype


def describe() -> list[tuple[str, str, str]]:
    """(operation on device in dtype, implementation, reason) of everything chosen so far."""
    return [
        (f"{op} on {device} in {str(dtype).removeprefix('torch.')}", kernel.name, reason)
        for (op, device, dtype), (kernel, reason) in sorted(_chosen.items(), key=str)
    ]


def _force(op: str, name: str | None) -> None:
    _forced.pop(op, None)
    if name is not None:
        _forced[op] = name
    for key in [key for key in _chosen if key[0] == op]:
        del _chosen[key]


def _kernel(op: str, x: Tensor) -> Callable[..., Any]:
    if torch.compiler.is_compiling():
        return COMPILED[op]
    key = (op, x.device.type, x.dtype)
    found = _chosen.get(key)
    if found is None:
        found = _chosen[key] = _choose(*key)
        log.info("%s on %s in %s: %s (%s)", *key, found[0].name, found[1])
    return found[0].call


def whole(op: str, x: Tensor) -> Callable[..., Any] | None:
    """The function that runs an operation of `WHOLE`; None: the caller's own parts do."""
    call = _kernel(op, x)
    return None if _chosen[op, x.device.type, x.dtype][0].name == "parts" else call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension."""
    return _kernel("rms_norm", x)(x, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return _kernel("swiglu", gate)(gate, up)


def rope(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of the last dimension by the angle of each token."""
    return _kernel("rope", x_NHR)(x_NHR, cos_NR2, sin_NR2, interleaved)


def latent_heads(
    q_NHK: Tensor, kv_MHX: Tensor, k_rope_MR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (rotated), keys and values of latent attention from its products."""
    return _kernel("latent_heads", q_NHK)(q_NHK, kv_MHX, k_rope_MR, cos_NR2, sin_NR2, interleaved)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T (+ b), with W stored (out, in)."""
    return _kernel("linear", x)(x, weight, bias)


def router_scores(x_ND: Tensor, weight_ED: Tensor, score: str) -> Tensor:
    """How well each expert fits each token: sigmoid or softmax of its affinities, in float32."""
    return _kernel("router_scores", x_ND)(x_ND, weight_ED, score)


def best_experts(scores_NE: Tensor, n_active: int) -> Tensor:
    """The experts of the largest scores of each token, the largest first."""
    return _kernel("best_experts", scores_NE)(scores_NE, n_active)


def heads_linear(x_NHK: Tensor, weight_HKW: Tensor) -> Tensor:
    """Every head of every token times the matrix of its head."""
    return _kernel("heads_linear", x_NHK)(x_NHK, weight_HKW)


def cached_attention(q_RTHK: Tensor, k_RSGK: Tensor, v_RSGW: Tensor, later_RTS: Tensor, scale: float) -> Tensor:
    """Attention of new tokens to cached ones."""
    return _kernel("cached_attention", q_RTHK)(q_RTHK, k_RSGK, v_RSGW, later_RTS, scale)


def causal_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Causal attention within each of the sequences; k and v may have fewer heads, and values another width."""
    return _kernel("causal_attention", q_NHK)(q_NHK, k_NGK, v_NGW, lengths, scale)


def tail_attention(q_THK: Tensor, k_SGK: Tensor, v_SGW: Tensor, scale: float) -> Tensor:
    """Causal attention of the last T of S positions of one sequence."""
    return _kernel("tail_attention", q_THK)(q_THK, k_SGK, v_SGW, scale)


def grouped_linear(x_MD: Tensor, weight_EFD: Tensor, counts_E: Tensor | Sequence[int]) -> Tensor:
    """Rows sorted by expert times the matrix of their expert."""
    return _kernel("grouped_linear", x_MD)(x_MD, weight_EFD, counts_E)


def moe_ffn(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The routed experts of every token, weighted and summed."""
    return _kernel("moe_ffn", x_ND)(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)


def take_rows(x_ND: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """Each token at the rows of its copies."""
    return _kernel("take_rows", x_ND)(x_ND, token_M, place_NA)


def weighted_swiglu(gate_MF: Tensor, up_MF: Tensor, weights_M: Tensor) -> Tensor:
    """silu(gate) * up times one weight for each row."""
    return _kernel("weighted_swiglu", gate_MF)(gate_MF, up_MF, weights_M)


def sum_rows(y_MD: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """The sum of each token's rows."""
    return _kernel("sum_rows", y_MD)(y_MD, token_M, place_NA)


def latent_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """Latent attention of one new token per sequence over the cells of the cache."""
    return _kernel("latent_decode", q_RHC)(q_RHC, cells_MC, places, rank, scale)


def grouped_decode(
    q_RHK: Tensor, cells_MC: Tensor, places: Places, n_groups: int, v_width: int, scale: float
) -> Tensor:
    """Grouped-query attention of one new token per sequence over the cells of the cache."""
    return _kernel("grouped_decode", q_RHK)(q_RHK, cells_MC, places, n_groups, v_width, scale)


def keep_likely(
    probs_RV: Tensor, rows_F: Tensor, top_k_F: Tensor, top_p_F: Tensor, min_p_F: Tensor, most_k: int
) -> None:
    """Zero, in place, what top_k, top_p and min_p leave out of some rows of probabilities."""
    _kernel("keep_likely", probs_RV)(probs_RV, rows_F, top_k_F, top_p_F, min_p_F, most_k)


def draw(logits_RV: Tensor, scale_R1: Tensor | None, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that uniform numbers choose, and their log-probabilities."""
    return _kernel("draw", logits_RV)(logits_RV, scale_R1, uniforms_R)


def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, kept_NB: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each target under the output head, in float32; among the kept tokens, where given."""
    return _kernel("linear_nll", hidden_ND)(hidden_ND, weight_VD, targets_N, kept_NB)


def fp8_quantise(x_IK: Tensor, rows: int, power_of_two: bool) -> Quantised:
    """E4M3 with a scale for each `rows` x 128 tile of each matrix."""
    return _kernel("fp8_quantise", x_IK)(x_IK, rows, power_of_two)


def fp8_product(left: Quantised, right: Quantised, dtype: torch.dtype) -> Tensor:
    """left right^T of two matrices in E4M3, summed in float32."""
    return _kernel("fp8_product", left.values_IK)(left, right, dtype)


def fp8_grouped_product(left_PK: Quantised, rights_EOK: Quantised, expert_X: Tensor, dtype: torch.dtype) -> Tensor:
    """Blocks of 128 rows times the matrix of their expert, in E4M3."""
    return _kernel("fp8_grouped_product", left_PK.values_IK)(left_PK, rights_EOK, expert_X, dtype)


def fp8_grouped_wgrad(left_FP: Quantised, right_DP: Quantised, expert_X: Tensor, n_experts: int) -> Tensor:
    """left right^T over the blocks of each expert, in E4M3, summed in float32."""
    return _kernel("fp8_grouped_wgrad", left_FP.values_IK)(left_FP, right_DP, expert_X, n_experts)


def kept_linear(x_NI: Tensor, weight: Blocks) -> Tensor:
    """x W^T, with W kept in FP8 and a factor for each of its blocks."""
    return _kernel("kept_linear", x_NI)(x_NI, weight)


def coded_pack(scales: Tensor, codes_OI: Tensor, bits: Bits) -> Coded:
    """Rounded weights as the other two read them, who are chosen alike."""
    return _kernel("coded_pack", scales)(scales, codes_OI, bits)


def packs_for_c(scales: Tensor) -> bool:
    """Whether `coded_pack` packs as the pages in C read."""
    return _kernel("coded_pack", scales) is native_coded.pack


def coded_linear(x_NI: Tensor, weight: Coded) -> Tensor:
    """x W^T, with W in 8 or 4 bits."""
    return _kernel("coded_linear", x_NI)(x_NI, weight)


def coded_experts(x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate: Coded, up: Coded, down: Coded) -> Tensor:
    """The routed experts of every token, in 8 or 4 bits."""
    return _kernel("coded_experts", x_ND)(x_ND, experts_NA, weights_NA, gate, up, down)
