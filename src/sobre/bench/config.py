"""What each benchmark may be asked. No torch here."""

import re
from dataclasses import replace
from typing import Literal

from sobre.bench.shapes import DECODED, FAMILY_SHAPES, LARGE, SMALL
from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.models.config import MemoryConfig, ModelConfig
from sobre.plan.budget import parse_budget
from sobre.tasks.config import check_difficulty

Dtype = Literal["float32", "bfloat16"]
TRAIN_CONTESTANTS = ("sobre", "transformers", "dense", "sobre muon", "dense muon")


@config
class BenchConfig:
    """What every benchmark takes."""

    out: str = ""
    """Result file; a new one in bench-results/ when not given."""
    json: bool = False
    """Print the result as one JSON document on standard output."""


@config
class TimedConfig(BenchConfig):
    """Benchmarks that time short pieces of work in one process."""

    rounds: int = 5
    """Every contestant runs once a round, in turn; each round is kept."""
    warmup: int = 1
    """Rounds before, not counted."""
    threads: int = 1
    """Threads of every contestant."""
    seed: int = 0
    """Of weights and tokens."""
    model: ModelConfig = SMALL
    """The model, in our words."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup < 0 or self.threads < 1:
            raise ConfigError(f"rounds={self.rounds}, warmup={self.warmup}, threads={self.threads}: at least 1, 0, 1")


@config
class TrainBench(TimedConfig):
    """A training step against transformers on the same weights, and against our own dense twin."""

    rows: int = 8
    seq_len: int = 512
    contestants: tuple[str, ...] = TRAIN_CONTESTANTS
    """Who runs: sobre and transformers in DeepSeek-V3's shape, dense (our twin of equal active parameters), each of
    ours also with muon."""
    compile: bool = False
    """Also both sides under torch.compile; building them takes minutes."""
    memory: bool = False
    """Also the peak memory of each side, in a process of its own."""
    nanochat: str = ""
    """A clone of nanochat, whose dense step is then set beside ours; empty leaves it out."""
    lr: float = 1e-4
    """Learning rate of both sides: the steps are real, and their losses are compared after the last round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.contestants if name not in TRAIN_CONTESTANTS]
        if unknown or not self.contestants:
            raise ConfigError(f"contestants={list(self.contestants)} must be some of {', '.join(TRAIN_CONTESTANTS)}")


@config
class DecodeBench(TimedConfig):
    """Generation, prefill included, against transformers.generate on the same weights."""

    rounds: int = 3
    preset: Literal["", "mixture-257m", "qwen3-0.6b"] = ""
    """A shape of its own instead of --model, with targets over transformers (3 times as fast) and llama.cpp: 257M
    parameters of which 59M are active, with latent attention and experts; or the dense shape of Qwen3-0.6B. Give
    --batches 1 16."""
    batches: tuple[int, ...] = (1, 16, 128)
    """Requests at once."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    """What the model computes in."""
    prompt: int = 16
    """Tokens of each prompt."""
    new: int = 48
    """New tokens of each request at equal lengths."""
    spread: tuple[int, int] = (8, 64)
    """Fewest and most new tokens of a request at spread ends, drawn uniformly."""
    temperature: float = 0.0
    """Of both sides; 0 is greedy. The check is always greedy."""

    @property
    def shape(self) -> ModelConfig:
        """The model that is measured."""
        return DECODED[self.preset] if self.preset else self.model


@config
class LoadBench(TimedConfig):
    """Two gigabytes of weights into a model that is ready, against `readinto` of the same files into fresh memory."""

    model: ModelConfig = LARGE


@config
class SavesBench(TimedConfig):
    """An optimizer step with and without a state on its way to the disk: for how long does training wait?"""

    rows: int = 8
    seq_len: int = 512
    optimizer: Literal["muon", "adamw"] = "muon"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1 or self.seq_len < 1:
            raise ConfigError(f"rows={self.rows}, seq_len={self.seq_len}: at least 1")


@config
class FamiliesBench(TimedConfig):
    """The forward pass of each family and decoding at a long context, against transformers on the same weights."""

    families: tuple[str, ...] = tuple(FAMILY_SHAPES)
    """By model_type."""
    rows: int = 2
    """Rows of a forward pass."""
    seq_len: int = 256
    """Tokens of each row."""
    context: int = 1024
    """Tokens of the prompt before decoding is timed."""
    new: int = 32
    """New tokens whose time counts; 0 leaves decoding out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.families if name not in FAMILY_SHAPES]
        if unknown or not (self.families or self.new):
            raise ConfigError(f"families={list(self.families)} must be some of {', '.join(FAMILY_SHAPES)}")
        if self.rows < 1 or self.seq_len < 1 or self.context < 1 or self.new < 0:
            raise ConfigError("rows, seq_len and context must be at least 1, and new at least 0")


