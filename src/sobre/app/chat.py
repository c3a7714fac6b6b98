"""sobre chat MODEL: talk to a model in the terminal.

    sobre chat out/demo/rl                          a conversation; Ctrl-C stops an answer, Ctrl-D leaves
    sobre chat Qwen/Qwen3-0.6B                      a model of the hub, fetched once
    sobre chat out/demo/rl --prompt "3 + 4 * 5 = ?"    one answer
    echo "3 + 4 * 5 = ?" | sobre chat out/demo/rl   the same: all of standard input is one question

Answers go to standard output; thoughts (dimmed), tokens per second and cost go to standard error.
"""

import json
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sobre.config.load import load
from sobre.errors import ConfigError, DataError, PromptTooLong
from sobre.serve.config import ChatConfig

if TYPE_CHECKING:
    from sobre.ledger.prices import Price
    from sobre.serve.load import Loaded

INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """sobre chat: thoughts dimmed, answer plain, speed and cost."""
    cfg = load(ChatConfig, argv, recipes=None, prog="sobre chat")
    question = cfg.prompt
    if not question and not sys.stdin.isatty():
        question = read_question()
    if cfg.json and not question:
        raise ConfigError("--json answers one question: give it with --prompt, or pipe it in")

    from sobre.serve.load import load_folder  # torch; --help does without
    from sobre.serve.price import machine_price

    price = machine_price(cfg.price_usd_per_h)
    loaded = load_folder(
        cfg.model,
        n_slots=1,
        max_context=cfg.max_context,
        dtype=cfg.dtype,
        device=cfg.device,
        revision=cfg.revision,
        decoding=cfg.decoding,
        quiet=cfg.json,
    )
    chat = Chat(cfg, loaded, price, Screen(quiet=cfg.json))
    return chat.once(question) if question else chat.converse()


def read_question() -> str:
    """Standard input, to its end."""
    try:
        question = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8: byte {error.start}") from None
    if not question:
        raise ConfigError("standard input is empty; pipe a question in, or give one with --prompt")
    return question


