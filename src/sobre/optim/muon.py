"""Muon: momentum whose matrices are made orthogonal by Newton-Schulz products (Keller Jordan, 2024).

The update is scaled by 0.2 * sqrt(max(rows, columns)), so that its elements have AdamW's usual size and one learning
rate serves every shape (Moonlight, arXiv 2502.16982, 2.2).

Iteration: X <- a X + (b G + c G G) X with G = X X^T on the smaller side. "classic" is Keller Jordan's: Frobenius norm
first, then one triple of coefficients (5 steps). "minimax" gives each step the triple that makes the worst singular
value of its interval least wrong (the idea of Polar Express, arXiv 2505.16932; the triples are our own, for intervals
widened by 5 % above, since bfloat16 rounds singular values upwards where the polynomials are steep). It divides first
by sqrt(|G|_F), a bound on the largest singular value that costs nothing, as G is needed anyway, and is far closer than
|X|_F. Three such steps take [0.01, 1] to [0.68, 1.32]; the five classic ones take it to [0.68, 1.20].

Experts are batches: stacked tensors (E, rows, columns) go through batched products as they are.

Shapes: Z matrices of a batch, I rows, O columns, X the smaller of the two.
"""

import torch
from torch import Tensor

CLASSIC = (3.4445, -4.7750, 2.0315)
MINIMAX = {
    # singular values in [0.05, 1] end in [0.75, 1.25]
    2: ((6.4950, -16.0800, 10.5557), (2.5052, -1.7108, 0.3648)),
    # [0.01, 1] ends in [0.68, 1.32]
    3: ((7.7261, -20.4689, 13.7161), (3.5157, -2.3945, 0.4274), (2.6583, -1.8217, 0.3746)),
    # [0.003, 1] ends in [0.74, 1.26]
    4: (
        (7.9899, -21.4132, 14.3972),
        (3.8711, -2.6175, 0.4488),
        (3.4223, -2.3318, 0.4206),
        (2.5237, -1.7229, 0.3653),
    ),
}


def update_scale(n_rows: int, n_columns: int) -> float:
    """Factor on an orthogonal matrix that gives its elements a root mean square of about 0.2."""
    return 0.2 * max(n_rows, n_columns) ** 0.5


def orthogonalize(x_ZIO: Tensor, ns: str, steps: int, dtype: torch.dtype) -> Tensor:
    """Nearest orthogonal matrix of each (up to the tolerance above), computed in `dtype`; a zero matrix stays zero."""
    coefficients = MINIMAX[steps] if ns == "minimax" else (CLASSIC,) * steps
    wide = x_ZIO.shape[1] <= x_ZIO.shape[2]
    x_ZIO = x_ZIO.to(dtype, copy=True)
    x_ZIO.mul_(_inverse(x_ZIO.abs().amax((1, 2), keepdim=True)))  # squares of tiny gradients would underflow
    if ns == "classic":
        x_ZIO.mul_(_inverse(torch.linalg.vector_norm(x_ZIO, dim=(1, 2), keepdim=True)))
    for index, (a, b, c) in enumerate(coefficients):
        gram_ZXX = torch.bmm(x_ZIO, x_ZIO.mT) if wide else torch.bmm(x_ZIO.mT, x_ZIO)
        if ns == "minimax" and index == 0:
            scale_Z11 = _inverse(torch.linalg.vector_norm(gram_ZXX, dim=(1, 2), keepdim=True))
            gram_ZXX.mul_(scale_Z11)
            x_ZIO.mul_(scale_Z11.sqrt_())
        poly_ZXX = torch.baddbmm(gram_ZXX, gram_ZXX, gram_ZXX, beta=b, alpha=c)
        left, right = (poly_ZXX, x_ZIO) if wide else (x_ZIO, poly_ZXX)
        x_ZIO = torch.baddbmm(x_ZIO, left, right, beta=a)
    return x_ZIO


def _inverse(norm_Z11: Tensor) -> Tensor:
    return norm_Z11.clamp_min_(1e-30).reciprocal_()
