"""Does a model learn in FP8 as it does in bfloat16? Both on the same batches, and how far chance alone parts two runs.

    python -m sobre.bench.fp8_loss --steps 1000 --out FILE

DeepSeek-V3 (arXiv 2412.19437, 3.3) reports that the loss of FP8 stays within 0.25 % of bfloat16's. Small models on few
tokens part by more than that without any rounding, so one arm is bfloat16 again, from weights that differ by 2**-12 of
themselves: what it parts by is no error of FP8. What no divergence enters is the loss of the same weights in both: of
the control's, on each fiftieth batch before it learns from it. The text is this package's own source, each window read
once.

Arms train in turn on each batch. Shapes: B rows, T positions.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import sobre
from sobre.bench.result import Result, save
from sobre.errors import ConfigError
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.low_precision import set_precision
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.optim.schedule import lr_scale
from sobre.runtime.device import device_name, pick_device
from sobre.train.batch import from_rows
from sobre.train.config import Precision
from sobre.train.losses import next_token
from sobre.train.step import train_step

SMALL = ModelConfig(
    vocab_size=256,
    max_len=64,
    d_model=128,
    n_layers=3,
    attention=MLAConfig(n_heads=4, q_rank=64, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=128, n_shared=1, n_dense_layers=1, d_ff=384),
)
"""0.9M parameters; no width but the vocabulary's fills two tiles."""
CONTROL, NUDGED = "bfloat16", "bfloat16 nudged"
ARMS: dict[str, Precision] = {
    CONTROL: "auto",
    NUDGED: "auto",
    "fp8": "fp8",
    "fp8 power of two": "fp8-power-of-two",
}
NUDGE = 2.0**-12
LIMIT = 0.0025
"""V3's, relative to the control."""
EVERY = 50
"""Steps between two looks at the same weights."""
OPTIMIZER = OptimConfig(kind="adamw", lr_adam=0.002, warmup_steps=50)


class Arm:
    """One model in one precision."""

    def __init__(self, name: str, cfg: ModelConfig, device: torch.device) -> None:
        self.name = name
        self.model = Decoder(cfg, dtype=torch.bfloat16)
        self.model.init_weights(1)
        if name == NUDGED:
            nudges = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.mul_(1 + NUDGE * torch.randn(parameter.shape, generator=nudges))
        self.model.to(device).train()
        set_precision(self.model, ARMS[name])
        names = dict(self.model.named_parameters())
        self.optimizer = Optimizer(names, roles(names), OPTIMIZER, dtype=self.model.dtype)
        self.losses: list[float] = []

    def step(self, tokens_BT1: Tensor, scale: float) -> None:
        found = train_step(self.model, self.optimizer, [from_rows(tokens_BT1)], next_token, lr_scale=scale, clip=1.0)
        self.losses.append(found.loss)

    def loss(self, tokens_BT1: Tensor, precision: Precision) -> float:
        """Of the weights as they are, in a precision that is not that of the arm."""
        batch, before = from_rows(tokens_BT1).to(self.model.device), ARMS[self.name]
        set_precision(self.model, precision)
        with torch.no_grad():
            found = next_token(self.model, self.model(batch.step), batch).sum
        set_precision(self.model, before)
        return float(found) / batch.first.total


def compare(
    cfg: ModelConfig,
    steps: int,
    rows: int,
    device: torch.device,
    log: Any = None,
    arms: Sequence[str] = tuple(ARMS),
) -> tuple[dict[str, list[float]], dict[Precision, list[float]]]:
    """The loss of every step of every arm; and of the control's weights in FP8 over that in bfloat16, less 1."""
    windows = text_windows(cfg.max_len)
    if len(windows) < steps * rows:
        raise ConfigError(f"{steps} steps of {rows} rows need {steps * rows} windows of text; there are {len(windows)}")
    running = {name: Arm(name, cfg, device) for name in ARMS if name in (CONTROL, *arms)}
    gaps: dict[Precision, list[float]] = {precision: [] for precision in ARMS.values() if precision != "auto"}
    for step in range(steps):
        tokens_BT1 = windows[step * rows : (step + 1) * rows]
        if step % EVERY == EVERY - 1:
            exact = running[CONTROL].loss(tokens_BT1, "auto")
            for precision in gaps:
                gaps[precision].append(running[CONTROL].loss(tokens_BT1, precision) / exact - 1)
        for arm in running.values():
            arm.step(tokens_BT1, lr_scale(step / steps, step, OPTIMIZER))
        if log is not None and (step + 1) % EVERY == 0:
            recent = {name: round(fmean(arm.losses[-EVERY:]), 4) for name, arm in running.items()}
            print(json.dumps({"step": step + 1, **recent}), file=log, flush=True)
    return {name: arm.losses for name, arm in running.items()}, gaps


def figures(losses: dict[str, list[float]]) -> dict[str, float]:
    """Mean loss of the later half of the steps and of the last tenth, and each arm's over the control's, less 1."""
    steps, found = len(losses[CONTROL]), dict[str, float]()
    for part, begin in (("later half", steps // 2), ("last tenth", steps - steps // 10)):
        control = fmean(losses[CONTROL][begin:])
        for name, each in losses.items():
            found[f"{name}, {part}"] = fmean(each[begin:])
            if name != CONTROL:
                found[f"{name} over {CONTROL}, {part}"] = fmean(each[begin:]) / control - 1
    return found


def text_windows(length: int) -> Tensor:
    """The bytes of the package's source in windows of length + 1, in an order of their own (int64)."""
    files = sorted(Path(sobre.__file__).parent.rglob("*.py"))
    stream = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8).long()
    n_windows = stream.numel() // (length + 1)
    order = torch.randperm(n_windows, generator=torch.Generator().manual_seed(0))
    return stream[: n_windows * (length + 1)].view(n_windows, -1)[order]


def main(argv: list[str] | None = None) -> int:
    """Train every arm and write the file."""
    parser = argparse.ArgumentParser(prog="python -m sobre.bench.fp8_loss", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="these, and the control")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    with args.out.with_suffix(".log").open("w") as log:
        losses, gaps = compare(SMALL, args.steps, args.rows, device, log, args.arms)
    found = figures(losses)
    for precision, each in gaps.items():
        if each:
            found[f"{precision} over {CONTROL}, the same weights, mean"] = fmean(each)
            found[f"{precision} over {CONTROL}, the same weights, largest"] = max(each, key=abs)
    settings = {"steps": args.steps, "rows": args.rows, "device": str(device), "name": device_name(device)}
    settings |= {"limit": LIMIT, "nudge": NUDGE}
    cell = {"id": "fp8-loss", "contestant": "fp8-loss", "round": 0}
    result = Result("fp8 loss", "cell", settings, torch.get_num_threads(), [], {"cell": cell, "figures": found})
    save(result.document(), str(args.out))
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
