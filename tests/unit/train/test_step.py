"""One optimizer step: counts are global, accumulation is exact, what is not finite is refused."""

import pytest
import torch
from torch.testing import assert_close

from sobre.errors import RunError
from sobre.models.config import MemoryConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.train.batch import Batch, from_rows, from_samples, second_targets
from sobre.train.losses import Loss, next_token
from sobre.train.step import train_step

CFG = ModelConfig(
    vocab_size=31,
    max_len=32,
    d_model=16,
    n_layers=2,
    attention=MLAConfig(n_heads=2, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=8, d_ff=16, balance_alpha=0.01, bias_speed=0.01),
    n_mtp=1,
    memory=MemoryConfig(layers=(0, 1), n_rows=37, dim=4),
)


def fresh() -> tuple[Decoder, Optimizer]:
    model = Decoder(CFG)
    model.init_weights(3)
    model.train()
    names = dict(model.named_parameters())
    return model, Optimizer(names, roles(names), OptimConfig(warmup_steps=0))


def samples(*lengths: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in lengths:
        ids = torch.randint(0, 31, (n,), generator=generator).tolist()
        found.append((ids, [0] * (n // 3) + [1] * (n - n // 3)))
    return found


def test_samples_become_inputs_targets_and_weights_one_token_apart():
    batch = from_samples([([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 4], [0, 1])])
    assert batch.step.tokens_N.tolist() == [5, 6, 7, 9]
    assert batch.targets_N.tolist() == [6, 7, 8, 4]
    assert batch.weights_N.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert batch.step.lengths == (3, 1)


def test_rows_learn_every_target():
    batch = from_rows(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert (batch.step.tokens_N.tolist(), batch.targets_N.tolist()) == ([1, 2, 4, 5], [2, 3, 5, 6])
    assert batch.weights_N.sum() == 4


def test_second_targets_are_two_ahead_and_stop_at_the_end_of_each_sequence():
    batch = from_samples([([5, 6, 7, 8], [1, 1, 1, 1]), ([9, 4, 3], [0, 1, 0])])
    targets_N, weights_N = second_targets(batch)
    assert weights_N.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert targets_N[:2].tolist() == [7, 8]


@pytest.mark.parametrize("mtp_weight", [0.0, 0.3])
@pytest.mark.parametrize("cuts", [[2, 2], [1, 3], [1, 1, 1, 1]])
@pytest.mark.slow
def test_accumulated_micro_batches_give_the_step_of_the_whole(cuts, mtp_weight):
    data = samples(9, 20, 5, 14)
    results = []
    for sizes in ([4], cuts):
        model, optimizer = fresh()
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        batches = [from_samples(data[a : a + n]) for a, n in zip(starts, sizes, strict=True)]
        info = train_step(model, optimizer, batches, next_token, lr_scale=1.0, clip=1.0, mtp_weight=mtp_weight)
        results.append((info, {name: p.detach() for name, p in model.state_dict().items()}))
    (whole, one), (cut, two) = results
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    assert torch.equal(cut.load_LE, whole.load_LE)
    for name in one:
        assert_close(two[name], one[name], rtol=1e-4, atol=2e-5, msg=name)


def test_the_loss_is_the_mean_over_trained_tokens_alone():
    model, optimizer = fresh()
    data = samples(9, 20)
    batch = from_samples(data)
    with torch.no_grad():
        logits_NV = model(batch.step)
        nll_N = torch.nn.functional.cross_entropy(model.logits(logits_NV.hidden_ND), batch.targets_N, reduction="none")
    expected = (nll_N * batch.weights_N).sum() / batch.weights_N.sum()
    info = train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0)
    assert info.loss == pytest.approx(float(expected), rel=1e-5)
    assert info.n_trained == batch.weights_N.sum()


def test_the_gradient_is_that_of_loss_mtp_and_balance_with_their_own_counts():
    model, _ = fresh()
    batch = from_samples(samples(9, 20))
    output = model(batch.step)
    second_N, second_weights_N = second_targets(batch)
    ahead = model.predict_second(output.hidden_ND, batch.targets_N, batch.step)
    cross_entropy = torch.nn.functional.cross_entropy
    first = cross_entropy(model.logits(output.hidden_ND), batch.targets_N, reduction="none") * batch.weights_N
    second = cross_entropy(model.logits(ahead.hidden_ND), second_N, reduction="none") * second_weights_N
    total = first.sum() / batch.weights_N.sum() + 0.3 * second.sum() / second_weights_N.sum()
    total = total + (output.balance_loss + ahead.balance_loss) / 2
    expected = torch.autograd.grad(total, list(model.parameters()))
    seen: list[torch.Tensor] = []

    class Spy(Optimizer):
        def step(self, lr_scale: float) -> None:
            seen.extend(parameter.grad.clone() for parameter in self.params.values())

    names = dict(model.named_parameters())
    spy = Spy(names, roles(names), OptimConfig())
    train_step(model, spy, [batch], next_token, lr_scale=1.0, clip=1e9, mtp_weight=0.3)
    for name, got, gradient in zip(names, seen, expected, strict=True):
        assert_close(got.to_dense(), gradient.to_dense(), rtol=1e-4, atol=1e-6, msg=name)


def test_router_biases_move_by_the_load_of_all_micro_batches_unless_frozen():
    data = [from_samples(samples(9, seed=1)), from_samples(samples(12, seed=2))]
    model, optimizer = fresh()
    info = train_step(model, optimizer, data, next_token, lr_scale=1.0, clip=1.0, mtp_weight=0.3)
    for router, load_E in zip(model.routers(), info.load_LE.float(), strict=True):
        assert_close(router.bias_E, 0.01 * torch.sign(load_E.mean() - load_E))
    frozen, optimizer = fresh()
    train_step(frozen, optimizer, data, next_token, lr_scale=1.0, clip=1.0, rebalance=False)
    assert all(router.bias_E.abs().sum() == 0 for router in frozen.routers())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_and_nothing_moves(bad):
    model, optimizer = fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def spoiled(model, output, batch) -> Loss:
        return Loss(next_token(model, output, batch).sum * bad)

    with pytest.raises(RunError, match="must be finite; the step was refused"):
        train_step(model, optimizer, [from_samples(samples(9))], spoiled, lr_scale=1.0, clip=1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_batch_with_nothing_to_learn_is_refused():
    model, optimizer = fresh()
    batch = Batch(StepInput(torch.tensor([1, 2]), lengths=(2,)), torch.tensor([2, 3]), torch.zeros(2))
    with pytest.raises(RunError, match="without a single trained token"):
        train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0)


@pytest.mark.slow
def test_training_learns_a_repeating_text():
    model, optimizer = fresh()
    batch = from_rows(torch.arange(31).repeat(4)[:100].unfold(0, 20, 16).contiguous())
    losses = [train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0).loss for _ in range(150)]
    assert losses[0] > 3.0
    assert losses[-1] < 0.5


@pytest.mark.parametrize("mtp_weight", [0.0, 0.3])
def test_filling_a_step_up_to_a_size_changes_nothing_that_is_learned_or_counted(mtp_weight):
    data, results = samples(9, 20, 5), []
    for unit in (1, 16):
        model, optimizer = fresh()
        batch = from_samples(data, fill_unit=unit)
        info = train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0, mtp_weight=mtp_weight)
        results.append((batch, info, model.state_dict()))
    (plain, one, weights), (filled, other, filled_weights) = results
    assert (plain.step.tokens_N.numel(), filled.step.tokens_N.numel()) == (31, 32)
    assert (one.n_tokens, one.n_trained) == (other.n_tokens, other.n_trained)
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert torch.equal(one.load_LE, other.load_LE)
    for name, tensor in weights.items():
        assert_close(filled_weights[name], tensor, rtol=1e-4, atol=2e-5, msg=name)


def test_a_watched_step_counts_how_often_mtp_is_right_over_all_micro_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sobre.train.losses.ROWS", 4)  # several parts, the last one short
    model, optimizer = fresh()
    batches = [from_samples(samples(30, 31, 32)), from_samples(samples(32, 29, seed=1))]
    right = total = 0.0
    for batch in batches:
        with torch.no_grad():
            ahead = model.predict_second(model(batch.step).hidden_ND, batch.targets_N, batch.step)
        targets_N, weights_N = second_targets(batch)
        right += float(weights_N[model.logits(ahead.hidden_ND).argmax(-1) == targets_N].sum())
        total += float(weights_N.sum())
    settings = {"lr_scale": 0.0, "clip": 1.0, "mtp_weight": 0.3}
    watched = train_step(model, optimizer, batches, next_token, watch=True, **settings)
    assert watched.mtp_acceptance == pytest.approx(right / total)
    assert 0 < right < total
    assert watched.stats == {}
    assert train_step(model, optimizer, batches, next_token, **settings).mtp_acceptance is None
