"""sobre bench speculate: what do guesses at the next tokens bring on a trained model?

A trained model continues held-out text, with guesses and without, greedily and sampled, alone and in company. Guesses
change no token but for rounding (engine/drafting.py), so what they bring is time: of the MTP module of a model that has
one (DeepSeek-V3, arXiv 2412.19437, 5.4.3, reports 85 to 90 % of them right and 1.8 times the speed, at its size), else
of what followed the last tokens when they last stood in the context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from sobre.bench.config import SpeculateBench
from sobre.bench.result import Result
from sobre.bench.timing import Say, as_json, interleave, medians, ratio
from sobre.config.load import to_dict
from sobre.data.config import DataConfig
from sobre.data.sources import read_documents
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import DataError
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.models.hub import resolve
from sobre.tokenizer.tokenizer import Tokenizer


@dataclass
class Contestant:
    """An engine, with guesses or without, and the answers that it is to write again and again."""

    engine: Engine
    requests: list[Request]
    answers: list[tuple[int, ...]] = field(default_factory=list)
    steps: int = 0

    def __call__(self) -> None:
        before = self.engine.stats.steps
        self.answers = [tuple(output.token_ids) for output in self.engine.generate(self.requests)]
        self.steps = self.engine.stats.steps - before

    @property
    def right(self) -> float:
        """Share of the guesses that were."""
        stats = self.engine.stats
        return stats.accepted_tokens / stats.drafted_tokens if stats.drafted_tokens else 0.0


def bench(cfg: SpeculateBench, say: Say) -> Result:
    """Every size of batch and temperature, with guesses and without, in turns."""
    torch.set_num_threads(cfg.threads)
    folder = resolve(cfg.model)
    model = load_model(folder, dtype=getattr(torch, cfg.dtype))
    prompts = _prompts(cfg, Tokenizer.load(folder))
    works: dict[str, Contestant] = {}
    for n in cfg.batches:
        for temperature in cfg.temperatures:
            for guesses in (False, True):
                name = f"{'guesses' if guesses else 'plain'}, {n} at once, temperature {temperature:g}"
                works[name] = _contestant(cfg, model, prompts[:n], temperature, guesses)
    rounds = interleave(works, rounds=cfg.rounds, warmup=1, say=say)
    units = {name: float(sum(map(len, work.answers))) for name, work in works.items()}
    pairs = list(zip(list(works)[::2], list(works)[1::2], strict=True))
    source = "its MTP module" if model.cfg.n_mtp else "what stood in the context before"
    body = {
        "rounds": as_json(rounds),
        "medians": medians(rounds, units, "tokens"),
        "ratios": [ratio(rounds, guessing, plain, units=units) for plain, guessing in pairs],
        "guesses": {
            guessing: {
                "right": works[guessing].right,
                "tokens_per_step": units[guessing] / works[guessing].steps,
                "plain_tokens_per_step": units[plain] / works[plain].steps,
                "same_answers": _same(works[guessing].answers, works[plain].answers),
            }
            for plain, guessing in pairs
        },
    }
    return Result("speculate", "timing", to_dict(cfg), cfg.threads, [], body, (f"guesses come from {source}",))


def _contestant(
    cfg: SpeculateBench, model: Decoder, prompts: Sequence[tuple[int, ...]], temperature: float, guesses: bool
) -> Contestant:
    sizes = EngineConfig(max_batch=len(prompts), max_len=cfg.prompt + cfg.new, prefix_cache=False, speculate=guesses)
    engine = Engine(model, sizes)
    sampled = [SamplingParams(max_tokens=cfg.new, temperature=temperature, seed=i) for i in range(len(prompts))]
    return Contestant(engine, [Request(str(i), ids, sampled[i]) for i, ids in enumerate(prompts)])


def _prompts(cfg: SpeculateBench, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The beginnings of as many documents as the largest batch has, taken from all sources in turn."""
    by_source: dict[str, list[tuple[int, ...]]] = {}
    most = max(cfg.batches)
    for row in read_documents(cfg.text, DataConfig()):
        mine = by_source.setdefault(row.source, [])
        if (not cfg.lang or row.lang == cfg.lang) and len(mine) < most:
            ids = tuple(tokenizer.encode(row.text))[: cfg.prompt]
            mine += [ids] if len(ids) == cfg.prompt else []
    found = [ids for turn in zip_longest(*by_source.values()) for ids in turn if ids is not None]
    if len(found) < most:
        raise DataError(
            f"--text={' '.join(cfg.text)} has {len(found)} documents of {cfg.prompt} tokens, and {most} are needed;"
            " give more text, or smaller --batches or --prompt"
        )
    return found[:most]


def _same(a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
