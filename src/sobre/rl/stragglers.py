"""Rollouts that stream into the update: a step learns from the first groups that are whole, the others go on after it.

The longest answer of a step decides when the last one ends, and meanwhile the engine runs nearly empty. With
`rl.stragglers.groups` above 0 that many groups more are under way, and the step is over with the first `n_prompts` that
are whole (partial rollouts: Kimi k1.5, arXiv 2501.12599, 2.6.2). What is unfinished is kept as tokens and read again
with the next weights, which the update would have asked for in any case: it has emptied the cache.

Off-policyness is bounded and counted. Every token keeps the log-probability, and the version of the weights, with which
it was sampled, so the objective's ratio is exact for answers of several versions. No answer is learned from more than
`stragglers.staleness` updates after its first token: a step waits for groups that would grow older. Which answers come
first is no matter of chance, short ones do; since nothing is thrown away, the long ones follow within the bound.

Everything here is a function of what is under way, which is small JSON: a killed run goes on alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from sobre.engine.engine import EngineStats
from sobre.engine.request import Output, Request
from sobre.rl.turns import Spoken
from sobre.tasks.base import Problem

Enough = Callable[[Mapping[str, Output]], bool]


@runtime_checkable
class Interruptible(Protocol):
    """What streaming needs of an engine."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def weight_version(self) -> int: ...
    def generate(self, requests: Sequence[Request], enough: Enough | None = None) -> list[Output]: ...


@dataclass(frozen=True)
class Partial:
    """One answer as far as it is sampled."""

    request: Request
    """As it was first asked."""
    spoken: Spoken | None = None
    """None before the first token."""
    versions: tuple[int, ...] = ()
    """Of the weights that sampled each token."""
    is_whole: bool = False
    """It ended, by itself or at its limit."""

    @property
    def rest(self) -> Request:
        """What is still to be asked. Places in a sequence key the samples, so the answer is that of one request."""
        if self.spoken is None:
            return self.request
        left = self.request.params.max_tokens - len(self.spoken.token_ids)
        prompt = (*self.request.prompt_ids, *self.spoken.token_ids)
        return replace(self.request, prompt_ids=prompt, params=replace(self.request.params, max_tokens=left))

    def and_then(self, output: Output, version: int) -> "Partial":
        """With what was sampled since; the experts are those of the last reading, which was of all tokens."""
        ids = tuple(output.token_ids)
        before = self.spoken or Spoken((), (), (), (), False, 0, None, None, version)
        kept = None if output.kept is None else (*(before.kept or ()), *output.kept)
        whole_ids = (*before.token_ids, *ids)
        spoken = Spoken(
            token_ids=whole_ids,
            logprobs=(*before.logprobs, *output.logprobs),
            own=(True,) * len(whole_ids),
            last_ids=whole_ids,
            finished=output.finish_reason == "stop",
            n_calls=0,
            routes_LTA=output.routes_LTA,
            kept=kept if ids else before.kept,
            weight_version=before.weight_version,
        )
        versions = (*self.versions, *(version for _ in ids))
        return Partial(self.request, spoken if whole_ids else None, versions, output.finish_reason != "abort")


class Drawn(NamedTuple):
    """Which problem of which draw: a problem is drawn again, for what a task keeps of it need not be JSON."""

    step: int
    round: int
    n: int
    place: int


@dataclass(frozen=True)
class UnderWay:
    """A group of answers, some of which may not have ended."""

    problem: Problem
    answers: tuple[Partial, ...]
    drawn: Drawn

    @property
    def is_whole(self) -> bool:
        return all(answer.is_whole for answer in self.answers)

    def age(self, version: int) -> int:
        """Updates since the first token of its oldest answer; 0 where none has one."""
        return max((version - answer.versions[0] for answer in self.answers if answer.versions), default=0)


def begun(problems: Sequence[Problem], requests: Sequence[Request], step: int, round_: int) -> list[UnderWay]:
    """Groups of one draw, of which nothing is sampled yet; `requests` holds equally many for each, in order."""
    n = len(problems)
    size = len(requests) // max(1, n)
    return [
        UnderWay(
            problem,
            tuple(Partial(request) for request in requests[x * size : (x + 1) * size]),
            Drawn(step, round_, n, x),
        )
        for x, problem in enumerate(problems)
    ]