@config
class ServeBench(TimedConfig):
    """A really started server with many streams, against itself with one."""

    rounds: int = 5
    streams: int = 32
    """Streams at once; the server has as many slots."""
    prompt: int = 16
    """Tokens of a short prompt."""
    long_prompt: int = 1000
    """Tokens of a long history; it and its next turn must fit the model's context."""
    model: ModelConfig = replace(SMALL, max_len=2304)
    new: int = 48
    """Tokens of each answer."""


@config
class SoakBench(ServeBench):
    """A really started server under mixed load: clients that leave at any moment, its memory, and no block lost."""

    minutes: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.minutes > 0:
            raise ConfigError(f"minutes={self.minutes} must be above 0")


@config
class RLBench(TimedConfig):
    """A GRPO step against TRL's GRPOTrainer: same weights, prompts, tokens, optimizer and loss terms."""

    rounds: int = 4
    prompts: int = 16
    group_size: int = 8
    prompt: int = 16
    """Tokens of each prompt."""
    new: int = 64
    """Tokens of each completion; none ends early."""
    dtype: Dtype = "bfloat16"
    """What our trainer computes in; our engine samples in what decodes fastest, as in a run."""
    peer_dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    """What TRL computes in, one after the other; the faster one is what counts."""
    lr: float = 1e-6


@config
class QualityBench(BenchConfig):
    """What rounded weights and caches cost in quality: ours and llama.cpp's files of the same trained model."""

    model: str = ""
    """Folder of a trained model, or its id on the hub."""
    text: tuple[str, ...] = ()
    """Files or folders of text that the model was not trained on."""
    lang: str = ""
    """Only rows of this language; empty takes all."""
    documents: int = 0
    """The first so many of each source; 0 takes all."""
    chars: int = 0
    """Of each document its first so many characters; 0 takes all of it."""
    window: int = 512
    """Tokens of context at most; a model with a shorter context has less."""
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.model or not self.text:
            raise ConfigError("quality reads text with a trained model: --model FOLDER --text FILE_OR_FOLDER ...")
        if min(self.documents, self.chars) < 0 or self.window < 2 or self.threads < 1:
            raise ConfigError(
                f"documents={self.documents}, chars={self.chars}, window={self.window}, threads={self.threads}:"
                " at least 0, 0, 2, 1"
            )


@config
class SpeculateBench(BenchConfig):
    """What guesses at the next tokens bring on a trained model: how many are right, and how much time they take off."""

    model: str = ""
    """Folder of a trained model, or its id on the hub."""
    text: tuple[str, ...] = ()
    """Files or folders of text that the model was not trained on; it goes on from their beginnings."""
    lang: str = ""
    """Only rows of this language; empty takes all."""
    dtype: Dtype = "bfloat16"
    batches: tuple[int, ...] = (1, 16)
    """Answers written together."""
    temperatures: tuple[float, ...] = (0.0, 0.6)
    prompt: int = 64
    """Tokens of a document that the model goes on from."""
    new: int = 128
    """Tokens of an answer."""
    rounds: int = 5
    """Every contestant runs once a round, in turn; each round is kept."""
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.model or not self.text:
            raise ConfigError("speculate goes on from text with a trained model: --model FOLDER --text FILE ...")
        sizes = (*self.batches, self.prompt, self.new, self.rounds, self.threads)
        if not self.batches or not self.temperatures or min(sizes) < 1:
            raise ConfigError(
                f"batches={list(self.batches)}, temperatures={list(self.temperatures)}: at least one of either;"
                f" prompt={self.prompt}, new={self.new}, rounds={self.rounds}, threads={self.threads}: at least 1"
            )


