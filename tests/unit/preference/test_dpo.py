"""DPO: the loss by hand, pairs from files, and a step with a real model that comes to prefer what was chosen."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.pairs import Pair, TokenPair, read_pairs, tokenize_pairs
from sobre.errors import ConfigError, DataError
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.preference.config import DPOConfig
from sobre.preference.dpo import Pairs, dpo, preference_loss
from sobre.preference.source import PairSource, reference_log_probs
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.step import train_step

CFG = DPOConfig(batch_tokens=120, micro_tokens=60, beta=0.5)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIRS = [
    Pair([user(f"say {i}"), assistant(f"yes {i}")], [user(f"say {i}"), assistant("no never")], 1, f"pair {i}")
    for i in range(6)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["say yes", "no never"] * 20, TokenizerConfig(vocab_size=300))


@pytest.fixture
def model(nano_config: ModelConfig, tokenizer: Tokenizer) -> Decoder:
    model = Decoder(replace(nano_config, vocab_size=tokenizer.vocab_size))
    model.init_weights(3)
    return model


@pytest.fixture
def pairs(tokenizer: Tokenizer) -> list[TokenPair]:
    return tokenize_pairs(PAIRS, tokenizer, max_len=64, events=Events())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_by_hand(smoothing: float) -> None:
    policy, reference = (
        Pairs(torch.tensor([-3.0]), torch.tensor([-5.0])),
        Pairs(torch.tensor([-4.0]), torch.tensor([-4.5])),
    )
    margin = 0.2 * ((-3.0 + 4.0) - (-5.0 + 4.5))  # 0.2 * 1.5
    expected = (1 - smoothing) * math.log(1 + math.exp(-margin)) + smoothing * math.log(1 + math.exp(margin))
    loss_X, rewards = dpo(policy, reference, beta=0.2, label_smoothing=smoothing)
    assert loss_X.tolist() == [pytest.approx(expected)]
    assert (rewards.chosen_X.tolist(), rewards.rejected_X.tolist()) == ([pytest.approx(0.2)], [pytest.approx(-0.1)])


def test_its_gradient_is_that_of_the_paper_the_more_the_wronger_the_reward(seeded_randn) -> None:
    """Eq. 7's gradient: -beta sigmoid(reward of l - reward of w) on log pi(w), the opposite on log pi(l)."""
    chosen_X, rejected_X = seeded_randn(4).requires_grad_(), seeded_randn(4, seed=1).requires_grad_()
    reference = Pairs(seeded_randn(4, seed=2), seeded_randn(4, seed=3))
    loss_X, rewards = dpo(Pairs(chosen_X, rejected_X), reference, beta=0.3)
    loss_X.sum().backward()
    expected_X = -0.3 * torch.sigmoid(rewards.rejected_X - rewards.chosen_X)
    assert_close(chosen_X.grad, expected_X)
    assert_close(rejected_X.grad, -expected_X)


def test_the_reference_itself_has_loss_log_2_and_no_reward(model: Decoder, pairs: list[TokenPair]) -> None:
    counted: list[int] = []
    references = reference_log_probs(model, pairs, 60, lambda batch: counted.append(batch.n_tokens))
    assert sum(counted) == sum(pair.n_tokens - 2 for pair in pairs)
    assert len(counted) > 1
    info = step(model, PairSource(pairs, references, CFG, seed=0), 0.0)
    assert info.loss == pytest.approx(math.log(2), abs=1e-5)
    assert info.stats["margin"] == pytest.approx(0, abs=1e-5)


def test_the_reference_is_the_sum_of_log_probabilities_of_the_answers_tokens(model, pairs) -> None:
    ids, mask = pairs[2].chosen
    logp_NV = model.logits(model(step_of(ids)).hidden_ND).log_softmax(-1).detach()
    expected = sum(float(logp_NV[at, token]) for at, token in enumerate(ids[1:]) if mask[at + 1])
    assert reference_log_probs(model, pairs, 60, lambda _: None)[2][0] == pytest.approx(expected, abs=1e-4)


