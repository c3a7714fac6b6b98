"""Rollouts: the policy answers X problems Y times each, and each answer gets its reward.

A group whose answers all earn the same teaches nothing. Where the algorithm says so, such groups are replaced by new
problems, for a limited number of rounds; what was thrown away is counted, for it is in the bill. So are answers that
nobody could judge (tasks/judging.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from sobre.engine.engine import EngineStats
from sobre.engine.request import Output, Request, SamplingParams
from sobre.rl.config import DAPOConfig, GRPOConfig, RLConfig
from sobre.rl.grading import Give, Grader, rewards
from sobre.rl.stragglers import Interruptible, UnderWay, advance, begun, metrics
from sobre.rl.turns import Spoken, converse, described
from sobre.rl.types import Group, Rollout
from sobre.tasks.base import Problem
from sobre.tasks.checking import n_checks
from sobre.tasks.config import TasksConfig
from sobre.tasks.equality import n_timeouts
from sobre.tasks.format import Reward, question, reward
from sobre.tasks.judging import Asked, check
from sobre.tasks.rubric import rubric_of
from sobre.tokenizer.tokenizer import Tokenizer

Draw = Callable[[int, int], list[Problem]]
"""(round, number of problems) -> problems; round 0 comes first, later rounds replace flat groups."""


class Sampler(Protocol):
    """What a rollout needs of an engine."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def weight_version(self) -> int: ...
    def generate(self, requests: Sequence[Request]) -> list[Output]: ...


@dataclass(frozen=True)
class Rollouts:
    """What one step of RL has to learn from, and what it cost."""

    groups: tuple[Group, ...]
    """To be trained on."""
    dropped: tuple[Group, ...]
    """Flat groups, thrown away."""
    flops: float
    """Model FLOPs of all rollouts."""
    seconds: float
    slow: int = 0
    """Answers that took too long to compare with their reference, and so count as wrong."""
    apart: Mapping[str, float] = field(default_factory=dict)
    """Where tokens may be stale: updates since the weights that sampled them, what dead samplers cost, what goes on
    after the update; of an engine that guesses ahead, the share of its guesses that was right."""
    left: tuple[UnderWay, ...] = ()
    """Groups that go on after the update."""

    @property
    def all(self) -> tuple[Group, ...]:
        return (*self.groups, *self.dropped)

    @property
    def verified(self) -> tuple[Group, ...]:
        """The groups whose problems have a right answer; a judge grades the others."""
        return tuple(group for group in self.all if not rubric_of(group.problem))

    @property
    def is_stale(self) -> bool:
        """Whether any answer was sampled with older weights than those that learn from it."""
        return self.apart.get("staleness_max", 0) > 0

    @property
    def wasted_share(self) -> float:
        """Share of the sampled tokens that was thrown away."""
        return sum(group.n_tokens for group in self.dropped) / sum(group.n_tokens for group in self.all)

    def metrics(self) -> dict[str, float]:
        """Means over all answers of this step that were judged, thrown away or not."""
        answers = [answer for group in self.all for answer in group.judged]
        n = len(answers)
        general = [group for group in self.all if rubric_of(group.problem)]
        n_sampled = sum(len(group.rollouts) for group in self.all)
        return {
            "reward": sum(answer.reward.total for answer in answers) / n,
            "pass_rate": _mean([answer.reward.accuracy for group in self.verified for answer in group.judged]),
            **({"grade": _mean([a.reward.accuracy for g in general for a in g.judged])} if general else {}),
            "format_rate": sum(answer.reward.format for answer in answers) / n,
            "truncated": sum(not answer.finished for answer in answers) / n,
            "empty": sum(answer.n_tokens <= answer.finished for answer in answers) / n,
            "language": sum(answer.reward.language for answer in answers) / n,
            "calls": sum(answer.n_calls for answer in answers) / n,
            "answer_tokens": sum(answer.n_tokens for answer in answers) / n,
            "checks": sum(n_checks(answer.text) for answer in answers) / n,
            "difficulty": sum(group.problem.difficulty for group in self.all) / len(self.all),
            "n_answers": n,
            "unjudged": n_sampled - n,
            "slow_to_judge": self.slow,
            "groups": len(self.groups),
            "flat_groups": sum(group.is_flat for group in self.all),
            "rollout_tokens": sum(group.n_tokens for group in self.all),
            "wasted_tokens": sum(group.n_tokens for group in self.dropped),
            "rollout_flops": self.flops,
            "wasted_flops": self.flops * self.wasted_share,
            "wasted_share": self.wasted_share,
            "rollout_s": self.seconds,
            **self.apart,
        }


