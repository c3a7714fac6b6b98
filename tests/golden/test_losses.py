"""The numbers of training have not moved: twenty float32 steps of the nano model against stored losses.

With the kernels that every machine has: those in C are compared with their references elsewhere. A change of numbers
that is meant rewrites the file (SOBRE_REWRITE_GOLDEN=1 pytest tests/golden); the commit says why.
"""

import json
import os
from itertools import islice
from pathlib import Path

import pytest
import torch

from sobre.kernels import select
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.optim.schedule import lr_scale
from sobre.tasks.config import TextConfig
from sobre.tasks.text import documents
from sobre.train.batch import from_rows
from sobre.train.losses import next_token
from sobre.train.step import train_step

STORED = Path(__file__).parent / "losses.json"
STEPS = 20
KERNELS = {
    "causal_attention": "block",
    "linear_nll": "chunked",
    "rms_norm": "fused",
    "rope": "fused",
    "swiglu": "fused",
}
TOLERANCE = 2e-4
"""Relative; other processors and threads add in another order, and twenty steps amplify it a little."""


def losses(kind: str) -> dict[str, list[float]]:
    cfg = ModelConfig(
        vocab_size=256,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=48),
        n_mtp=1,
    )
    model = Decoder(cfg)
    model.init_weights(0)
    model.train()
    optim = OptimConfig(kind=kind, warmup_steps=3)
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), optim)
    text = "\n".join(islice(documents(0, TextConfig()), 400)).encode()
    found: dict[str, list[float]] = {"loss": [], "mtp_loss": [], "grad_norm": []}
    for step in range(STEPS):
        start = step * 8 * 64
        rows_BT1 = torch.tensor(list(text[start : start + 8 * 64 + 1])).unfold(0, 65, 64).contiguous()
        scale = lr_scale(step / STEPS, step, optim)
        info = train_step(model, optimizer, [from_rows(rows_BT1)], next_token, lr_scale=scale, clip=1.0, mtp_weight=0.3)
        assert info.mtp_loss is not None
        found["loss"].append(info.loss)
        found["mtp_loss"].append(info.mtp_loss)
        found["grad_norm"].append(info.grad_norm)
    return found


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.slow
def test_twenty_steps_give_the_stored_losses(kind):
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    with select.overrides(KERNELS):
        found = losses(kind)
    if os.environ.get("SOBRE_REWRITE_GOLDEN") == "1":
        STORED.write_text(json.dumps(stored | {kind: found}, indent=1) + "\n")
        pytest.skip("rewritten")
    for name, values in found.items():
        assert values == pytest.approx(stored[kind][name], rel=TOLERANCE), name
    assert found["loss"][-1] < found["loss"][0] - 1.0
