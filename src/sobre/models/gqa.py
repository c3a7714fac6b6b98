"""Grouped-query attention (arXiv 2305.13245) as Llama, Qwen, GLM, MiniMax, ERNIE and Seed have it.

The families differ in switches only: biases, a norm on queries and keys (per head, or over all heads), and how much of
a head is rotated.

Shapes: N tokens, R sequences, T new tokens of a sequence, S cached positions, H query heads, G key/value heads, K head
width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobre.kernels import select
from sobre.kernels.native.whole import Grouped, of_one_form
from sobre.models.attention import attend, whole
from sobre.models.cache import KVCache
from sobre.models.config import GQAConfig, LightningConfig, ModelConfig
from sobre.models.layers import Linear, RMSNorm
from sobre.models.rope import softmax_factor
from sobre.models.step import StepInput


class GQA(nn.Module):
    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        gqa = cfg.attention.full if isinstance(cfg.attention, LightningConfig) else cfg.attention
        assert isinstance(gqa, GQAConfig)
        self.cfg, self.layer, self.interleaved = gqa, layer, cfg.rope.interleaved
        self.unused, d = cfg.attention.cache_dim - gqa.cache_dim, cfg.d_model
        self.scale = gqa.head_dim**-0.5 * softmax_factor(cfg.rope)
        self.q = Linear(d, gqa.n_heads * gqa.head_dim, gqa.qkv_bias)
        self.k = Linear(d, gqa.n_kv_heads * gqa.head_dim, gqa.qkv_bias)
        self.v = Linear(d, gqa.n_kv_heads * gqa.head_dim, gqa.qkv_bias)
        self.o = Linear(gqa.n_heads * gqa.head_dim, d, gqa.o_bias)
        if gqa.qk_norm:
            self.q_norm = RMSNorm(gqa.head_dim * (gqa.n_heads if gqa.norm_all_heads else 1), cfg.norm_eps)
            self.k_norm = RMSNorm(gqa.head_dim * (gqa.n_kv_heads if gqa.norm_all_heads else 1), cfg.norm_eps)

    def forward(self, x_ND: Tensor, rope: tuple[Tensor, Tensor], step: StepInput, cache: KVCache | None) -> Tensor:
        gqa = self.cfg
        q_N, k_N = self.q(x_ND), self.k(x_ND)
        if gqa.norm_all_heads:
            q_N, k_N = self.q_norm(q_N), self.k_norm(k_N)
        q_NHK = q_N.unflatten(-1, (gqa.n_heads, gqa.head_dim))
        k_NGK = k_N.unflatten(-1, (gqa.n_kv_heads, gqa.head_dim))
        v_NGK = self.v(x_ND).unflatten(-1, (gqa.n_kv_heads, gqa.head_dim))
        if gqa.qk_norm and not gqa.norm_all_heads:
            q_NHK, k_NGK = self.q_norm(q_NHK), self.k_norm(k_NGK)
        q_NHK, k_NGK = self._rotate(q_NHK, rope), self._rotate(k_NGK, rope)
        if cache is not None:
            entry_NC = torch.cat([k_NGK.flatten(1), v_NGK.flatten(1)], -1)
            padded_NC = F.pad(entry_NC, (0, self.unused)) if self.unused else entry_NC
            rounded_NC = cache.write(self.layer, padded_NC, step)
            if rounded_NC is not None:
                kv_N2GK = rounded_NC[:, : gqa.cache_dim].unflatten(-1, (2, gqa.n_kv_heads, gqa.head_dim))
                k_NGK, v_NGK = kv_N2GK.unbind(1)
        if cache is None or (step.is_fresh and not cache.reads_fresh):
            out_NHK = attend(q_NHK, *whole(step, k_NGK, v_NGK), step, self.scale)
        elif step.max_length == 1:
            places = cache.paged(self.layer, step)
            out_NHK = select.grouped_decode(q_NHK, *places, gqa.n_kv_heads, gqa.head_dim, self.scale)
        else:
            entries_RSC = cache.read(self.layer, step)[..., : gqa.cache_dim].to(x_ND.dtype)
            kv_RS2GK = entries_RSC.unflatten(-1, (2, gqa.n_kv_heads, gqa.head_dim))
            out_RTHK = select.cached_attention(
                step.pad(q_NHK), kv_RS2GK[:, :, 0], kv_RS2GK[:, :, 1], step.later_RTS, self.scale
            )
            out_NHK = step.unpad(out_RTHK)
        return self.o(out_NHK.flatten(1))

    def whole(self, dtype: torch.dtype) -> Grouped | None:
        """The layer as one call takes it; None where it is more than its matrices."""
        gqa = self.cfg
        matrices = of_one_form([linear.matrix(dtype) for linear in (self.q, self.k, self.v, self.o)])
        if matrices is None:
            return None
        q, k, v, o = matrices
        return Grouped(
            q,
            k,
            v,
            o,
            self.q_norm.weight.float() if gqa.qk_norm else None,
            self.k_norm.weight.float() if gqa.qk_norm else None,
            gqa.n_heads,
            gqa.n_kv_heads,
            gqa.head_dim,
            gqa.rotary_dim,
            gqa.norm_all_heads,
            self.interleaved,
            self.q_norm.eps if gqa.qk_norm else 0.0,
            self.scale,
        )

    def _rotate(self, x_NHK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate the first `rotary_dim` numbers of every head."""
        if self.cfg.rotary_dim == self.cfg.head_dim:
            return select.rope(x_NHK, *rope, self.interleaved)
        turned, kept = x_NHK.split([self.cfg.rotary_dim, self.cfg.head_dim - self.cfg.rotary_dim], -1)
        return torch.cat([select.rope(turned, *rope, self.interleaved), kept], -1)
