"""`EngineConfig.deterministic`: the same bits for a request, whatever runs beside it.

Every product of the model gets a fixed shape (kernels/tiled.py), every token attends through the cache and never by the
shorter way of a fresh prompt. That a row of a product does not depend on its neighbours is the library's doing, and is
tried here on every shape of the model, once, when the engine is made.
"""

from contextlib import AbstractContextManager

from torch import nn

from sobre.errors import ConfigError
from sobre.kernels import select, tiled
from sobre.models.indexer import Indexer
from sobre.models.kept import refuse_kept
from sobre.models.lightning import Lightning
from sobre.models.memory import Memory

KERNELS = {
    **dict.fromkeys(
        ("rms_norm", "linear", "heads_linear", "router_scores", "swiglu", "cached_attention", "moe_ffn"), "tiled"
    ),
    **dict.fromkeys(("latent_decode", "grouped_decode"), "gathered"),  # and then attended to by the tiled one
    **dict.fromkeys(select.WHOLE, "parts"),
    "rope": "reference",  # products and sums one by one; a complex product adds in one step or two, as it comes
}


def fixed_shapes() -> AbstractContextManager[None]:
    """Compute these operations with fixed shapes inside the block."""
    return select.overrides(KERNELS)


def check_rows(model: object) -> None:
    """Raise ConfigError where this machine's products make a row depend on its neighbours."""
    if not isinstance(model, nn.Module):
        return
    refuse_kept(model, "engine.deterministic")
    if any(isinstance(module, Indexer | Lightning | Memory) for module in model.modules()):
        raise ConfigError(
            "engine.deterministic: there are no fixed-shape forms of an indexer, lightning attention or n-gram memory"
        )
    shapes = {(p.shape[-1], p.shape[-2], p.dtype, p.device) for p in model.parameters() if p.ndim > 1}
    for n_in, n_out, dtype, device in sorted(shapes, key=str):
        if not tiled.rows_are_independent(n_in, n_out, dtype, device):
            raise ConfigError(
                f"engine.deterministic: on this machine a product of {tiled.TILE} rows of {n_in} with {n_in} x {n_out}"
                f" in {dtype} gives a row other bits at another place; run with another number of threads, or without"
            )