@config
class QueueConfig(BenchConfig):
    """Benchmarks of minutes to hours: a queue of cells, each one run and one file. Start it again to go on."""

    folder: str = ""
    """Where the cells lie; bench-results/NAME when not given. Cells of other commits lie beside, in their own."""
    max_cells: int = 0
    """Stop after as many new cells; 0 goes on to the end."""
    keep_runs: bool = False
    """Keep the whole run folder of each finished cell; otherwise its report.json and config.json alone."""


@config
class StoryBench(QueueConfig):
    """Whole runs of a recipe over seeds, with the control where there is one, and the targets beside the means."""

    recipe: str = "demo"
    """demo (with its control), zero, text, or any other recipe."""
    seeds: int = 3
    budget: str = ""
    """Of each run; the recipe's own when not given."""
    control: bool = True
    """For a recipe with sft and rl: also the same budget with RL's share given to the cold start."""
    data: tuple[str, ...] = ()
    """Training text, for recipes that read some."""
    val: str = ""
    """Text that every base model is also scored on in bits per byte, beside what its own run held out."""
    val_lang: str = "en"
    """Only rows of this language; empty takes all."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds={self.seeds} must be at least 1")


@config
class DistillBench(QueueConfig):
    """RL on a small student, a teacher's answers, on-policy distillation, more cold start: the same seconds each."""

    recipe: str = "demo"
    """Recipe of teacher and student; the sizes, tasks and budgets are the ones below."""
    tasks: tuple[str, ...] = ("copy", "reverse", "sorting", "arithmetic")
    difficulty: int = 2
    """Highest difficulty that is trained on; the test is at this one."""
    problems: int = 400
    """Test problems."""
    seeds: int = 3
    teacher_stages: tuple[Literal["pretrain", "sft", "rl"], ...] = ("pretrain", "sft", "rl")
    """What makes the teacher; the last of them teaches."""
    answers: int = 64
    """Answers of one step, of RL (in groups of `group`) and of on-policy distillation."""
    group: int = 8
    teacher_width: int = 128
    student_width: int = 64
    teacher_flops: str = "3e13flop"
    student_flops: str = "4e12flop"
    budget: str = "90s"
    """Of each contestant, the two examinations included: seconds (90s), or FLOPs (4e11flop)."""
    lr_rl: float = 1.0
    """Learning rate of RL over the recipe's."""
    lr_answers: float = 0.5
    """Learning rate of the teacher's answers, and of more cold start, over the recipe's."""
    lr_on_policy: float = 0.2

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.problems < 1:
            raise ConfigError(f"seeds={self.seeds} and problems={self.problems} must be at least 1")
        if self.teacher_stages[-1:] not in (("sft",), ("rl",)):
            raise ConfigError(f"teacher_stages={list(self.teacher_stages)} must end with sft or rl, which answer")
        if self.group < 2 or self.answers < self.group or self.answers % self.group:
            raise ConfigError(
                f"answers={self.answers} must be one or more whole groups of group={self.group}, 2 or more"
            )
        check_difficulty("difficulty", 1, self.difficulty)
        for amount in (self.teacher_flops, self.student_flops, self.budget):
            parse_budget(amount, price_usd_per_h=0.0)