class Screen:
    """Where a chat is shown: answers on standard output, everything else on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.answers = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.asides = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)

    def thought(self, text: str) -> None:
        if not self.quiet:
            self.asides.print(printable(text), end="", style="dim")

    def answer(self, text: str) -> None:
        if not self.quiet:
            self.answers.print(printable(text), end="")
            self.answers.file.flush()

    def aside(self, text: str = "") -> None:
        if not self.quiet:
            self.asides.print(text, style="dim")


@dataclass
class Answer:
    """What the model said to one question, and what that took."""

    reasoning: str = ""
    content: str = ""
    finish_reason: str = "stop"
    n_prompt: int = 0
    n_tokens: int = 0
    n_reasoning: int = 0
    seconds: float = 0.0
    shown: int = field(default=0, repr=False)
    """Characters of the visible answer that are on the screen."""


class Chat:
    """One conversation with one model."""

    def __init__(self, cfg: ChatConfig, loaded: "Loaded", price: "Price", screen: Screen) -> None:
        self.cfg, self.loaded, self.price, self.screen = cfg, loaded, price, screen
        self.messages = [{"role": "system", "content": cfg.system}] if cfg.system else []
        self.n_asked = 0

    def once(self, question: str) -> int:
        """Answer one question; 130 when it was stopped."""
        answer = self.ask(question)
        if self.cfg.json:
            print(json.dumps(self.as_json(answer), ensure_ascii=False, indent=2))
        return INTERRUPTED if answer.finish_reason == "abort" else 0

    def converse(self) -> int:
        """Questions and answers until the end of input."""
        with suppress(ImportError):
            import readline  # noqa: F401  arrow keys and history in `input`, where the system has it
        rounded = f" ({self.cfg.rounding.told})" if self.cfg.rounding.told else ""
        self.screen.aside(f"{self.loaded.folder}{rounded}, {self.loaded.context}: ask something.")
        self.screen.aside("Ctrl-C stops an answer, Ctrl-D leaves.")
        while True:
            try:
                question = input("› ").strip()
            except EOFError:
                self.screen.aside()
                return 0
            except KeyboardInterrupt:
                self.screen.aside("\nCtrl-D leaves.")
                continue
            if not question:
                continue
            try:
                self.ask(question)
            except PromptTooLong as error:
                self.screen.aside(f"{error}. The conversation starts anew.")
                self.messages = self.messages[:1] if self.cfg.system else []

    def ask(self, question: str) -> Answer:
        """Answer one question of the conversation, as it is written."""
        messages = [*self.messages, {"role": "user", "content": question}]
        answer = Answer()
        with stop_flag() as stop:
            self.write(messages, answer, stop)
        if answer.content:
            self.messages = [*messages, {"role": "assistant", "content": answer.content}]
        self.screen.aside(self.figures(answer))
        return answer

    def write(self, messages: list[dict[str, str]], answer: Answer, stop: list[bool]) -> None:
        """Let the engine write, and show each piece as it comes."""
        from sobre.serve.events import AnswerReader

        engine, request = self.loaded.engine, self.request(messages)
        reader = AnswerReader(self.loaded.tokenizer, request.prompt_ids)
        answer.n_prompt = len(request.prompt_ids)
        started = perf_counter()
        engine.add(request)
        while engine.has_work:
            for token in engine.step():
                for delta in reader.push(token.token_id):
                    self.show(answer, delta)
                answer.finish_reason = token.finish_reason or "stop"
            if stop and engine.has_work:
                engine.abort(request.id)
                answer.finish_reason = "abort"
        answer.seconds = perf_counter() - started
        answer.n_tokens, answer.n_reasoning = reader.n_tokens, reader.n_reasoning
        for delta in reader.close():
            self.show(answer, delta)
        self.screen.answer(without_tags(answer.content, whole=True)[answer.shown :])
        (self.screen.answer if answer.content else self.screen.thought)("\n")

    def request(self, messages: list[dict[str, str]]) -> Any:
        """The engine's request; raises PromptTooLong when no room is left."""
        from sobre.engine.request import Request, SamplingParams
        from sobre.serve.events import stop_ids

        prompt_ids = tuple(self.loaded.tokenizer.render(messages, generation_prompt=True))
        room = self.loaded.engine.max_len - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"the conversation has {len(prompt_ids)} tokens and the context {self.loaded.engine.max_len}"
            )
        self.n_asked += 1
        params = SamplingParams(
            max_tokens=self.cfg.max_tokens or room,
            temperature=self.cfg.temperature,
            top_p=self.cfg.top_p,
            stop_ids=stop_ids(self.loaded.tokenizer),
            seed=secrets.randbits(62) if self.cfg.seed is None else self.cfg.seed,
        )
        return Request(f"chat/{self.n_asked}", prompt_ids, params)

    def show(self, answer: Answer, delta: Any) -> None:
        """Add a piece (a Delta: no tools are offered here) to the answer and to the screen."""
        kind, text = delta.kind, delta.text
        if kind == "reasoning":
            answer.reasoning += text
            self.screen.thought(text)
            return
        if not answer.content and answer.reasoning:
            self.screen.thought("\n\n")
        answer.content += text
        visible = without_tags(answer.content)
        self.screen.answer(visible[answer.shown :])
        answer.shown = len(visible)

    def figures(self, answer: Answer) -> str:
        """Tokens, speed and cost in one line."""
        speed = f"{answer.n_tokens / answer.seconds:,.0f} tokens/s" if answer.seconds else ""
        parts = [f"{answer.n_tokens} tokens ({answer.n_reasoning} of thought)", speed]
        parts.append(f"{self.price.usd(answer.seconds):.2g} USD at {self.price.usd_per_h:g} per hour")
        ends = {"abort": "stopped", "length": "cut off at the length limit"}
        return " · ".join([*parts, *([ends[answer.finish_reason]] if answer.finish_reason in ends else [])])

    def as_json(self, answer: Answer) -> dict[str, Any]:
        """The answer as data, with the names of the API."""
        from sobre.serve.price import cost_basis

        return {
            "reasoning_content": answer.reasoning,
            "content": answer.content,
            "finish_reason": answer.finish_reason,
            "usage": {
                "prompt_tokens": answer.n_prompt,
                "completion_tokens": answer.n_tokens,
                "total_tokens": answer.n_prompt + answer.n_tokens,
                "completion_tokens_details": {"reasoning_tokens": answer.n_reasoning},
                "cost_usd": self.price.usd(answer.seconds),
                "cost_basis": cost_basis(self.price, answer.seconds),
            },
        }


@contextmanager
def stop_flag() -> Iterator[list[bool]]:
    """A list that Ctrl-C makes true: the engine is left between two steps. A second one is hard."""
    pressed: list[bool] = []

    def press(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def without_tags(text: str, *, whole: bool = False) -> str:
    """The answer without the marks around it; while it is being written, also without what may become one."""
    from sobre.tasks.format import ANSWER_CLOSE, ANSWER_OPEN

    for tag in (ANSWER_OPEN, ANSWER_CLOSE):
        text = text.replace(tag, "")
    if whole:
        return text
    ends = (tag[:n] for tag in (ANSWER_OPEN, ANSWER_CLOSE) for n in range(len(tag) - 1, 0, -1))
    return next((text.removesuffix(end) for end in ends if text.endswith(end)), text)


def printable(text: str) -> str:
    """Text that cannot command the terminal: control characters but newline and tab become the replacement sign."""
    return "".join(c if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) else "\ufffd" for c in text)
