"""Latent attention of one new token over the paged cache by FlashMLA, where it is installed: DeepSeek's own.

Written against github.com/deepseek-ai/FlashMLA 1.0.0 (9241ae3: flash_mla/flash_mla_interface.py and
csrc/api/dense_decode.h), not run yet. Its dense decoding is made for compute capability 9.0, pages of 64 entries,
latents of 512, rotary keys of 64, in 16 bits; an engine whose model is of that shape lays its cache out in such pages
(engine/pages.py). `get_mla_metadata` gives an empty plan, which the step's first layer fills on the device and the
other layers read: nothing is asked of the host, so a decode step can be recorded. Older releases fill it at once, from
the arguments that newer ones ignore; both are called alike.

Shapes: R sequences, H heads, C entry width as attended to (rank + rope), M cells, B blocks of the longest context.
"""

import importlib
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sobre.kernels.paged import Places
from sobre.kernels.unfit import RANK, ROPE, log_once, refuses_entries

PAGE = 64
ALIGNED = 16
"""Bytes that an entry's width must be a multiple of, for the tensor memory accelerator."""


class _Step(NamedTuple):
    """What all layers of a decode step share."""

    places: Places
    n_heads: int
    table_RB: Tensor
    lengths_R: Tensor
    plan: Any
    n_splits: Any


_steps: dict[torch.device, _Step] = {}


def latent_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """The same function as `reference.latent_decode`, for what FlashMLA takes (others: the Triton kernel)."""
    if why := refuses(q_RHC, cells_MC, places, rank):
        from sobre.kernels import triton_decode

        log_once("latent_decode", "flash_mla", why, "triton")
        return triton_decode.latent_decode(q_RHC, cells_MC, places, rank, scale)
    step = _ready(q_RHC, places)
    pages = cells_MC.unflatten(0, (-1, PAGE))[..., : RANK + ROPE].unsqueeze(2)  # one head of keys
    q_R1HC = q_RHC.unsqueeze(1)  # one query each
    out_R1HC, _ = importlib.import_module("flash_mla").flash_mla_with_kvcache(
        q_R1HC, pages, step.table_RB, step.lengths_R, RANK, step.plan, step.n_splits, softmax_scale=scale
    )
    out_RHC: Tensor = out_R1HC.squeeze(1)
    return out_RHC


def refuses(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int) -> str | None:
    """Why FlashMLA does not take these tensors, or None."""
    if places.block != PAGE:
        return f"takes pages of {PAGE} entries, not of {places.block}"
    if why := refuses_entries(q_RHC, cells_MC, rank):
        return why
    if cells_MC.stride(0) * cells_MC.element_size() % ALIGNED or cells_MC.data_ptr() % ALIGNED:
        return f"takes entries that begin at multiples of {ALIGNED} bytes"
    return None


def _ready(q_RHC: Tensor, places: Places) -> _Step:
    """The plan of this step, made when its first layer asks."""
    device, n_heads = q_RHC.device, q_RHC.shape[1]
    step = _steps.get(device)
    if step is None or step.places is not places or step.n_heads != n_heads:
        table_RB, lengths_R = (x.to(torch.int32).contiguous() for x in (places.table_RB, places.lengths_R))
        plan, n_splits = importlib.import_module("flash_mla").get_mla_metadata(lengths_R, n_heads, 1)
        step = _steps[device] = _Step(places, n_heads, table_RB, lengths_R, plan, n_splits)
    return step


def lacks() -> str | None:
    """What this machine lacks for it, or None."""
    if not importlib.util.find_spec("flash_mla"):
        return "needs flash_mla, which is not installed"
    if not torch.cuda.is_available():
        return "needs a GPU, and there is none"
    if torch.version.hip is not None or torch.cuda.get_device_capability() != (9, 0):
        return "is made for compute capability 9.0"
    return None