@config
class ClimbBench(QueueConfig):
    """Seconds of GRPO until 80 % of held-out problems are right, from one start: ours beside TRL's GRPOTrainer."""

    recipe: str = "zero"
    """Of the start: its stages before reinforcement learning, with the sizes, tasks, chats and FLOPs below. It can
    more than it shows in chats, which is what reinforcement learning brings out; a cold start cut short cannot."""
    tasks: tuple[str, ...] = ("arithmetic",)
    difficulty: int = 2
    """Of what is asked; the start has read worked examples of it and of the next harder, as in `zero`."""
    chats: tuple[str, ...] = ("reverse", "sums", "dates", "knights", "formula")
    """Other tasks that the start has seen in the layout of a chat too; with one-line chats alone it thinks one line."""
    chat_share: float = 0.01
    """Chats for each other document of the start's text."""
    start: str = "2e13flop"
    """Budget of the start, which must end well below the goal; not counted."""
    width: int = 96
    layers: int = 3
    seeds: int = 3
    goal: float = 0.8
    """Share of the held-out problems."""
    problems: int = 200
    """Held-out problems, answered greedily; not counted."""
    every: int = 1
    """Steps between two examinations."""
    seconds: float = 300.0
    """After which no step of a cell begins."""
    prompts: int = 16
    group_size: int = 8
    new: int = 96
    """Longest answer, in tokens."""
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """The sweep of either side, with the first seed; the other seeds run at its best. TRL's default, 1e-6, is for
    larger models: it moves a hundredth as far a step as the lowest of these."""
    peer_steps: int = 1000
    """Steps for which TRL's data set is made, before its clock runs: more than its seconds allow."""
    dtype: Dtype = "bfloat16"
    """What our trainer computes in; our engine samples in what decodes fastest, as in a run."""
    peer_dtype: Dtype = "bfloat16"
    """What TRL computes in: the one in which `bench rl` finds it faster."""
    threads: int = 2

    def __post_init__(self) -> None:
        floors = {"seeds": 1, "problems": 1, "every": 1, "prompts": 1, "group_size": 2, "new": 1, "peer_steps": 1,
                  "threads": 1}  # fmt: skip
        wrong = [f"{name}={getattr(self, name)}, at least {least}" for name, least in floors.items()
                 if getattr(self, name) < least]  # fmt: skip
        if wrong:
            raise ConfigError(f"too small: {'; '.join(wrong)}")
        if not 0 < self.goal <= 1 or not self.seconds > 0:
            raise ConfigError(f"goal={self.goal} must lie in 0..1, 0 not, and seconds={self.seconds} above 0")
        if not self.lrs or len(set(self.lrs)) < len(self.lrs):
            raise ConfigError(f"lrs={list(self.lrs)} must hold at least one rate, each once")
        if both := sorted(set(self.tasks) & set(self.chats)):
            raise ConfigError(f"{', '.join(both)}: both asked and read in chats, which leaves nothing to climb")
        if not 0 <= self.chat_share <= 1:
            raise ConfigError(f"chat_share={self.chat_share} must lie in 0..1")
        check_difficulty("difficulty", 1, self.difficulty)


