"""Does a model learn in FP8 as it does in bfloat16? Both on the same batches, beside what chance alone parts.

    python -m sobre.bench.fp8_loss --steps 1000 --replicas 4 --out FILE

DeepSeek-V3 (arXiv 2412.19437, 3.3) reports that the loss of FP8 stays within 0.25 % of bfloat16's. Two runs of a small
model part by more than that without any rounding when the rate is high (docs/lab/log.md). Here the rate is low and
falls to zero, the loss is that of held-out text under the weights at the end, and each precision is run several times,
every replica from weights nudged by 2**-12 of themselves in its own way, the same in every precision. How far the
replicas in bfloat16 lie apart is chance; the difference of the means is FP8's, with its standard error. What no
divergence enters is the loss of the same weights in both: of bfloat16's own, on the held-out text.

The text is this package's own source, each window read once. Shapes: B rows, T positions.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TextIO

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
    n_layers=2,
    attention=MLAConfig(n_heads=4, q_rank=64, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=128, n_shared=1, n_dense_layers=1, d_ff=384),
)
"""0.6M parameters, a dense layer and one of experts; no width but the vocabulary's fills two tiles."""
CONTROL = "bfloat16"
ARMS: dict[str, Precision] = {CONTROL: "auto", "fp8": "fp8", "fp8 power of two": "fp8-power-of-two"}
NUDGE = 2.0**-12
LIMIT = 0.0025
"""V3's, relative to the control."""
HELD_OUT = 512
"""Windows at the end of the text that nobody learns from."""
TOGETHER = 64
"""Of them in one forward pass."""


@dataclass(frozen=True)
class Run:
    """What one training came to."""

    arm: str
    replica: int
    held_out: float
    """Loss of the held-out text under the weights at the end, computed in bfloat16."""
    last_tenth: float
    """Mean loss of the last tenth of the steps, each computed as the arm trains."""
    same_weights: dict[Precision, float]
    """Of the control alone: its weights' loss of the held-out text in FP8 over that in bfloat16, less 1."""


class Arm:
    """One model in one precision."""

    def __init__(self, name: str, replica: int, cfg: ModelConfig, rate: float, device: torch.device) -> None:
        self.name = name
        self.model = Decoder(cfg, dtype=torch.bfloat16)
        self.model.init_weights(1)
        nudges = torch.Generator().manual_seed(replica)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1 + NUDGE * torch.randn(parameter.shape, generator=nudges))
        self.model.to(device).train()
        set_precision(self.model, ARMS[name])
        names = dict(self.model.named_parameters())
        self.schedule = OptimConfig(kind="adamw", lr_adam=rate, warmup_steps=50, cooldown=1.0)
        self.optimizer = Optimizer(names, roles(names), self.schedule, dtype=self.model.dtype)
        self.losses: list[float] = []

    def step(self, tokens_BT1: Tensor, progress: float) -> None:
        scale = lr_scale(progress, len(self.losses), self.schedule)
        found = train_step(self.model, self.optimizer, [from_rows(tokens_BT1)], next_token, lr_scale=scale, clip=1.0)
        self.losses.append(found.loss)

    def loss(self, windows_BT1: Tensor, precision: Precision) -> float:
        """Of the weights as they are, in a precision that may not be that of the arm; per byte."""
        set_precision(self.model, precision)
        sums = []
        with torch.no_grad():
            for tokens_BT1 in windows_BT1.split(TOGETHER):
                batch = from_rows(tokens_BT1).to(self.model.device)
                sums.append(float(next_token(self.model, self.model(batch.step), batch).sum))
        set_precision(self.model, ARMS[self.name])
        return sum(sums) / windows_BT1[:, 1:].numel()


