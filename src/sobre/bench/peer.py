"""The transformers side: its own classes on the weights that we saved, set up as fast as they go.

Experts through `grouped_mm` (training) or the faster of `grouped_mm` and `batched_mm` (generation), bfloat16 by
autocast over float32 masters, fused AdamW: the fastest of its eager settings on CPUs that we know of.

Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.bench.timing import Work, time_once
from sobre.errors import ConfigError

EXPERTS = ("grouped_mm", "batched_mm")


def load_peer(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's model in transformers' own class."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(f"this benchmark needs its peer: pip install transformers ({error})") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if has_experts(model):
        model.set_experts_implementation(EXPERTS[0])
    return model.eval()


def training_step(model: Any, rows_BT1: Tensor, *, lr: float, bf16: bool, clip: float = 1.0) -> Work:
    """One optimizer step of causal language modelling on the rows; returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    model.train()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = causal_loss(model, rows_BT1, bf16=bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=True)
        optimizer.step()
        return float(loss.detach())

    return step


def causal_loss(model: Any, rows_BT1: Tensor, *, bf16: bool) -> Tensor:
    """Mean cross-entropy of the next token, in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
        logits_BTV = model(rows_BT1[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), rows_BT1[:, 1:].flatten())


def generation(model: Any, prompts: Sequence[Sequence[int]], n_new: int, *, temperature: float = 0.0) -> Work:
    """Continue every prompt by `n_new` tokens; returns them as a list of lists."""
    prompts_BT = torch.tensor(prompts, device=model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}

    def generate() -> list[list[int]]:
        with torch.inference_mode():
            out_BT = model.generate(
                prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                max_new_tokens=n_new,
                min_new_tokens=n_new,
                eos_token_id=None,
                pad_token_id=0,
                **sampling,
            )
        ids: list[list[int]] = out_BT[:, prompts_BT.shape[1] :].tolist()
        return ids

    return generate


def with_experts(model: Any, experts: str, work: Work) -> Work:
    """`work` under one implementation of the experts; a dense model has none to choose."""
    if not has_experts(model):
        return work

    def run() -> object:
        model.set_experts_implementation(experts)
        return work()

    return run


def faster_experts(model: Any, probe: Work) -> str:
    """The implementation of experts under which `probe` is faster, each timed once after a turn of warming up."""
    times = {}
    for experts in EXPERTS if has_experts(model) else EXPERTS[:1]:
        work = with_experts(model, experts, probe)
        work()
        times[experts] = time_once(work).wall_s
    return min(times, key=lambda name: times[name])


def has_experts(model: Any) -> bool:
    counts = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
    return any(hasattr(model.config, name) for name in counts)