def test_steps_make_the_chosen_answers_preferred(model: Decoder, pairs: list[TokenPair]) -> None:
    source = PairSource(pairs, reference_log_probs(model, pairs, 60, lambda _: None), CFG, seed=0)
    optimizer = make_optimizer(model)
    infos = [step(model, source, 1.0, optimizer) for _ in range(10)]
    assert infos[-1].loss < 0.5 * math.log(2)
    assert infos[-1].stats["preferred"] == pytest.approx(1)
    assert infos[-1].stats["reward_chosen"] > infos[-1].stats["reward_rejected"] + 0.5


def test_a_restored_source_gives_the_same_pairs_and_a_step_counts_pairs(model, pairs) -> None:
    references = [(float(i), -float(i)) for i in range(len(pairs))]
    source = PairSource(pairs, references, CFG, seed=0)
    first = source.feed(0)
    assert sum(float(batch.weights_N.sum()) for batch in first.batches) == pytest.approx(
        sum(int(batch.streams["answer"].max()) + 1 for batch in first.batches) / 2
    )
    state = json.loads(json.dumps(source.state()))
    expected = [batch.targets_N.tolist() for batch in source.feed(1).batches]
    again = PairSource(pairs, references, CFG, seed=0)
    again.restore(state)
    assert [batch.targets_N.tolist() for batch in again.feed(1).batches] == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"messages": [user("q")], "chosen": "a", "rejected": "b"},
        {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    ],
)
def test_every_common_form_of_a_pair_is_read_alike(row: dict, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (pair,) = read_pairs([file], DataConfig(), Events())
    assert (pair.chosen, pair.rejected) == ([user("q"), assistant("a")], [user("q"), assistant("b")])
    assert (pair.n_shared, pair.where) == (1, f"{file}:1")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "q", "chosen": "a"}, ":1: the field 'rejected' is missing, or no chat"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, ":1: both answers are the same"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, ":1: the field 'prompt' is missing, or no chat"),
        ({"chosen": [user("q")], "rejected": [user("p")]}, ":1: no assistant message"),
        ({"chosen": "a", "rejected": "b"}, ":1: the field 'chosen' is text, and nothing is asked before it"),
    ],
)
def test_what_is_no_pair_is_refused_by_file_and_line(row: dict, says: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=says):
        list(read_pairs([file], DataConfig(), Events()))
    counting = Events("count")
    assert not list(read_pairs([file], DataConfig(), counting))
    assert counting.n_bad == 1


def test_only_what_differs_is_compared_and_what_cannot_be_is_refused(tokenizer: Tokenizer) -> None:
    shared = [user("q"), assistant("ok"), user("r")]
    pair = Pair([*shared, assistant("yes")], [*shared, assistant("no")], 3, "here")
    (found,) = tokenize_pairs([pair], tokenizer, max_len=64, events=Events())
    trained = [token for token, on in zip(*found.chosen, strict=True) if on]
    assert tokenizer.decode(trained[:-1]) == "yes"
    ending = Pair(shared[:2], [*shared, assistant("no")], 2, "there")
    with pytest.raises(DataError, match="there: one of the two has no answer of its own"):
        tokenize_pairs([ending], tokenizer, max_len=64, events=Events())
    with pytest.raises(DataError, match="tokens long; a sequence has at most 5"):
        tokenize_pairs([pair], tokenizer, max_len=5, events=Events())
    with pytest.raises(DataError, match="do not fit into dpo.batch_tokens=10"):
        PairSource([found], [(0.0, 0.0)], replace(CFG, batch_tokens=10), seed=0)


def test_settings_that_cannot_be_are_refused() -> None:
    for setting, says in (
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "smoothing"),
        ({"mtp_weight": 0.3}, "mtp"),
    ):
        with pytest.raises(ConfigError, match=says):
            DPOConfig(**setting)


def make_optimizer(model: Decoder) -> Optimizer:
    names = dict(model.named_parameters())
    return Optimizer(names, roles(names), OptimConfig(warmup_steps=0))


def step(model: Decoder, source: PairSource, lr: float, optimizer: Optimizer | None = None):
    feed = source.feed(0)
    optimizer = optimizer or make_optimizer(model)
    return train_step(model, optimizer, feed.batches, preference_loss(CFG), lr_scale=lr, clip=1.0, rebalance=False)


def step_of(ids: list[int]) -> StepInput:
    return StepInput(torch.tensor(ids[:-1]), lengths=(len(ids) - 1,))
