"""One request for text, whatever its dialect: rendered, checked against the context, ready for the engine."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sobre.engine.request import COLDEST, Repetition, Request, SamplingParams, Thought, longest_thought
from sobre.errors import SobreError
from sobre.serve.chat_schema import ChatRequest, NamedTool, Sampling
from sobre.serve.errors import invalid, no_room
from sobre.serve.events import AnswerReader, stop_ids
from sobre.serve.grammar import ANY_JSON, Grammars, calls_grammar, json_grammar, pattern_grammar
from sobre.serve.text_schema import TextRequest, prompts_of
from sobre.tokenizer.thoughts import opens_thought, think_ids
from sobre.tokenizer.tokenizer import Tokenizer

REPETITION = Repetition(max_period=64, times=16)
"""An answer that writes the same passage so often goes nowhere."""


class Defaults(Protocol):
    """How to sample when the request does not say."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...


@dataclass(frozen=True)
class Ask:
    """What the engine is asked, and how its tokens are read; one of each for every choice."""

    id: str
    requests: list[Request]
    readers: list[AnswerReader]
    n_per_prompt: int
    """Choices of each prompt."""
    n_prompt: int
    """Tokens of the prompts, each counted once however many choices it has."""
    token_bytes: Callable[[int], bytes]
    next_turn: Callable[[str], tuple[int, ...]] | None = None
    """The prompt that goes on from this chat and its answer, as far as it is known; None where nothing can be said."""
    n_logprobs: int | None = None
    experts: bool = False
    """Tell which experts each token visited."""
    n_experts: int = 0
    clamped: int | None = None
    """Longest answer that fits, where more was asked for."""
    body: dict[str, Any] | None = None
    """What another engine is sent, where one answers."""
    must_salt: bool = False
    """The request itself asks to be kept apart from others in the cache of that engine."""


