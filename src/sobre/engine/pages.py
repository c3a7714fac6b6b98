"""How many tokens a block of the cache holds: as many as the kernel of the decode step asks for.

Blocks of `BLOCK` serve every kernel but FlashMLA, which reads pages of 64 (kernels/flash_mla.py). Larger blocks leave
more room unused at the end of a sequence and find shared beginnings less finely, so they are taken for it alone.
"""

import logging

import torch

from sobre.engine.config import EngineConfig
from sobre.engine.static import Model
from sobre.kernels import flash_mla, select
from sobre.kernels.unfit import refuses_widths
from sobre.models.config import BLOCK, MLAConfig

log = logging.getLogger(__name__)


def block_tokens(model: Model, cfg: EngineConfig, max_len: int, device: torch.device) -> int:
    """Tokens of one block for this model there."""
    attention = model.cfg.attention
    if not isinstance(attention, MLAConfig):
        return BLOCK
    if select.choose("latent_decode", device.type, model.dtype).name != "flash_mla":
        return BLOCK
    why = _why_not(attention, cfg, max_len)
    if why is None:
        log.info("blocks of the cache hold %d tokens, for FlashMLA", flash_mla.PAGE)
        return flash_mla.PAGE
    log.info("blocks of the cache hold %d tokens, which FlashMLA does not read: %s", BLOCK, why)
    return BLOCK


def _why_not(attention: MLAConfig, cfg: EngineConfig, max_len: int) -> str | None:
    """Why FlashMLA's pages would be of no use, or None."""
    if why := refuses_widths(attention.kv_rank, attention.rope_dim):
        return f"it {why}"
    if cfg.cache != "model":
        return f"entries lie in {cfg.cache}"
    if cfg.deterministic:
        return "engine.deterministic has kernels of its own"
    needed = -(-max_len // flash_mla.PAGE) * flash_mla.PAGE
    if 0 < cfg.cache_tokens < needed:
        return f"engine.cache_tokens={cfg.cache_tokens:,} does not hold one request in its pages, {needed:,}"
    return None
