"""The optimizer: Muon for matrices and experts, AdaGrad by rows for tables, AdamW for the rest.

It works on named parameters and their roles and knows no module. Matrices of one shape go through Newton-Schulz as one
batch. Of a parameter that is divided over processes (DTensor) it moves the numbers that are here, which is all that
elementwise arithmetic needs; only matrices must be whole, and `Matrices` sees to that. The state is saved flat, one
tensor per parameter and quantity under the parameter's own name, so that it loads into any grouping.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sobre.errors import CheckpointError
from sobre.optim.config import OptimConfig
from sobre.optim.muon import orthogonalize, update_scale
from sobre.optim.roles import DECAYED_ROLES, MUON_ROLES, Role
from sobre.optim.rows import move_rows
from sobre.optim.signal import shared
from sobre.runtime.device import carried

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


class Matrices(Protocol):
    """Where the matrices lie that this process holds parts of."""

    def whole_shape(self, name: str, parameter: Tensor) -> torch.Size:
        """The shape of the whole parameter."""

    def place(self, name: str) -> Hashable:
        """Matrices of one shape and one place are turned together, in all processes in the same order."""

    def turn_whole(self, name: str, box_ZUO: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """Bring matrices that lie as parameter `name` together, call `turn` on whole ones, return what belongs here."""


class Here:
    """All matrices are whole in this process."""

    def whole_shape(self, name: str, parameter: Tensor) -> torch.Size:
        return parameter.shape

    def place(self, name: str) -> Hashable:
        return None

    def turn_whole(self, name: str, box_ZUO: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        return turn(box_ZUO)


class Optimizer:
    """Reads `parameter.grad`, writes the parameters; `dtype` is what Newton-Schulz computes in."""

    def __init__(
        self,
        named_params: dict[str, nn.Parameter],
        roles: dict[str, Role],
        cfg: OptimConfig,
        *,
        dtype: torch.dtype = torch.float32,
        matrices: Matrices | None = None,
    ) -> None:
        self.cfg, self.dtype, self.params = cfg, dtype, dict(named_params)
        self.matrices = Here() if matrices is None else matrices
        self.here = {name: _here(parameter) for name, parameter in self.params.items()}
        """The numbers of each parameter that this process holds, in place."""
        muon = [name for name in self.params if cfg.kind == "muon" and roles[name] in MUON_ROLES]
        self.momentum = {name: torch.zeros_like(self.here[name]) for name in muon}
        tables = [name for name in self.params if roles[name] == "table"]
        self.sum_sq = {name: self.params[name].new_zeros(len(self.params[name])) for name in tables}
        self._adam_names = [name for name in self.params if name not in self.momentum and name not in self.sum_sq]
        decayed = [self.here[name] for name in self._adam_names if roles[name] in DECAYED_ROLES]
        plain = [self.here[name] for name in self._adam_names if roles[name] not in DECAYED_ROLES]
        groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=cfg.lr_adam, betas=cfg.betas, eps=cfg.eps, fused=True)

    def zero_grad(self) -> None:
        for name, parameter in self.params.items():
            parameter.grad = self.here[name].grad = None

    @torch.no_grad()
    def step(self, lr_scale: float) -> None:
        """Move every parameter that has a gradient; learning rates are the config's times `lr_scale`.

        Consumes the gradients: Muon's hold its directions afterwards.
        """
        for name, parameter in self.params.items():
            if isinstance(parameter.grad, DTensor):
                self.here[name].grad = parameter.grad.to_local()
        for group in self._adam.param_groups:
            group["lr"] = self.cfg.lr_adam * lr_scale
        self._adam.step()
        for name, sum_sq_M in self.sum_sq.items():
            table = self.params[name]
            if table.grad is not None:
                move_rows(table, table.grad.coalesce(), sum_sq_M, self.cfg.lr_table * lr_scale, self.cfg.eps)
        alike: dict[tuple[torch.Size, Hashable], list[str]] = defaultdict(list)
        for name in self.momentum:
            if self.here[name].grad is not None:
                alike[self.matrices.whole_shape(name, self.params[name]), self.matrices.place(name)].append(name)
        for (shape, _), names in alike.items():
            if len(shape) == 3:
                for name in names:
                    self._move([name], self._directions([name])[0], lr_scale)
            else:
                self._move(names, torch.stack(self._directions(names)), lr_scale)

    def signal(self) -> float | None:
        """How much of their gradients the last steps share (optim/signal.py), in what AdamW moves in this process."""
        held = [state for name in self._adam_names if (state := self._adam.state.get(self.here[name]))]
        means, squares, steps = ([state[key] for state in held] for key in ADAM_STATE)
        return shared(means, squares, steps, self.cfg.betas)

    def _directions(self, names: Sequence[str]) -> list[Tensor]:
        """Take the gradients into the momentum; turn them, in place, into Nesterov's look ahead."""
        grads = [grad for name in names if (grad := self.here[name].grad) is not None]
        momenta = [self.momentum[name] for name in names]
        torch._foreach_lerp_(momenta, grads, 1 - self.cfg.momentum)
        torch._foreach_lerp_(grads, momenta, self.cfg.momentum)
        return grads

    def _move(self, names: list[str], direction_ZIO: Tensor, lr_scale: float) -> None:
        lr = self.cfg.lr * lr_scale
        n_rows, n_columns = self.matrices.whole_shape(names[0], self.params[names[0]])[-2:]
        size = update_scale(n_rows, n_columns)

        def turn(whole_ZIO: Tensor) -> Tensor:
            return orthogonalize(whole_ZIO, self.cfg.ns, self.cfg.ns_steps, self.dtype).to(whole_ZIO.dtype)

        is_batch = self.params[names[0]].ndim == 3  # experts are divided between matrices, never through one
        update_ZIO = turn(direction_ZIO) if is_batch else self.matrices.turn_whole(names[0], direction_ZIO, turn)
        parameters: list[Tensor] = [self.here[name] for name in names]
        torch._foreach_mul_(parameters, 1 - lr * self.cfg.weight_decay)
        torch._foreach_add_(parameters, [update_ZIO] if is_batch else list(update_ZIO.unbind()), alpha=-lr * size)

    def keep_on(self, device: torch.device) -> None:
        """Bring the state there: to the host while others need the memory, and back before the next step."""
        for kept in (self.momentum, self.sum_sq):
            kept.update({name: carried(tensor, device) for name, tensor in kept.items()})
        for held in self._adam.state.values():
            held.update({key: carried(tensor, device) for key, tensor in held.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the state under "quantity/parameter"."""
        state = {f"momentum/{name}": momentum for name, momentum in self.momentum.items()}
        state |= {f"sum_sq/{name}": sum_sq_M for name, sum_sq_M in self.sum_sq.items()}
        for name in self._adam_names:
            held = self._adam.state.get(self.here[name], {})
            state.update({f"{key}/{name}": held[key] for key in ADAM_STATE if key in held})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state; every quantity must belong to a parameter, in its shape."""
        unknown = sorted(state.keys() - self._keys())
        missing = sorted(self._always() - state.keys())
        if unknown or missing:
            raise CheckpointError(
                f"the optimizer state does not fit kind={self.cfg.kind}: unknown {unknown[:3]}, missing {missing[:3]}"
                f" ({len(unknown)} and {len(missing)} in all)"
            )
        for name, momentum in self.momentum.items():
            momentum.copy_(state[f"momentum/{name}"])
        for name, sum_sq_M in self.sum_sq.items():
            sum_sq_M.copy_(state[f"sum_sq/{name}"])
        for name in self._adam_names:
            held = {key: state[f"{key}/{name}"] for key in ADAM_STATE if f"{key}/{name}" in state}
            parameter = self.here[name]
            if held:
                self._adam.state[parameter] = {
                    key: torch.empty_like(value if key == "step" else parameter, device=parameter.device).copy_(value)
                    for key, value in held.items()
                }
            else:
                self._adam.state.pop(parameter, None)

    def _keys(self) -> set[str]:
        return self._always() | {f"{key}/{name}" for name in self._adam_names for key in ADAM_STATE}

    def _always(self) -> set[str]:
        """The state that is there from the first step on; AdamW's comes with a parameter's first gradient."""
        return {f"momentum/{name}" for name in self.momentum} | {f"sum_sq/{name}" for name in self.sum_sq}


def _here(parameter: nn.Parameter) -> nn.Parameter:
    """The part of a divided parameter that is in this process, over the same memory; a whole one is itself."""
    if not isinstance(parameter, DTensor):
        return parameter
    with torch.no_grad():
        return nn.Parameter(parameter.to_local())
