"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1; V3, arXiv 2412.19437, 2.1.1).

Keys and values of all heads are rebuilt from one latent c of width C per token, and one rotary key is shared by all
heads; only the two are cached, after norm and rotation. Two forms of the same sums:
  naive     training, prefill and long pieces of a prompt: rebuild k and v of every head, those of cached tokens too,
            then ordinary attention;
  absorbed  few tokens after cached ones (`MLAConfig.widens` counts), and with sparse attention once the context
            outgrows its choice: fold the key map into the query and the value map into the output, so that all heads
            attend to the latents themselves: multi-query attention with one key of width C + rope and one value of
            width C. An engine whose bits must not depend on the cut of a prompt takes no other form.
Sparse attention (V3.2, models/indexer.py) is the absorbed form with one more mask.

The norms of the two latents have their own epsilon, 1e-6 whatever the model's is, as in DeepSeek's released code.

Shapes: N tokens (M of all pieces), R sequences, T new tokens of a sequence, S cached positions, H heads, P head width
without position, K = P + rope, W value head width, C latent width, D model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sobre.kernels import select
from sobre.kernels.native.whole import FEW_ROWS, Latent, of_one_form
from sobre.kernels.paged import Places
from sobre.models.attention import attend, whole
from sobre.models.cache import KVCache
from sobre.models.config import MLAConfig, ModelConfig
from sobre.models.indexer import Indexer
from sobre.models.layers import Linear, RMSNorm
from sobre.models.rope import softmax_factor
from sobre.models.step import StepInput

LATENT_EPS = 1e-6
WIDE_NUMBERS = 1 << 24
"""Numbers of the keys and values that are rebuilt at a time; those of one head at least."""


