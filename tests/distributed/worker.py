"""Started by torchrun: trains the same tiny model alone and under each layout, and writes how far the two differ.

The first process trains alone, without a group, and all processes train the layout; the comparison is of losses, of
the norms of the gradients, of router biases and of every weight, after the last step.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl.config import GRPOConfig, RLConfig
from sobre.rl.losses import policy_loss
from sobre.runtime.processes import Processes
from sobre.train.batch import Batch, from_rows, from_samples
from sobre.train.losses import LossFn, next_token
from sobre.train.share import share
from sobre.train.step import train_step

torch.set_num_threads(1)
MOE = ModelConfig(
    vocab_size=61,
    max_len=32,
    d_model=16,
    n_layers=3,
    attention=MLAConfig(n_heads=2, q_rank=8, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=8, d_ff=24, balance_alpha=0.01, bias_speed=0.01),
    n_mtp=1,
)
STEPS = {"float64": 4, "float32": 20}


def batches(stage: str, step: int) -> list[Batch]:
    """Two micro-batches of one optimizer step, the same in every process."""
    generator = torch.Generator().manual_seed(1000 + step)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, 61, (n,), generator=generator).tolist()

    if stage == "pretrain":
        return [from_rows(torch.tensor([tokens(17) for _ in range(n)])) for n in (3, 4)]
    lengths = ((9, 20, 5), (14,))  # the second leaves nothing to one of two processes
    found = [from_samples([(tokens(n), [0] * 3 + [1] * (n - 3)) for n in part]) for part in lengths]
    if stage == "sft":
        return found
    streams = [
        {
            "behaviour": torch.rand(batch.n_tokens, generator=generator) - 4.5,
            "advantage": torch.randn(batch.n_tokens, generator=generator),
            "reference": torch.rand(batch.n_tokens, generator=generator) - 4.5,
        }
        for batch in found
    ]
    return [replace(batch, streams=stream) for batch, stream in zip(found, streams, strict=True)]


def loss_of(stage: str) -> LossFn:
    return policy_loss(RLConfig(algorithm=GRPOConfig(kl=0.1))) if stage == "rl" else next_token


def build(cfg: ModelConfig, dtype: torch.dtype) -> Decoder:
    model = Decoder(cfg, dtype=dtype)
    model.init_weights(5)
    return model.to(dtype).train()


def train(model: Decoder, case: dict[str, Any], processes: Processes | None) -> dict[str, Any]:
    stage, dtype = case["stage"], getattr(torch, case["dtype"])
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig(kind=case.get("optim", "muon")), dtype=dtype)
    losses, norms = [], []
    for step in range(STEPS[case["dtype"]]):
        whole = batches(stage, step)
        mine = whole if processes is None else [share(b, processes.rank, processes.count) for b in whole]
        info = train_step(
            model,
            optimizer,
            mine,
            loss_of(stage),
            lr_scale=0.5,
            clip=1.0,
            mtp_weight=0.3 if stage != "rl" and model.mtp is not None else 0.0,
            rebalance=stage != "rl",
            group=None if processes is None else processes.data_group,
        )
        losses.append(info.loss)
        norms.append(info.grad_norm)
    return {"losses": losses, "norms": norms, "state": {k: v.detach().clone() for k, v in model.state_dict().items()}}


def compare(alone: dict[str, Any], together: dict[str, Any]) -> dict[str, float]:
    """Largest relative differences; weights and biases over the largest number of their tensor."""
    found = {}
    for key in ("losses", "norms"):
        pairs = zip(alone[key], together[key], strict=True)
        found[key] = max(abs(a - b) / abs(a) for a, b in pairs)
    gaps = {}
    for name, one in alone["state"].items():
        gaps[name] = float((one - together["state"][name]).abs().max() / one.abs().max().clamp_min(1e-30))
    worst = max(gaps, key=lambda name: gaps[name])
    return found | {"weights": gaps[worst], "worst": worst, "first_loss": alone["losses"][0], "moved": alone["moved"]}


def run(case: dict[str, Any], processes: Processes) -> dict[str, Any]:
    cfg, dtype = MOE, getattr(torch, case["dtype"])
    together = train(build(cfg, dtype), case, processes)
    if not processes.is_first:
        return {}
    model = build(cfg, dtype)
    start = model.state_dict()["layers.1.attn.o.weight"].clone()
    alone = train(model, case, None)
    alone["moved"] = float((alone["state"]["layers.1.attn.o.weight"] - start).abs().max())
    return compare(alone, together)


def main(cases: Path, out: Path) -> None:
    processes = Processes.start()
    found = {name: run(case, processes) for name, case in json.loads(cases.read_text()).items()}
    if processes.is_first:
        out.write_text(json.dumps(found))
    processes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
