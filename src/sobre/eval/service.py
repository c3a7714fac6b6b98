"""A service that answers the questions of an evaluation: OpenAI's chat completions or Anthropic's messages.

Whether to think, and how long, is said as vLLM, SGLang and our own server read it (`chat_template_kwargs`,
`thinking_token_budget`), or as Anthropic does (`thinking`); `extra` says it in any other way.
"""

import email.utils
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from sobre.errors import ConfigError, RunError
from sobre.eval.answer import LONGEST, Reply, Sampling
from sobre.eval.config import Api, LimitField, Omittable
from sobre.eval.kept import Kept, digest
from sobre.tasks.sampling import Message

PUT_OFF = (429, 503, 529)
"""Answers that mean: later."""
LONGEST_WAIT_S = 600.0
"""A service that asks for more is left, and the evaluation stops."""


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Endpoint:
    """A service, and how it is asked."""

    url: str
    """Up to and with /v1, for example http://127.0.0.1:8000/v1."""
    model: str
    key: str = field(default="", repr=False)
    api: Api = "openai"
    shots: tuple[Message, ...] = ()
    """Worked examples before each question (eval/shots.py)."""
    omit: tuple[Omittable, ...] = ()
    """What is left to the service."""
    limit_field: LimitField = "max_tokens"
    """What the longest reply is called."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of every request."""
    n_at_once: int = 8
    timeout_s: float = 600.0
    waits: int = 0
    """How often a request that is put off is made again, after as long as Retry-After says."""
    kept: Kept | None = None
    tell: Callable[[str], None] = to_stderr

    def answer(self, questions: Sequence[str], k: int, how: Sampling) -> list[list[Reply]]:
        """k replies to each question, `n_at_once` requests at a time. The first that fails stops the evaluation."""
        bodies = [
            self.body(question, how, how.seed + x * k + y) for x, question in enumerate(questions) for y in range(k)
        ]
        found = [self._kept(body, number) for number, body in enumerate(bodies)]
        there = sum(reply is not None for reply in found)
        if self.kept is not None and there:
            self.tell(f"{there:,} of {len(bodies):,} replies are taken from {self.kept.path}")
        stop = threading.Event()
        with ThreadPoolExecutor(self.n_at_once) as pool:
            asked = {
                pool.submit(self._ask, body, number, stop): number
                for number, body in enumerate(bodies)
                if found[number] is None
            }
            try:
                for future in as_completed(asked):
                    found[asked[future]] = future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        replies = [reply for reply in found if reply is not None]
        return [replies[x * k : (x + 1) * k] for x in range(len(questions))]

    def body(self, question: str, how: Sampling, seed: int) -> dict[str, Any]:
        """The request for one reply. Raises ConfigError where `extra` names what is in it."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*self.shots, {"role": "user", "content": question}],
            self.limit_field: how.max_tokens or LONGEST,
            "temperature": how.temperature,
            "top_p": how.top_p,
        }
        if self.api == "openai":
            body |= {"seed": seed, **_openai_thinking(how)}
        else:
            body |= _anthropic_thinking(how)
        body = {name: value for name, value in body.items() if name not in self.omit}
        if clash := sorted({"stream", "n", *body} & self.extra.keys()):
            raise ConfigError(f"extra_body names {clash[0]}, which is sent already, or changes what comes back")
        return {**body, **self.extra}

    @property
    def address(self) -> str:
        return f"{self.url.rstrip('/')}/{'chat/completions' if self.api == 'openai' else 'messages'}"

    def _kept(self, body: Mapping[str, Any], number: int) -> Reply | None:
        return None if self.kept is None else self.kept.find(digest(self.address, body, number))

    def _ask(self, body: Mapping[str, Any], number: int, stop: threading.Event) -> Reply:
        answer = self._post(body, stop)
        reply = read_openai(answer) if self.api == "openai" else read_anthropic(answer)
        if self.kept is not None:
            self.kept.add(digest(self.address, body, number), reply)
        return reply

    def _post(self, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.api == "anthropic":
            headers["anthropic-version"] = "2023-06-01"
        if self.key:
            headers |= {"Authorization": f"Bearer {self.key}"} if self.api == "openai" else {"x-api-key": self.key}
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)
        for n_waited in range(self.waits + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    found = json.load(response)
                break
            except urllib.error.HTTPError as error:
                with error:
                    self._wait(error, n_waited, stop)
            except (OSError, ValueError) as error:
                raise RunError(f"{self.address} cannot be asked: {error}") from None
        if not isinstance(found, dict):
            raise RunError(f"{self.address} answers with {type(found).__name__}, not an object")
        return found

    def _wait(self, error: urllib.error.HTTPError, n_waited: int, stop: threading.Event) -> None:
        """Wait where the service asks for it and no wait is used up; else raise RunError."""
        why = f"{self.address} answers {error.code}"
        if error.code not in PUT_OFF or n_waited == self.waits:
            said = error.read(500).decode("utf-8", "replace")
            raise RunError(f"{why}{f' after {n_waited} waits' if n_waited else ''}: {said}") from None
        seconds = wait_s(error.headers.get("Retry-After"), n_waited, why)
        self.tell(f"{why}: asked again in {seconds:,.3g} s ({n_waited + 1} of {self.waits} times)")
        if stop.wait(seconds):
            raise RunError(f"{why}, and another request failed") from None


def wait_s(retry_after: str | None, n_waited: int, why: str) -> float:
    """How long to wait: as Retry-After says, in seconds or as a date; where there is none 1, 2, 4 and so on seconds."""
    if retry_after is None:
        seconds = 2.0**n_waited
    else:
        try:
            seconds = float(retry_after)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
            except ValueError:
                raise RunError(f"{why}; its Retry-After {retry_after!r} is neither seconds nor a date") from None
    if not seconds <= LONGEST_WAIT_S:
        raise RunError(f"{why}, and asks for {seconds:,.0f} s of patience; at most {LONGEST_WAIT_S:,.0f} are waited")
    return max(0.0, seconds)


def _openai_thinking(how: Sampling) -> dict[str, Any]:
    if how.thinking == "auto":
        return {}
    on = how.thinking != "off"
    switch = {"chat_template_kwargs": {"thinking": on, "enable_thinking": on}}
    return {**switch, "thinking_token_budget": how.thinking} if isinstance(how.thinking, int) else switch


def _anthropic_thinking(how: Sampling) -> dict[str, Any]:
    if how.thinking == "auto":
        return {}
    if isinstance(how.thinking, int):
        return {"thinking": {"type": "enabled", "budget_tokens": how.thinking}}
    return {"thinking": {"type": "adaptive" if how.thinking == "on" else "disabled"}}


def read_openai(answer: dict[str, Any]) -> Reply:
    """A chat completion; the thought is its `reasoning_content`, or its `reasoning` (newer vLLM, OpenRouter)."""
    try:
        choice = answer["choices"][0]
        said = choice["message"]
        content, thought = said.get("content") or "", said.get("reasoning_content") or said.get("reasoning") or ""
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
