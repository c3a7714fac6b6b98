"""Groups and samples by hand, an engine that answers from a script, and a tokenizer."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from sobre.engine.engine import EngineStats
from sobre.engine.request import Output, Request
from sobre.rl.types import Group, Rollout
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tasks.sampling import chat
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

EOS = 2


def problem(name: str = "sorting", difficulty: int = 1, number: int = 0) -> Problem:
    return Problem(name, "en", difficulty, f"question {number}", "42", f"{name}/{number}", {})


def rollout(
    reward: float, n_tokens: int = 3, *, finished: bool = True, right: bool | None = None, n_prompt: int = 2
) -> Rollout:
    accuracy = float(reward >= 1 if right is None else right)
    return Rollout(
        prompt_ids=tuple(range(10, 10 + n_prompt)),
        response_ids=(*range(20, 19 + n_tokens), EOS if finished else 19),
        logprobs=tuple(-0.1 * (i + 1) for i in range(n_tokens)),
        text="",
        finished=finished,
        reward=Reward(accuracy, 0.0, reward),
    )


def group(*rewards: float, name: str = "sorting", difficulty: int = 1) -> Group:
    return Group(problem(name, difficulty), tuple(rollout(reward) for reward in rewards))


class WordTokenizer:
    """A prompt is one id per character; WRONG decodes to a completion in form with a wrong answer, others to "?"."""

    eos_id = EOS
    WRONG = 101

    def render(self, messages: list[dict[str, str]], *, generation_prompt: bool, tools: Sequence = ()) -> list[int]:
        assert generation_prompt
        assert [message["role"] for message in messages] == ["user"]
        return [ord(letter) % 90 + 3 for letter in messages[0]["content"]]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("hm\n</think>\n<answer>no</answer>" if token == self.WRONG else "?" for token in ids)


class ScriptedEngine:
    """Answers by `answer(request) -> (token ids, finished)`; each token costs one FLOP."""

    def __init__(self, answer: Callable[[Request], tuple[list[int], bool]]) -> None:
        self.answer, self.requests, self.n_tokens = answer, list[Request](), 0

    @property
    def stats(self) -> EngineStats:
        n = len(self.requests)
        return EngineStats(
            requests=n,
            prompt_tokens=0,
            found_tokens=0,
            drafted_tokens=0,
            accepted_tokens=0,
            preemptions=0,
            computed_tokens=0,
            generated_tokens=self.n_tokens,
            steps=n,
            flops=float(self.n_tokens),
            seconds=0.0,
        )

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        outputs = []
        for request in requests:
            ids, finished = self.answer(request)
            self.requests.append(request)
            self.n_tokens += len(ids)
            reason = "stop" if finished else "length"
            outputs.append(Output(request.id, ids, [-0.5] * len(ids), reason))
        return outputs


@pytest.fixture
def make() -> SimpleNamespace:
    """Makers: make.problem, make.rollout, make.group, make.engine, make.tokenizer."""
    return SimpleNamespace(
        problem=problem, rollout=rollout, group=group, engine=ScriptedEngine, tokenizer=WordTokenizer(), eos=EOS
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Learned from worked sorting problems."""
    tasks = TasksConfig(names=("sorting",), langs=("en",))
    texts = [message["content"] for i in range(50) for message in chat(tasks, "t", i)]
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=300))
