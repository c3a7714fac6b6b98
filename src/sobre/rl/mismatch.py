"""How far the trainer is from the engine on the very tokens that were sampled.

Both run the same modules, so what is left is rounding. In a mixture of experts rounding can flip a choice of experts,
and then the probabilities jump; hence the share of tokens whose experts differ, and routing replay when it is large.

Shapes: N tokens, L routing layers, A active experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sobre.models.step import StepOutput
from sobre.rl.config import RLConfig
from sobre.rl.objectives import Streams
from sobre.train.batch import Batch


@dataclass
class Mismatch:
    """Adds up over the micro-batches of one step; give `see` to `policy_loss` as its watch."""

    active: bool = True
    """Off while the weights are no longer those that sampled."""
    n_tokens: int = 0
    total: float = 0.0
    largest: float = 0.0
    n_routed: int = 0
    n_differing: int = 0

    def see(self, logp_N: Tensor, streams: Streams, output: StepOutput, batch: Batch) -> None:
        """Take in one micro-batch."""
        if not self.active:
            return
        gap_N = (logp_N - streams.behaviour_N).abs()
        self.n_tokens += gap_N.numel()
        self.total += float(gap_N.sum(dtype=torch.float64))
        self.largest = max(self.largest, float(gap_N.max()) if gap_N.numel() else 0.0)
        if batch.routes_LNA is None:  # under replay the trainer has no choice of its own to compare
            self.see_routes(output.routes_LNA, batch.streams.get("engine_routes_LNA"))

    def see_routes(self, trainer_LNA: Tensor | None, engine_LNA: Tensor | None) -> None:
        """Count the tokens for which trainer and engine chose other experts."""
        if trainer_LNA is not None and engine_LNA is not None:
            self.n_routed += trainer_LNA.shape[1]
            self.n_differing += int(differing(trainer_LNA, engine_LNA).sum())

    @property
    def route_share(self) -> float | None:
        """Share of tokens whose experts differ in any layer; None when there was nothing to compare."""
        return self.n_differing / self.n_routed if self.n_routed else None

    def metrics(self) -> dict[str, float]:
        """For the log; empty when nothing was seen."""
        found = {"logp_gap_mean": self.total / self.n_tokens, "logp_gap_max": self.largest} if self.n_tokens else {}
        return found if self.route_share is None else {**found, "routes_differ": self.route_share}


def total(parts: Sequence[Mismatch]) -> Mismatch:
    """What several processes saw, each of its share of the batches."""
    return Mismatch(
        active=parts[0].active,
        n_tokens=sum(part.n_tokens for part in parts),
        total=sum(part.total for part in parts),
        largest=max(part.largest for part in parts),
        n_routed=sum(part.n_routed for part in parts),
        n_differing=sum(part.n_differing for part in parts),
    )


def differing(a_LNA: Tensor, b_LNA: Tensor) -> Tensor:
    """Which tokens (N, bool) visit other experts in any layer; the order of the experts means nothing."""
    return (a_LNA.sort(-1).values != b_LNA.sort(-1).values).any(-1).any(0)


def replays(cfg: RLConfig, on: bool, route_share: float | None) -> bool:
    """Whether the next step replays routes. Under "auto" it stays on once the share has exceeded `replay_above`."""
    if cfg.replay_routes != "auto":
        return cfg.replay_routes == "on"
    return on or (route_share is not None and route_share > cfg.replay_above)
