"""May float32 matrix products go through oneDNN? torch calls that float32 precision "medium".

On CPUs without bfloat16 tiles (AMX), "medium" keeps float32 accuracy and merely changes the library from MKL to
oneDNN, which can be faster; elsewhere it may round the operands to bfloat16. So the error is measured, against
float64, on a few small products, and "medium" is set only where it is float32's.
"""

import torch

TOLERANCE = 4.0
"""Largest error over that of "highest"; rounding operands to bfloat16 makes it some thousands."""
SHAPES = ((256, 256, 256), (96, 512, 160), (33, 384, 65))


def choose_matmul_precision() -> str:
    """Set and return "medium" if it is accurate here, else "highest"; a few milliseconds."""
    if not torch.backends.mkldnn.is_available():
        torch.set_float32_matmul_precision("highest")
        return "highest"
    generator = torch.Generator().manual_seed(0)
    operands = [
        (torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator))
        for rows, inner, columns in SHAPES
    ]
    errors = {name: _worst_error(name, operands) for name in ("highest", "medium")}
    chosen = "medium" if errors["medium"] <= TOLERANCE * errors["highest"] else "highest"
    torch.set_float32_matmul_precision(chosen)
    return chosen


def _worst_error(precision: str, operands: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    torch.set_float32_matmul_precision(precision)
    errors = []
    for left, right in operands:
        exact = left.double() @ right.double()
        errors.append(float((left @ right - exact).norm() / exact.norm()))
        batched = torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))
        errors.append(float((batched[1] - exact).norm() / exact.norm()))
    return max(errors)
