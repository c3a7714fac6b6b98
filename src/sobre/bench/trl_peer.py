"""The TRL side of `bench rl` and `bench climb`: its GRPOTrainer with our terms, and nothing that would slow it down.

No logging, saving or checkpointing; old log-probabilities are not computed again, since a step trains once on what it
sampled. Its prompts are texts. In `bench rl` a tokenizer of words "t0 t1 ..." gives it the very ids that we use, and
the end token lies outside the model's vocabulary: no completion ends early. In `bench climb` the tokenizer, problems
and reward are those of the run, and what its tokenizer makes of the first prompts is compared with ours before.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sobre.bench.climbers import Ascent, Course
from sobre.bench.config import RLBench
from sobre.bench.peer import load_peer
from sobre.bench.timing import Timing
from sobre.errors import ConfigError, RunError
from sobre.eval.score import prompt_ids
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.rl.rollout import answered
from sobre.rl.types import Sample

NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
}
"""Parameters whose gradients are compared, ours to theirs."""


def require() -> None:
    """Raise a ConfigError that says what to install when TRL is absent."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"this benchmark needs its peer: pip install trl ({error}); where TRL lives in another environment that has"
            " our dependencies too: PYTHONPATH=src OTHER/bin/python -m sobre bench ..."
        ) from None


def word_tokenizer(vocab_size: int) -> Any:
    """A tokenizer that reads "t7 t42" as [7, 42]."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(vocab_size)} | {"<end>": vocab_size}
    core = Tokenizer(WordLevel(words, unk_token="t0"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="t0", eos_token="<end>", padding_side="left")


def make_trainer(
    cfg: RLBench, folder: Path, prompts: list[list[int]], reward: Callable[[Sequence[int]], float], *, bf16: bool
) -> Any:
    """A GRPOTrainer for warm-up and rounds."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward_ids(completion_ids: list[list[int]], **_: object) -> list[float | None]:
        return [reward(ids) for ids in completion_ids]

    terms = _terms(folder / "trl", seed=cfg.seed, prompts=cfg.prompts, group_size=cfg.group_size, new=cfg.new)
    args = GRPOConfig(**terms, bf16=bf16, max_steps=cfg.warmup + cfg.rounds, learning_rate=cfg.lr)
    texts = [" ".join(f"t{token}" for token in prompt) for prompt in prompts]
    rows = Dataset.from_dict({"prompt": texts * (cfg.warmup + cfg.rounds)})
    return GRPOTrainer(
        model=load_peer(folder),
        reward_funcs=reward_ids,
        args=args,
        train_dataset=rows,
        processing_class=word_tokenizer(cfg.model.vocab_size),
    )


def climb(course: Course, ascent: Ascent, lr: float, place: Path) -> None:
    """TRL's trainer on a course, in `place`, until the ascent is over."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    cfg, ours = course.cfg, course.tokenizer
    theirs = AutoTokenizer.from_pretrained(course.start, padding_side="left")
    problems = [problem for step in range(cfg.peer_steps) for problem in course.problems(step)]
    prompts = [prompt_ids(ours, problem) for problem in problems]
    texts = [ours.decode(ids) for ids in prompts]
    for ids, text in zip(prompts[: cfg.prompts], texts[: cfg.prompts], strict=True):
        if tuple(theirs(text)["input_ids"]) != ids:
            raise RunError(f"the peer's tokenizer reads {text!r} otherwise than ours; nothing was timed")

    def reward(completion_ids: list[list[int]], place: list[int], **_: object) -> list[float | None]:
        asked = [
            answered(problems[at], ids, ids[-1] == ours.eos_id, ours)
            for ids, at in zip(completion_ids, place, strict=True)
        ]
        return course.rewards(asked)

    ascent.begin(load_model(course.start))
    terms = _terms(place / "trl", seed=course.seed, prompts=cfg.prompts, group_size=cfg.group_size, new=cfg.new)
    trainer = GRPOTrainer(
        model=load_peer(course.start),
        reward_funcs=reward,
        args=GRPOConfig(**terms, bf16=cfg.peer_dtype == "bfloat16", max_steps=cfg.peer_steps, learning_rate=lr),
        train_dataset=Dataset.from_dict({"prompt": texts, "place": list(range(len(texts)))}),
        processing_class=theirs,
    )

    def weights() -> Decoder:
        trainer.model.save_pretrained(place / "weights")
        return load_model(place / "weights")

    train(trainer, lambda timing: ascent.stepped(timing.wall_s, weights))
    if not ascent.is_over:
        raise RunError(
            f"TRL's trainer ran out of problems after {ascent.steps} steps and {ascent.seconds:.0f} s; give it more:"
            f" --peer-steps {2 * cfg.peer_steps}"
        )


def _terms(folder: Path, *, seed: int, prompts: int, group_size: int, new: int) -> dict[str, Any]:
    """What a step of either benchmark is, as TRL's config says it."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "seed": seed,
        "per_device_train_batch_size": prompts * group_size,
        "num_generations": group_size,
        "max_completion_length": new,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "loss_type": "dapo",
        "scale_rewards": "none",
        "temperature": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "shuffle_dataset": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def train(trainer: Any, after_step: Callable[[Timing], bool]) -> None:
    """Run TRL's own loop; every step, from its rollouts to the update, is timed and handed to `after_step`, which says
    whether it was the last."""
    from transformers import PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        began = (0.0, 0.0)

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.began = (time.perf_counter(), time.process_time())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            wall_s, cpu_s = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            control.should_training_stop |= after_step(Timing(wall_s, cpu_s))

    trainer.remove_callback(PrinterCallback)  # it writes to standard output, which is ours
    trainer.add_callback(Clock())
    trainer.train()


def loss_and_gradients(trainer: Any, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """TRL's log-probabilities of our samples, and its loss's gradients by our names.

    Samples of equal lengths, so nothing is padded. The loss itself tells nothing: with ratios of 1 and advantages
    that sum to 0 it is 0, whatever the model computes.
    """
    prompts = torch.tensor([sample.prompt_ids for sample in samples])
    completions = torch.tensor([sample.response_ids for sample in samples])
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.tensor([sample.advantage for sample in samples]),
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    model = trainer.model.eval()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {ours: parameters[theirs].grad.clone() for ours, theirs in NAMES.items() if theirs in parameters}
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        n_prompt = prompts.shape[1]
        logits_BTV = model(torch.cat([prompts, completions], 1), use_cache=False).logits[:, n_prompt - 1 : -1]
        logp_BTV = logits_BTV.float().log_softmax(-1)
    return logp_BTV.gather(-1, completions.unsqueeze(-1)).squeeze(-1), gradients
