"""Trains and samples on the CPU and on the second device of second_device.py; prints how far they differ, as JSON."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

sys.path.insert(0, str(Path(__file__).parent))
from second_device import SecondDevice, There, register

from sobre.app.session import Session
from sobre.app.story import tell
from sobre.config.load import NoOptions, to_dict
from sobre.config.recipe import load_recipe
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.models.config import GQAConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.low_precision import set_precision
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl.config import GSPOConfig, RLConfig
from sobre.rl.losses import policy_loss
from sobre.rl.mismatch import Mismatch
from sobre.runtime.console import Console
from sobre.runtime.device import pick_device
from sobre.runtime.run_folder import claim
from sobre.train.batch import Batch, from_rows, from_samples
from sobre.train.config import Precision
from sobre.train.losses import next_token
from sobre.train.resume import load_state
from sobre.train.state import save_state
from sobre.train.step import StepInfo, train_step

MOE = ModelConfig(
    vocab_size=61,
    max_len=64,
    d_model=32,
    n_layers=2,
    attention=MLAConfig(n_heads=2, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=40, balance_alpha=0.01, bias_speed=0.01),
    n_mtp=1,
)
DENSE = ModelConfig(vocab_size=61, max_len=64, d_model=32, n_layers=2, attention=GQAConfig(n_heads=4, n_kv_heads=2))
OBJECTIVES = {"rl whole answers": GSPOConfig()}
PRECISIONS: tuple[Precision, ...] = ("fp8", "fp8-power-of-two")


def batches(stage: str, step: int) -> list[Batch]:
    """Two micro-batches."""
    generator = torch.Generator().manual_seed(step)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, 61, (n,), generator=generator).tolist()

    if stage == "pretrain":
        return [from_rows(torch.tensor([tokens(17) for _ in range(n)])) for n in (3, 4)]
    found = [from_samples([(tokens(n), [0] * 3 + [1] * (n - 3)) for n in part]) for part in ((9, 20, 5), (14,))]
    if stage == "sft":
        return found
    answers = [sum(([i] * n for i, n in enumerate(batch.step.lengths)), []) for batch in found]
    streams = [
        {
            "behaviour": torch.rand(batch.n_tokens, generator=generator) - 4.5,
            "advantage": torch.randn(batch.n_tokens, generator=generator),
            "reference": torch.rand(batch.n_tokens, generator=generator) - 4.5,
            "answer": torch.tensor(answer),
        }
        for batch, answer in zip(found, answers, strict=True)
    ]
    return [replace(batch, streams=stream) for batch, stream in zip(found, streams, strict=True)]


class Training:
    """Three steps of one stage on one device."""

    def __init__(self, stage: str, cfg: ModelConfig, device: torch.device, mode: SecondDevice) -> None:
        self.stage, self.mode = stage, mode
        self.model = Decoder(cfg)
        self.model.init_weights(3)
        self.model.to(device).train()
        names = dict(self.model.named_parameters())
        self.optimizer = Optimizer(names, roles(names), OptimConfig())
        self.waits: list[dict[str, int]] = []
        self.mismatch = Mismatch()

    def step(self, number: int) -> StepInfo:
        is_rl = self.stage in OBJECTIVES
        self.mode.waits.clear()
        info = train_step(
            self.model,
            self.optimizer,
            batches(self.stage, number),
            policy_loss(RLConfig(algorithm=OBJECTIVES[self.stage]), self.mismatch.see) if is_rl else next_token,
            lr_scale=0.5,
            clip=1.0,
            mtp_weight=0.0 if is_rl else 0.3,
            rebalance=not is_rl,
        )
        self.waits.append(dict(self.mode.waits))
        return info


def trained(stage: str, cfg: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Two steps on both devices; then a third from the other one's saved state; and what each step waited for."""
    with tempfile.TemporaryDirectory() as folder, SecondDevice() as mode:
        there = Training(stage, cfg, device, mode)
        moved = [there.step(number) for number in range(2)]
        save_state(Path(folder) / "there", 2, there.model, there.optimizer, {}, keep=1)
        weights = [value.cpu() for value in there.model.state_dict().values()]
        stays = all(isinstance(parameter.data, There) for parameter in there.model.parameters())
        with _disable_current_modes():
            here = Training(stage, cfg, torch.device("cpu"), mode)
            stayed = [here.step(number) for number in range(2)]
            ours = here.model.state_dict().values()
            gap = max(float((a - b).norm() / a.norm().clamp_min(1e-30)) for a, b in zip(ours, weights, strict=True))
            save_state(Path(folder) / "here", 2, here.model, here.optimizer, {}, keep=1)
            load_state(Path(folder) / "there", here.model, here.optimizer)
            stayed.append(here.step(2))
        load_state(Path(folder) / "here", there.model, there.optimizer)
        moved.append(there.step(2))
        steps = list(zip(stayed, moved, strict=True))
        return {
            "losses": [[a.loss, b.loss] for a, b in steps],
            "norms": [[a.grad_norm, b.grad_norm] for a, b in steps],
            "loads_equal": all(a.load_LE is None or torch.equal(a.load_LE, b.load_LE) for a, b in steps),
            "gap": gap,
            "waits": there.waits,
            "mismatch": [here.mismatch.settled().total, there.mismatch.settled().total],
            "stays": stays,
        }


