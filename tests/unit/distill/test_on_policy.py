"""On-policy distillation with real models, engine and step: the student comes to say what the teacher would."""

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sobre.distill import on_policy
from sobre.distill.config import DistillConfig
from sobre.distill.divergence import divergence
from sobre.distill.on_policy import StudentSource, check_same_tokens
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import ConfigError, JudgeError
from sobre.models.config import DenseConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl.shared_engine import SharedEngine
from sobre.runtime.processes import Processes
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tasks.sampling import chat, mixed_problem
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.step import StepInfo, train_step

TASKS = TasksConfig(names=("sorting",), langs=("en",))


def make_tokenizer(vocab_size: int) -> Tokenizer:
    texts = [message["content"] for i in range(50) for message in chat(TASKS, "t", i)]
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=vocab_size))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(300)


@pytest.fixture
def build(nano_config: ModelConfig, tokenizer: Tokenizer):
    def build(cfg: DistillConfig) -> tuple[StudentSource, Optimizer]:
        size = tokenizer.vocab_size
        teacher = Decoder(replace(nano_config, d_model=48, vocab_size=size + 8, max_len=160))  # a padded head
        student = Decoder(replace(nano_config, ffn=DenseConfig(d_ff=48), vocab_size=size, max_len=160))
        teacher.init_weights(1)
        student.init_weights(2)
        with torch.no_grad():
            teacher.head_VD.mul_(8.0)  # sure of what it says
        engine = SharedEngine(Engine(student, EngineConfig(max_batch=8), run_seed=7), Processes())
        source = StudentSource(
            engine,
            student,
            teacher,
            tokenizer,
            cfg,
            draw=lambda step, n: [mixed_problem(TASKS, "d", step * n + i) for i in range(n)],
            teacher_flops=lambda batch: 1.0,
        )
        names = dict(student.named_parameters())
        return source, Optimizer(names, roles(names), OptimConfig(warmup_steps=0))

    return build


SMALL = DistillConfig(method="on_policy", n_prompts=6, max_tokens=6, micro_tokens=60)


def step(source: StudentSource, optimizer: Optimizer, number: int, lr: float = 1.0) -> tuple[StepInfo, dict]:
    feed = source.feed(number)
    info = train_step(source.model, optimizer, feed.batches, source.loss_fn, lr_scale=lr, clip=1.0, rebalance=False)
    return info, {**feed.metrics, **source.updated(number, info)}


def test_the_loss_is_the_divergence_of_the_two_models_at_the_tokens_of_the_answers(build, tokenizer) -> None:
    source, optimizer = build(SMALL)
    feed = source.feed(0)
    assert len(feed.batches) > 1
    total, n_tokens = 0.0, 0
    with torch.no_grad():
        for batch in feed.batches:
            at = batch.weights_N > 0
            student_NV, teacher_NV = (
                model.logits(model(batch.step).hidden_ND[at])[:, : tokenizer.vocab_size]
                for model in (source.model, source.teacher)
            )
            total += float(divergence(student_NV, teacher_NV, 1.0).sum())
            n_tokens += int(at.sum())
    info, metrics = step(source, optimizer, 0, lr=0.0)
    assert info.loss == pytest.approx(total / n_tokens, rel=1e-4)
    assert info.n_trained == n_tokens == metrics["rollout_tokens"]


@pytest.mark.slow
def test_the_student_comes_to_say_what_the_teacher_would(build) -> None:
    source, optimizer = build(SMALL)
    losses = [step(source, optimizer, number, lr=3.0)[0].loss for number in range(20)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_an_answer_that_a_judge_fails_on_is_taught_and_in_no_pass_rate(build, monkeypatch) -> None:
    verdicts = iter([1.0, 0.0, None, 0.0, 1.0, 1.0])

    def moody(*_):
        found = next(verdicts)
        if found is None:
            raise JudgeError("it raised")
        return Reward(found, 0.0, found)

    monkeypatch.setattr(on_policy, "reward", moody)
    source, _ = build(SMALL)
    feed = source.feed(0)
    assert (feed.metrics["unjudged"], feed.metrics["pass_rate"]) == (1, pytest.approx(3 / 5))
    assert sum(len(batch.step.lengths) for batch in feed.batches) == 6


def test_the_teacher_is_not_moved(build) -> None:
    source, optimizer = build(SMALL)
    before = {name: tensor.clone() for name, tensor in source.teacher.state_dict().items()}
    step(source, optimizer, 0)
    for name, tensor in source.teacher.state_dict().items():
        assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in source.teacher.parameters())


def test_a_step_depends_on_nothing_but_weights_and_number(build) -> None:
    source, optimizer = build(SMALL)
    step(source, optimizer, 0)
    weights = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    moments = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    expected, _ = step(source, optimizer, 1)
    again, other = build(SMALL)
    again.model.load_state_dict(weights)
    other.load_state_dict(moments)
    again.restore(json.loads(json.dumps(source.state())))
    found, _ = step(again, other, 1)
    assert (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)


def test_the_dry_run_asks_for_the_same_answers_once(build) -> None:
    source, _ = build(SMALL)
    first = source.feed(0)
    assert source.feed(0) is first
    source.updated(0, StepInfo(loss=0.0, n_tokens=0, n_trained=0.0, grad_norm=0.0))
    assert source.feed(0) is not first


def test_a_teacher_with_a_shorter_context_is_refused_where_it_does_not_reach(build) -> None:
    source, _ = build(SMALL)
    source.teacher.cfg = replace(source.teacher.cfg, max_len=10)
    with pytest.raises(ConfigError, match="the teacher reads 10"):
        source.feed(0)


def test_models_of_different_tokens_are_refused_with_the_reason(tokenizer: Tokenizer) -> None:
    check_same_tokens(tokenizer, make_tokenizer(300))
    with pytest.raises(ConfigError, match="20 tokens differ.*method=text"):
        check_same_tokens(make_tokenizer(280), tokenizer)