def collect(
    engine: Sampler,
    tokenizer: Tokenizer,
    draw: Draw,
    cfg: RLConfig,
    tasks: TasksConfig,
    *,
    seed: int,
    grader: Grader | None = None,
    carried: Sequence[UnderWay] = (),
) -> Rollouts:
    """Sample `cfg.n_prompts` groups, or fewer when too many are flat, down to none.

    `seed` makes this step's answers differ from those of other steps. Under `cfg.stragglers` the groups that are
    `carried` from the last step are among those that are waited for, and more than `n_prompts` may come.
    """
    before, slow_before, graded_before = engine.stats, n_timeouts(), grader.flops if grader else 0.0
    replaces = _refill_rounds(cfg)
    kept: list[Group] = []
    flat: list[Group] = []
    left, whole = list(carried), list[UnderWay]()
    for round_ in range(1 + (replaces or 0)):
        missing = cfg.n_prompts - len(kept)
        if missing <= 0:
            break
        first = first_seed(cfg, seed, round_)
        if cfg.stragglers.groups:
            assert isinstance(engine, Interruptible), "a pool of samplers has a staleness of its own"
            fresh = draw(round_, max(0, missing + cfg.stragglers.groups - len(left)))
            left += begun(fresh, to_requests(tokenizer, fresh, cfg, seed=first), seed, round_)
            ended, left = advance(engine, left, missing, staleness=cfg.stragglers.staleness)
            groups = _judged_whole(ended, tokenizer, cfg, tasks, grader)
            whole += ended
        else:
            groups = sample_groups(engine, tokenizer, draw(round_, missing), cfg, tasks, seed=first, grader=grader)
        for group in groups:
            (flat if replaces is not None and group.is_flat else kept).append(group)
    after = engine.stats
    asked = (*kept, *flat)
    general = [group for group in asked if rubric_of(group.problem)]
    for judged in (asked, general):  # a judge of a few questions among many problems must answer for these alone
        found = [answer.reward.fault for group in judged for answer in group.rollouts]
        check([fault for fault in found if fault], len(found))
    flops, seconds = after.flops - before.flops, after.seconds - before.seconds
    flops += grader.flops - graded_before if grader else 0.0
    apart: dict[str, float] = {}
    if cfg.samplers.are_apart:
        ages = [engine.weight_version - answer.weight_version for group in (*kept, *flat) for answer in group.rollouts]
        apart = {"staleness": sum(ages) / len(ages), "staleness_max": max(ages)}
        apart |= {"lost_answers": after.lost - before.lost, "lost_s": after.lost_s - before.lost_s}
    if cfg.stragglers.groups:
        apart = metrics(whole, left, engine.weight_version)
        apart["rollout_tokens"] = after.generated_tokens - before.generated_tokens
    if drafted := after.drafted_tokens - before.drafted_tokens:
        apart["draft_acceptance"] = (after.accepted_tokens - before.accepted_tokens) / drafted
    return Rollouts(tuple(kept), tuple(flat), flops, seconds, n_timeouts() - slow_before, apart, tuple(left))


def first_seed(cfg: RLConfig, seed: int, round_: int) -> int:
    """Seed of the first request of a round of a step; no other round of any step has the same ones."""
    n_groups = cfg.n_prompts + cfg.stragglers.groups
    return (seed * (1 + (_refill_rounds(cfg) or 0)) + round_) * n_groups * cfg.group_size


def to_requests(tokenizer: Tokenizer, problems: Sequence[Problem], cfg: RLConfig, *, seed: int) -> list[Request]:
    """Each problem `group_size` times; request number i gets the seed `seed + i`."""
    tools = described(cfg)
    prompts = [
        tuple(tokenizer.render([_question(problem)], generation_prompt=True, tools=tools)) for problem in problems
    ]
    seeds = iter(range(seed, seed + len(prompts) * cfg.group_size))
    return [to_request(tokenizer, cfg, seed, prompt) for prompt in prompts for seed in islice(seeds, cfg.group_size)]


def to_request(tokenizer: Tokenizer, cfg: RLConfig, seed: int, prompt: tuple[int, ...]) -> Request:
    return Request(str(seed), prompt, _sampling(cfg, tokenizer, seed))


