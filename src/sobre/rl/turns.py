"""Answers of several turns: the model calls a tool, reads the result, and goes on.

A turn ends with the end token. If it holds calls, their results follow as the chat template lays out a tool's
message, and the model is asked to go on, in the same sequence: nothing that it wrote is tokenized anew, so the trainer
scores the very tokens that were sampled. Results are context and not learned from (`own`: the model's tokens).
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
from torch import Tensor

from sobre.engine.request import Kept, Output, Request
from sobre.errors import RunError
from sobre.rl.config import RLConfig
from sobre.tasks.tools import TOOLS, call
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.tokenizer.tool_calls import CallArguments, CallReader, CallStart


class Generator(Protocol):
    def generate(self, requests: Sequence[Request]) -> list[Output]: ...


@dataclass(frozen=True)
class Spoken:
    """Everything that followed a prompt."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """0 for tokens that the model did not sample."""
    own: tuple[bool, ...]
    last_ids: tuple[int, ...]
    """The last turn, which holds the answer."""
    finished: bool
    n_calls: int
    routes_LTA: Tensor | None
    kept: tuple[Kept, ...] | None
    """Nothing for tokens that the model did not sample."""
    weight_version: int
    """Of the weights that sampled the first turn."""


def converse(engine: Generator, tokenizer: Tokenizer, requests: Sequence[Request], cfg: RLConfig) -> list[Spoken]:
    """Run requests to their ends, through at most `cfg.max_calls` turns with calls; `max_tokens` is for all turns."""
    spoken = [_first(output) for output in engine.generate(requests)]
    for turn in range(cfg.max_calls if cfg.tools else 0):
        asked = {
            i: calls
            for i, said in enumerate(spoken)
            if said.finished and said.n_calls == turn
            if (calls := read_calls(tokenizer.decode(said.last_ids[:-1])))
        }
        going_on: dict[int, tuple[Request, tuple[int, ...]]] = {}
        for i, results in _called(asked, cfg).items():
            said, given = spoken[i], between(tokenizer, results, cfg)
            room = cfg.max_tokens - len(said.token_ids) - len(given)
            if room < 1:
                spoken[i] = replace(said, finished=False)  # cut: there is no room for the result
                continue
            prompt = (*requests[i].prompt_ids, *said.token_ids, *given)
            params = replace(requests[i].params, max_tokens=room)
            going_on[i] = (Request(f"{requests[i].id}/{turn + 1}", prompt, params), given)
        if not going_on:
            break
        outputs = engine.generate([request for request, _ in going_on.values()])
        for (i, (_, given)), output in zip(going_on.items(), outputs, strict=True):
            spoken[i] = _joined(spoken[i], given, output)
    return spoken


def _called(asked: Mapping[int, Sequence[tuple[str, str]]], cfg: RLConfig) -> dict[int, list[str]]:
    """The results of all calls of a turn, by answer: as many at once as there are cores, for code may take its time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        given = [one for calls in asked.values() for one in calls]
        results = pool.map(lambda one: call(one[0], one[1], cfg.tools), given)
        return {i: list(islice(results, len(calls))) for i, calls in asked.items()}


def read_calls(text: str) -> list[tuple[str, str]]:
    """(name, arguments as JSON text) of each whole call in a turn."""
    reader = CallReader()
    calls: list[tuple[str, str]] = []
    for event in reader.push(text):
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        elif isinstance(event, CallArguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return calls[: reader.n_complete]


def between(tokenizer: Tokenizer, results: Sequence[str], cfg: RLConfig) -> tuple[int, ...]:
    """What stands between the end of one turn and the beginning of the next: the results, as the template has them."""
    tools = described(cfg)
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
    before = tokenizer.render(asked, tools=tools)
    messages = [*asked, *({"role": "tool", "content": result} for result in results)]
    after = tokenizer.render(messages, generation_prompt=True, tools=tools)
    if after[: len(before)] != before or tokenizer.eos_id not in before:
        raise RunError("rl.tools: this chat template rewrites what an assistant said once a tool has answered")
    return tuple(after[len(before) - before[::-1].index(tokenizer.eos_id) :])


def described(cfg: RLConfig) -> tuple[dict[str, object], ...]:
    """The tools of the recipe, as the chat template shows them to the model."""
    return tuple(dict(TOOLS[name]) for name in cfg.tools)


def _first(output: Output) -> Spoken:
    ids = tuple(output.token_ids)
    finished = output.finish_reason == "stop"
    kept = None if output.kept is None else tuple(output.kept)
    return Spoken(
        ids,
        tuple(output.logprobs),
        (True,) * len(ids),
        ids,
        finished,
        0,
        output.routes_LTA,
        kept,
        output.weight_version,
    )


def _joined(said: Spoken, given: tuple[int, ...], output: Output) -> Spoken:
    new = _first(output)
    kept = None
    if said.kept is not None and new.kept is not None:
        kept = (*said.kept, *(np.empty(0, np.int32) for _ in given), *new.kept)
    return Spoken(
        token_ids=(*said.token_ids, *given, *new.token_ids),
        logprobs=(*said.logprobs, *(0.0 for _ in given), *new.logprobs),
        own=(*said.own, *(False for _ in given), *new.own),
        last_ids=new.token_ids,
        finished=new.finished,
        n_calls=said.n_calls + 1,
        routes_LTA=new.routes_LTA,
        kept=kept,
        weight_version=said.weight_version,
    )