def advance(
    engine: Interruptible, groups: Sequence[UnderWay], n_wanted: int, *, staleness: int
) -> tuple[list[UnderWay], list[UnderWay]]:
    """Sample until `n_wanted` groups are whole and no other is `staleness` updates old; (whole ones, the others)."""
    version = engine.weight_version
    open_ids = [{answer.request.id for answer in group.answers if not answer.is_whole} for group in groups]
    must_end = [group.age(version) >= staleness for group in groups]

    def enough(outputs: Mapping[str, Output]) -> bool:
        whole = [ids <= outputs.keys() for ids in open_ids]
        late = any(must and not done for must, done in zip(must_end, whole, strict=True))
        return sum(whole) >= n_wanted and not late

    asked = [answer for group in groups for answer in group.answers if not answer.is_whole]
    outputs = engine.generate([answer.rest for answer in asked], enough)
    after = {answer.request.id: answer.and_then(output, version) for answer, output in zip(asked, outputs, strict=True)}
    moved = [
        replace(group, answers=tuple(after.get(answer.request.id, answer) for answer in group.answers))
        for group in groups
    ]
    return [group for group in moved if group.is_whole], [group for group in moved if not group.is_whole]


def metrics(whole: Sequence[UnderWay], left: Sequence[UnderWay], version: int) -> dict[str, float]:
    """How stale the tokens are that a step learns from, and what goes on after it."""
    ages = [version - token for group in whole for answer in group.answers for token in answer.versions]
    open_answers = [answer for group in left for answer in group.answers if not answer.is_whole]
    return {
        "staleness": sum(ages) / max(1, len(ages)),
        "staleness_max": max(ages, default=0),
        "stale_tokens": sum(age > 0 for age in ages),
        "under_way": len(open_answers),
        "under_way_tokens": sum(len(answer.versions) for group in left for answer in group.answers),
    }


def encode(groups: Sequence[UnderWay], version: int) -> list[dict[str, Any]]:
    """As JSON data; versions become ages, for a new process counts anew."""
    return [
        {"drawn": list(group.drawn), "answers": [_encode(answer, version) for answer in group.answers]}
        for group in groups
    ]


def decode(
    data: Sequence[Mapping[str, Any]],
    version: int,
    ask: Callable[[int, tuple[int, ...]], Request],
    draw: Callable[[Drawn], Problem],
) -> list[UnderWay]:
    """The groups of `encode`, where `ask` makes a request of a seed and the tokens of a prompt."""
    return [
        UnderWay(
            draw(Drawn(*group["drawn"])),
            tuple(_decode(answer, version, ask) for answer in group["answers"]),
            Drawn(*group["drawn"]),
        )
        for group in data
    ]


def _encode(answer: Partial, version: int) -> dict[str, Any]:
    said = answer.spoken
    return {
        "seed": answer.request.params.seed,
        "prompt_ids": list(answer.request.prompt_ids),
        "ages": [version - token for token in answer.versions],
        "is_whole": answer.is_whole,
        "spoken": None
        if said is None
        else {
            "token_ids": list(said.token_ids),
            "logprobs": list(said.logprobs),
            "finished": said.finished,
            "routes_LTA": None if said.routes_LTA is None else said.routes_LTA.tolist(),
            "kept": None if said.kept is None else [ids.tolist() for ids in said.kept],
        },
    }


def _decode(data: Mapping[str, Any], version: int, ask: Callable[[int, tuple[int, ...]], Request]) -> Partial:
    request = ask(data["seed"], tuple(data["prompt_ids"]))
    versions = tuple(version - age for age in data["ages"])
    said = data["spoken"]
    if said is None:
        return Partial(request)
    ids = tuple(said["token_ids"])
    spoken = Spoken(
        token_ids=ids,
        logprobs=tuple(said["logprobs"]),
        own=(True,) * len(ids),
        last_ids=ids,
        finished=said["finished"],
        n_calls=0,
        routes_LTA=None if said["routes_LTA"] is None else torch.tensor(said["routes_LTA"]),
        kept=None if said["kept"] is None else tuple(np.array(kept, np.int32) for kept in said["kept"]),
        weight_version=versions[0],
    )
    return Partial(request, spoken, versions, data["is_whole"])
