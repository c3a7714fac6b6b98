"""How far the trainer is from the engine on the very tokens that were sampled.

Both run the same modules, so what is left is rounding. In a mixture of experts rounding can flip a choice of experts,
and then the probabilities jump; hence the share of tokens whose experts differ, and routing replay when it is large.

Shapes: N tokens, L routing layers, A active experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sobre.models.step import StepOutput
from sobre.rl.config import RLConfig
from sobre.rl.objectives import Streams
from sobre.runtime.device import exact
from sobre.train.batch import Batch


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
    n_routed: int = 0
    n_differing: int | Tensor = 0

    def see(self, logp_N: Tensor, streams: Streams, output: StepOutput, batch: Batch) -> None:
        """Take in one micro-batch."""
        if not self.active:
            return
        gap_N = (logp_N - streams.behaviour_N).abs()
        self.n_tokens += gap_N.numel()
        self.total = self.total + exact(gap_N).sum(dtype=torch.float64)
        if gap_N.numel():
            worst = gap_N.max()
            self.largest = worst.maximum(self.largest) if isinstance(self.largest, Tensor) else worst
        if batch.routes_LNA is None:  # under replay the trainer has no choice of its own to compare
            self.see_routes(output.routes_LNA, batch.streams.get("engine_routes_LNA"))

    def see_routes(self, trainer_LNA: Tensor | None, engine_LNA: Tensor | None) -> None:
        """Count the tokens for which trainer and engine chose other experts."""
        if trainer_LNA is not None and engine_LNA is not None:
            self.n_routed += trainer_LNA.shape[1]
            self.n_differing = self.n_differing + differing(trainer_LNA, engine_LNA).sum()

    def settled(self) -> "Mismatch":
        """The same in plain numbers."""
        total, largest, differ = float(self.total), float(self.largest), int(self.n_differing)
        return replace(self, total=total, largest=largest, n_differing=differ)

    @property
    def route_share(self) -> float | None:
        """Share of tokens whose experts differ in any layer; None when there was nothing to compare."""
        return int(self.n_differing) / self.n_routed if self.n_routed else None

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
        n_routed=sum(part.n_routed for part in parts),
        n_differing=sum(int(part.n_differing) for part in parts),
    )


def differing(a_LNA: Tensor, b_LNA: Tensor) -> Tensor:
    """Which tokens (N, bool) visit other experts in any layer; the order of the experts means nothing."""
    return (a_LNA.sort(-1).values != b_LNA.sort(-1).values).any(-1).any(0)


def replays(cfg: RLConfig, on: bool, route_share: float | None) -> bool:
    """Whether the next step replays routes. Under "auto" it stays on once the share has exceeded `replay_above`, and is
    on where older weights may have sampled, for the trainer would choose other experts (DeepSeek-V3.2)."""
    if cfg.replay_routes != "auto":
        return cfg.replay_routes == "on"
    on = on or cfg.samplers.staleness > 0
    return on or (route_share is not None and route_share > cfg.replay_above)
