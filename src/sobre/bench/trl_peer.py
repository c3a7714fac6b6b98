"""The TRL side of `bench rl`: its GRPOTrainer with the terms that we have, and nothing that would slow it down.

Its prompts are texts, so a tokenizer of words "t0 t1 ..." gives it the very ids that we use. The end token lies outside
the model's vocabulary: no completion ends early. No logging, saving or checkpointing; old log-probabilities are not
computed again, since a step trains once on what it sampled.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sobre.bench.config import RLBench
from sobre.bench.peer import load_peer
from sobre.bench.timing import Timing
from sobre.errors import ConfigError
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
            f"bench rl needs its peer: pip install trl ({error}); where TRL lives in another environment that has our"
            " dependencies too: PYTHONPATH=src OTHER/bin/python -m sobre bench rl"
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

    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=bf16,
        seed=cfg.seed,
        max_steps=cfg.warmup + cfg.rounds,
        per_device_train_batch_size=cfg.prompts * cfg.group_size,
        num_generations=cfg.group_size,
        max_completion_length=cfg.new,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dapo",
        scale_rewards="none",
        temperature=1.0,
        learning_rate=cfg.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        shuffle_dataset=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    texts = [" ".join(f"t{token}" for token in prompt) for prompt in prompts]
    rows = Dataset.from_dict({"prompt": texts * (cfg.warmup + cfg.rounds)})
    return GRPOTrainer(
        model=load_peer(folder),
        reward_funcs=reward_ids,
        args=args,
        train_dataset=rows,
        processing_class=word_tokenizer(cfg.model.vocab_size),
    )


def train(trainer: Any, after_step: Callable[[Timing], None]) -> None:
    """Run TRL's own loop; every step, from its rollouts to the update, is timed and handed to `after_step`."""
    from transformers import PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        began = (0.0, 0.0)

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.began = (time.perf_counter(), time.process_time())

        def on_step_end(self, *_: object, **__: object) -> None:
            wall_s, cpu_s = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            after_step(Timing(wall_s, cpu_s))

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
