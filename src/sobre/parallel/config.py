"""How a run is divided over its processes. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError


@config
class ParallelConfig:
    """Sizes of the layout; what is left over of the processes are copies. All ones: every process holds the model."""

    shards: int = 1
    """Processes over which weights, gradients and optimizer are divided (FSDP2); 0 is all of them. With fewer there are
    several copies of the divided model, and their gradients are summed (hybrid)."""
    zero: Literal[1, 2, 3] = 3
    """What of a shard is put together only for as long as it is needed: at 3 the weights of a layer, for each of its
    passes; at 2 they stay from the forward pass to the backward; at 1 the gradients stay whole too, until the last
    micro-batch of a step."""
    experts: int = 1
    """Processes over which the experts of a layer are divided; tokens travel to them (all-to-all)."""

    timeout_s: float = 1800.0
    """How long a process waits for another inside a step. Then the run fails, says who is missing, and torchrun may
    start it anew."""

    def __post_init__(self) -> None:
        if self.shards < 0:
            raise ConfigError(f"shards={self.shards} must be 0 (all processes) or more")
        if self.experts < 1:
            raise ConfigError(f"experts={self.experts} must be 1 or more")
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be above 0")

    @property
    def flags(self) -> str:
        """What to type for this layout; nothing for the default."""
        own, usual = vars(self), vars(ParallelConfig())
        return "".join(f" --parallel.{name} {own[name]}" for name in own if own[name] != usual[name])

    @property
    def is_divided(self) -> bool:
        """Whether any process holds less than the whole model."""
        return self.shards != 1 or self.experts > 1

    def shards_of(self, n_processes: int) -> int:
        """How many shards a run of so many processes has."""
        return self.shards or n_processes

    def check(self, n_processes: int) -> None:
        """Refuse a layout that so many processes cannot form."""
        shards = self.shards_of(n_processes)
        for name, size in (("shards", shards), ("experts", self.experts)):
            if n_processes % size:
                fits = [str(n) for n in range(1, n_processes + 1) if n_processes % n == 0]
                raise ConfigError(
                    f"parallel.{name}={size} does not divide the {n_processes} processes of this run;"
                    f" it fits: {', '.join(fits)}"
                )

    def check_experts(self, n_experts: int) -> None:
        """Refuse a layout that a model with so many routed experts in a layer (0: a dense one) cannot take."""
        if self.experts > 1 and not n_experts:
            raise ConfigError(f"parallel.experts={self.experts}: the model is dense and has none to divide; it fits: 1")
        if self.experts > 1 and n_experts % self.experts:
            raise ConfigError(
                f"parallel.experts={self.experts} does not divide the {n_experts} experts of a layer evenly"
            )
