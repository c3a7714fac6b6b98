"""Pieces of sequences: every token is in one process, and all processes have about as many pairs to compute."""

import pytest
import torch

from sobre.parallel.context import pieces_of, rows_of


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_token_of_every_sequence_is_in_one_piece(count: int) -> None:
    lengths = (9, 1, 64, 3, 17)
    rows = torch.cat([rows_of(lengths, pieces_of(lengths, index, count)) for index in range(count)])
    assert rows.sort().values.tolist() == list(range(sum(lengths)))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_long_sequence_is_as_much_work_in_every_process(count: int) -> None:
    pairs = [
        sum(start + i + 1 for _, start, length in pieces_of([1024], index, count) for i in range(length))
        for index in range(count)
    ]
    assert sum(pairs) == 1024 * 1025 // 2
    assert len(set(pairs)) == 1