def waits_in(precision: Precision, cfg: ModelConfig, device: torch.device) -> list[dict[str, int]]:
    """What each of two steps waited for. (Rounding to eight bits turns last bits into others' first, so the numbers of
    two devices are not compared.)"""
    with SecondDevice() as mode:
        there = Training("pretrain", cfg, device, mode)
        set_precision(there.model, precision)
        assert all(torch.isfinite(torch.tensor(there.step(number).loss)) for number in range(2))
        return there.waits


def sampled(cfg: ModelConfig, device: torch.device) -> dict[str, Any]:
    """What an engine answers on both devices, and its waits for each step there."""
    params = [
        SamplingParams(max_tokens=9, temperature=0.0),
        SamplingParams(max_tokens=14, seed=5),
        SamplingParams(max_tokens=12, seed=6, top_p=0.8, top_k=9, presence_penalty=0.5, n_logprobs=3),
    ]
    requests = [Request(f"r{i}", tuple(range(3 + i, 20 + i)), p) for i, p in enumerate(params)]
    found = []
    with SecondDevice() as mode:
        for where in (torch.device("cpu"), device):
            model = Decoder(cfg)
            model.init_weights(3)
            model.to(where).eval()
            engine = Engine(model, EngineConfig(max_batch=2, return_routes=True), run_seed=7)
            outputs = engine.generate(requests)
            found.append([(list(o.token_ids), list(o.logprobs), o.routes_LTA) for o in outputs])
            plain = engine.generate([Request("plain", tuple(range(20)), SamplingParams(max_tokens=20, seed=3))])
            mode.waits.clear()
            steps = engine.stats.steps
            found[-1].append((list(plain[0].token_ids), list(plain[0].logprobs), plain[0].routes_LTA))
            again = engine.generate([Request("again", tuple(range(20)), SamplingParams(max_tokens=20, seed=3))])
            waits = {name: n / (engine.stats.steps - steps) for name, n in mode.waits.items()}
            assert list(again[0].token_ids) == list(plain[0].token_ids)
    pairs = list(zip(*found, strict=True))
    return {
        "tokens": [[a[0], b[0]] for a, b in pairs],
        "gap": max(abs(x - y) for a, b in pairs for x, y in zip(a[1], b[1], strict=True)),
        "routes_equal": all(a[2] is None or torch.equal(a[2], b[2]) for a, b in pairs),
        "waits_of_a_step": waits,
    }


def told() -> dict[str, Any]:
    """The whole story there: on which device it ran, what it made, and where the host waited."""
    with tempfile.TemporaryDirectory() as folder, SecondDevice() as mode:
        recipe, _ = load_recipe(
            ["nano", "--eval.n-problems", "4", "--eval.k", "1", "--tasks.test-size", "12", "--rl.offload", "on"],
            NoOptions,
        )
        run = claim("nano", to_dict(recipe), out=Path(folder) / "run")
        with Console(quiet=True) as console:
            tell(Session.open(recipe, run, console))
        device = json.loads((run.state / "calibration.json").read_text())["device"]
        models = [name for name in ("base", "sft", "rl") if (run.path / name / "model.safetensors").is_file()]
        return {"device": device, "models": models, "waits": sorted(mode.waits)}


def main() -> None:
    torch.set_num_threads(1)
    register()
    device = pick_device()
    found: dict[str, Any] = {"auto": str(device)}
    for stage, cfg in [("pretrain", MOE), ("sft", MOE), ("rl whole answers", DENSE)]:
        found[f"{stage} {'moe' if cfg is MOE else 'dense'}"] = trained(stage, cfg, device)
    found["precisions"] = {precision: waits_in(precision, MOE, device) for precision in PRECISIONS}
    found["engine"] = sampled(MOE, device)
    found["story"] = told()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
