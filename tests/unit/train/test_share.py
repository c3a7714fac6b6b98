"""A process's share of a micro-batch: every sequence goes to exactly one process, and an idle one counts nowhere."""

import pytest
import torch

from sobre.models.decoder import Decoder
from sobre.train.batch import Batch, from_samples
from sobre.train.losses import next_token
from sobre.train.share import largest_row_share, largest_share, share


def batch(*lengths: int, fill_unit: int = 1) -> Batch:
    ids = iter(range(1, 64))
    samples = [([next(ids) for _ in range(n)], [0] + [1] * (n - 1)) for n in lengths]
    return from_samples(samples, fill_unit=fill_unit)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("fill_unit", [1, 16])
def test_the_shares_together_are_the_real_tokens_in_order(count: int, fill_unit: int) -> None:
    whole = batch(9, 4, 4, 8, 3, fill_unit=fill_unit)
    parts = [share(whole, index, count) for index in range(count)]
    assert torch.cat([part.step.real.tokens_N for part in parts]).equal(whole.step.real.tokens_N)
    assert [n for part in parts for n in part.step.real.lengths] == list(whole.step.real.lengths)
    assert sum(float(part.weights_N.sum()) for part in parts) == float(whole.weights_N.sum())


def test_shares_are_of_about_as_many_tokens() -> None:
    parts = [share(batch(*(5,) * 8), index, 4) for index in range(4)]
    assert [part.n_tokens for part in parts] == [8, 8, 8, 8]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(9, 4, 4, 8, 3), (7, 1, 1, 7, 1, 1), (12,), (5,) * 6])
def test_no_share_is_larger_than_is_planned_for(lengths: tuple[int, ...], count: int) -> None:
    whole = batch(*(n + 1 for n in lengths))  # the last token of a sample is a target alone
    found = max(share(whole, index, count).n_tokens for index in range(count))
    assert found <= largest_share(sum(lengths), max(lengths), count) <= sum(lengths)
    if len(set(lengths)) == 1:
        assert found == largest_row_share(sum(lengths), lengths[0], count)
    assert largest_share(3, 12, count) == 12


def test_an_idle_share_runs_and_adds_nothing(nano_config) -> None:
    idle = share(batch(9), 0, 2)
    assert (idle.n_tokens, idle.step.real.n_sequences, float(idle.weights_N.sum())) == (0, 0, 0.0)
    model = Decoder(nano_config)
    model.init_weights(0)
    model.train()
    output = model(idle.step)
    loss = next_token(model, output, idle).sum + output.balance_loss
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert output.load_LE is not None
    assert int(output.load_LE.sum()) == 0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
