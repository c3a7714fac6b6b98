"""FP8 blocks that stay as they were released: a quarter of float32's memory, half of bfloat16's.

Of a folder in DeepSeek-V3's form (arXiv 2412.19437, 3.3), the matrices and experts that the files hold in FP8 stay in
FP8, their factors in a buffer beside them (`weight_factors`, `gate_EFD_factors`); what else there is, is as ever. They
are multiplied out at use (kernels/kept.py). Such a model answers and leaves with the bytes that it came with; it does
not learn, and nothing that reads a weight as numbers takes it.
"""

import torch
from torch import nn

from sobre.errors import ConfigError
from sobre.kernels.kept import FP8
from sobre.models.decoder import Decoder
from sobre.models.layers import Linear
from sobre.models.moe import MoE
from sobre.models.shards import factors_shape

FACTORS = "_factors"
"""After the name of a weight, the name of its factors."""
QUANTIZATION = {
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
}
"""What config.json says of such weights."""


def keeps_fp8(model: nn.Module) -> bool:
    """Whether some of the weights lie in FP8."""
    return any(parameter.dtype in FP8 for parameter in model.parameters())


def refuse_kept(model: nn.Module, what: str) -> None:
    """Raise ConfigError where `what` would read FP8 weights as plain numbers."""
    if keeps_fp8(model):
        raise ConfigError(f"{what} does not take weights that stay in FP8; load them without --dtype fp8")


def can_stay(model: Decoder, name: str) -> bool:
    """Whether this weight is multiplied out at use: experts, and matrices but for the head's."""
    module = model.get_submodule(name.rpartition(".")[0])
    return isinstance(module, MoE) or (isinstance(module, Linear) and name.endswith(".weight") and module != model.head)


def make_room(model: Decoder, name: str, dtype: torch.dtype, factors: torch.dtype) -> None:
    """On a model that has no memory yet: this weight is FP8 from now on, and has factors."""
    at, _, leaf = name.rpartition(".")
    module = model.get_submodule(at)
    *stack, n_out, n_in = module.get_parameter(leaf).shape
    weight = torch.empty(*stack, n_out, n_in, dtype=dtype, device="meta")
    setattr(module, leaf, nn.Parameter(weight, requires_grad=False))
    setattr(module, leaf + FACTORS, torch.empty(*stack, *factors_shape((n_out, n_in)), dtype=factors, device="meta"))
