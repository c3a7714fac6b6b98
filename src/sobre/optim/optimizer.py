"""The optimizer: Muon for matrices and experts, AdamW for embedding, head, router, norms, biases and adapters.

It works on named parameters and their roles and knows no module. Matrices of one shape go through Newton-Schulz as one
batch. The state is saved flat, one tensor per parameter and quantity under the parameter's own name, so that it loads
into any grouping.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from sobre.errors import CheckpointError
from sobre.optim.config import OptimConfig
from sobre.optim.muon import orthogonalize, update_scale
from sobre.optim.roles import DECAYED_ROLES, MUON_ROLES, Role

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


class Optimizer:
    """Reads `parameter.grad`, writes the parameters; `dtype` is what Newton-Schulz computes in."""

    def __init__(
        self,
        named_params: dict[str, nn.Parameter],
        roles: dict[str, Role],
        cfg: OptimConfig,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.cfg, self.dtype, self.params = cfg, dtype, dict(named_params)
        muon = [name for name in self.params if cfg.kind == "muon" and roles[name] in MUON_ROLES]
        self.momentum = {name: torch.zeros_like(self.params[name]) for name in muon}
        self._adam_names = [name for name in self.params if name not in self.momentum]
        decayed = [self.params[name] for name in self._adam_names if roles[name] in DECAYED_ROLES]
        plain = [self.params[name] for name in self._adam_names if roles[name] not in DECAYED_ROLES]
        groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=cfg.lr_adam, betas=cfg.betas, eps=cfg.eps, fused=True)

    def zero_grad(self) -> None:
        for parameter in self.params.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr_scale: float) -> None:
        """Move every parameter that has a gradient; learning rates are the config's times `lr_scale`.

        Consumes the gradients: Muon's hold its directions afterwards.
        """
        for group in self._adam.param_groups:
            group["lr"] = self.cfg.lr_adam * lr_scale
        self._adam.step()
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name in self.momentum:
            if self.params[name].grad is not None:
                by_shape[self.params[name].shape].append(name)
        for shape, names in by_shape.items():
            if len(shape) == 3:
                for name in names:
                    self._move([name], self._direction(name), lr_scale)
            else:
                self._move(names, torch.stack([self._direction(name) for name in names]), lr_scale)

    def _direction(self, name: str) -> Tensor:
        """Take the gradient into the momentum; turn it, in place, into Nesterov's look ahead."""
        grad, momentum = self.params[name].grad, self.momentum[name]
        assert grad is not None
        momentum.lerp_(grad, 1 - self.cfg.momentum)
        return grad.lerp_(momentum, self.cfg.momentum)

    def _move(self, names: list[str], direction_ZIO: Tensor, lr_scale: float) -> None:
        lr = self.cfg.lr * lr_scale
        update_ZIO = orthogonalize(direction_ZIO, self.cfg.ns, self.cfg.ns_steps, self.dtype).to(direction_ZIO.dtype)
        size = update_scale(*direction_ZIO.shape[-2:])
        for index, name in enumerate(names):
            parameter = self.params[name]
            update = update_ZIO if parameter.ndim == 3 else update_ZIO[index]
            parameter.mul_(1 - lr * self.cfg.weight_decay).add_(update, alpha=-lr * size)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the state under "quantity/parameter"."""
        state = {f"momentum/{name}": momentum for name, momentum in self.momentum.items()}
        for name in self._adam_names:
            held = self._adam.state.get(self.params[name], {})
            state.update({f"{key}/{name}": held[key] for key in ADAM_STATE if key in held})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state; every quantity must belong to a parameter, in its shape."""
        unknown = sorted(state.keys() - self._keys())
        missing = sorted(f"momentum/{name}" for name in self.momentum if f"momentum/{name}" not in state)
        if unknown or missing:
            raise CheckpointError(
                f"the optimizer state does not fit kind={self.cfg.kind}: unknown {unknown[:3]}, missing {missing[:3]}"
                f" ({len(unknown)} and {len(missing)} in all)"
            )
        for name, momentum in self.momentum.items():
            momentum.copy_(state[f"momentum/{name}"])
        for name in self._adam_names:
            held = {key: state[f"{key}/{name}"] for key in ADAM_STATE if f"{key}/{name}" in state}
            parameter = self.params[name]
            if held:
                self._adam.state[parameter] = {
                    key: torch.empty_like(value if key == "step" else parameter, device=parameter.device).copy_(value)
                    for key, value in held.items()
                }
            else:
                self._adam.state.pop(parameter, None)

    def _keys(self) -> set[str]:
        keys = {f"momentum/{name}" for name in self.momentum}
        return keys | {f"{key}/{name}" for name in self._adam_names for key in ADAM_STATE}
