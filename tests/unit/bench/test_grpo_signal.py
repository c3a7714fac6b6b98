"""What gradients share: known signals in known noise, and a gradient of the expected reward of a tiny model."""

from pathlib import Path

import pytest
import torch

from sobre.bench import grpo_signal
from sobre.bench.climbers import Course
from sobre.bench.config import ClimbBench
from sobre.errors import ConfigError, RunError
from sobre.eval.score import prompt_ids
from sobre.models.checkpoint import load_model
from sobre.models.step import StepInput
from sobre.rl import rollout
from sobre.tasks.format import Reward


def gradients(signal: float, noise: float, n: int = 40, size: int = 5000) -> torch.Tensor:
    chance = torch.randn(n, size, generator=torch.Generator().manual_seed(0))
    return signal * torch.ones(size) / size**0.5 + noise * chance / size**0.5


def test_signal_and_noise_are_what_was_put_in() -> None:
    found = grpo_signal.signal(gradients(0.5, 2.0))
    assert found["signal"] == pytest.approx(0.25, abs=3 * found["signal error"])
    assert found["signal error"] < 0.05
    assert found["noise"] == pytest.approx(4.0, rel=0.05)
    assert found["cosine of two batches"] == pytest.approx(0.25 / 4.25, rel=0.3)
    # each number: mean 0.5 / sqrt(P), rms sqrt(4.25 / P); so P of them gain RATE * 0.25 / P / rms each
    assert found["gain"] == pytest.approx(grpo_signal.RATE * 0.25 / 4.25**0.5 * 5000**0.5, rel=0.2)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_what_a_run_remembers_is_the_same_cosine(ratio: float) -> None:
    gradients_MP = gradients(ratio, 1.0)
    cosine = grpo_signal.signal(gradients_MP)["cosine of two batches"]
    assert grpo_signal.remembered(gradients_MP) == pytest.approx(cosine, abs=0.02)


def test_a_batch_without_a_gradient_shares_nothing_and_batches_of_none_are_refused(start: Path, monkeypatch) -> None:
    found = grpo_signal.signal(torch.cat([gradients(0.5, 0.0, n=3), torch.zeros(1, 5000)]))
    assert found["cosine of two batches"] == pytest.approx(0.5, rel=1e-4)  # of 6 pairs 3 are alike
    cfg = ClimbBench(problems=4, prompts=1, group_size=4, new=1, threads=1, chats=())
    monkeypatch.setattr(rollout, "give_for", lambda tasks: lambda one: Reward(1.0, 0.0, 1.0))
    with pytest.raises(RunError, match=r"in 3 batches no group of answers earned differently \(100.0% right\)"):
        grpo_signal.measure(Course(cfg, start, 0), load_model(start), 3)


def test_pure_noise_is_within_its_error_and_pure_signal_has_none() -> None:
    none = grpo_signal.signal(gradients(0.0, 2.0))
    assert abs(none["signal"]) < 3 * none["signal error"]
    only = grpo_signal.signal(gradients(0.5, 0.0))
    assert only["signal"] == pytest.approx(0.25, rel=1e-4)
    assert only["noise"] == pytest.approx(0.0, abs=1e-4)
    assert only["signal error"] < 1e-4
    with pytest.raises(ConfigError, match="2 batches.*at least 3"):
        grpo_signal.signal(gradients(0.5, 1.0, n=2))


def test_the_gradient_is_that_of_the_mean_reward(start: Path, monkeypatch) -> None:
    """Of one-token answers, where it can be computed: the sum over the vocabulary of p(token) times what it earns."""
    cfg = ClimbBench(problems=4, prompts=1, group_size=3000, new=1, threads=1, chats=())
    course, model = Course(cfg, start, 0), load_model(start)
    seen: list[torch.Tensor] = []
    told, asked = grpo_signal.signal, course.problems(0)
    monkeypatch.setattr(Course, "problems", lambda self, step: asked)
    monkeypatch.setattr(rollout, "give_for", lambda tasks: lambda one: Reward(0.0, 0.0, earned(one.text)))
    monkeypatch.setattr(grpo_signal, "signal", lambda gradients_MP: seen.append(gradients_MP) or told(gradients_MP))
    found = grpo_signal.measure(course, model, 3)
    assert found["groups that differ"] == 1

    tokenizer = course.tokenizer
    prompt = prompt_ids(tokenizer, asked[0])
    earned_V = torch.tensor(
        [earned("" if v == tokenizer.eos_id else tokenizer.decode([v])) for v in range(tokenizer.vocab_size)]
    )
    model.zero_grad()
    output = model(StepInput(torch.tensor(prompt), lengths=(len(prompt),)))
    (model.logits(output.hidden_ND[-1:])[0].softmax(-1) * earned_V).sum().backward()
    exact_P = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    estimate_P = seen[0].mean(0)
    assert torch.cosine_similarity(estimate_P, exact_P, dim=0) > 0.9
    assert float(estimate_P @ exact_P / exact_P.square().sum()) == pytest.approx(1.0, abs=0.1)


def earned(text: str) -> float:
    return float(len(text) % 2)
