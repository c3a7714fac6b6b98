"""A training batch: one step of the model, and for each of its tokens what to learn.

Shapes: N tokens, L routing layers, A active experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sobre.models.step import StepInput


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Example: the sample [bos, 7, 8, eos] with loss on 8 and eos only:
        Batch(StepInput(tensor([bos, 7, 8]), lengths=(3,)), tensor([7, 8, eos]), tensor([0., 1., 1.]))
    """

    step: StepInput
    targets_N: Tensor
    """The token that follows each token."""
    weights_N: Tensor
    """1 where the target is to be learned, 0 elsewhere (float32)."""
    routes_LNA: Tensor | None = None
    """Experts to replay, chosen by the sampler; None routes anew."""
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-token numbers that a loss reads by name: advantages, log-probabilities of the sampler."""

    @property
    def n_tokens(self) -> int:
        """Real tokens, whether or not they are trained."""
        return self.step.real.tokens_N.numel()


def from_rows(rows_BT1: Tensor) -> Batch:
    """Rows of T + 1 consecutive tokens, every target learned."""
    inputs_BT, targets_BT = rows_BT1[:, :-1], rows_BT1[:, 1:]
    step = StepInput(inputs_BT.flatten(), lengths=(inputs_BT.shape[1],) * inputs_BT.shape[0])
    return Batch(step, targets_BT.flatten(), torch.ones(targets_BT.numel()))


def from_samples(samples: Sequence[tuple[Sequence[int], Sequence[int]]], *, fill_unit: int = 1) -> Batch:
    """Samples of (token ids, mask), ragged; the loss is where the mask of the predicted token is 1.

    The step is filled up to a multiple of `fill_unit` tokens.
    """
    lengths = tuple(len(ids) - 1 for ids, _ in samples)
    filler = -sum(lengths) % fill_unit
    zeros = [0] * filler
    step = StepInput(
        torch.tensor([token for ids, _ in samples for token in ids[:-1]] + zeros),
        lengths=(*lengths, filler) if filler else lengths,
        n_filler=filler,
    )
    targets_N = torch.tensor([token for ids, _ in samples for token in ids[1:]] + zeros)
    weights_N = torch.tensor([float(weight) for _, mask in samples for weight in mask[1:]] + zeros)
    return Batch(step, targets_N, weights_N)


def second_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets two tokens ahead and their weights: zero at the end of each sequence, where there is none.

    Depth 1 of MTP predicts t_{i+2} from h_i and t_{i+1} (DeepSeek-V3, eq. 21-24).
    """
    shifted_N, weights_N = batch.targets_N.roll(-1), batch.weights_N.roll(-1)
    ends_R = batch.step.lengths_R.cumsum(0) - 1
    return shifted_N, weights_N.index_fill(0, ends_R, 0.0)
