"""What flows through a step of reinforcement learning: rollouts, their groups, and samples to train on.

Shapes: L routing layers, T positions of one sequence, A active experts.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sobre.engine.request import Kept
from sobre.tasks.base import Problem
from sobre.tasks.format import Reward


@dataclass(frozen=True)
class Rollout:
    """One answer to one problem.

    Example: the prompt [1, 20, 7], answered by [12, 9] and the end token 2, right and in form:
        Rollout((1, 20, 7), (12, 9, 2), (-0.3, -0.1, -0.2), "...42</answer>", True, Reward(1.0, 1.0, 1.1))
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """The sampled tokens; the last is the end token unless the answer was cut."""
    logprobs: tuple[float, ...]
    """Log-probability of each sampled token under the engine that sampled it."""
    text: str
    """The answer after the generation prompt, without the end token."""
    finished: bool
    """It ended by itself; False means cut at max_tokens."""
    reward: Reward
    routes_LTA: Tensor | None = None
    """Experts of every token that the engine read: the prompt and all of the answer but its last token."""
    own: tuple[bool, ...] | None = None
    """Which tokens the model sampled, where others stand between them: the results of its calls. None: all."""
    n_calls: int = 0
    """Turns that ended in calls of tools."""
    kept: tuple[Kept, ...] | None = None
    """What top_p and top_k left each token to be chosen from; nothing for tokens of others. None: they are off."""
    weight_version: int = 0
    """Of the weights that sampled it."""

    @property
    def n_tokens(self) -> int:
        """Tokens the engine sampled."""
        return len(self.response_ids) if self.own is None else sum(self.own)


@dataclass(frozen=True)
class Group:
    """The answers to one problem."""

    problem: Problem
    rollouts: tuple[Rollout, ...]

    @cached_property
    def pass_rate(self) -> float:
        """Share of right answers among those that were judged; 0 when none was."""
        return sum(rollout.reward.accuracy for rollout in self.judged) / max(1, len(self.judged))

    @cached_property
    def judged(self) -> tuple[Rollout, ...]:
        """The answers with a verdict."""
        return tuple(rollout for rollout in self.rollouts if not rollout.reward.fault)

    @cached_property
    def is_flat(self) -> bool:
        """All rewards of judged answers are equal, so nothing can be learned from their differences."""
        return len({rollout.reward.total for rollout in self.judged}) <= 1

    @cached_property
    def n_tokens(self) -> int:
        """Tokens sampled for all of its answers."""
        return sum(rollout.n_tokens for rollout in self.rollouts)


@dataclass(frozen=True)
class Sample:
    """One answer, ready to train on.

    Example: of a group rewarded (1.1, 0.1), the first answer has advantage 0.5, the second -0.5:
        Sample((1, 20, 7), (12, 9, 2), (-0.3, -0.1, -0.2), advantage=0.5, weight=1.0)
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    weight: float
    """Weight of each of its tokens in the loss: 1, or 1 / its length, or 0 when it is kept out."""
    routes_LTA: Tensor | None = None
    scale: float = 1.0
    """Of its terms in the loss, beside the weight, which the step divides by."""
    old: tuple[float, ...] | None = None
    """Log-probability of each sampled token under the trainer before the update, where the sampler's is corrected."""
    own: tuple[bool, ...] | None = None
    """Which tokens of the answer are the model's own, and so learned from; None: all."""
    kept: tuple[Kept, ...] | None = None
    """What each token was chosen from, as in `Rollout`."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each token of the answer: 0 where another wrote it."""
        own = self.own or (True,) * len(self.response_ids)
        return tuple(self.weight if mine else 0.0 for mine in own)

    @property
    def n_tokens(self) -> int:
        """Tokens that the trainer reads: all but the last, which is only predicted."""
        return len(self.prompt_ids) + len(self.response_ids) - 1
