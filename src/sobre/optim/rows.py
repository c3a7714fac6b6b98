"""Tables move by rows: AdaGrad with one number a row, on the rows that a step touched (as recommenders train theirs).

A row's step is lr * g / sqrt(sum over its steps of mean(g^2)): rows that many contexts name settle, rare ones still
learn. The gradient is sparse (rows and their values), so a step costs what it touched, however large the table.

Shapes: M rows of a table, U rows that a step touched, W width of a row.
"""

import torch
from torch import Tensor


@torch.no_grad()
def move_rows(table_MW: Tensor, grad: Tensor, sum_sq_M: Tensor, lr: float, eps: float) -> None:
    """One step of the rows in `grad` (sparse and coalesced: every row once); `sum_sq_M` is the state."""
    rows_U, grad_UW = grad.indices()[0], grad.values()
    sum_sq_U = sum_sq_M[rows_U] + grad_UW.square().mean(1)
    sum_sq_M.index_copy_(0, rows_U, sum_sq_U)
    table_MW.index_add_(0, rows_U, grad_UW / (sum_sq_U.sqrt() + eps)[:, None], alpha=-lr)
