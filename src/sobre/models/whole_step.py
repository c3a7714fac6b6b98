"""A decode step in one call: all layers, from the embedding to the final norm (kernels/native/layers.py).

A sequence may bring several tokens, its last one and guesses at the next: all entries of a layer are written before any
is read, and each token attends to those up to its own.

Where a model is more than its matrices (an adapter, a bias, sparse attention, a memory, groups of experts), where
somebody hooked a module, and where the cache keeps its entries in another dtype, there is no such call: `run` returns
None, and the caller takes the model's own parts. These are the specification.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sobre.kernels import select
from sobre.kernels.native.layers import Layer, Table
from sobre.kernels.native.whole import FEW_ROWS, Cells
from sobre.models.cache import KVCache
from sobre.models.config import MLAConfig, MoEConfig
from sobre.models.decoder import Block, Decoder
from sobre.models.ffn import SwiGLU
from sobre.models.gqa import GQA
from sobre.models.layers import RMSNorm
from sobre.models.mla import MLA
from sobre.models.moe import MoE
from sobre.models.step import StepInput, StepOutput

MOST_TOKENS = 128
"""New tokens that a call takes. Where weights are codes, whose products round their inputs, it takes FEW_ROWS."""


class WholeStep:
    """The decode steps of one model, with its weights as they lay when the first of them ran; or those of its MTP
    module, whose one block is the cache's last layer."""

    def __init__(self, model: object, *, ahead: bool = False) -> None:
        self.model = model if type(model) is Decoder else None
        self._ahead = ahead
        self._is_known = False
        self._table: Table | None = None

    def forget(self) -> None:
        """The weights are others now, or elsewhere."""
        self._is_known, self._table = False, None

    def run(self, step: StepInput, cache: KVCache) -> StepOutput | None:
        """What the model makes of few new tokens; None where its parts must."""
        at = self._place(step, cache)
        if self.model is None or at is None:
            return None
        return self._through(self.model, self.model.embed(step.tokens_N).to(self.model.dtype), step, at)

    def predict_second(
        self, hidden_ND: Tensor, next_tokens_N: Tensor, step: StepInput, cache: KVCache
    ) -> StepOutput | None:
        """As `Decoder.predict_second`; None where that must."""
        at = self._place(step, cache)
        if self.model is None or at is None:
            return None
        first = self.model.cfg.n_layers
        scales_LMP = None if at.scales_LMP is None else at.scales_LMP[first:]
        at = at._replace(cells_LMC=at.cells_LMC[first:], scales_LMP=scales_LMP)
        return self._through(self.model, self.model.join_second(hidden_ND, next_tokens_N), step, at)

    def _place(self, step: StepInput, cache: KVCache) -> Cells | None:
        """Where the entries of the step's tokens lie; None where one call cannot do it."""
        model, n = self.model, step.tokens_N.numel()
        if model is None or n > MOST_TOKENS or torch.is_grad_enabled():
            return None
        if not self._is_known:
            self._learn(model)
        if self._table is None or (n > FEW_ROWS and (self._table.form or _widens(model, step))):
            return None
        at = None if any(self._hooks) else cache.in_place(step)
        return None if at is None or (at.scales_LMP is None and at.cells_LMC.dtype != model.dtype) else at

    def _through(self, model: Decoder, x_ND: Tensor, step: StepInput, at: Cells) -> StepOutput | None:
        layers = select.whole("layers", x_ND)
        if layers is None or self._table is None:
            return None
        hidden_ND, experts_LNA = layers(x_ND, self._table, self._rope_T2, at)
        routes: tuple[Tensor, ...] = experts_LNA[:, : step.tokens_N.numel() - step.n_filler].unbind()
        n_experts = model.cfg.ffn.n_experts if isinstance(model.cfg.ffn, MoEConfig) else 0
        return StepOutput(hidden_ND, routes, n_experts, hidden_ND.new_zeros((), dtype=torch.float32))

    def _learn(self, model: Decoder) -> None:
        self._is_known, self._table = True, ahead_table(model) if self._ahead else table(model)
        self._rope_T2 = (model.rope.cos_T2.float().contiguous(), model.rope.sin_T2.float().contiguous())
        everywhere = torch.nn.modules.module
        self._hooks = [everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks]
        self._hooks += [hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]


def _widens(model: Decoder, step: StepInput) -> bool:
    """Whether the pieces of sequences are so long that the parts multiply less (`MLAConfig.widens`)."""
    mla = model.cfg.attention
    return step.max_length > 1 and isinstance(mla, MLAConfig) and mla.widens(step.lengths, step.starts)


def table(model: Decoder) -> Table | None:
    """The model's layers as one call takes them; None where one of them is more than that, or other."""
    return None if model.memory is not None else _table(model.layers, model.norm, model.dtype)


def ahead_table(model: Decoder) -> Table | None:
    """The same of the MTP module's block, where it has one."""
    return None if model.mtp is None else _table([model.mtp.block], model.mtp.norm, model.dtype)


def _table(blocks: Iterable[nn.Module], norm: RMSNorm, dtype: torch.dtype) -> Table | None:
    layers = [_layer(block, dtype) for block in blocks]
    there = [layer for layer in layers if layer is not None]
    forms = {form for layer in there for form in layer.forms}
    if len(there) < len(layers) or len(forms) > 1:
        return None
    return Table(there, norm.weight.float(), norm.eps)


def _layer(block: nn.Module, dtype: torch.dtype) -> Layer | None:
    if type(block) is not Block or block.attn_factors is not None:
        return None
    attention = block.attn.whole(dtype) if isinstance(block.attn, MLA | GQA) else None
    ffn = block.ffn.whole(dtype) if isinstance(block.ffn, MoE | SwiGLU) else None
    if attention is None or ffn is None:
        return None
    norms = block.attn_norm.weight.float(), block.ffn_norm.weight.float()
    return Layer(norms[0], attention, norms[1], ffn, block.attn_norm.eps)
