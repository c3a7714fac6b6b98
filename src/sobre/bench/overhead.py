"""What a decode step of the engine costs beside the model and the sampler: schedule, blocks, books of tokens.

In one process, without HTTP: the model's side (`Runner.apply`, `Runner.decode`) and `sample` are timed from outside, by
CPU clock, and what is left of `Engine.step` is ours to answer for.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import process_time
from typing import Any

from sobre.bench import ours
from sobre.bench.config import ServeBench
from sobre.engine import engine as module
from sobre.engine.config import EngineConfig
from sobre.engine.request import Request, SamplingParams
from sobre.engine.runner import Runner

MODEL_SIDE = ((Runner, "apply"), (Runner, "decode"), (module, "sample"))


def overhead(cfg: ServeBench) -> float:
    """Share of the steps of `streams` answers of `new` tokens."""
    engine = module.Engine(ours.build(cfg.model, cfg.seed), EngineConfig(max_batch=cfg.streams))
    rng = random.Random(cfg.seed)
    for turn in range(2):  # the first one builds what is built once
        for row in range(cfg.streams):
            prompt = tuple(rng.randrange(cfg.model.vocab_size) for _ in range(cfg.prompt))
            engine.add(Request(f"{turn}/{row}", prompt, SamplingParams(max_tokens=cfg.new, seed=row)))
        with timed_within(MODEL_SIDE) as spent:
            began = process_time()
            while engine.has_work:
                engine.step()
            whole_s = process_time() - began
    return 1 - spent[0] / whole_s


@contextmanager
def timed_within(places: tuple[tuple[Any, str], ...]) -> Iterator[list[float]]:
    """Count, in a list of one number, the CPU seconds inside these functions."""
    spent, before = [0.0], [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, function in before:
        setattr(owner, name, _counted(function, spent))
    try:
        yield spent
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _counted(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        began = process_time()
        try:
            return function(*given, **named)
        finally:
            spent[0] += process_time() - began

    return counted
