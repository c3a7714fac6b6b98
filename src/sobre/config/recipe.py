"""The recipe: one tree that holds every setting of a run, one section for each part of the story. No torch here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from sobre.config.base import config
from sobre.config.load import RECIPES, O, load_with
from sobre.data.config import DataConfig
from sobre.engine.config import EngineConfig
from sobre.errors import ConfigError
from sobre.eval.config import EvalConfig
from sobre.models.config import LoraConfig, ModelConfig
from sobre.optim.config import OptimConfig
from sobre.parallel.config import ParallelConfig
from sobre.plan.config import BudgetConfig
from sobre.rl.config import RLConfig
from sobre.tasks.config import TasksConfig, TextConfig
from sobre.tokenizer.config import TokenizerConfig
from sobre.train.config import FineTuneConfig, SaveConfig, StageConfig, StartConfig

StageName = Literal["pretrain", "sft", "rl"]
SHORTCUTS = {"--budget": "--budget.amount", "--data": "--data.paths"}


@config
class Recipe:
    """A run: what it may spend, what it reads, what it builds and how it learns."""

    name: str = "run"
    """Name of the run; its folder is out/NAME unless --out says otherwise."""
    seed: int = 0
    """Every random choice of the run derives from it."""
    stages: tuple[StageName, ...] = ("pretrain", "sft", "rl")
    """What the run does, in this order; each stage starts from the model that the one before left."""
    start: StartConfig = StartConfig()
    budget: BudgetConfig = BudgetConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    pretrain: StageConfig = StageConfig()
    sft: FineTuneConfig = FineTuneConfig()
    rl: RLConfig = RLConfig()
    engine: EngineConfig = EngineConfig()
    eval: EvalConfig = EvalConfig()
    save: SaveConfig = SaveConfig()
    parallel: ParallelConfig = ParallelConfig()

    def __post_init__(self) -> None:
        order: tuple[StageName, ...] = ("pretrain", "sft", "rl")
        if list(self.stages) != [stage for stage in order if stage in self.stages]:
            raise ConfigError(f"stages={list(self.stages)} must be some of {list(order)}, each once, in this order")
        if "sft" in self.stages and not (self.sft.paths or self.tasks.names):
            raise ConfigError("the stage sft needs chats: sft.paths, or tasks.names, whose worked examples it learns")

    @property
    def says_nothing(self) -> bool:
        """Whether no recipe was given: all is as it is without one, but for how the run lies on its processes."""
        return replace(self, parallel=ParallelConfig()) == Recipe()

    @property
    def has_tasks(self) -> bool:
        """Whether the model learns to answer problems, and is examined on them."""
        return "sft" in self.stages or "rl" in self.stages


def load_recipe(
    argv: list[str], options: type[O], *, prog: str | None = None, shortcuts: Mapping[str, str] | None = None
) -> tuple[Recipe, O]:
    """Read a recipe and a verb's own flags; short flags stand for dotted ones: SHORTCUTS, or those of the verb."""
    return load_with(Recipe, options, argv, recipes=RECIPES, shortcuts=SHORTCUTS | dict(shortcuts or {}), prog=prog)