def train(name: str, replica: int, cfg: ModelConfig, steps: int, rows: int, rate: float, device: torch.device) -> Run:
    """Train one replica on the text, and read the held-out text with what it has become."""
    windows = text_windows(cfg.max_len)
    if len(windows) < steps * rows + HELD_OUT:
        need = f"{steps} steps of {rows} rows and {HELD_OUT} held out need {steps * rows + HELD_OUT} windows of text"
        raise ConfigError(f"{need}; there are {len(windows)}")
    arm = Arm(name, replica, cfg, rate, device)
    for step in range(steps):
        arm.step(windows[step * rows : (step + 1) * rows], step / steps)
    held_out = windows[-HELD_OUT:]
    loss = arm.loss(held_out, "auto")
    lower: list[Precision] = (
        [precision for precision in ARMS.values() if precision != "auto"] if name == CONTROL else []
    )
    same = {precision: arm.loss(held_out, precision) / loss - 1 for precision in lower}
    return Run(name, replica, loss, fmean(arm.losses[-max(1, steps // 10) :]), same)


def figures(runs: Sequence[Run]) -> dict[str, float]:
    """Means over replicas, each arm's over the control's less 1 with its standard error, and what chance parts."""
    found = dict[str, float]()
    for part in ("held_out", "last_tenth"):
        of = {name: [getattr(run, part) for run in runs if run.arm == name] for name in ARMS}
        control = fmean(of[CONTROL])
        found[f"{part}: chance"] = stdev(of[CONTROL]) / control
        for name, each in of.items():
            if not each:
                continue
            found[f"{part}: {name}"] = fmean(each)
            if name != CONTROL:
                errors = [stdev(values) ** 2 / len(values) for values in (each, of[CONTROL])]
                found[f"{part}: {name} over {CONTROL}"] = fmean(each) / control - 1
                found[f"{part}: {name} over {CONTROL}, standard error"] = sum(errors) ** 0.5 / control
    for precision in dict.fromkeys(precision for run in runs for precision in run.same_weights):
        gaps = [run.same_weights[precision] for run in runs if run.arm == CONTROL]
        found[f"same weights: {precision} over {CONTROL}, mean"] = fmean(gaps)
        found[f"same weights: {precision} over {CONTROL}, largest"] = max(gaps, key=abs)
    return found


def text_windows(length: int) -> Tensor:
    """The bytes of the package's source in windows of length + 1, in an order of their own (int64)."""
    files = sorted(Path(sobre.__file__).parent.rglob("*.py"))
    stream = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8).long()
    n_windows = stream.numel() // (length + 1)
    order = torch.randperm(n_windows, generator=torch.Generator().manual_seed(0))
    return stream[: n_windows * (length + 1)].view(n_windows, -1)[order]


def main(argv: list[str] | None = None) -> int:
    """Train every replica; write each as a line into a log beside the file when it ends, and the file at the end."""
    parser = argparse.ArgumentParser(prog="python -m sobre.bench.fp8_loss", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-4, help="of AdamW at its peak; it falls to zero in a line")
    parser.add_argument("--replicas", type=int, default=4, help="of each arm: at least 2")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="these, and the control")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    if args.replicas < 2:
        raise ConfigError(f"--replicas {args.replicas}: two at least, for what chance parts is seen between them")
    device = pick_device(args.device)
    runs: list[Run] = []
    with args.out.with_suffix(".log").open("w") as log:
        for replica in range(args.replicas):
            for name in (name for name in ARMS if name in (CONTROL, *args.arms)):
                runs.append(train(name, replica, SMALL, args.steps, args.rows, args.rate, device))
                _say(runs[-1], log)
    found = figures(runs)
    settings = {"steps": args.steps, "rows": args.rows, "rate": args.rate, "replicas": args.replicas}
    settings |= {"device": str(device), "name": device_name(device), "limit": LIMIT, "nudge": NUDGE}
    cell = {"id": "fp8-loss", "contestant": "fp8-loss", "round": 0}
    result = Result("fp8 loss", "cell", settings, torch.get_num_threads(), [], {"cell": cell, "figures": found})
    save(result.document(), str(args.out))
    print(json.dumps(found, indent=2))
    return 0


def _say(run: Run, log: TextIO) -> None:
    print(json.dumps(asdict(run)), file=log, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
