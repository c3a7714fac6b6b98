"""sobre bench NAME: our benchmarks, each against a named peer or limit; the results are files.

    sobre bench train                        a training step against transformers, and against our dense twin
    sobre bench decode                       batched generation against transformers.generate (and llama.cpp)
    sobre bench families                     each family's forward pass, and decoding at 1k, against transformers
    sobre bench load                         two gigabytes of weights against reading their bytes
    sobre bench saves                        how long a step waits for a saved state; under torchrun divided
    sobre bench serve                        a started server: 32 streams against one, first tokens, page
    sobre bench soak --minutes 30            a started server under clients that leave: memory flat, no block left
    sobre bench quality --model DIR --text FILE   what 8 and 4 bits cost, beside llama.cpp's files of the same model
    sobre bench speculate --model DIR --text FILE what guesses at the next tokens bring on a trained model
    sobre bench rl                           a GRPO step against TRL
    sobre bench twin --data FILE             mixture of experts against dense: same seconds, then same FLOPs (hours)
    sobre bench story --recipe demo          whole runs over seeds, with the control and the targets (hours)
    sobre bench distill                      RL on a small student against two ways to teach it, same seconds (an hour)
    sobre bench climb                        seconds of RL until 80 % of a test is right, beside TRL (an hour or two)
    sobre bench frugality --data FILE        the race: which quality for how many seconds and FLOPs, by whom (hours)
    sobre bench laws --data FILE             the loss over size and tokens, and the law fitted to it (an hour)
    sobre bench all                          train, decode and rl

Timed benchmarks run at one thread and print every round; a peer that is not installed is named and skipped by `all`.
twin, story, distill, climb, frugality and laws are queues of cells: stop them at any time, start them again to go on.
"""

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sobre.bench.config import (
    BenchConfig,
    ClimbBench,
    DecodeBench,
    DistillBench,
    FamiliesBench,
    FrugalityBench,
    LawsBench,
    LoadBench,
    QualityBench,
    RLBench,
    SavesBench,
    ServeBench,
    SoakBench,
    SpeculateBench,
    StoryBench,
    TimedConfig,
    TrainBench,
    TwinBench,
)
from sobre.config.load import load
from sobre.errors import ConfigError
from sobre.runtime.allocator import reexec_once

if TYPE_CHECKING:
    from sobre.bench.result import Result

SCHEMAS: dict[str, type[BenchConfig]] = {
    "train": TrainBench,
    "decode": DecodeBench,
    "rl": RLBench,
    "families": FamiliesBench,
    "load": LoadBench,
    "saves": SavesBench,
    "serve": ServeBench,
    "soak": SoakBench,
    "quality": QualityBench,
    "speculate": SpeculateBench,
    "twin": TwinBench,
    "story": StoryBench,
    "distill": DistillBench,
    "climb": ClimbBench,
    "frugality": FrugalityBench,
    "laws": LawsBench,
}
QUICK = ("train", "decode", "rl")


def main(argv: list[str]) -> int:
    """sobre bench: how fast, and how good?"""
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if argv else 2
    name, flags = argv[0], argv[1:]
    if name == "all":
        return run_all(flags)
    if name not in SCHEMAS:
        raise ConfigError(f"no benchmark {name!r}; there are {', '.join(SCHEMAS)}, and all")
    return run(name, load(SCHEMAS[name], flags, recipes=None, prog=f"sobre bench {name}"))


def run_all(flags: list[str]) -> int:
    """The benchmarks that take minutes; those whose peer is missing are named and left out."""
    if flags:
        raise ConfigError(f"bench all takes no flags, not {' '.join(flags)}; run one benchmark to set them")
    for name in QUICK:
        try:
            run(name, SCHEMAS[name]())
        except ConfigError as error:
            say(f"{name} is skipped: {error}")
    return 0


def run(name: str, cfg: BenchConfig) -> int:
    """Measure, write the file, show it. torch is imported here, so that --help is instant."""
    if isinstance(cfg, TimedConfig | ClimbBench | SpeculateBench):
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cfg.threads)
        reexec_once()
    from sobre.bench.result import save
    from sobre.bench.table import table

    document = _bench(name)(cfg)
    if document is None:
        return 0
    path = save(document, cfg.out)
    if cfg.json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        print(table(document))
    say(f"written to {path}")
    return 0


def _bench(name: str) -> Callable[[Any], dict[str, Any] | None]:
    """The benchmark called `name`, which is that of a page: config in, document out; None in a process of several whose
    first one has it."""
    page = import_module(f"sobre.bench.{name}")

    def measured(cfg: BenchConfig) -> dict[str, Any] | None:
        found: Result | dict[str, Any] | None = page.bench(cfg, say)
        return found if found is None or isinstance(found, dict) else found.document()

    return measured


def say(line: str) -> None:
    """A line for whoever waits."""
    print(line, file=sys.stderr, flush=True)