class MLA(nn.Module):
    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        assert isinstance(cfg.attention, MLAConfig)
        self.cfg, self.layer, self.interleaved = cfg.attention, layer, cfg.rope.interleaved
        mla, d = cfg.attention, cfg.d_model
        self.scale = mla.qk_dim**-0.5 * softmax_factor(cfg.rope)
        if mla.q_rank:
            self.q_down = Linear(d, mla.q_rank, mla.bias)
            self.q_norm = RMSNorm(mla.q_rank, LATENT_EPS)
            self.q_up = Linear(mla.q_rank, mla.n_heads * mla.qk_dim)
        else:
            self.q = Linear(d, mla.n_heads * mla.qk_dim)
        self.kv_down = Linear(d, mla.latent_dim, mla.bias)
        self.kv_norm = RMSNorm(mla.kv_rank, LATENT_EPS)
        self.kv_up = Linear(mla.kv_rank, mla.n_heads * (mla.nope_dim + mla.v_dim))
        if mla.indexer:
            self.index = Indexer(mla.indexer, d, mla.q_rank, mla.rope_dim)
        self.o = Linear(mla.n_heads * mla.v_dim, d, mla.bias)

    def forward(self, x_ND: Tensor, rope: tuple[Tensor, Tensor], step: StepInput, cache: KVCache | None) -> Tensor:
        mla = self.cfg
        if cache is not None and (latent_step := self._one_call(x_ND, step)) and (layer := self.whole(x_ND.dtype)):
            at = cache.in_place(step)
            if at is not None and at.cells_LMC.dtype == x_ND.dtype:
                return latent_step(x_ND, layer, rope, at, self.layer)
        q_latent_N = self.q_norm(self.q_down(x_ND)) if mla.q_rank else x_ND
        q_N = self.q_up(q_latent_N) if mla.q_rank else self.q(x_ND)
        q_NHK = q_N.unflatten(-1, (mla.n_heads, mla.qk_dim))
        latent_NC, k_rope_Nr = self.kv_down(x_ND).split([mla.kv_rank, mla.rope_dim], -1)
        latent_NC = self.kv_norm(latent_NC)
        k_rope_Nr = select.rope(k_rope_Nr.unsqueeze(1), *rope, self.interleaved).squeeze(1)
        entry_NC = torch.cat([latent_NC, k_rope_Nr], -1)
        if mla.indexer:
            entry_NC = torch.cat([entry_NC, self.index.key(x_ND, rope)], -1)
        rounded_NC = None if cache is None else cache.write(self.layer, entry_NC, step)
        if rounded_NC is not None:
            entry_NC = rounded_NC
            latent_NC, k_rope_Nr = entry_NC[:, : mla.latent_dim].split([mla.kv_rank, mla.rope_dim], -1)
        fresh = cache is None or (step.is_fresh and not cache.reads_fresh)
        chooses = mla.indexer is not None and step.context > mla.indexer.n_keys
        if fresh and not chooses:
            out_NHW = self._naive(q_NHK, latent_NC, k_rope_Nr, rope, step)
        elif cache is not None and not chooses and step.max_length == 1:
            out_NHW = self._decoded(*self._rotated(q_NHK, rope), *cache.paged(self.layer, step))
        elif cache is not None and not cache.reads_fresh and mla.widens(step.lengths, step.starts):
            out_NHW = self._widened(*self._rotated(q_NHK, rope), cache.read(self.layer, step).to(x_ND.dtype), step)
        else:
            entries_RSC = step.pad(entry_NC) if fresh or cache is None else cache.read(self.layer, step).to(x_ND.dtype)
            bias_RTS = step.later_RTS
            if chooses:
                keys_RSI = entries_RSC[..., mla.latent_dim :]
                bias_RTS = self.index.unseen(x_ND, q_latent_N, keys_RSI, rope, step)
            out_NHW = self._absorbed(*self._rotated(q_NHK, rope), entries_RSC[..., : mla.latent_dim], bias_RTS, step)
        return self.o(out_NHW.flatten(1))

    def _rotated(self, q_NHK: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The two parts of every query, the rotary one rotated."""
        q_NHP, q_rope_NHr = q_NHK.split([self.cfg.nope_dim, self.cfg.rope_dim], -1)
        return q_NHP, select.rope(q_rope_NHr, *rope, self.interleaved)

    def _one_call(self, x_ND: Tensor, step: StepInput) -> Callable[..., Tensor] | None:
        """What attends for one new token of few sequences at once; None where there is none, or the step is another."""
        if step.max_length > 1 or len(x_ND) > FEW_ROWS or torch.is_grad_enabled():
            return None
        return select.whole("latent_step", x_ND)

    def whole(self, dtype: torch.dtype) -> Latent | None:
        """The layer as one call takes it; None where it is more than its matrices."""
        mla = self.cfg
        if mla.indexer:
            return None
        maps = self.kv_up.matrix(dtype)
        q = (self.q_down.matrix(dtype), self.q_up.matrix(dtype)) if mla.q_rank else (self.q.matrix(dtype),)
        matrices = of_one_form([*q, self.kv_down.matrix(dtype), self.o.matrix(dtype)])
        if maps is None or matrices is None:
            return None
        return Latent(
            matrices[0] if mla.q_rank else None,
            self.q_norm.weight.float() if mla.q_rank else None,
            matrices[-3],
            matrices[-2],
            self.kv_norm.weight.float(),
            maps.weights.view(mla.n_heads, -1, mla.kv_rank),
            matrices[-1],
            mla.rope_dim,
            mla.v_dim,
            self.interleaved,
            LATENT_EPS,
            self.scale,
        )

    def _naive(
        self, q_NHK: Tensor, latent_NC: Tensor, k_rope_Nr: Tensor, rope: tuple[Tensor, Tensor], step: StepInput
    ) -> Tensor:
        latent_MC, k_rope_Mr = whole(step, latent_NC, k_rope_Nr)
        kv_MHX = self.kv_up(latent_MC).unflatten(-1, (self.cfg.n_heads, -1))
        q_NHK, k_MHK, v_MHW = select.latent_heads(q_NHK, kv_MHX, k_rope_Mr, *rope, self.interleaved)
        return attend(q_NHK, k_MHK, v_MHW, step, self.scale)

    def _widened(self, q_NHP: Tensor, q_rope_NHr: Tensor, entries_RSC: Tensor, step: StepInput) -> Tensor:
        """The naive form over what is cached: one sequence after the other, as many heads at once as `WIDE_NUMBERS`
        holds the keys and values of."""
        mla = self.cfg
        k_up_HPC, v_up_HWC = self._maps(q_NHP.dtype)
        q_NHK = torch.cat([q_NHP, q_rope_NHr], -1)
        outs = []
        for q_THK, entries_SC, start in zip(q_NHK.split(step.lengths), entries_RSC, step.starts, strict=True):
            latent_SC, k_rope_Sr = entries_SC[: start + len(q_THK), : mla.latent_dim].split(
                [mla.kv_rank, mla.rope_dim], -1
            )
            n_heads = max(1, WIDE_NUMBERS // (len(latent_SC) * (mla.qk_dim + mla.v_dim)))
            by_heads = zip(
                *(x.split(n_heads, dim) for x, dim in ((q_THK, 1), (k_up_HPC, 0), (v_up_HWC, 0))), strict=True
            )
            parts = []
            for q_ThK, k_up_hPC, v_up_hWC in by_heads:
                k_ShP, v_ShW = (
                    select.linear(latent_SC, up.flatten(0, 1), None).unflatten(-1, up.shape[:2])
                    for up in (k_up_hPC, v_up_hWC)
                )
                k_ShK = torch.cat([k_ShP, k_rope_Sr.unsqueeze(1).expand(-1, len(k_up_hPC), -1)], -1)
                parts.append(select.tail_attention(q_ThK, k_ShK, v_ShW, self.scale))
            outs.append(torch.cat(parts, 1))
        return torch.cat(outs)

    def _absorbed(
        self, q_NHP: Tensor, q_rope_NHr: Tensor, entries_RSC: Tensor, bias_RTS: Tensor, step: StepInput
    ) -> Tensor:
        mla = self.cfg
        k_up_HPC, v_up_HWC = self._maps(q_NHP.dtype)
        q_NHC = select.heads_linear(q_NHP, k_up_HPC)
        entries_RS1C = entries_RSC.unsqueeze(2)
        q_RTHC = step.pad(torch.cat([q_NHC, q_rope_NHr], -1))
        out_RTHC = select.cached_attention(q_RTHC, entries_RS1C, entries_RS1C[..., : mla.kv_rank], bias_RTS, self.scale)
        out_NHC = step.unpad(out_RTHC)
        return select.heads_linear(out_NHC, v_up_HWC.transpose(1, 2))

    def _decoded(self, q_NHP: Tensor, q_rope_NHr: Tensor, cells_MC: Tensor, places: Places) -> Tensor:
        """The absorbed form of one new token per sequence, over the cache's cells where they lie."""
        k_up_HPC, v_up_HWC = self._maps(q_NHP.dtype)
        q_NHC = torch.cat([select.heads_linear(q_NHP, k_up_HPC), q_rope_NHr], -1)
        out_NHC = select.latent_decode(q_NHC, cells_MC, places, self.cfg.kv_rank, self.scale)
        return select.heads_linear(out_NHC, v_up_HWC.transpose(1, 2))

    def _maps(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """From the latent to the keys (H, P, C) and values (H, W, C) of every head."""
        mla = self.cfg
        kv_up_HC = self.kv_up.whole_weight(dtype).unflatten(0, (mla.n_heads, mla.nope_dim + mla.v_dim))
        return kv_up_HC.split([mla.nope_dim, mla.v_dim], 1)
