"""How far the trainer is from the engine on the very tokens that were sampled.

Both run the same modules, so what is left is rounding. In a mixture of experts rounding can flip a choice of experts,
and then the probabilities jump; hence the share of tokens whose experts differ, and routing replay when it is large.

The step compares the experts (train/routes.py), and its share is taken over here.

Shapes: N trained tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sobre.rl.config import RLConfig
from sobre.rl.objectives import Streams
from sobre.runtime.device import exact


@dataclass
class Mismatch:
    """Adds up over the micro-batches of one step; give `see` to `policy_loss` as its watch.

    The sums stay on the model's device while the step runs; `settled` brings them to the host.
    """

    active: bool = True
    """Off while the weights are no longer those that sampled."""
    n_tokens: int = 0
    total: float | Tensor = 0.0
    largest: float | Tensor = 0.0
    route_share: float | None = None
    """Share of tokens, over all processes, whose experts differ in any layer; None: there was nothing to compare."""

    def see(self, logp_N: Tensor, streams: Streams) -> None:
        """Take in one micro-batch."""
        if not self.active:
            return
        gap_N = (logp_N - streams.behaviour_N).abs()
        self.n_tokens += gap_N.numel()
        self.total = self.total + exact(gap_N).sum(dtype=torch.float64)
        if gap_N.numel():
            worst = gap_N.max()
            self.largest = worst.maximum(self.largest) if isinstance(self.largest, Tensor) else worst

    def settled(self) -> "Mismatch":
        """The same in plain numbers."""
        return replace(self, total=float(self.total), largest=float(self.largest))

    def metrics(self) -> dict[str, float]:
        """For the log; empty when nothing was seen."""
        found = {}
        if self.n_tokens:
            found = {"logp_gap_mean": float(self.total) / self.n_tokens, "logp_gap_max": float(self.largest)}
        return found if self.route_share is None else {**found, "routes_differ": self.route_share}


def total(parts: Sequence[Mismatch]) -> Mismatch:
    """What several processes saw, each of its share of the batches."""
    return Mismatch(
        active=parts[0].active,
        n_tokens=sum(part.n_tokens for part in parts),
        total=sum(float(part.total) for part in parts),
        largest=max(float(part.largest) for part in parts),
        route_share=parts[0].route_share,
    )


def replays(cfg: RLConfig, on: bool, route_share: float | None) -> bool:
    """Whether the next step replays routes. Under "auto" it stays on once the share has exceeded `replay_above`, and is
    on where older weights may have sampled, for the trainer would choose other experts (DeepSeek-V3.2)."""
    if cfg.samplers.urls:
        return False  # there are none to replay
    if cfg.replay_routes != "auto":
        return cfg.replay_routes == "on"
    on = on or cfg.samplers.staleness > 0 or cfg.stragglers.groups > 0
    return on or (route_share is not None and route_share > cfg.replay_above)
