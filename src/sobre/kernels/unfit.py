"""What a chosen library does not take goes to another kernel: said once for each reason."""

import logging
from functools import cache

from torch import Tensor

log = logging.getLogger(__name__)
RANK, ROPE = 512, 64
"""Widths of latents and rotary keys in DeepSeek's models: what libraries make their latent attention for."""


@cache
def log_once(op: str, name: str, why: str, instead: str) -> None:
    """Log that the implementation `name` of an operation refuses its operands, and what runs for it."""
    log.info("%s: %s %s; %s runs instead", op, name, why, instead)


def refuses_widths(rank: int, rope: int) -> str | None:
    """Why a library made for DeepSeek's widths does not take latents and rotary keys of these, or None."""
    if (rank, rope) == (RANK, ROPE):
        return None
    return f"takes latents of {RANK} and rotary keys of {ROPE}, not of {rank} and {rope}"


def refuses_entries(q_RHC: Tensor, cells_MC: Tensor, rank: int) -> str | None:
    """The same of queries and cached entries, whose types must be one."""
    if why := refuses_widths(rank, q_RHC.shape[2] - rank):
        return why
    if cells_MC.dtype != q_RHC.dtype:
        return f"takes entries of the queries' type, {q_RHC.dtype}, not {cells_MC.dtype}"
    return None
