"""What the plan is told of a recipe's stages: tokens of a step, and work beside plain training. No torch here."""

from dataclasses import replace

from sobre.config.recipe import NOTHING, STAGES, Recipe
from sobre.models.config import ModelConfig
from sobre.plan.rules import Rules
from sobre.plan.solve import Work
from sobre.rl.config import RLConfig
from sobre.train.config import StageConfig


def student_config(recipe: Recipe, model: ModelConfig) -> ModelConfig:
    """A student from nothing: the recipe's sizes, the vocabulary and context of the run's model."""
    return replace(recipe.distill.student, vocab_size=model.vocab_size, max_len=model.max_len)


def step_tokens(recipe: Recipe) -> dict[str, int]:
    """Tokens of one step where the recipe says them; of answers that a model samples, as long as they are expected."""
    sections: dict[str, object] = {stage: getattr(recipe, stage) for stage in STAGES}
    found = {name: section.batch_tokens for name, section in sections.items() if isinstance(section, StageConfig)}
    sampled = {n: s.n_prompts * s.group_size for n, s in sections.items() if isinstance(s, RLConfig)}
    if recipe.distill.method == "on_policy":
        sampled["distill"] = recipe.distill.n_prompts
    found |= {name: n_answers * (Rules.eval_prompt + Rules.rl_answer) for name, n_answers in sampled.items()}
    return found


def works(recipe: Recipe, model: ModelConfig, teacher: ModelConfig | None = None) -> dict[str, Work]:
    """What each stage does beside plain training; `teacher` is distillation's, if it is not the run's model."""
    found: dict[str, Work] = {}
    for stage in recipe.stages:
        section = getattr(recipe, stage)
        is_student = recipe.begins_with(stage) == NOTHING
        work = Work(samples=isinstance(section, RLConfig), model=student_config(recipe, model) if is_student else None)
        if stage == "distill" and recipe.distill.method == "on_policy":
            work = replace(work, samples=True, read_by=teacher or model)
        elif recipe.teacher(stage) and not section.answers.n_problems:
            work = replace(work, before=section.answers.share)
        found[stage] = work
    return found
