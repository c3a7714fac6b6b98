"""On-policy distillation: the student answers, and at every token of its answer learns what the teacher would say.

One engine samples with the very weights that are trained, as in RL; there is no reward, only a distance to the teacher
at each token (`distill.divergence`), which is why a step teaches much more than a step of RL does.

Shapes: N tokens, E width of the teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sobre.distill.config import DistillConfig
from sobre.distill.divergence import head_divergence
from sobre.engine.request import Output, Request, SamplingParams
from sobre.errors import ConfigError
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.rl.batch import microbatches, to_batch
from sobre.rl.shared_engine import SharedEngine
from sobre.rl.types import Sample
from sobre.tasks.base import Problem
from sobre.tasks.config import JUDGE_S
from sobre.tasks.format import Reward, question, reward
from sobre.tasks.judging import Asked, Fault, check, judge
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.batch import Batch
from sobre.train.loop import Feed
from sobre.train.losses import Loss, LossFn
from sobre.train.step import StepInfo

Draw = Callable[[int, int], list[Problem]]
"""(step, number) -> the problems of that step."""


def check_same_tokens(teacher: Tokenizer, student: Tokenizer) -> None:
    """Refuse two models whose distributions are over different tokens."""
    ours, theirs = student.vocabulary(), teacher.vocabulary()
    if ours == theirs:
        return
    differing = sum(theirs.get(text) != token for text, token in ours.items()) + len(theirs.keys() - ours.keys())
    raise ConfigError(
        f"the student's tokenizer ({len(ours):,} tokens) is not the teacher's ({len(theirs):,}): {differing:,} tokens"
        " differ, so their distributions cannot be compared; method=text learns from the teacher's answers instead"
    )


def teacher_loss(teacher: Decoder, n_tokens: int, beta: float) -> LossFn:
    """Sum of the divergences, over `n_tokens` tokens, from the teacher whose hidden states a batch brings."""

    def head(model: Decoder) -> Tensor:
        """Over the tokens that there are: heads may be padded, each in its own way."""
        return model.head_VD if model.cfg.vocab_size == n_tokens else model.head_VD[:n_tokens]

    def loss(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
        pick = batch.first.pick
        head_VD, teacher_head_VE = (head(one).to(output.hidden_ND.dtype) for one in (model, teacher))
        teacher_NE = pick(batch.streams["teacher_NE"]).to(head_VD.dtype)
        found_N = head_divergence(pick(output.hidden_ND), head_VD, teacher_NE, teacher_head_VE, beta)
        return Loss((found_N * pick(batch.weights_N)).sum())

    return loss


@dataclass
class StudentSource:
    """Batches that the student itself writes, with the teacher's hidden states. Train it with `source.loss_fn`."""

    engine: SharedEngine
    model: Decoder
    teacher: Decoder
    tokenizer: Tokenizer
    cfg: DistillConfig
    draw: Draw
    teacher_flops: Callable[[Batch], float]
    """Model FLOPs of the teacher's forward pass over a batch."""
    judge_s: float = JUDGE_S
    """Seconds that a judge may take."""
    _last: tuple[int, int, Feed] | None = field(default=None, repr=False)

    def feed(self, step: int) -> Feed:
        """The batches of one optimizer step, or those that were made for this very step and weights (the dry run)."""
        version = self.engine.weight_version
        if self._last is not None and self._last[:2] == (step, version):
            return self._last[2]
        problems = self.draw(step, self.cfg.n_prompts)
        before = self.engine.stats
        outputs, samples = self._answers(problems, step)
        after = self.engine.stats
        batches = [self._taught(to_batch(part, replay=False)) for part in microbatches(samples, self.cfg.micro_tokens)]
        flops = after.flops - before.flops
        metrics = self._metrics(problems, outputs) | {"rollout_s": after.seconds - before.seconds}
        feed = Feed(batches, flops + sum(map(self.teacher_flops, batches)), metrics | {"rollout_flops": flops})
        self._last = (step, version, feed)
        return feed

    def loss_fn(self, model: Decoder, output: StepOutput, batch: Batch) -> Loss:
        """Sum of the divergences of the answers' tokens."""
        return teacher_loss(self.teacher, self.tokenizer.vocab_size, self.cfg.beta)(model, output, batch)

    def prepare(self, step: int, device: torch.device) -> None:
        """Nothing: the weights that answer are not there yet."""

    def updated(self, step: int, info: StepInfo) -> Mapping[str, Any]:
        """The weights have changed: the engine forgets what it cached."""
        self.engine.weights_changed()
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing: the step's number makes its problems and seeds."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back, or on, to a state."""

    def _answers(self, problems: Sequence[Problem], step: int) -> tuple[list[Output], list[Sample]]:
        params = SamplingParams(
            max_tokens=self.cfg.max_tokens, temperature=self.cfg.temperature, stop_ids=(self.tokenizer.eos_id,)
        )
        first = step * self.cfg.n_prompts
        asked = [
            tuple(self.tokenizer.render([{"role": "user", "content": question(each)}], generation_prompt=True))
            for each in problems
        ]
        requests = [Request(f"{first + i}", ids, replace(params, seed=first + i)) for i, ids in enumerate(asked)]
        outputs = self.engine.generate(requests)
        samples = [
            Sample(ids, tuple(output.token_ids), tuple(output.logprobs), advantage=0.0, weight=1.0)
            for ids, output in zip(asked, outputs, strict=True)
        ]
        return outputs, samples

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Batch:
        """Add what the teacher thinks at each token: its hidden state, from which its head gives all probabilities."""
        longest, most = max(batch.step.lengths), self.teacher.cfg.max_len
        if longest > most:
            raise ConfigError(f"the student wrote {longest:,} tokens, question included; the teacher reads {most:,}")
        there = batch.to(self.teacher.embed.weight.device)
        return replace(batch, streams={**batch.streams, "teacher_NE": self.teacher(there.step).hidden_ND.cpu()})

    def _metrics(self, problems: Sequence[Problem], outputs: Sequence[Output]) -> dict[str, float]:
        """Nothing of this is learned from; it says how good the answers are."""
        asked = []
        for problem, output in zip(problems, outputs, strict=True):
            finished = output.finish_reason == "stop"
            text = self.tokenizer.decode(output.token_ids[:-1] if finished else output.token_ids)
            asked.append(Asked(problem, text, finished))
        found = judge(asked, lambda each: reward(*each), limit_s=self.judge_s)
        check([each.why for each in found if isinstance(each, Fault)], len(found))
        earned = [each for each in found if isinstance(each, Reward)]
        n, n_tokens = len(outputs), sum(len(output.token_ids) for output in outputs)
        return {
            "pass_rate": sum(each.accuracy for each in earned) / len(earned),
            "format_rate": sum(each.format for each in earned) / len(earned),
            "unjudged": n - len(earned),
            "truncated": sum(output.finish_reason != "stop" for output in outputs) / n,
            "answer_tokens": n_tokens / n,
            "n_answers": n,
            "rollout_tokens": n_tokens,
        }