@config
class TwinBench(QueueConfig):
    """The mixture of experts against a dense model of equal active parameters: same seconds, then same FLOPs."""

    recipe: str = "text"
    """Base recipe; its pretraining stage alone is run, with the model below."""
    budget: str = "10m"
    """Seconds of each run."""
    flops: str = "6e13flop"
    """FLOPs of each run."""
    rounds: int = 3
    """Seeds; the learning rates are swept with the first one."""
    lr_scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """The sweep: factors on the recipe's learning rates, the same for both."""
    data: tuple[str, ...] = ()
    """Training text; generated once for both when not given."""
    documents: int = 60_000
    """Documents to generate."""
    model: ModelConfig = SMALL
    """The mixture of experts; vocabulary and context come from the run."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.lr_scales:
            raise ConfigError(f"rounds={self.rounds} and lr_scales={list(self.lr_scales)}: at least one of each")


FRUGAL_CONTESTANTS = (
    "dense adamw",
    "dense muon",
    "deepseek-v3",
    "ours",
    "ours without tables",
    "dense with tables",
)


@config
class FrugalityBench(QueueConfig):
    """A race between named contestants: which quality for how many seconds, FLOPs and dollars?"""

    recipe: str = "text"
    """Base recipe: text, tokenizer, batch, schedule. Its pretraining alone is run, unless --reasoning."""
    budget: str = "10m"
    """Seconds of the longest run over equal seconds; empty leaves that race out."""
    flops: str = ""
    """FLOPs of the longest run over equal FLOPs, for example 6e13flop; empty leaves that race out."""
    ladder: tuple[float, ...] = (1.0,)
    """Shares of the budget at which a run of its own ends; 0.1 0.3 1 draws a curve of three points."""
    seeds: int = 3
    lr_scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """The sweep, the same for every contestant: factors on the recipe's learning rates."""
    contestants: tuple[str, ...] = FRUGAL_CONTESTANTS
    data: tuple[str, ...] = ()
    """Training text; generated once for all when not given."""
    documents: int = 60_000
    """Documents to generate."""
    nanochat: str = ""
    """A clone of nanochat, which then runs too, over equal seconds; needs its packages rustbpe and tiktoken."""
    reasoning: bool = False
    """The whole recipe (say --recipe demo), judged by pass@1 after its last stage."""
    model: ModelConfig = SMALL
    """The experts; the dense shape has as many active parameters. Vocabulary and context come from the run."""
    memory: MemoryConfig = MemoryConfig(layers=(2, 5), n_rows=262_144)
    """The tables of those that have some."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.contestants if name not in FRUGAL_CONTESTANTS]
        if unknown or not self.contestants:
            raise ConfigError(f"contestants={list(self.contestants)} must be some of {', '.join(FRUGAL_CONTESTANTS)}")
        if self.seeds < 1 or not self.lr_scales or not self.ladder:
            raise ConfigError(f"seeds={self.seeds}, lr_scales={self.lr_scales}, ladder={self.ladder}: one at least")
        if any(not 0 < share <= 1 for share in self.ladder) or max(self.ladder) < 1:
            raise ConfigError(f"ladder={list(self.ladder)} must be shares in (0, 1], with 1 among them")
        if not self.budget and not self.flops:
            raise ConfigError("budget and flops are both empty; give one of them, for example --budget 10m")
        if self.nanochat and self.reasoning:
            raise ConfigError("nanochat runs on text; leave it out with --reasoning")


@config
class LawsBench(QueueConfig):
    """Loss over size and tokens at the budgets of a laptop, and the law that is fitted to it."""

    recipe: str = "demo"
    """Kind of model, tokenizer, batch, schedule and learning rates of every cell."""
    data: tuple[str, ...] = ()
    """Training text; some of it is held out."""
    sizes: tuple[str, ...] = ("32x2", "48x2", "64x3", "96x3", "128x4")
    """Width x layers; the rest follows as on the planner's ladder (plan/ladder.py)."""
    flops: tuple[float, ...] = (1e11, 3e11, 1e12, 3e12, 1e13)
    """Of each training; every size meets every one of them."""
    ratio: tuple[float, float] = (0.5, 400.0)
    """Fewest and most tokens for each parameter: cells outside are left out, and named."""
    seeds: int = 1
    held_out: int = 24
    """Documents of each source that are scored."""
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("laws needs real text to read: --data FILE_OR_FOLDER ...")
        wrong = [size for size in self.sizes if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size, re.ASCII)]
        if wrong or not self.sizes:
            raise ConfigError(f"sizes={list(self.sizes)} must be width x layers, such as 96x3")
        if not self.flops or min(self.flops) <= 0 or not 0 < self.ratio[0] < self.ratio[1]:
            raise ConfigError(
                f"flops={list(self.flops)} and ratio={self.ratio}: numbers above 0, the lower ratio first"
            )
        if min(self.seeds, self.held_out, self.threads) < 1:
            raise ConfigError(f"seeds={self.seeds}, held_out={self.held_out}, threads={self.threads}: at least 1")