def sample_groups(
    engine: Sampler,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    cfg: RLConfig,
    tasks: TasksConfig,
    *,
    seed: int,
    grader: Grader | None = None,
) -> list[Group]:
    """Answer each problem `group_size` times."""
    requests = to_requests(tokenizer, problems, cfg, seed=seed)
    spoken = converse(engine, tokenizer, requests, cfg)
    prompts = [request.prompt_ids for request in requests]
    return judged(problems, prompts, spoken, tokenizer, cfg, tasks, grader=grader)


def judged(
    problems: Sequence[Problem],
    prompts: Sequence[tuple[int, ...]],
    spoken: Sequence[Spoken],
    tokenizer: Tokenizer,
    cfg: RLConfig,
    tasks: TasksConfig,
    *,
    grader: Grader | None,
) -> list[Group]:
    """Groups of what was said, `group_size` answers to each problem, with what each answer earns."""
    asked = [
        answered(problems[i // cfg.group_size], said.last_ids, said.finished, tokenizer)
        for i, said in enumerate(spoken)
    ]
    earned = rewards(asked, give_for(tasks), grader, cfg, format_weight=tasks.format_weight, limit_s=tasks.judge_s)
    groups = []
    for x, problem in enumerate(problems):
        places = range(x * cfg.group_size, (x + 1) * cfg.group_size)
        rollouts = (_rollout(prompts[i], spoken[i], asked[i], earned[i], cfg) for i in places)
        groups.append(Group(problem, tuple(rollouts)))
    return groups


def _judged_whole(
    ended: Sequence[UnderWay], tokenizer: Tokenizer, cfg: RLConfig, tasks: TasksConfig, grader: Grader | None
) -> list[Group]:
    answers = [answer for group in ended for answer in group.answers]
    prompts = [answer.request.prompt_ids for answer in answers]
    spoken = [answer.spoken for answer in answers if answer.spoken is not None]
    return judged([group.problem for group in ended], prompts, spoken, tokenizer, cfg, tasks, grader=grader)


def give_for(tasks: TasksConfig) -> Give:
    """What a run's problems earn."""

    def give(asked: Asked) -> Reward:
        return reward(
            *asked,
            format_weight=tasks.format_weight,
            language_weight=tasks.language_weight,
            credit_weight=tasks.credit_weight,
        )

    return give


def answered(problem: Problem, ids: Sequence[int], finished: bool, tokenizer: Tokenizer) -> Asked:
    """An answer, or the last turn of several, as it is judged: without the end token."""
    return Asked(problem, tokenizer.decode(ids[:-1] if finished else ids), finished)


def _sampling(cfg: RLConfig, tokenizer: Tokenizer, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=cfg.max_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        stop_ids=(tokenizer.eos_id,),
        seed=seed,
    )


def overlong_penalty(n_tokens: int, max_tokens: int, cache: int) -> float:
    """What an answer loses near the limit: 0 up to max_tokens - cache, then evenly up to 1 at the limit.

    DAPO (arXiv 2503.14476, 3.4); there is no jump between an answer that just fits and one that is cut.
    """
    return min(1.0, max(0.0, (n_tokens - (max_tokens - cache)) / cache)) if cache else 0.0


def _rollout(prompt_ids: tuple[int, ...], said: Spoken, asked: Asked, earned: Reward, cfg: RLConfig) -> Rollout:
    if isinstance(cfg.algorithm, DAPOConfig) and cfg.algorithm.overlong_cache:
        lost = overlong_penalty(len(said.token_ids), cfg.max_tokens, cfg.algorithm.overlong_cache)
        earned = replace(earned, total=earned.total - lost)
    return Rollout(
        prompt_ids=prompt_ids,
        response_ids=said.token_ids,
        logprobs=said.logprobs,
        text=asked.text,
        finished=asked.finished,
        reward=earned,
        routes_LTA=said.routes_LTA,
        own=None if all(said.own) else said.own,
        n_calls=said.n_calls,
        kept=said.kept,
        weight_version=said.weight_version,
    )


def _refill_rounds(cfg: RLConfig) -> int | None:
    """None where flat groups stay."""
    return cfg.algorithm.refill_rounds if isinstance(cfg.algorithm, GRPOConfig | DAPOConfig) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _question(problem: Problem) -> dict[str, str]:
    return {"role": "user", "content": question(problem)}
