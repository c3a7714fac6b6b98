"""From groups of answers to training batches.

An answer is trained on from its first sampled token to its last, the end token included when it ended by itself. An
answer cut at the limit has no end token, so none is learned from it.

Shapes: X groups, Y answers per group, N tokens of a batch, L routing layers, T positions of one answer, A active
experts, B bytes of a row of bits.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from sobre.models.step import StepInput
from sobre.rl.advantage import advantages
from sobre.rl.config import RLConfig
from sobre.rl.types import Group, Rollout, Sample
from sobre.train.batch import Batch

NONE = np.empty(0, np.int32)


def to_samples(groups: Sequence[Group], cfg: RLConfig) -> list[Sample]:
    """Give every answer its advantage and its weight in the loss."""
    if not groups:
        return []
    rewards_XY = torch.tensor([_rewards(group) for group in groups])
    advantages_XY = advantages(rewards_XY, cfg.algorithm.advantage).tolist()
    answers = [
        (answer, advantage)
        for group, row in zip(groups, advantages_XY, strict=True)
        for answer, advantage in zip(group.rollouts, row, strict=True)
    ]
    return [
        Sample(
            answer.prompt_ids,
            answer.response_ids,
            answer.logprobs,
            advantage,
            _weight(answer, cfg),
            answer.routes_LTA,
            own=answer.own,
            kept=answer.kept,
        )
        for answer, advantage in answers
    ]


def minibatches(samples: Sequence[Sample], cfg: RLConfig, key: str) -> list[list[Sample]]:
    """Every optimizer step's samples: `n_epochs` passes in a new random order each, `n_minibatches` parts of a pass.

    Samples that the loss leaves out are not read at all, and a part without a single advantage, where no KL pulls
    either, is empty: an optimizer that normalises its update would make a full step of rounding errors.
    """
    trained = [sample for sample in samples if sample.weight]
    n_parts = min(cfg.n_minibatches, len(trained)) or 1
    parts: list[list[Sample]] = []
    for epoch in range(cfg.n_epochs):
        order = random.Random(f"minibatches/{key}/{epoch}").sample(trained, len(trained))
        parts += [order[i::n_parts] for i in range(n_parts)]
    parts = [part if cfg.algorithm.kl or any(sample.advantage for sample in part) else [] for part in parts]
    return [_over_the_limit(part, cfg) for part in parts] if cfg.algorithm.mean_over == "limit" else parts


def microbatches(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Parts of at most `max_tokens` tokens (or one sample), samples of like length together, for attention pads."""
    parts: list[list[Sample]] = []
    room = 0
    for sample in sorted(samples, key=lambda sample: -sample.n_tokens):
        if not parts or sample.n_tokens > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(sample)
        room -= sample.n_tokens
    return parts


def to_batch(samples: Sequence[Sample], *, replay: bool) -> Batch:
    """Flatten samples to N tokens; the numbers of an answer stand at the token before, which predicts it."""
    inputs = [(*sample.prompt_ids, *sample.response_ids[:-1]) for sample in samples]
    targets = [(*sample.prompt_ids[1:], *sample.response_ids) for sample in samples]
    step = StepInput(torch.tensor(list(chain.from_iterable(inputs))), lengths=tuple(map(len, inputs)))
    answers = range(len(samples))
    streams = {
        "answer": _per_answer(samples, [[i] * len(samples[i].response_ids) for i in answers]).long(),
        "advantage": _per_answer(samples, [[sample.advantage] * len(sample.response_ids) for sample in samples]),
        "behaviour": _per_answer(samples, [sample.logprobs for sample in samples]),
    }
    if any(sample.scale != 1 for sample in samples):
        streams["scale"] = _per_answer(samples, [[sample.scale] * len(sample.response_ids) for sample in samples])
    if samples and all(sample.old is not None for sample in samples):
        streams["old"] = _per_answer(samples, [sample.old or () for sample in samples])
    if samples and all(sample.kept is not None for sample in samples):
        streams["kept_NB"] = _kept(samples)
    routes_LNA = _routes(samples)
    if routes_LNA is not None:
        streams["engine_routes_LNA"] = routes_LNA
    return Batch(
        step,
        torch.tensor(list(chain.from_iterable(targets))),
        _per_answer(samples, [sample.weights for sample in samples]),
        routes_LNA if replay else None,
        streams,
    )


def _rewards(group: Group) -> list[float]:
    """Rewards of a group; an answer without a verdict stands at the mean of the others, which moves no mean."""
    judged = [answer.reward.total for answer in group.judged]
    mean = sum(judged) / len(judged) if judged else 0.0
    return [mean if answer.reward.fault else answer.reward.total for answer in group.rollouts]


def _weight(answer: Rollout, cfg: RLConfig) -> float:
    if answer.reward.fault:
        return 0.0
    if not answer.finished and cfg.truncated == "mask":
        return 0.0
    return 1 / answer.n_tokens if cfg.algorithm.mean_over == "answers" else 1.0


def _over_the_limit(part: list[Sample], cfg: RLConfig) -> list[Sample]:
    """Scale to a sum over tokens divided by answers times max_tokens; the step itself divides by the tokens."""
    n_tokens = sum(sum(sample.own) if sample.own else len(sample.response_ids) for sample in part)
    return [replace(sample, scale=n_tokens / (len(part) * cfg.max_tokens)) for sample in part]


def _per_answer(samples: Sequence[Sample], values: Sequence[Sequence[float]]) -> Tensor:
    """One number per token (float32): 0 on the prompt, except its last token, which predicts the answer's first."""
    rows = ([0.0] * (len(sample.prompt_ids) - 1) + list(row) for sample, row in zip(samples, values, strict=True))
    return torch.tensor(list(chain.from_iterable(rows)))


def _kept(samples: Sequence[Sample]) -> Tensor:
    """kept_NB: of each token the words that the next was chosen from, a bit for each up to the last that is in any."""
    rows = [ids for sample in samples for ids in (*[NONE] * (len(sample.prompt_ids) - 1), *(sample.kept or ()))]
    ids = np.concatenate(rows)
    kept_NB = np.zeros((len(rows), int(ids.max()) // 8 + 1), dtype=np.uint8)
    places = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    np.bitwise_or.at(kept_NB, (places, ids // 8), (1 << ids % 8).astype(np.uint8))
    return torch.from_numpy(kept_NB)


def _routes(samples: Sequence[Sample]) -> Tensor | None:
    """routes_LNA of a batch, or None when the model does not route or the engine did not keep its routes."""
    routes = [sample.routes_LTA for sample in samples if sample.routes_LTA is not None]
    return torch.cat(routes, 1).long() if len(routes) == len(samples) else None
