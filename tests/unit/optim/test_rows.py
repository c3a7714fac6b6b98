"""Tables move by rows: the same numbers as AdaGrad over the whole table, at the cost of the rows."""

import time

import torch
from torch import nn
from torch.testing import assert_close

from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.rows import move_rows

NAME = "memory.at.0.table_MW"


def sparse(rows: list[int], n_rows: int, seed: int) -> torch.Tensor:
    values = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(seed))
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (n_rows, 3), check_invariants=True)


def test_a_step_is_adagrad_with_one_accumulator_for_each_row():
    table_MW, sum_sq_M = torch.randn(7, 3), torch.zeros(7)
    dense_MW, dense_M = table_MW.clone(), torch.zeros(7, 1)
    for seed, rows in enumerate(([5, 1, 5], [1, 2], [5])):
        grad = sparse(rows, 7, seed)
        move_rows(table_MW, grad.coalesce(), sum_sq_M, 0.1, 1e-8)
        full_MW = grad.to_dense()
        dense_M += full_MW.square().mean(1, keepdim=True)
        dense_MW -= 0.1 * full_MW / (dense_M.sqrt() + 1e-8)
    assert_close(table_MW, dense_MW)
    assert_close(sum_sq_M, dense_M[:, 0])
    assert sum_sq_M[[0, 3, 4, 6]].tolist() == [0.0] * 4


def test_a_table_has_one_number_of_state_for_each_row_and_no_decay():
    table = nn.Parameter(torch.ones(9, 3))
    optimizer = Optimizer({NAME: table}, {NAME: "table"}, OptimConfig(weight_decay=1.0))
    table.grad = sparse([4], 9, 0)
    optimizer.step(1.0)
    assert {name: tuple(held.shape) for name, held in optimizer.state_dict().items()} == {f"sum_sq/{NAME}": (9,)}
    assert (table[[0, 1, 2, 3, 5, 6, 7, 8]] == 1).all()
    assert (table[4] != 1).all()


def test_a_step_costs_no_more_in_a_table_a_hundred_times_as_long():
    def seconds(n_rows: int) -> float:
        table_MW, sum_sq_M, grad = torch.zeros(n_rows, 3), torch.zeros(n_rows), sparse([1, 8, 5], n_rows, 0).coalesce()
        took = []
        for _ in range(30):
            began = time.perf_counter()
            move_rows(table_MW, grad, sum_sq_M, 0.1, 1e-8)
            took.append(time.perf_counter() - began)
        return min(took)

    assert seconds(2_000_000) < 10 * seconds(20_000)
