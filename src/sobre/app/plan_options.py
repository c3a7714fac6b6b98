"""What can be asked of `sobre plan`: one class of flags for each question."""

from dataclasses import dataclass
from typing import Literal

import tyro

from sobre.plan.serving import VARIETY
from sobre.train.config import Recompute


@dataclass(frozen=True)
class PlanOptions:
    """Flags of `sobre plan` that are no part of the recipe."""

    gflops: float = 0.0
    """Matrix products of the machine in its training dtype, in GFLOP/s; 0 takes what `sobre doctor` measured."""
    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class ChipOptions:
    """On what."""

    chip: str = "h100"
    """Name of a chip, such as h100 or rtx4090; `this` is this machine, as `sobre doctor` measured it."""
    chips: int = 8
    """How many; with --serve, 0 takes the fewest that hold the model."""
    chips_file: str = ""
    """A file with chips of your own, in the form of plan/chips.toml."""
    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class BuyOptions(ChipOptions):
    """The best model that a budget buys on a chip."""

    budget: str
    """90s, 10m, 1h, 20usd, 2gpuh or 3e18flop."""
    chips: int = 1
    seq: str = "4k"
    """Length of the sequences."""
    write: str = ""
    """Write the recipe of the plan into this file."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ChipOptions):
    """What it takes to train a model."""

    model: str
    """A known model, or the path of a config.json."""
    tokens: str = ""
    """Trained tokens, such as 14.8T; 20 for each active parameter if not said (Chinchilla, arXiv 2203.15556)."""
    seq: str = "4k"
    """Length of the sequences."""
    batch: str = ""
    """Tokens of a step, such as 4M."""
    precision: str = ""
    """Of the matrix products: bf16 or fp8; bf16 if not said. A run that was published, asked for on its own chips with
    none of these said, is planned with its published batch, precision and layout."""
    tensor: int | None = None
    pipeline: int | None = None
    expert: int | None = None
    zero: int | None = None
    schedule: str | None = None
    recompute: str | None = None
    """Parts of the layout to keep; the others are chosen."""


@dataclass(frozen=True, kw_only=True)
class PageOptions(TrainOptions):
    """The same as a page with pictures."""

    out: str = "plan.html"
    """Where it is written."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChipOptions):
    """What it takes to serve a model."""

    model: str
    """A known model, or the path of a config.json."""
    chips: int = 0
    context: str = "4k"
    """Tokens that a user's sequence holds, on average."""
    users: int = 1
    """Sequences decoded at once."""
    hits: float = 0.0
    """Share of the input that comes from the prefix cache."""
    variety: float = VARIETY
    """Standard deviation of the lengths of requests over their mean; 0 is requests of one length."""
    weights: str = "bf16"
    cache: str = "bf16"
    input_per_day: str = ""
    output_per_day: str = ""
    """Tokens of a day, such as 608B: how many chips do they keep busy?"""


@dataclass(frozen=True, kw_only=True)
class ReasonOptions(ChipOptions):
    """What it takes to teach a model by reinforcement learning."""

    model: str
    """A known model, or the path of a config.json."""
    rollouts: int
    """Times that a batch of answers is sampled."""
    samples: int = 512
    """Answers of one rollout."""
    mean_tokens: str = "2k"
    """Tokens of an answer, on average."""
    max_tokens: str = "8k"
    """Where an answer is cut."""
    precision: str = "bf16"
    """Of weights and matrix products: bf16 or fp8."""


@dataclass(frozen=True, kw_only=True)
class CardOptions(ChipOptions):
    """Reinforcement learning with sampler and trainer on one card: does it fit, and what gives way?"""

    model: str
    """A known model, a folder, or the path of a config.json, of a family that we run."""
    chips: int = 1
    at_once: int = 128
    """Answers sampled together (`engine.max_batch`)."""
    context: str = "1k"
    """Tokens of a question with its longest answer."""
    micro_tokens: int = 16_384
    """Most tokens in one forward and backward pass (`rl.micro_tokens`)."""
    lora_rank: int = 0
    """Rank of adapters that learn beside frozen weights (`lora.rank`); 0: all weights learn."""
    reference: bool = False
    """Keep a second model for a KL."""
    recompute: Recompute = "auto"
    """Compute layers again in the backward pass; auto: where nothing else is room enough (`rl.recompute`)."""
    offload: Literal["auto", "on", "off"] = "auto"
    """Sampler and trainer take turns; auto: where they do not fit together (`rl.offload`)."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions(ChipOptions):
    """What it takes to teach a model by the answers of a larger one."""

    model: str
    """The student: a known model, or the path of a config.json."""
    teacher: str
    """Who answers."""
    samples: str = "800K"
    """Answers, such as R1's 800K (arXiv 2501.12948, 2.4)."""
    mean_tokens: str = "5k"
    """Tokens of an answer, on average."""
    epochs: int = 2
    """Passes of the student."""
    users: int = 256
    """Answers that a unit of the teacher samples at once."""
    weights: str = "bf16"
    """Format of the teacher's weights."""


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(ChipOptions):
    """How a recipe's model would lie on chips: memory and time by part."""

    layout: str
    """Name or path of a recipe; its own sizes are taken, whatever a budget would choose."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ChipOptions):
    """Models side by side, trained on the same tokens and chips."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Known models, or paths of config.json."""
    tokens: str = "15T"
    chips: int = 2048
    precision: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class EnginesOptions:
    """Who will run a shape: transformers, vLLM, SGLang, llama.cpp; and what to change where one will not."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Recipes, known models, model folders, or paths of config.json."""
    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """The model of time against published runs."""

    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """A pipeline schedule, played out."""

    name: tyro.conf.Positional[str]
    """1f1b, interleaved, zb1p, dualpipe or dualpipev."""
    stages: int = 8
    """Chips of the pipeline."""
    micro: int = 16
    """Micro-batches of a step."""
    chunks: int = 2
    """Stages that a chip holds in the interleaved schedule."""
    json: bool = False
    """One JSON document on standard output."""
