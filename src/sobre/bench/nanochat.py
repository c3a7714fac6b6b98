"""nanochat's dense step beside ours: its model from a clone, in bfloat16, with fused AdamW instead of its own Muon.

Width and depth are ours; its feed-forward is 4 widths, so its active parameters are near ours and not equal; the result
names them. https://github.com/karpathy/nanochat
"""

import os
import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from sobre.bench.config import TrainBench
from sobre.bench.timing import Work
from sobre.errors import ConfigError


def training_step(clone: Path, cfg: TrainBench, rows_BT1: Tensor) -> tuple[Work, dict[str, int]]:
    """One optimizer step on the rows, which returns the loss; and the counts of the model."""
    if not (clone / "nanochat" / "gpt.py").is_file():
        raise ConfigError(f"nanochat={str(clone)!r} is no clone of nanochat: it has no nanochat/gpt.py")
    os.environ["NANOCHAT_DTYPE"] = "bfloat16"  # its way to say: compute in bfloat16 over float32 masters
    sys.path.insert(0, str(clone))
    gpt = import_module("nanochat.gpt")
    width, n_heads = cfg.model.d_model, cfg.model.attention.n_heads
    shape = gpt.GPTConfig(
        sequence_len=cfg.seq_len,
        vocab_size=cfg.model.vocab_size,
        n_layer=cfg.model.n_layers,
        n_head=n_heads,
        n_kv_head=n_heads,
        n_embd=width,
        window_pattern="L",
    )
    model = gpt.GPT(shape)
    model.init_weights()
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids_BT, targets_BT = rows_BT1[:, :-1].contiguous(), rows_BT1[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids_BT, targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return float(loss.detach())

    counts = {"total": sum(p.numel() for p in model.parameters()), "active": int(model.num_matmul_params())}
    return step, counts
