"""A pipeline cuts the layers evenly, and what travels through it has one shape."""

import pytest
import torch

from sobre.models.config import ModelConfig
from sobre.parallel.pipeline import stages_of
from sobre.train.batch import from_samples
from sobre.train.share import filled
from sobre.train.stages import layers_of


@pytest.mark.parametrize(
    ("n_layers", "n_mtp", "n_stages", "sizes"),
    [
        (8, 0, 4, [2, 2, 2, 2]),
        (7, 1, 4, [2, 2, 2, 1]),
        (3, 1, 4, [1, 1, 1, 0]),
        (5, 0, 2, [2, 3]),
        (61, 1, 2, [31, 30]),
    ],
)
def test_stages_have_about_as_many_layers_and_mtp_counts_as_one_of_the_last(n_layers, n_mtp, n_stages, sizes) -> None:
    spans = layers_of(ModelConfig(n_layers=n_layers, n_mtp=n_mtp), n_stages)
    assert [len(span) for span in spans] == sizes
    assert [layer for span in spans for layer in span] == list(range(n_layers))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zero-bubble", "zbv", "dualpipev"])
def test_every_stage_has_one_process(schedule) -> None:
    found = [stage for rank in range(4) for stage in stages_of(rank, 4, schedule)]
    assert sorted(found) == list(range(4 if schedule == "1f1b" else 8))


def test_filler_is_no_longer_than_a_sequence_may_be_and_counts_nowhere() -> None:
    batch = from_samples([([1, 2, 3, 4], [0, 1, 1, 1]), ([5, 6], [0, 1])], fill_unit=5)
    full = filled(batch, 18, max_len=7)
    assert full.step.lengths == (3, 1, 1, 7, 6)
    assert full.step.real.lengths == (3, 1)
    assert full.n_tokens == batch.n_tokens == 4
    assert full.first.total == batch.first.total
    assert torch.equal(full.step.tokens_N[:5], batch.step.tokens_N)
    assert filled(full, 18, max_len=7) is full