class Writer:
    """Makes asks for one model."""

    def __init__(
        self, tokenizer: Tokenizer, grammars: Grammars, max_context: int, defaults: Defaults, *, n_experts: int = 0
    ) -> None:
        self.tokenizer, self.grammars, self.max_context, self.defaults = tokenizer, grammars, max_context, defaults
        self.n_experts = n_experts
        """Of the model, where the engine keeps which ones were visited; 0 where it does not."""
        self.stop_ids = stop_ids(tokenizer)
        self.close_id = think_ids(tokenizer)[1]

    def chat(self, chat: ChatRequest, ask_id: str, cache_key: str = "") -> Ask:
        """An answer to a chat; what it computes is found again under `cache_key` alone."""
        if chat.return_experts and not self.n_experts:
            raise invalid(
                "This server does not keep which experts were visited (--experts), or its model has none.",
                "return_experts",
                "unsupported",
            )
        tools = chat.offered_tools
        prompt_ids = self.render(chat, tools)
        limit = self.room(len(prompt_ids), chat.answer_limit, "messages")
        in_thought = chat.thinking.on and opens_thought(self.tokenizer, prompt_ids)
        thought = self.thought(chat, limit) if in_thought else None
        grammar, param = self.grammar(chat, tools, in_thought)
        n_logprobs = chat.top_logprobs if chat.logprobs else None
        requests: list[Request] = []
        for index, params in enumerate(self.params(chat, limit, n_logprobs)):
            mask = grammar and self.grammars.mask(grammar, param, in_thought=in_thought, stop_ids=self.stop_ids)
            request = Request(f"{ask_id}/{index}", prompt_ids, params, thought=thought, cache_key=cache_key)
            request.mask = mask or None
            requests.append(request)
        readers = [AnswerReader(self.tokenizer, prompt_ids, chat.stop, tools=bool(tools)) for _ in requests]
        return Ask(
            ask_id,
            requests,
            readers,
            chat.n,
            len(prompt_ids),
            self.tokenizer.token_bytes,
            None if tools or chat.n > 1 or chat.continues else lambda text: self.next_turn(chat, text),
            n_logprobs,
            chat.return_experts,
            self.n_experts,
            clamped=limit if limit < (chat.answer_limit or limit) else None,
        )

    def text(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        limit: int,
        ask_id: str,
        cache_key: str = "",
        *,
        n_logprobs: int | None = None,
    ) -> Ask:
        """Continuations of plain texts, `n` of each."""
        requests: list[Request] = []
        readers: list[AnswerReader] = []
        shortest = limit
        for prompt_ids in prompts:
            allowed = self.room(len(prompt_ids), limit, "prompt")
            shortest = min(shortest, allowed)
            for params in self.params(sampling, allowed, n_logprobs):
                requests.append(Request(f"{ask_id}/{len(requests)}", prompt_ids, params, cache_key=cache_key))
                readers.append(AnswerReader(self.tokenizer, prompt_ids, sampling.stop, thoughts=False))
        return Ask(
            ask_id,
            requests,
            readers,
            sampling.n,
            sum(map(len, prompts)),
            self.tokenizer.token_bytes,
            n_logprobs=n_logprobs,
            clamped=shortest if shortest < limit else None,
        )

    def prompts(self, text: TextRequest) -> list[tuple[int, ...]]:
        """Token ids of the prompts of a text completion."""
        return prompts_of(text, self.tokenizer)

    def spell(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=True)

    def next_turn(self, chat: ChatRequest, text: str) -> tuple[int, ...]:
        """How the next turn's prompt will begin: this chat and its answer, the thought dropped."""
        answered = [message.plain() for message in chat.messages] + [{"role": "assistant", "content": text}]
        return tuple(self.tokenizer.render(answered))

    def render(self, chat: ChatRequest, tools: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """Ids of the prompt; a 400 where the model's chat layout refuses it."""
        messages = [message.plain() for message in chat.messages]
        self.check_length(sum(len(message["content"]) for message in messages), "messages")
        try:
            if chat.continues:
                return tuple(self.tokenizer.render(messages, continued=True))
            return tuple(
                self.tokenizer.render(messages, generation_prompt=True, thinking=chat.thinking.on, tools=tools)
            )
        except SobreError as error:
            raise invalid(f"{error}", "messages") from None

    def check_length(self, n_chars: int, param: str) -> None:
        """Refuse what cannot fit before spending time on counting its tokens."""
        longest = self.max_context * self.tokenizer.max_token_chars
        if n_chars > longest:
            raise invalid(
                f"This model's maximum context length is {self.max_context} tokens, at most {longest:,} characters;"
                f" '{param}' has {n_chars:,}.",
                param,
                "context_length_exceeded",
            )

    def room(self, n_prompt: int, limit: int | None, param: str) -> int:
        """Longest answer, at most what the prompt leaves; a 400 where that is nothing."""
        room = self.max_context - n_prompt
        if room < 1:
            raise no_room(n_prompt, self.max_context, param)
        return room if limit is None else min(limit, room)

    def thought(self, chat: ChatRequest, limit: int) -> Thought:
        """How long the thought may be; at least a quarter of the answer's room is kept for what follows it."""
        most = chat.thinking.limit(limit)
        if most is not None:
            most = min(most, longest_thought(limit))
        return Thought(end_ids=(self.close_id,), max_tokens=most)

    def grammar(self, chat: ChatRequest, tools: Sequence[dict[str, Any]], in_thought: bool) -> tuple[str, str]:
        """The grammar of the answer ("" for none), and the field that asked for it."""
        form = chat.response_format
        if form.type == "json_object":
            return json_grammar(ANY_JSON, "response_format", in_thought=in_thought), "response_format"
        if form.json_schema is not None:
            param = "response_format.json_schema.schema"
            return json_grammar(form.json_schema.json_schema, param, in_thought=in_thought), param
        pattern, param = chat.pattern
        if pattern:
            return pattern_grammar(pattern, param, in_thought=in_thought), param
        if not tools:
            return "", ""
        choice = chat.tool_choice
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not self.tokenizer.has_own_layout:
            if choice != "auto":
                raise invalid("This model's own layout of tool calls cannot be forced; leave it out.", "tool_choice")
            return "", ""
        must = choice != "auto"
        return calls_grammar(tools, must=must, parallel=chat.parallel_tool_calls), "tools"

    def params(self, sampling: Sampling, limit: int, n_logprobs: int | None) -> list[SamplingParams]:
        """One set of parameters for each choice."""
        outside = [token for token in sampling.logit_bias if token >= self.tokenizer.vocab_size]
        if outside:
            most = self.tokenizer.vocab_size - 1
            raise invalid(f"'logit_bias' names token {outside[0]}; this model's ids go up to {most}.", "logit_bias")
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        if sampling.temperature is not None and 0 < sampling.temperature < COLDEST:
            raise invalid(f"Invalid 'temperature': must be 0 or at least {COLDEST}.", "temperature")
        return [
            SamplingParams(
                max_tokens=limit,
                temperature=self.defaults.temperature if sampling.temperature is None else sampling.temperature,
                top_p=self.defaults.top_p if sampling.top_p is None else sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                repetition_penalty=sampling.repetition_penalty,
                logit_bias=tuple(sampling.logit_bias.items()),
                stop_ids=self.stop_ids,
                seed=choice_seed(seed, index),
                n_logprobs=n_logprobs,
                repetition=REPETITION,
            )
            for index in range(sampling.n)
        ]


def choice_seed(seed: int, index: int) -> int:
    """Choice 0 has the request's own seed, so n=1 and the first of n=4 are the same text."""
    return seed if index == 0 else (seed + index * 0x9E3779B97F4A7C15) % 2**63  # an odd step: no two choices meet
