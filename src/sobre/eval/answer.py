"""Who answers the questions of an evaluation, and a model of this process that does (a service: eval/service.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams, Thought, longest_thought
from sobre.errors import ConfigError
from sobre.eval.config import Thinking
from sobre.eval.shots import cut_plain, plain
from sobre.tasks.sampling import Message
from sobre.tokenizer.thoughts import opens_thought, think_ids
from sobre.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reply:
    """One answer to one question."""

    text: str
    """Thought and answer, `</think>` between them where there was a thought."""
    finished: bool
    """It ended by itself."""
    n_tokens: int


LONGEST = 1024
"""Tokens of a reply where no other limit is given; services get it as it is."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the answers are drawn. The seed and the place of question and answer make a draw of its own."""

    max_tokens: int
    """0: what the context leaves after the question, up to LONGEST."""
    temperature: float
    top_p: float
    seed: int = 0
    thinking: Thinking = "auto"


class Answerer(Protocol):
    def answer(self, questions: Sequence[str], k: int, how: Sampling) -> list[list[Reply]]:
        """k replies to each question."""


@dataclass(frozen=True)
class Local:
    """A model of this process, asked through its chat template."""

    engine: Engine
    tokenizer: Tokenizer
    shots: tuple[Message, ...] = ()
    """Worked examples before each question (eval/shots.py)."""
    is_plain: bool = False
    """Ask in plain text, without a chat template: for base models."""

    def answer(self, questions: Sequence[str], k: int, how: Sampling) -> list[list[Reply]]:
        """k replies to each question, all in one batch. Raises ConfigError where the thinking asked for cannot be."""
        params = SamplingParams(
            max_tokens=how.max_tokens or LONGEST,
            temperature=how.temperature,
            top_p=how.top_p if how.temperature else 1.0,
            stop_ids=(self.tokenizer.eos_id,),
        )
        requests = []
        for x, question in enumerate(questions):
            ids = self._ids([*self.shots, {"role": "user", "content": question}], how.thinking)
            if not how.max_tokens:
                params = replace(params, max_tokens=max(1, min(LONGEST, self.engine.max_len - len(ids))))
            thought = self._thought(ids, how.thinking, params.max_tokens) if isinstance(how.thinking, int) else None
            requests += [
                Request(f"{x}/{y}", ids, replace(params, seed=how.seed + x * k + y), thought=thought) for y in range(k)
            ]
        found = {output.request_id: output for output in self.engine.generate(requests)}
        return [[self._reply(found[f"{x}/{y}"]) for y in range(k)] for x in range(len(questions))]

    def _ids(self, messages: Sequence[Message], thinking: Thinking) -> tuple[int, ...]:
        if self.is_plain:
            return tuple(self.tokenizer.encode(plain(messages)))
        ids = self.tokenizer.render(list(messages), generation_prompt=True, thinking=thinking != "off")
        if thinking in ("on", "off"):
            other = self.tokenizer.render(list(messages), generation_prompt=True, thinking=thinking == "off")
            if ids == other:
                raise ConfigError(f"thinking={thinking}: the chat layout of this model is the same with it and without")
        return tuple(ids)

    def _thought(self, prompt_ids: Sequence[int], most: int, room: int) -> Thought:
        """A thought of at most `most` tokens in a reply of `room` tokens, bounded as the server bounds it."""
        if not opens_thought(self.tokenizer, prompt_ids):
            raise ConfigError(f"thinking={most}: the prompt of this model opens no thought that could be ended")
        if most > longest_thought(room):
            raise ConfigError(
                f"thinking={most} leaves less than a quarter of a reply of {room:,} tokens to the answer; at most"
                f" {longest_thought(room):,} fit, or a larger max_tokens"
            )
        return Thought(end_ids=(think_ids(self.tokenizer)[1],), max_tokens=most)

    def _reply(self, output: Any) -> Reply:
        finished = output.finish_reason == "stop"
        text = self.tokenizer.decode(output.token_ids[:-1] if finished else output.token_ids)
        if self.is_plain:
            text, ended = cut_plain(text)
            finished = finished or ended
        return Reply(text, finished, len(output.token_ids))
