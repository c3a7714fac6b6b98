"""Lightning attention of MiniMax-01 (arXiv 2501.08313, 2.2; Lightning Attention-2, arXiv 2401.04658).

Linear attention with a decay for every head and layer: o_t = sum over s <= t of exp(-slope (t - s)) (q_t . k_s) v_s,
without a softmax; then a norm over all heads and a gate from the layer's input. Fresh sequences go in blocks: within a
block as a masked product, before it through the state kv_KW = sum of decayed k v^T, so the cost grows with the length
and not with its square. One deviation: with a cache we keep keys and values like any attention, and not the state, so
that chunked prefill, shared prefixes and rollback work as everywhere; a decoded token then costs as many products as
full attention.

Shapes: N tokens, R sequences, T new tokens, S cached positions, H heads, K head width, B positions of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobre.models.cache import KVCache
from sobre.models.config import LightningConfig, ModelConfig
from sobre.models.layers import Linear, RMSNorm
from sobre.models.step import StepInput

NORM_EPS = 1e-6
"""Whatever the model's is, as in the released code."""


class Lightning(nn.Module):
    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        assert isinstance(cfg.attention, LightningConfig)
        self.cfg, self.layer = cfg.attention, layer
        self.n_layers = cfg.n_layers
        width = self.cfg.n_heads * self.cfg.head_dim
        self.qkv = Linear(cfg.d_model, 3 * width)
        self.gate = Linear(cfg.d_model, width)
        self.out = Linear(width, cfg.d_model)
        self.norm = RMSNorm(width, NORM_EPS)

    def forward(self, x_ND: Tensor, rope: tuple[Tensor, Tensor], step: StepInput, cache: KVCache | None) -> Tensor:
        qkv_NHK = F.silu(self.qkv(x_ND)).unflatten(-1, (self.cfg.n_heads, 3 * self.cfg.head_dim))
        q_NHK, k_NHK, v_NHK = qkv_NHK.split(self.cfg.head_dim, -1)
        slope_H = slopes(self.cfg.n_heads, self.layer, self.n_layers, x_ND.device)
        if cache is not None:
            rounded_NC = cache.write(self.layer, torch.cat([k_NHK.flatten(1), v_NHK.flatten(1)], -1), step)
            if rounded_NC is not None:
                k_NHK, v_NHK = rounded_NC.unflatten(-1, (2, self.cfg.n_heads, self.cfg.head_dim)).unbind(1)
        if cache is None or step.is_fresh:
            q_RHTK, k_RHTK, v_RHTK = (step.pad(part).transpose(1, 2) for part in (q_NHK, k_NHK, v_NHK))
            out_RTHK = linear_attention(q_RHTK, k_RHTK, v_RHTK, slope_H, self.cfg.block).transpose(1, 2)
        else:
            entries_RSC = cache.read(self.layer, step).to(x_ND.dtype)
            kv_RS2HK = entries_RSC.unflatten(-1, (2, self.cfg.n_heads, self.cfg.head_dim))
            out_RTHK = _cached(step.pad(q_NHK), kv_RS2HK[:, :, 0], kv_RS2HK[:, :, 1], slope_H, step)
        out_N = self.norm(step.unpad(out_RTHK).flatten(1))
        return self.out(torch.sigmoid(self.gate(x_ND)) * out_N)


def slopes(n_heads: int, layer: int, n_layers: int, device: torch.device | None = None) -> Tensor:
    """Decay rate of every head (float32): ALiBi's, and smaller in later layers."""
    base = 2.0 ** (-8 / n_heads)
    rates_H = base ** torch.arange(1, n_heads + 1, dtype=torch.float32, device=device)
    return rates_H * (1 - layer / (n_layers - 1 + 1e-5) + 1e-5)


def linear_attention(q_RHTK: Tensor, k_RHTK: Tensor, v_RHTK: Tensor, slope_H: Tensor, block: int) -> Tensor:
    """out_RHTK of sequences that start at 0, `block` positions at a time."""
    dtype, length = q_RHTK.dtype, q_RHTK.shape[2]
    offset_B = torch.arange(min(block, length), device=q_RHTK.device, dtype=torch.float32)
    ages_BB = offset_B[:, None] - offset_B
    decay_HBB = torch.exp(-slope_H[:, None, None] * ages_BB).masked_fill(ages_BB < 0, 0.0).to(dtype)
    since_HB1 = torch.exp(-slope_H[:, None] * (offset_B + 1)).unsqueeze(-1).to(dtype)
    state_RHKK: Tensor | None = None
    outs = []
    for begin in range(0, length, block):
        part = slice(begin, min(begin + block, length))
        q, k, v = q_RHTK[:, :, part], k_RHTK[:, :, part], v_RHTK[:, :, part]
        size = q.shape[2]
        out = (q @ k.mT * decay_HBB[:, :size, :size]) @ v
        if state_RHKK is not None:
            out = out + q * since_HB1[:, :size] @ state_RHKK
        outs.append(out)
        if part.stop < length:
            left_HB1 = decay_HBB[:, -1].unsqueeze(-1)  # how much of each position is left at the block's end
            grown = (k * left_HB1).mT @ v
            state_RHKK = grown if state_RHKK is None else state_RHKK * since_HB1[:, -1:] + grown
    return outs[0] if len(outs) == 1 else torch.cat(outs, 2)


def _cached(q_RTHK: Tensor, k_RSHK: Tensor, v_RSHK: Tensor, slope_H: Tensor, step: StepInput) -> Tensor:
    last_RT = step.starts_R[:, None] + torch.arange(step.max_length, device=q_RTHK.device)
    ages_RTS = (last_RT[..., None] - torch.arange(k_RSHK.shape[1], device=q_RTHK.device)).float()
    decay_RHTS = torch.exp(-slope_H[:, None, None] * ages_RTS.clamp_min(0).unsqueeze(1))
    decay_RHTS = decay_RHTS.masked_fill((ages_RTS < 0).unsqueeze(1), 0.0).to(q_RTHK.dtype)
    scores_RHTS = torch.einsum("rthk,rshk->rhts", q_RTHK, k_RSHK) * decay_RHTS
    # what lies beyond a sequence's own context is undefined in the cache, and 0 times undefined may not be 0
    v_RSHK = v_RSHK.masked_fill((ages_RTS < 0).all(1)[:, :, None, None], 0.0)
    scores_RHTS = scores_RHTS.masked_fill((ages_RTS < 0).unsqueeze(1), 0.0)
    return torch.einsum("rhts,rshk->rthk", scores_RHTS, v_RSHK)
