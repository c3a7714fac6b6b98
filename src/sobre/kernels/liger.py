"""RMSNorm and SwiGLU by Liger's Triton kernels, where it is installed: one pass forward and one back.

Written against liger-kernel 0.8.2 (github.com/linkedin/Liger-Kernel, ead96b6: liger_kernel/ops), not run yet. Its
RMSNorm in the mode "gemma" is the function of ours: float32 throughout, rounded once at the end ("llama" rounds before
the weight). Its SwiGLU rounds silu(gate) before the product, as the fused one of `pointwise.py` does, and writes the
gradients over gate and up, so that a graph can be gone back through once.

What else it has does not fit: its rotary embedding takes halves only and works in place; its fused cross entropy gives
the gradient of a sum that is scaled as a whole, while losses here weigh every token by itself.
"""

import importlib
import importlib.util
from typing import Any

from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same function as `reference.rms_norm`."""
    offset, casting_mode, in_place = 0.0, "gemma", False
    y: Tensor = _operators().LigerRMSNormFunction.apply(x, weight, eps, offset, casting_mode, in_place)
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The same function as `reference.swiglu`, with one more rounding in bfloat16."""
    y: Tensor = _operators().LigerSiLUMulFunction.apply(gate, up)
    return y


def _operators() -> Any:
    return importlib.import_module("liger_kernel.ops")


def lacks() -> str | None:
    """What this machine lacks for it, or None."""
    return None if importlib.util.find_spec("liger_kernel") else "needs liger_kernel, which is not installed"
