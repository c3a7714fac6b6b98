"""DeepSeekMoE: shared experts plus A of E routed ones, balanced by a bias (DeepSeek-V3, arXiv 2412.19437, 2.1.2).

The router works in float32 at least. Its bias steers the choice of experts and never touches their weights; a buffer,
moved after each optimizer step by the load of the whole batch (`rebalance`), saved with the weights, frozen in RL.
Groups that a token may not visit score minus infinity (zero would be wrong once biases are negative).
DeepSeek-V2 (arXiv 2405.04434, 2.2.2), Qwen3-MoE, ERNIE 4.5 and MiniMax-01 score by softmax over all experts; V2 judges
a group by its best expert, V3 by its two best. Without a bias the buffer stays zero and is not saved.

Shapes: N tokens, R sequences, D width, E experts, A active experts, F expert width, X groups of experts.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sobre.kernels import select
from sobre.kernels.fp8_linear import fp8_moe_ffn
from sobre.kernels.kept import Blocks
from sobre.kernels.moe import by_expert
from sobre.kernels.native.whole import FEW_ROWS, Gated, Matrix, Routed, of_one_form
from sobre.models.config import MoEConfig
from sobre.models.ffn import SwiGLU
from sobre.models.lora import ExpertsLoRA
from sobre.models.step import StepInput
from sobre.runtime.device import carried
from sobre.train.config import Precision


class Routing(NamedTuple):
    """What the router decided, and what the balance is judged by."""

    weights_NA: Tensor
    experts_NA: Tensor
    balance_loss: Tensor | None
    """None in eval mode."""


class Dispatch(Protocol):
    """Brings tokens to the experts that they chose and the weighted sum of the answers back: y_ND."""

    def __call__(
        self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor: ...


class Packed:
    """A dispatch over experts that lie packed (models/quantised.py)."""

    def matrices(self) -> Sequence[Matrix | None]:
        """Gate, up and down, as `Linear.matrix` gives them."""
        raise NotImplementedError


def local_dispatch(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """All experts live in this process."""
    return select.moe_ffn(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)


class Router(nn.Module):
    """Choose A of E experts per token."""

    bias_E: Tensor

    def __init__(self, cfg: MoEConfig, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.weight_ED = nn.Parameter(torch.empty(cfg.n_experts, d_model))
        self.register_buffer("bias_E", torch.zeros(cfg.n_experts), persistent=cfg.biased)

    def forward(self, x_ND: Tensor, step: StepInput, experts_NA: Tensor | None = None) -> Routing:
        """Route every token; `experts_NA`, if given, replaces the choice and keeps the weights' gradient."""
        return self.routed(self.scores(x_ND), step, experts_NA)

    def scores(self, x_ND: Tensor) -> Tensor:
        """How well each expert fits each token: scores_NE."""
        return select.router_scores(x_ND, self.weight_ED, self.cfg.score)

    def routed(self, scores_NE: Tensor, step: StepInput, experts_NA: Tensor | None = None) -> Routing:
        """Route by these scores, as `forward` does."""
        if experts_NA is None:
            experts_NA = self._choose(scores_NE.detach())
        weights_NA = scores_NE.gather(-1, experts_NA)
        if self.cfg.norm_weights:
            weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
        weights_NA = weights_NA * self.cfg.route_scale
        return Routing(
            weights_NA,
            experts_NA,
            self._balance_loss(scores_NE[: step.real.tokens_N.numel()], step.real) if self.training else None,
        )

    def _choose(self, scores_NE: Tensor) -> Tensor:
        steered_NE = scores_NE + self.bias_E if self.cfg.biased else scores_NE
        if self.cfg.n_groups > 1:
            grouped_NXE = steered_NE.unflatten(-1, (self.cfg.n_groups, -1))
            n_judges = min(2 if self.cfg.score == "sigmoid" else 1, grouped_NXE.shape[-1])
            best_NX = grouped_NXE.topk(n_judges, dim=-1).values.sum(-1)
            kept_NX = best_NX.topk(self.cfg.n_active_groups, dim=-1).indices
            closed_NX = torch.ones_like(best_NX, dtype=torch.bool).scatter_(-1, kept_NX, False)
            steered_NE = grouped_NXE.masked_fill(closed_NX.unsqueeze(-1), -torch.inf).flatten(1)
        return select.best_experts(steered_NE, self.cfg.n_active)

    def _balance_loss(self, scores_NE: Tensor, step: StepInput) -> Tensor:
        """alpha * sum_i f_i P_i for each sequence, summed over sequences (eqs 17-20); f carries no gradient."""
        cfg = self.cfg
        if not cfg.balance_alpha or not (step.n_sequences or step.pieces):
            return scores_NE.new_zeros(())
        chosen_NA = select.best_experts(scores_NE.detach(), cfg.n_active)
        picked_NE = torch.zeros_like(scores_NE).scatter_(-1, chosen_NA, 1.0)
        share_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
        picked_RE, share_RE = _sum_by_sequence(picked_NE, step), _sum_by_sequence(share_NE, step)
        lengths_R1 = step.lengths_R.unsqueeze(-1)
        if step.pieces is not None:  # what each process adds to the loss of a sequence that others have, too
            picked_RE = step.pieces.summed(picked_RE)
            lengths_R1 = carried(torch.tensor(step.pieces.lengths), picked_RE.device).unsqueeze(-1)
        f_RE = picked_RE * (cfg.n_experts / cfg.n_active) / lengths_R1
        return cfg.balance_alpha * (f_RE * share_RE / lengths_R1).sum()

    @torch.no_grad()
    def rebalance(self, load_E: Tensor) -> None:
        """Move the bias against the load: +speed below the mean, -speed above."""
        load_E = load_E.float()
        self.bias_E += self.cfg.bias_speed * torch.sign(load_E.mean() - load_E)


