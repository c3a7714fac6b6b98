"""What each parameter is for, read from its name: the optimizer treats roles, never modules."""

from collections.abc import Iterable
from typing import Literal

from sobre.errors import ConfigError

Role = Literal["embedding", "head", "matrix", "experts", "router", "norm", "bias", "adapter", "table"]

MUON_ROLES: frozenset[Role] = frozenset({"matrix", "experts"})
DECAYED_ROLES: frozenset[Role] = frozenset({"matrix", "experts", "head"})


def role_of(name: str) -> Role:
    """The role of the parameter `name`, such as "layers.3.ffn.gate_EFD" or "layers.0.attn_norm.weight"."""
    module, _, leaf = name.rpartition(".")
    owner = module.rpartition(".")[2]
    if leaf in ("down_RI", "up_OR", "down_ERI", "up_EOR"):
        return "adapter"
    if leaf == "bias":
        return "bias"
    if leaf in ("gate_EFD", "up_EFD", "down_EDF"):
        return "experts"
    if leaf == "weight_ED" and owner == "router":
        return "router"
    if leaf == "weight" and (owner == "norm" or owner.endswith("_norm")):
        return "norm"
    if leaf == "table_MW":
        return "table"
    if leaf == "conv_KD":  # one number for each channel and tap: scaled like a norm's, not a matrix
        return "norm"
    if name == "embed.weight":
        return "embedding"
    if name == "head.weight":
        return "head"
    if leaf == "weight":
        return "matrix"
    raise ConfigError(f"parameter {name!r} has no role in the optimizer; give its name a role in optim/roles.py")


def roles(names: Iterable[str]) -> dict[str, Role]:
    """Role of every name."""
    return {name: role_of(name) for name in names}
