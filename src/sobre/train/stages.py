"""A decoder cut into the stages of a pipeline, and a step's micro-batches through them.

Stages have about as many layers, and MTP counts as one. The first has the embedding, the last has norm, head and MTP,
and a copy of the embedding if that or a tied head needs it: both ends then sum its gradient, and move it alike. What
a process does not have leaves its place empty, so every parameter keeps its name.

Hidden states alone travel. A stage adds its balance loss where its gradient is due (`_Attached`), and all processes are
told what the last stage summed up; whether a token went where the sampler sent it is asked of all stages. Micro-batches
are filled up to one length, and to the number that the schedule asks for, with tokens that count nowhere.

Shapes: N tokens, D width, L routing layers, E experts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.decoder import Decoder, output_of
from sobre.models.step import StepOutput
from sobre.parallel.config import ParallelConfig
from sobre.parallel.pipeline import Pipeline, stages_of
from sobre.train.batch import Batch
from sobre.train.losses import LossFn, n_right, second_token
from sobre.train.routes import is_compared, rerouted
from sobre.train.share import filled, idle


def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to a sum that is there, or begin it."""
    value = value.detach()
    sums[name] = sums[name] + value if name in sums else value


class Counts(NamedTuple):
    """What the sums of a step are divided by: over micro-batches and processes."""

    tokens: float
    sequences: float
    trained: float
    second: float
    """Tokens that MTP is trained on."""


class Span(nn.Module):
    """One stage: some layers, and what stands before the first or behind the last."""

    def __init__(self, model: Decoder, index: int, layers: range, n_stages: int) -> None:
        super().__init__()
        self._whole = (model,)  # in a tuple: the other stages' parameters are none of this module's
        self.span, self.is_first, self.is_last = layers, index == 0, index == n_stages - 1
        self.layers = nn.ModuleList(model.layers[layer] for layer in layers)
        if model.memory is not None:
            self.memory = nn.ModuleList(it for at, it in model.memory.at.items() if int(at) in layers)
        before = [model.embed] if self.is_first or (self.is_last and copies(model.cfg)) else []
        behind = [model.norm, model.head, model.mtp] if self.is_last else []
        self.ends = nn.ModuleList(module for module in (*before, *behind) if module is not None)
        self.work: Work | None = None

    def forward(self, given: Tensor, micro: Tensor) -> Tensor:
        (model,), work = self._whole, self.work
        assert work is not None, "a step has begun"
        batch = work.batches[int(micro)]
        x_ND = model.embed(batch.step.tokens_N).to(model.dtype) if self.is_first else given
        x_ND, routings = model.through(self.span, x_ND, batch.step, None, batch.routes_LNA)
        found = output_of(x_ND, routings, batch.step, model.cfg)
        if found.load_LE is not None:
            layers = moe_layers(model.cfg, self.span)
            work.see(layers, found.load_LE)
            work.see_routes(int(micro), rerouted(found.routes, batch, layers[0]))
            x_ND = _Attached.apply(x_ND, found.balance_loss / work.counts.sequences)
        return model.norm(x_ND) if self.is_last else x_ND


class Work:
    """One step's micro-batches on their way through the stages of this process, and what is summed up meanwhile."""

    def __init__(
        self,
        model: Decoder,
        batches: Sequence[Batch],
        loss_fn: LossFn,
        counts: Counts,
        mtp_weight: float,
        *,
        watch: bool,
    ) -> None:
        self.model, self.batches, self.loss_fn, self.counts = model, batches, loss_fn, counts
        self.mtp_weight, self.watch = mtp_weight, watch
        self.sums: dict[str, Tensor] = {}
        self.load_LE: dict[int, Tensor] = {}
        self.elsewhere_N: dict[int, Tensor] = {}
        """Of a micro-batch: which tokens visit other experts than under the sampler, in the layers that are here."""

    def see(self, layers: Sequence[int], load_LE: Tensor) -> None:
        """Loads of some routing layers, given by their place among those of the whole model."""
        for layer, load_E in zip(layers, load_LE, strict=True):
            self.load_LE[layer] = self.load_LE[layer] + load_E if layer in self.load_LE else load_E

    def see_routes(self, micro: int, elsewhere_N: Tensor | None) -> None:
        """Where some routing layers sent the tokens of a micro-batch (train/routes.py)."""
        if elsewhere_N is not None:
            before_N = self.elsewhere_N.get(micro)
            self.elsewhere_N[micro] = elsewhere_N if before_N is None else before_N | elsewhere_N

    def rerouted(self, group: dist.ProcessGroup) -> Tensor:
        """How many tokens visit other experts than under the sampler, in any layer of any process of the pipeline."""
        device = self.model.device
        none = (torch.zeros(batch.n_tokens, dtype=torch.bool, device=device) for batch in self.batches)
        flags_N = torch.cat([self.elsewhere_N.get(micro, none_N) for micro, none_N in enumerate(none)]).int()
        dist.all_reduce(flags_N, dist.ReduceOp.MAX, group=group)
        return flags_N.sum()

    def loss(self, hidden_ND: Tensor, micro: int) -> Tensor:
        """What the backward pass of a micro-batch begins with, in the process that has the last stage."""
        model, batch, counts = self.model, self.batches[micro], self.counts
        output = StepOutput(hidden_ND, (), 0, hidden_ND.new_zeros(()))
        loss = self.loss_fn(model, output, batch)
        total = loss.sum / counts.trained
        if self.mtp_weight:
            ahead_loss, ahead = second_token(model, output, batch)
            total = total + self.mtp_weight * ahead_loss.sum / max(counts.second, 1.0)
            total = total + ahead.balance_loss / counts.sequences
            add(self.sums, "mtp", ahead_loss.sum)
            if self.watch:
                add(self.sums, "mtp_right", n_right(model, ahead.hidden_ND, batch.second))
            if ahead.load_LE is not None:
                self.see([model.cfg.n_moe_layers], ahead.load_LE)
        add(self.sums, "loss", loss.sum)
        for name, value in loss.stats.items():
            add(self.sums, f"stat/{name}", value)
        return total


