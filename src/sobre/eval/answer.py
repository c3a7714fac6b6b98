"""Who answers the questions of an evaluation: a model in this process, or a service behind a URL."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import RunError
from sobre.eval.shots import cut_plain, plain
from sobre.tasks.sampling import Message
from sobre.tokenizer.tokenizer import Tokenizer

Api = Literal["openai", "anthropic"]


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
        """k replies to each question, all in one batch."""
        params = SamplingParams(
            max_tokens=how.max_tokens or LONGEST,
            temperature=how.temperature,
            top_p=how.top_p if how.temperature else 1.0,
            stop_ids=(self.tokenizer.eos_id,),
        )
        requests = []
        for x, question in enumerate(questions):
            ids = self._ids([*self.shots, {"role": "user", "content": question}])
            if not how.max_tokens:
                params = replace(params, max_tokens=max(1, min(LONGEST, self.engine.max_len - len(ids))))
            requests += [Request(f"{x}/{y}", ids, replace(params, seed=how.seed + x * k + y)) for y in range(k)]
        found = {output.request_id: output for output in self.engine.generate(requests)}
        return [[self._reply(found[f"{x}/{y}"]) for y in range(k)] for x in range(len(questions))]

    def _ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if self.is_plain:
            return tuple(self.tokenizer.encode(plain(messages)))
        return tuple(self.tokenizer.render(list(messages), generation_prompt=True))

    def _reply(self, output: Any) -> Reply:
        finished = output.finish_reason == "stop"
        text = self.tokenizer.decode(output.token_ids[:-1] if finished else output.token_ids)
        if self.is_plain:
            text, ended = cut_plain(text)
            finished = finished or ended
        return Reply(text, finished, len(output.token_ids))


@dataclass(frozen=True)
class Endpoint:
    """A service that speaks OpenAI's chat completions or Anthropic's messages."""

    url: str
    """Up to and with /v1, for example http://127.0.0.1:8000/v1."""
    model: str
    key: str = field(default="", repr=False)
    api: Api = "openai"
    shots: tuple[Message, ...] = ()
    """Worked examples before each question (eval/shots.py)."""
    n_at_once: int = 8
    timeout_s: float = 600.0

    def answer(self, questions: Sequence[str], k: int, how: Sampling) -> list[list[Reply]]:
        """k replies to each question, `n_at_once` requests at a time. The first that fails stops the evaluation."""
        jobs = [(question, how.seed + x * k + y) for x, question in enumerate(questions) for y in range(k)]
        with ThreadPoolExecutor(self.n_at_once) as pool:
            replies = list(pool.map(lambda job: self._ask(job[0], replace(how, seed=job[1])), jobs))
        return [replies[x * k : (x + 1) * k] for x in range(len(questions))]

    def _ask(self, question: str, how: Sampling) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*self.shots, {"role": "user", "content": question}],
            "max_tokens": how.max_tokens or LONGEST,
            "temperature": how.temperature,
            "top_p": how.top_p,
        }
        if self.api == "openai":
            answer = self._post("chat/completions", {**body, "seed": how.seed}, {"Authorization": f"Bearer {self.key}"})
            return read_openai(answer)
        answer = self._post("messages", body, {"x-api-key": self.key, "anthropic-version": "2023-06-01"})
        return read_anthropic(answer)

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        address = f"{self.url.rstrip('/')}/{path}"
        given = {"Content-Type": "application/json", **(headers if self.key else {})}
        request = urllib.request.Request(address, json.dumps(body).encode(), given)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                found = json.load(response)
        except urllib.error.HTTPError as error:
            raise RunError(f"{address} answers {error.code}: {error.read(500).decode('utf-8', 'replace')}") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{address} cannot be asked: {error}") from None
        if not isinstance(found, dict):
            raise RunError(f"{address} answers with {type(found).__name__}, not an object")
        return found


def read_openai(answer: dict[str, Any]) -> Reply:
    """A chat completion; the thought is its `reasoning_content`."""
    try:
        choice = answer["choices"][0]
        content, thought = choice["message"].get("content") or "", choice["message"].get("reasoning_content") or ""
        return Reply(_joined(thought, content), choice["finish_reason"] == "stop", answer["usage"]["completion_tokens"])
    except (KeyError, IndexError, TypeError) as error:
        raise RunError(f"this is no chat completion ({error!r}): {json.dumps(answer)[:300]}") from None


def read_anthropic(answer: dict[str, Any]) -> Reply:
    """A message; the thought is its `thinking` blocks."""
    try:
        blocks = answer["content"]
        thought = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        content = "".join(block["text"] for block in blocks if block["type"] == "text")
        return Reply(_joined(thought, content), answer["stop_reason"] == "end_turn", answer["usage"]["output_tokens"])
    except (KeyError, TypeError) as error:
        raise RunError(f"this is no message ({error!r}): {json.dumps(answer)[:300]}") from None


def _joined(thought: str, content: str) -> str:
    return f"{thought}\n</think>\n{content}" if thought else content
