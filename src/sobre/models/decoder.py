"""The one decoder: embed, blocks, norm, head. Training, prefill, decode and every open family run this page.

Pre-norm residual blocks of attention and feed-forward; which kinds stands in the config. The model knows nothing of
losses: it returns hidden states, routes, loads and the balance loss, and the caller asks for logits where it needs
them.

Shapes: N tokens of a step, D width, V vocabulary, L routing layers, A active experts, E experts.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sobre.errors import ConfigError
from sobre.kernels import select
from sobre.models.cache import KVCache
from sobre.models.config import DenseConfig, GQAConfig, LightningConfig, LoraConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.ffn import SwiGLU
from sobre.models.gqa import GQA
from sobre.models.layers import Linear, RMSNorm
from sobre.models.lightning import Lightning
from sobre.models.memory import Memory
from sobre.models.mla import MLA
from sobre.models.moe import Dispatch, MoE, Router, Routing, local_dispatch
from sobre.models.rope import Rope
from sobre.models.step import StepInput, StepOutput


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); or MiniMax-01's form, see `ResidualConfig`."""

    def __init__(self, cfg: ModelConfig, layer: int, dispatch: Dispatch) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.ffn_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        match cfg.attention:
            case MLAConfig():
                self.attn: nn.Module = MLA(cfg, layer)
            case GQAConfig():
                self.attn = GQA(cfg, layer)
            case LightningConfig() as lightning:
                self.attn = GQA(cfg, layer) if layer in lightning.full_layers else Lightning(cfg, layer)
            case _ as never:
                assert_never(never)
        self.attn_factors: tuple[float, float] | None = None
        self.ffn_factors: tuple[float, float] | None = None
        if res := cfg.residual:
            linear = isinstance(self.attn, Lightning)
            self.attn_factors = (res.linear_alpha, res.linear_beta) if linear else (res.attn_alpha, res.attn_beta)
            self.ffn_factors = (res.ffn_alpha, res.ffn_beta)
        match cfg.ffn:
            case MoEConfig() as moe:
                routes = cfg.is_moe_layer(layer)
                self.ffn: nn.Module = (
                    MoE(moe, cfg.d_model, dispatch, cfg.ffn_bias)
                    if routes
                    else SwiGLU(cfg.d_model, moe.d_ff, cfg.ffn_bias)
                )
            case DenseConfig() as dense:
                self.ffn = SwiGLU(cfg.d_model, dense.d_ff, cfg.ffn_bias)
            case _ as never_ffn:
                assert_never(never_ffn)

    def forward(
        self,
        x_ND: Tensor,
        rope: tuple[Tensor, Tensor],
        step: StepInput,
        cache: KVCache | None,
        experts_NA: Tensor | None,
        parts: "Parts | None" = None,
    ) -> tuple[Tensor, Routing | None]:
        attend, feed = (parts.attend, parts.feed) if parts else (Block.attend, Block.feed)
        x_ND = attend(self, x_ND, rope, step, cache)
        if not isinstance(self.ffn, MoE):
            return feed(self, x_ND), None
        if parts is None:
            normed_ND = self.ffn_norm(x_ND)
            y_ND, routing = self.ffn(normed_ND, step, experts_NA)
        else:
            normed_ND, shared_ND, scores_NE = parts.score(self, x_ND)
            routing = self.ffn.router.routed(scores_NE, step, experts_NA)
            y_ND = self.ffn.visited(normed_ND, routing, shared_ND)
        return self._add(x_ND, normed_ND, y_ND, self.ffn_factors), routing

    def attend(
        self, x_ND: Tensor, rope: tuple[Tensor, Tensor], step: StepInput, cache: KVCache | None = None
    ) -> Tensor:
        """The first half."""
        normed_ND = self.attn_norm(x_ND)
        return self._add(x_ND, normed_ND, self.attn(normed_ND, rope, step, cache), self.attn_factors)

    def feed(self, x_ND: Tensor) -> Tensor:
        """The second half, where it is dense."""
        normed_ND = self.ffn_norm(x_ND)
        return self._add(x_ND, normed_ND, self.ffn(normed_ND), self.ffn_factors)

    def score(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The second half up to the choice of experts, where there are any: its norm, what the shared experts answer,
        and the router's scores."""
        assert isinstance(self.ffn, MoE)
        normed_ND = self.ffn_norm(x_ND)
        shared_ND = None if self.ffn.shared is None else self.ffn.shared(normed_ND)
        return normed_ND, shared_ND, self.ffn.router.scores(normed_ND)

    @staticmethod
    def _add(x_ND: Tensor, normed_ND: Tensor, y_ND: Tensor, factors: tuple[float, float] | None) -> Tensor:
        return x_ND + y_ND if factors is None else normed_ND * factors[0] + y_ND * factors[1]


class Parts(NamedTuple):
    """What runs in the place of a block's halves (models/regions.py)."""

    attend: Callable[..., Tensor]
    feed: Callable[..., Tensor]
    score: Callable[..., Any]


class MTP(nn.Module):
    """Multi-token prediction, depth 1 (DeepSeek-V3, 2.2): from h_i and the token at i+1 to a hidden state for i+2.

    Embedding and head are the main model's. The concatenation is [embedding; hidden], as in the released weights.
    """

    def __init__(self, cfg: ModelConfig, dispatch: Dispatch) -> None:
        super().__init__()
        self.embed_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.hidden_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.proj = Linear(2 * cfg.d_model, cfg.d_model)
        self.block = Block(cfg, cfg.n_layers, dispatch)
        self.norm = RMSNorm(cfg.d_model, cfg.norm_eps)


class Decoder(nn.Module):
    """`Decoder(cfg)` allocates; `init_weights(seed)` fills; `dtype` is what forward computes in."""

    family: str
    """The model_type that the weights came in, and leave in again; empty for a model of our own."""
    lora: LoraConfig | None
    """How it is adapted (models/adapt.py); None when the weights are all there is."""

    recompute: bool = False
    """Training computes each block twice and keeps its input alone in between (arXiv 1604.06174)."""
    parts: Parts | None = None
    """Compiled halves of a block, for training on sequences of one length; None runs them as they are."""

    def __init__(
        self, cfg: ModelConfig, *, dtype: torch.dtype = torch.float32, dispatch: Dispatch = local_dispatch
    ) -> None:
        super().__init__()
        if not cfg.vocab_size or not cfg.max_len:
            raise ConfigError(f"vocab_size={cfg.vocab_size} and max_len={cfg.max_len} must be known to build a model")
        self.cfg, self.dtype = cfg, dtype
        self.family = ""
        self.lora: LoraConfig | None = None
        self.rope = Rope(cfg.rope, cfg.attention.rotary_dim, cfg.max_len)
        # not nn.Embedding(V, D): that draws numbers, which on the meta device imports torch's compiler (seconds)
        self.embed = nn.Embedding.from_pretrained(torch.empty(cfg.vocab_size, cfg.d_model), freeze=False)
        self.layers = nn.ModuleList(Block(cfg, layer, dispatch) for layer in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.head: nn.Module | None = None if cfg.tied else Linear(cfg.d_model, cfg.vocab_size)
        self.mtp = MTP(cfg, dispatch) if cfg.n_mtp else None
        self.memory = Memory(cfg) if cfg.memory.layers else None

    @property
    def device(self) -> torch.device:
        """Where its weights are; some of them, if the layers are divided over processes."""
        return self.rope.cos_T2.device

    @property
    def head_VD(self) -> Tensor:
        """The output head's weight (the embedding's, when tied), in its own dtype."""
        return self.embed.weight if not isinstance(self.head, Linear) else self.head.weight

    def forward(self, step: StepInput, cache: KVCache | None = None, routes_LNA: Tensor | None = None) -> StepOutput:
        """Run the step; `routes_LNA` replays experts chosen before (routing layers of the main model, in order)."""
        x_ND = self.embed(step.tokens_N).to(self.dtype)
        x_ND, routings = self.through(range(self.cfg.n_layers), x_ND, step, cache, routes_LNA)
        return output_of(self.norm(x_ND), routings, step, self.cfg)

    def through(
        self,
        layers: range,
        x_ND: Tensor,
        step: StepInput,
        cache: KVCache | None = None,
        routes_LNA: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Some of the layers, one after the other; `routes_LNA` has the routing layers of the whole model."""
        rope = self.rope(step.positions_N)
        routings: list[Routing] = []
        first = sum(self.cfg.is_moe_layer(layer) for layer in range(layers.start))
        grams_NO = None if self.memory is None else self.memory.grams(step, cache)
        for layer in layers:
            block = self.layers[layer]
            if self.memory is not None and str(layer) in self.memory.at:
                x_ND = self.memory.at[str(layer)](x_ND, grams_NO, step, cache)
            given = None
            if routes_LNA is not None and self.cfg.is_moe_layer(layer):
                given = routes_LNA[first + len(routings)]
            x_ND, routing = self._run(block, x_ND, rope, step, cache, given)
            if routing is not None:
                routings.append(routing)
        return x_ND, routings

    def _run(
        self,
        block: nn.Module,
        x_ND: Tensor,
        rope: tuple[Tensor, Tensor],
        step: StepInput,
        cache: KVCache | None,
        experts_NA: Tensor | None,
    ) -> tuple[Tensor, Routing | None]:
        """A block; under `recompute` it keeps its input alone and runs once more in the backward pass.

        The second run visits the experts of the first: rounding cannot send a token elsewhere.
        """
        learns = self.training and torch.is_grad_enabled()
        parts = self.parts if learns and cache is None and step.is_uniform and step.pieces is None else None
        if not (self.recompute and learns):
            return block(x_ND, rope, step, cache, experts_NA, parts)
        chosen = [experts_NA]

        def again(x_ND: Tensor) -> tuple[Tensor, Routing | None]:
            y_ND, routing = block(x_ND, rope, step, cache, chosen[0], parts)
            if routing is not None:
                chosen[0] = routing.experts_NA
            return y_ND, routing

        return checkpoint(again, x_ND, use_reentrant=False, preserve_rng_state=False)

    def predict_second(
        self, hidden_ND: Tensor, next_tokens_N: Tensor, step: StepInput, cache: KVCache | None = None
    ) -> StepOutput:
        """The MTP module: hidden states that predict the token after `next_tokens_N`. In a cache it is layer n_layers;
        its entries stand at the positions of the hidden states."""
        assert self.mtp is not None, "the config has n_mtp = 0"
        x_ND = self.join_second(hidden_ND, next_tokens_N)
        x_ND, routing = self._run(self.mtp.block, x_ND, self.rope(step.positions_N), step, cache, None)
        return output_of(self.mtp.norm(x_ND), [] if routing is None else [routing], step, self.cfg)

    def join_second(self, hidden_ND: Tensor, next_tokens_N: Tensor) -> Tensor:
        """What the MTP module's block reads: hidden states and the tokens that follow, as one (x_ND)."""
        assert self.mtp is not None, "the config has n_mtp = 0"
        embed_ND = self.mtp.embed_norm(self.embed(next_tokens_N).to(self.dtype))
        return self.mtp.proj(torch.cat([embed_ND, self.mtp.hidden_norm(hidden_ND)], -1))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV in float32."""
        if self.head is not None:
            return self.head(hidden_ND).float()
        return select.linear(hidden_ND, self.embed.weight.to(hidden_ND.dtype), None).float()

    def computing_in(self, dtype: torch.dtype) -> "Decoder":
        """The same weights under another compute dtype: a second view of this module, not a copy."""
        view = copy.copy(self)
        view.dtype = dtype
        return view

    def for_decoding(self) -> "Decoder":
        """The view that decodes fastest where the weights lie."""
        return self.computing_in(select.decoding_dtype(self.device.type, self.dtype))

    def routers(self) -> list[Router]:
        """Routers in the order of StepOutput.load_LE, the MTP module's last."""
        return [module for module in self.modules() if isinstance(module, Router)]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal with `init_std`; what adds to the residual stream is scaled by 1 / sqrt(2 n_layers); norms are 1, the
        memory's convolution 0.

        The scaling is GPT-2's; V3 uses 0.006 everywhere, which is small enough at its width to need none.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = (2 * self.cfg.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "conv_KD")):
                parameter.zero_()
            elif "norm" in name.split(".")[-2]:
                parameter.fill_(1.0)
            else:
                adds = name.endswith(("attn.o.weight", "attn.out.weight", "down.weight", "down_EDF"))
                parameter.normal_(0.0, self.cfg.init_std * (residual if adds else 1.0), generator=generator)


def output_of(hidden_ND: Tensor, routings: list[Routing], step: StepInput, cfg: ModelConfig) -> StepOutput:
    """What the step returns, of the routing layers that ran."""
    losses = [routing.balance_loss for routing in routings if routing.balance_loss is not None]
    balance_loss = torch.stack(losses).sum() if losses else hidden_ND.new_zeros((), dtype=torch.float32)
    n_experts = cfg.ffn.n_experts if isinstance(cfg.ffn, MoEConfig) else 0
    n_real = step.tokens_N.numel() - step.n_filler
    routes = tuple(routing.experts_NA[:n_real] for routing in routings)
    return StepOutput(hidden_ND, routes, n_experts, balance_loss)