def through_stages(
    pipeline: Pipeline,
    model: Decoder,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    counts: Counts,
    mtp_weight: float,
    *,
    watch: bool = False,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Forward and backward of all micro-batches; the sums (in the last stage alone) and the load_LE of this process."""
    n_micro = pipeline.n_micro(len(batches))
    batches = [*batches, *(idle(batches[0]) for _ in range(n_micro - len(batches)))]
    longest = max(batch.step.tokens_N.numel() for batch in batches)
    whole = [filled(batch, longest, model.cfg.max_len) for batch in batches]
    work = Work(model, whole, loss_fn, counts, mtp_weight, watch=watch)
    for stage in pipeline.stages.values():
        cast(Span, stage).work = work
    like_ND = torch.empty(longest, model.cfg.d_model, dtype=model.dtype, device=model.device)
    pipeline.run(n_micro, like_ND, work.loss)
    if not isinstance(model.cfg.ffn, MoEConfig):
        return work.sums, []
    if is_compared(batches[0]):
        elsewhere = work.rerouted(pipeline.group)
        if pipeline.last == dist.get_rank(pipeline.group):
            add(work.sums, "rerouted", elsewhere)
    n_layers = model.cfg.n_moe_layers + model.cfg.is_moe_layer(model.cfg.n_layers) * (mtp_weight > 0)
    load_LE = torch.zeros(n_layers, model.cfg.ffn.n_experts, dtype=torch.int64, device=model.device)
    for layer, load_E in work.load_LE.items():
        load_LE[layer] = load_E
    return work.sums, [load_LE]


def told(pipeline: Pipeline, sums: dict[str, Tensor], loads: Sequence[Tensor]) -> dict[str, Tensor]:
    """The sums of the last stage, in every process; the loads are filled in place."""
    for load_LE in loads:
        dist.all_reduce(load_LE, group=pipeline.group)
    found: list[Any] = [{name: float(value) for name, value in sums.items()}]
    dist.broadcast_object_list(found, group=pipeline.group, group_src=pipeline.last)
    device = loads[0].device if loads else None
    return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in found[0].items()}


def routing_layers(pipeline: Pipeline, cfg: ModelConfig) -> list[int]:
    """The places of this process's routers, in the order of `Decoder.routers`, among those of the whole model."""
    stages = [cast(Span, pipeline.stages[index]) for index in sorted(pipeline.stages)]
    found = [layer for stage in stages for layer in moe_layers(cfg, stage.span)]
    return found + [cfg.n_moe_layers] * (stages[-1].is_last and bool(cfg.n_mtp) and cfg.is_moe_layer(cfg.n_layers))


def cut(model: Decoder, cfg: ParallelConfig, rank: int) -> tuple[dict[int, Span], dict[str, int]]:
    """Keep the stages of process `rank` of the pipeline, in place; returns them, and where everything is at home."""
    spans, n_stages = layers_of(model.cfg, cfg.n_stages), cfg.n_stages
    owners = {
        stage: process for process in range(cfg.pipeline) for stage in stages_of(process, cfg.pipeline, cfg.schedule)
    }
    home_of = {layer: owners[stage] for stage, span in enumerate(spans) for layer in span}
    homes = {}
    for name in model.state_dict():
        top, *rest = name.split(".")
        if top == "layers":
            homes[name] = home_of[int(rest[0])]
        elif top == "memory" and rest[0] == "at":
            homes[name] = home_of[int(rest[1])]
        else:
            homes[name] = owners[n_stages - 1] if top in ("norm", "head", "mtp") else owners[0]
    stages = {stage: Span(model, stage, spans[stage], n_stages) for stage, owner in owners.items() if owner == rank}
    for layer, home in home_of.items():
        if home != rank:
            model.layers[layer] = nn.Identity()
            if model.memory is not None and str(layer) in model.memory.at:
                del model.memory.at[str(layer)]
    if n_stages - 1 not in stages:
        model.norm, model.mtp = cast(Any, nn.Identity()), None
        model.head = None if model.cfg.tied else nn.Identity()
    if 0 not in stages and not (n_stages - 1 in stages and copies(model.cfg)):
        model.embed = cast(Any, nn.Identity())
    return stages, homes


def layers_of(cfg: ModelConfig, n_stages: int) -> list[range]:
    """The layers of each stage; MTP counts as a layer of the last, which may have no other."""
    total = cfg.n_layers + cfg.n_mtp
    ends = [min(total * (stage + 1) // n_stages, cfg.n_layers) for stage in range(n_stages)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def moe_layers(cfg: ModelConfig, layers: range) -> list[int]:
    """The places of the routing layers among them, counted in the whole model."""
    first = sum(cfg.is_moe_layer(layer) for layer in range(layers.start))
    return list(range(first, first + sum(cfg.is_moe_layer(layer) for layer in layers)))


def copies(cfg: ModelConfig) -> bool:
    """Whether the last stage needs the embedding, too."""
    return bool(cfg.n_mtp) or cfg.tied


class _Attached(torch.autograd.Function):
    """x, behind which a loss of its own takes its gradient of 1."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss
        return x_ND.clone()  # a view could not leave the graph again

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.ones_like(ctx.like)
