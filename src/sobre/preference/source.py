"""Where the batches of DPO come from: whole pairs in a keyed order, with the reference's log-probabilities.

The reference is the model that the stage starts from. What it says of every answer is computed once, before the first
step, and no second model is kept.

Shapes: N tokens.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sobre.data.loader import Order
from sobre.data.pairs import TokenPair
from sobre.errors import DataError
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.preference.config import DPOConfig
from sobre.preference.dpo import answer_log_probs
from sobre.train.batch import Batch
from sobre.train.sources import LoaderSource

LogProbs = tuple[float, float]
"""Of the chosen and the rejected answer under the reference."""


class PairSource(LoaderSource):
    """Pairs as many as fit into `batch_tokens`."""

    def __init__(
        self, pairs: Sequence[TokenPair], references: Sequence[LogProbs], cfg: DPOConfig, *, seed: int
    ) -> None:
        self._pairs, self._references, self._cfg = pairs, references, cfg
        self._order = Order(len(pairs), seed)
        super().__init__(self._order)
        longest = max(pairs, key=lambda pair: pair.n_tokens)
        if longest.n_tokens > cfg.batch_tokens:
            raise DataError(
                f"{longest.where or 'a pair'}: {longest.n_tokens:,} tokens do not fit into dpo.batch_tokens="
                f"{cfg.batch_tokens:,}; at least {longest.n_tokens:,} would do"
            )

    def make(self) -> list[Batch]:
        """The next pairs, cut into forward passes of at most `micro_tokens`."""
        return [to_batch([self._pairs[i] for i in part], [self._references[i] for i in part]) for part in self._parts()]

    def _parts(self) -> list[list[int]]:
        parts: list[list[int]] = []
        left, room = self._cfg.batch_tokens, 0
        while True:
            before = self._order.state()
            index = int(self._order.take(1)[0])
            n_tokens = self._pairs[index].n_tokens
            if n_tokens > left:
                self._order.restore(before)
                return parts
            if not parts or n_tokens > room:
                parts.append([])
                room = self._cfg.micro_tokens
            parts[-1].append(index)
            left, room = left - n_tokens, room - n_tokens


def to_batch(pairs: Sequence[TokenPair], references: Sequence[LogProbs]) -> Batch:
    """Both chats of each pair, one after the other; the weights of a pair's compared tokens sum to 1."""
    chats = list(chain.from_iterable((pair.chosen, pair.rejected) for pair in pairs))
    known = list(chain.from_iterable(references))
    step = StepInput(_ids(ids[:-1] for ids, _ in chats), lengths=tuple(len(ids) - 1 for ids, _ in chats))
    counts = [sum(mask[1:]) for _, mask in chats]
    weights, reference = [], []
    for place, (_, mask) in enumerate(chats):
        of_pair = counts[place - place % 2] + counts[place - place % 2 + 1]
        weights += [on / of_pair for on in mask[1:]]
        first = mask[1:].index(1)  # the answer's sum stands at its first compared token
        reference += [known[place] if i == first else 0.0 for i in range(len(mask) - 1)]
    answer_N = _ids([place] * (len(ids) - 1) for place, (ids, _) in enumerate(chats))
    streams = {"answer": answer_N, "reference": torch.tensor(reference)}
    return Batch(step, _ids(ids[1:] for ids, _ in chats), torch.tensor(weights), None, streams)


@torch.no_grad()
def reference_log_probs(
    model: Decoder, pairs: Sequence[TokenPair], micro_tokens: int, seen: Callable[[Batch], None]
) -> list[LogProbs]:
    """What `model` says of both answers of every pair; `seen` is told of each forward pass."""
    model.eval()
    found: list[LogProbs] = []
    part: list[TokenPair] = []
    for place, pair in enumerate(pairs):
        part.append(pair)
        following = pairs[place + 1].n_tokens if place + 1 < len(pairs) else micro_tokens
        if sum(each.n_tokens for each in part) + following > micro_tokens:
            batch = to_batch(part, [(0.0, 0.0)] * len(part)).to(model.embed.weight.device)
            said = answer_log_probs(model, model(batch.step), batch)
            found += list(zip(said.chosen_X.tolist(), said.rejected_X.tolist(), strict=True))
            seen(batch)
            part = []
    return found


def _ids(parts: Any) -> Tensor:
    return torch.tensor(list(chain.from_iterable(parts)))