class MoE(nn.Module):
    gate_EFD_factors: Tensor | None
    up_EFD_factors: Tensor | None
    down_EDF_factors: Tensor | None
    precision: Precision = "auto"
    """What training multiplies in (models/low_precision.py); auto is the dtype of the input."""

    def __init__(self, cfg: MoEConfig, d_model: int, dispatch: Dispatch, bias: bool = False) -> None:
        super().__init__()
        self.dispatch = dispatch
        self.router = Router(cfg, d_model)
        self.gate_EFD = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_expert, d_model))
        self.up_EFD = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_expert, d_model))
        self.down_EDF = nn.Parameter(torch.empty(cfg.n_experts, d_model, cfg.d_expert))
        for name in ("gate_EFD", "up_EFD", "down_EDF"):
            self.register_buffer(f"{name}_factors", None)
        self.shared = SwiGLU(d_model, cfg.n_shared * cfg.d_expert, bias) if cfg.n_shared else None
        self.lora: ExpertsLoRA | None = None

    def forward(self, x_ND: Tensor, step: StepInput, experts_NA: Tensor | None = None) -> tuple[Tensor, Routing]:
        if experts_NA is None and len(x_ND) <= FEW_ROWS and not torch.is_grad_enabled():
            if (routed := select.whole("routed", x_ND)) and (layer := self.whole(x_ND.dtype)):
                y_ND, weights_NA, experts_NA = routed(x_ND, layer)
                return y_ND, Routing(weights_NA, experts_NA, None)
        routing = self.router(x_ND, step, experts_NA)
        return self.visited(x_ND, routing, None if self.shared is None else self.shared(x_ND)), routing

    def visited(self, x_ND: Tensor, routing: Routing, shared_ND: Tensor | None) -> Tensor:
        """The answers of the experts that were chosen, and of the shared ones: y_ND."""
        y_ND = self._routed(x_ND, routing)
        return y_ND if shared_ND is None else y_ND + shared_ND

    def _routed(self, x_ND: Tensor, routing: Routing) -> Tensor:
        dtype = x_ND.dtype
        if self.gate_EFD_factors is not None:
            return by_expert(x_ND, routing.experts_NA, routing.weights_NA, self._kept_expert)
        masters = (self.gate_EFD, self.up_EFD, self.down_EDF)
        if self.precision != "auto" and self.training:
            power_of_two = self.precision == "fp8-power-of-two"
            return fp8_moe_ffn(x_ND, routing.experts_NA, routing.weights_NA, *masters, power_of_two=power_of_two)
        stacked = (master.to(dtype) for master in masters)
        experts = self.dispatch if self.lora is None else self.lora
        return experts(x_ND, routing.experts_NA, routing.weights_NA, *stacked)

    def whole(self, dtype: torch.dtype) -> Routed | None:
        """The layer as one call takes it; None where it is more than that, or other."""
        router, cfg = self.router, self.router.cfg
        if self.training or cfg.n_groups > 1 or self.lora is not None or self.gate_EFD_factors is not None:
            return None
        if self.dispatch is local_dispatch:
            is_plain = self.gate_EFD.dtype == dtype and self.gate_EFD.is_contiguous()
            experts = [Matrix(weight) if is_plain else None for weight in (self.gate_EFD, self.up_EFD, self.down_EDF)]
        else:
            experts = list(self.dispatch.matrices()) if isinstance(self.dispatch, Packed) else [None]
        shared = () if self.shared is None else self.shared.matrices(dtype)
        matrices = of_one_form([*experts, *shared])
        if matrices is None:
            return None
        return Routed(
            router.weight_ED.float(),
            router.bias_E.float() if cfg.biased else None,
            Gated(*matrices[:3]),
            Gated(*matrices[3:]) if shared else None,
            cfg.n_active,
            cfg.score == "softmax",
            cfg.norm_weights,
            float(cfg.route_scale),
        )

    def _kept_expert(self, expert: int, x_MD: Tensor) -> Tensor:
        """An expert whose matrices stay in FP8."""
        assert self.gate_EFD_factors is not None
        assert self.up_EFD_factors is not None
        assert self.down_EDF_factors is not None
        gate_MF = select.kept_linear(x_MD, Blocks(self.gate_EFD[expert], self.gate_EFD_factors[expert]))
        up_MF = select.kept_linear(x_MD, Blocks(self.up_EFD[expert], self.up_EFD_factors[expert]))
        return select.kept_linear(
            select.swiglu(gate_MF, up_MF), Blocks(self.down_EDF[expert], self.down_EDF_factors[expert])
        )


def _sum_by_sequence(x_NE: Tensor, step: StepInput) -> Tensor:
    if step.pieces is not None:
        sequence_R = carried(torch.tensor(step.pieces.sequences), x_NE.device)
        sums_RE = x_NE.new_zeros(len(step.pieces.lengths), x_NE.shape[1])
        return sums_RE.index_add(0, sequence_R[step.sequence_N], x_NE)
    if step.is_uniform:
        return step.pad(x_NE).sum(1)
    return x_NE.new_zeros(step.n_sequences, x_NE.shape[1]).index_add(0, step.sequence_N, x_NE)
