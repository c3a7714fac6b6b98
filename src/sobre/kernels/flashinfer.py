"""Latent attention of one new token over the paged cache by FlashInfer, where it is installed.

Written against flashinfer-python 0.6.18 (github.com/flashinfer-ai/flashinfer, fb28d72: flashinfer/mla/_core.py), not
run yet. `plan` divides the work of a step among the multiprocessors by the lengths, which it wants on the host, so the
host waits for them once a step, before the first layer's attention, when little is queued. `run` reads latents and
rotary keys where they lie, by the strides of their views. Pages may have any size. Latents are 512 wide and rotary keys
64, as in DeepSeek's models, and in 16 bits.

Its sampling draws numbers of its own, so that a seed would name other answers than it does elsewhere: it is not used.

Shapes: R sequences, H heads, C entry width as attended to (rank + rope), M cells, B blocks of the longest context.
"""

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from sobre.kernels.paged import Places
from sobre.kernels.unfit import RANK, ROPE, log_once, refuses_entries

WORKSPACE_BYTES = 128 * 2**20
"""What its documentation recommends, for the parts of contexts that are divided."""

_wrappers: dict[torch.device, Any] = {}
_planned: dict[torch.device, tuple[Places, tuple[Any, ...]]] = {}
"""The step that each wrapper is planned for."""


def latent_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """The same function as `reference.latent_decode`, for DeepSeek's widths (others: the Triton kernel)."""
    if why := refuses_entries(q_RHC, cells_MC, rank):
        from sobre.kernels import triton_decode

        log_once("latent_decode", "flashinfer", why, "triton")
        return triton_decode.latent_decode(q_RHC, cells_MC, places, rank, scale)
    pages = cells_MC.unflatten(0, (-1, places.block))
    latents, keys = pages[..., :RANK], pages[..., RANK : RANK + ROPE]
    out: Tensor = _ready(q_RHC, places, scale).run(q_RHC[..., :RANK], q_RHC[..., RANK:], latents, keys)
    return out


def _ready(q_RHC: Tensor, places: Places, scale: float) -> Any:
    """The wrapper of this device, planned for this step."""
    device, (n_rows, n_heads) = q_RHC.device, q_RHC.shape[:2]
    if device not in _wrappers:
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.int8, device=device)
        _wrappers[device] = importlib.import_module("flashinfer.mla").BatchMLAPagedAttentionWrapper(workspace)
    key = (n_heads, scale, q_RHC.dtype)
    before = _planned.get(device)
    if before is None or before[0] is not places or before[1] != key:
        rows_R1 = torch.arange(n_rows + 1, dtype=torch.int32)
        blocks = places.table_RB.to(torch.int32).flatten()
        _wrappers[device].plan(
            rows_R1,  # one query each
            rows_R1 * places.table_RB.shape[1],  # a row of the table each; beyond a length it is not read
            blocks,
            places.lengths_R.to("cpu", torch.int32),
            n_heads,
            RANK,
            ROPE,
            places.block,
            False,  # nothing is hidden from the last position
            scale,
            q_RHC.dtype,
            q_RHC.dtype,
        )
        _planned[device] = (places, key)
    return _wrappers[device]


def lacks() -> str | None:
    """What this machine lacks for it, or None."""
    if not importlib.util.find_spec("flashinfer"):
        return "needs flashinfer, which is not installed"
    if not torch.cuda.is_available():
        return "needs a GPU, and there is none"
    if torch.version.hip is not None or not (8, 0) <= torch.cuda.get_device_capability() < (10, 0):
        return "is made for compute capabilities 8.0 to 9.0"
    return None
