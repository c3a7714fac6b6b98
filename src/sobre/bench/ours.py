"""Our side: the training step and the engine as a run uses them.

Shapes: B rows, T positions, N tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sobre.bench.timing import Work
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.parallel.division import Division
from sobre.train.batch import from_rows
from sobre.train.losses import next_token
from sobre.train.pieces import mine
from sobre.train.step import train_step


def build(cfg: ModelConfig, seed: int, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model with random weights (float32) that computes in `dtype`."""
    model = Decoder(cfg, dtype=dtype)
    model.init_weights(seed)
    return model.eval()


def plain(model: Decoder) -> Decoder:
    """The same weights in float32 without the balance loss, which transformers does not know: for comparisons."""
    ffn = model.cfg.ffn
    cfg = replace(model.cfg, ffn=replace(ffn, balance_alpha=0.0)) if isinstance(ffn, MoEConfig) else model.cfg
    twin = Decoder(cfg)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def make_optimizer(model: Decoder, kind: str, lr: float, division: Division | None = None) -> Optimizer:
    """The optimizer of a run at one learning rate."""
    names = dict(model.named_parameters())
    cfg = OptimConfig(kind="muon" if kind == "muon" else "adamw", lr=lr, lr_adam=lr)
    return Optimizer(names, roles(names), cfg, dtype=model.dtype, matrices=division)


def training_step(model: Decoder, rows_BT1: Tensor, *, optimizer: Optimizer, division: Division | None = None) -> Work:
    """One optimizer step on the rows (of a divided model on this process's share of them): balance loss and moving
    router biases included; returns the loss."""
    model.train()
    batch = mine(from_rows(rows_BT1), division)
    return lambda: train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0, division=division).loss


def causal_loss(model: Decoder, rows_BT1: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    batch = from_rows(rows_BT1)
    return next_token(model, model(batch.step), batch).sum / batch.n_tokens


def logits_at(model: Decoder, ids: Sequence[int]) -> Tensor:
    """logits_V of the token after `ids`."""
    step = StepInput(torch.tensor(list(ids)), lengths=(len(ids),))
    with torch.inference_mode():
        logits_1V = model.logits(model(step).hidden_ND[-1:])
    return logits_1V[0]


def generation(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    n_new: Sequence[int],
    *,
    temperature: float = 0.0,
    engine_options: Mapping[str, Any] = {},
) -> Work:
    """Continue every prompt by its own number of tokens; returns them as a list of lists.

    Nothing is found again from one turn to the next, unless `engine_options` says so: every turn does the same work.
    """
    room = max(len(prompt) + new for prompt, new in zip(prompts, n_new, strict=True))
    sizes = {"max_batch": len(prompts), "max_len": room, "prefix_cache": False}
    engine = Engine(model, EngineConfig(**(sizes | dict(engine_options))))
    requests = [
        Request(str(i), tuple(prompt), SamplingParams(max_tokens=new, temperature=temperature, seed=i))
        for i, (prompt, new) in enumerate(zip(prompts, n_new, strict=True))
    ]
    return lambda: [output.token_ids for output in engine.generate(requests)]
