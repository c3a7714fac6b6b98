"""DeepSeek Sparse Attention's lightning indexer (DeepSeek-V3.2, arXiv 2512.02556, 2.1): which keys a query may see.

A light score of every earlier token, I_ts = sum over heads j of w_tj relu(q_tj . k_s), picks the `n_keys` best. It has
its own queries (from the compressed query), one key shared by its heads (normed by a LayerNorm), and rotates the first
`rope_dim` numbers in halves, whatever the attention does. The released code computes the products in FP8 after a
Hadamard rotation, which leaves them unchanged but for rounding; we leave both out. The choice carries no gradient: the
indexer is used as released and not trained here.

Of keys of equal score, the earlier are chosen. Equal scores are common with few index heads: zero wherever no head
responds. The released code leaves such a choice to `topk`, whose order changes with the length of the row, so that
decoding would not continue what prefill began.

Shapes: N tokens, R sequences, T new tokens, S cached positions, J index heads, I index width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobre.kernels import select
from sobre.models.config import IndexerConfig
from sobre.models.layers import Linear
from sobre.models.step import StepInput


class Indexer(nn.Module):
    def __init__(self, cfg: IndexerConfig, d_model: int, q_rank: int, rope_dim: int) -> None:
        super().__init__()
        self.cfg, self.rope_dim = cfg, rope_dim
        self.q_up = Linear(q_rank, cfg.n_heads * cfg.dim)
        self.k = Linear(d_model, cfg.dim)
        self.k_norm = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.weigh = Linear(d_model, cfg.n_heads)
        self.requires_grad_(False)

    def key(self, x_ND: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """key_NI: what the cache keeps beside the latent."""
        key_NI = F.layer_norm(
            self.k(x_ND).float(),
            (self.cfg.dim,),
            self.k_norm.weight.float(),
            self.k_norm.bias.float(),
            self.k_norm.eps,
        )
        return self._rotate(key_NI.to(x_ND.dtype).unsqueeze(1), rope).squeeze(1)

    @torch.no_grad()
    def unseen(
        self, x_ND: Tensor, q_latent_NC: Tensor, keys_RSI: Tensor, rope: tuple[Tensor, Tensor], step: StepInput
    ) -> Tensor:
        """bias_RTS: minus infinity where token t must not look at position s (later, or not chosen), else 0."""
        cfg = self.cfg
        q_NJI = self._rotate(self.q_up(q_latent_NC).unflatten(-1, (cfg.n_heads, cfg.dim)), rope)
        weights_NJ = self.weigh(x_ND).float() * (cfg.n_heads * cfg.dim) ** -0.5
        q_RTJI, weights_RTJ = step.pad(q_NJI).float(), step.pad(weights_NJ)
        keys_R1IS = keys_RSI.float().mT.unsqueeze(1)
        scores_RTJS = torch.relu(q_RTJI @ keys_R1IS)
        scores_RTS = (weights_RTJ.unsqueeze(-2) @ scores_RTJS).squeeze(-2)
        seen_RTS = torch.where(step.later_RTS < 0, -torch.inf, scores_RTS)
        return step.later_RTS.masked_fill(~_best(seen_RTS, cfg.n_keys), -torch.inf)

    def _rotate(self, x_NJI: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        turned, kept = x_NJI.split([self.rope_dim, self.cfg.dim - self.rope_dim], -1)
        return torch.cat([select.rope(turned, *rope, False), kept], -1)


def _best(scores_RTS: Tensor, n: int) -> Tensor:
    """Where the n largest of each row are; of equals, the first."""
    least_RT1 = scores_RTS.topk(n, dim=-1).values[..., -1:]
    above_RTS, equal_RTS = scores_RTS > least_RT1, scores_RTS == least_RT1
    room_RT1 = n - above_RTS.sum(-1, keepdim=True)
    return above_RTS | (equal_RTS & (equal_RTS.cumsum(-1) <= room_RT1))
