"""The recipe: one tree that holds every setting of a run, one section for each part of the story. No torch here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

from sobre.config.base import config
from sobre.config.load import RECIPES, O, load_with
from sobre.data.config import DataConfig
from sobre.distill.config import DistillConfig
from sobre.engine.config import EngineConfig
from sobre.errors import ConfigError
from sobre.eval.config import EvalConfig
from sobre.models.config import LoraConfig, ModelConfig
from sobre.optim.config import OptimConfig
from sobre.parallel.config import ParallelConfig
from sobre.plan.config import BudgetConfig
from sobre.preference.config import DPOConfig
from sobre.rl.config import RLConfig
from sobre.runtime.config import Device
from sobre.tasks.config import TasksConfig, TextConfig
from sobre.tokenizer.config import TokenizerConfig
from sobre.train.config import FineTuneConfig, PretrainConfig, SaveConfig, StartConfig

StageName = Literal["pretrain", "sft", "rl", "sft2", "rl2", "dpo", "distill"]
STAGES: tuple[StageName, ...] = get_args(StageName)
NOTHING = "nothing"
"""What a student begins with that is no stage's model."""
SHORTCUTS = {"--budget": "--budget.amount", "--data": "--data.paths"}


@config
class Recipe:
    """A run: what it may spend, what it reads, what it builds and how it learns."""

    name: str = "run"
    """Name of the run; its folder is out/NAME unless --out says otherwise."""
    seed: int = 0
    """Every random choice of the run derives from it."""
    device: Device = "auto"
    """Where models train and sample; auto is the accelerator if there is one, else the CPU."""
    stages: tuple[StageName, ...] = ("pretrain", "sft", "rl")
    """What the run does, in this order; each stage goes on from the model that the one before left, or that `start`
    names."""
    start: StartConfig = StartConfig()
    budget: BudgetConfig = BudgetConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: FineTuneConfig = FineTuneConfig()
    rl: RLConfig = RLConfig()
    sft2: FineTuneConfig = FineTuneConfig()
    rl2: RLConfig = RLConfig()
    dpo: DPOConfig = DPOConfig()
    distill: DistillConfig = DistillConfig()
    engine: EngineConfig = EngineConfig()
    eval: EvalConfig = EvalConfig()
    save: SaveConfig = SaveConfig()
    parallel: ParallelConfig = ParallelConfig()

    def __post_init__(self) -> None:
        if list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            raise ConfigError(f"stages={list(self.stages)} must be some of {list(STAGES)}, each once, in this order")
        for place, stage in enumerate(self.stages):
            self._check_stage(stage, self.stages[:place])
        if self.has_tasks and (both := sorted(set(self.text.chat_names) & set(self.tasks.names))):
            raise ConfigError(
                f"text.chat_names and tasks.names both hold {', '.join(both)}: the base would have seen"
                " problems that it is examined on solved in chat form"
            )

    def _check_stage(self, stage: StageName, before: tuple[StageName, ...]) -> None:
        begins, fits = self.begins_with(stage), [*before, *([NOTHING] if stage == "distill" else [])]
        if begins and begins not in fits:
            raise ConfigError(
                f"start.{stage}={begins!r} must be a stage before it: {', '.join(fits) or 'there is none'}"
            )
        teacher = self.teacher(stage)
        if teacher in STAGES and teacher not in before:
            raise ConfigError(
                f"{stage}.answers.teacher={teacher!r} is a stage, and none of those before: {list(before)}"
            )
        section = getattr(self, stage)
        if isinstance(section, FineTuneConfig) and not (teacher or section.paths or self.tasks.names):
            raise ConfigError(
                f"the stage {stage} needs chats: {stage}.paths, or tasks.names, whose worked examples it learns"
            )
        if isinstance(section, RLConfig) and section.general.judge in STAGES and section.general.judge not in before:
            raise ConfigError(f"{stage}.general.judge={section.general.judge!r} is a stage, and none of those before")
        if stage == "distill" and not teacher:
            raise ConfigError("distill needs a teacher: distill.answers.teacher, or --teacher")
        if stage == "dpo" and not self.dpo.paths:
            raise ConfigError("dpo needs pairs to learn from: dpo.paths, or --data")

    def begins_with(self, stage: str) -> str:
        """The stage whose model this one goes on from; "" for the one before, "nothing" for a new student."""
        return str(getattr(self.start, stage, ""))

    def teacher(self, stage: str) -> str:
        """Who answers for this stage to learn from; "" for nobody."""
        section = getattr(self, stage)
        return section.answers.teacher if isinstance(section, FineTuneConfig) else ""

    @property
    def says_nothing(self) -> bool:
        """Whether no recipe was given: all is as it is without one, but for how the run lies on its processes."""
        return replace(self, parallel=ParallelConfig()) == Recipe()

    @property
    def has_tasks(self) -> bool:
        """Whether the model learns to answer problems, and is examined on them."""
        return any(stage != "pretrain" for stage in self.stages)


def load_recipe(
    argv: list[str], options: type[O], *, prog: str | None = None, shortcuts: Mapping[str, str] | None = None
) -> tuple[Recipe, O]:
    """Read a recipe and a verb's own flags; short flags stand for dotted ones: SHORTCUTS, or those of the verb."""
    return load_with(Recipe, options, argv, recipes=RECIPES, shortcuts=SHORTCUTS | dict(shortcuts or {}), prog=prog)
