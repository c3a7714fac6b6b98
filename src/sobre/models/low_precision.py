"""Which products of a model train in FP8: those of V3 (arXiv 2412.19437, 3.3.1), chosen by the role of the parameter.

Matrices and experts do; embedding, output head, router, norms, the core of attention and the index that chooses for it
(V3.2) keep the model's dtype. The masters stay as they are. Only training sees FP8: sampling, evaluation and the saved
weights use the masters.
"""

from sobre.errors import ConfigError
from sobre.models.decoder import Decoder
from sobre.models.layers import Linear
from sobre.models.moe import MoE, local_dispatch
from sobre.optim.roles import role_of
from sobre.train.config import Precision


def set_precision(model: Decoder, precision: Precision) -> None:
    """Train the matrices and experts of `model` in this precision from now on; "auto" is the model's own dtype.

    Raises ConfigError where the device has no FP8 numbers, or where the experts live in several processes.
    """
    low = precision != "auto"
    if low and model.embed.weight.device.type == "mps":
        raise ConfigError(f"precision={precision!r}: MPS has no FP8 numbers; it fits: auto")
    for name, module in model.named_modules():
        if isinstance(module, Linear) and ".indexer." not in name and role_of(f"{name}.weight") == "matrix":
            module.precision = precision
        elif isinstance(module, MoE):
            if low and module.dispatch is not local_dispatch:
                where = f"the experts of {name} are spread over processes; FP8 experts work in one"
                raise ConfigError(f"precision={precision!r}: {where}; it fits: auto")
            module.precision = precision
