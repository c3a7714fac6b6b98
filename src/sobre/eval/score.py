"""The examination of a stage: every problem of the test mix answered greedily, some of them k times by sampling.

Right means: `tasks.reward` finds the extracted answer right, whether or not the layout is. The reported figure counts
every problem; `pass_at_1_formatted` leaves out the responses whose layout is wrong, so that what was learnt of the form
and what was learnt of the task can be told apart. Sampling is keyed by the evaluation's seed and the problem's place,
so that a stage is examined with the same draws however often and after whatever else the engine did.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sobre.engine.engine import Engine
from sobre.engine.request import Output, Request, SamplingParams
from sobre.eval.config import EvalConfig
from sobre.eval.stats import Share, bootstrap, pass_at_k, wilson
from sobre.tasks.base import Problem
from sobre.tasks.config import JUDGE_S
from sobre.tasks.format import Reward, answer_in, question, reward
from sobre.tasks.judges import same_answer
from sobre.tasks.judging import Asked, Fault, check, judge
from sobre.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Item:
    """One problem and the greedy response to it."""

    task: str
    lang: str
    difficulty: int
    prompt: str
    answer: str
    """A reference answer; others may be right too."""
    completion: str
    right: bool
    formatted: bool
    length: int
    """Tokens of the response, its end included."""
    truncated: bool
    fault: str = ""
    """Why there is no verdict: the judge failed. It is in no share."""


@dataclass(frozen=True)
class Sampled:
    """k sampled responses to each of n problems."""

    k: int
    temperature: float
    top_p: float
    majority_at_k: Share
    pass_at_k: dict[str, dict[str, float]]
    """By k as text: value, ci_low, ci_high (unbiased estimator; bootstrap over problems)."""


@dataclass(frozen=True)
class EvalResult:
    """What eval/STAGE.json holds, beside bits per byte."""

    overall: Share
    by_task: dict[str, Share]
    by_lang: dict[str, Share]
    formatted: Share
    """Responses in the right layout."""
    right_formatted: Share
    """Right ones among those."""
    sampled: Sampled | None
    mean_length: float
    truncated: Share
    unjudged: int
    """Responses, greedy and sampled, that a judge failed on."""
    items: tuple[Item, ...]

    @property
    def pass_at_1(self) -> float:
        return self.overall.value

    def to_dict(self) -> dict[str, Any]:
        """The form of the result file (schemas/eval.schema.json)."""
        return {
            "schema": 1,
            "n": self.overall.n,
            "pass_at_1": self.overall.value,
            "ci_low": self.overall.ci_low,
            "ci_high": self.overall.ci_high,
            "by_task": {name: asdict(share) for name, share in self.by_task.items()},
            "by_lang": {name: asdict(share) for name, share in self.by_lang.items()},
            "format_rate": asdict(self.formatted),
            "pass_at_1_formatted": asdict(self.right_formatted),
            "sampled": None if self.sampled is None else asdict(self.sampled),
            "mean_length": self.mean_length,
            "truncated": asdict(self.truncated),
            "unjudged": self.unjudged,
            "items": [asdict(item) for item in self.items],
        }


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    cfg: EvalConfig,
    *,
    seed: int,
    judge_s: float = JUDGE_S,
) -> EvalResult:
    """Answer the first `cfg.n_problems` of `problems` greedily, and a `spread` of them k times. Raises RunError
    where a judge hangs, or fails on most answers."""
    problems = problems[: cfg.n_problems]
    greedy = SamplingParams(max_tokens=cfg.max_new_tokens, temperature=0.0, stop_ids=(tokenizer.eos_id,), seed=seed)
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    requests = [Request(f"eval-{i}", prompt, greedy) for i, prompt in enumerate(prompts)]
    outputs = _generate(engine, requests)
    asked = [_asked(tokenizer, p, outputs[r.id]) for p, r in zip(problems, requests, strict=True)]
    verdicts = _verdicts(asked, judge_s)
    items = tuple(
        _item(each, found, len(outputs[r.id].token_ids))
        for each, found, r in zip(asked, verdicts, requests, strict=True)
    )
    chosen = spread(len(problems), cfg.n_sampled) if cfg.k else []
    sampled, unjudged = None, sum(bool(item.fault) for item in items)
    if chosen:
        sampled, more = _sample(engine, tokenizer, [problems[i] for i in chosen], cfg, seed, judge_s)
        unjudged += more
    judged = [item for item in items if not item.fault]
    formatted = [item for item in judged if item.formatted]
    return EvalResult(
        overall=_share(item.right for item in judged),
        by_task=_by(judged, lambda item: item.task),
        by_lang=_by(judged, lambda item: item.lang),
        formatted=wilson(len(formatted), len(judged)),
        right_formatted=_share(item.right for item in formatted),
        sampled=sampled,
        mean_length=sum(item.length for item in items) / max(1, len(items)),
        truncated=_share(item.truncated for item in items),
        unjudged=unjudged,
        items=items,
    )


def prompt_ids(tokenizer: Tokenizer, problem: Problem) -> tuple[int, ...]:
    """The problem as the user's message, up to where the model's thought begins."""
    return tuple(tokenizer.render([{"role": "user", "content": question(problem)}], generation_prompt=True))


def completion_text(tokenizer: Tokenizer, output: Output) -> str:
    """The response as text: thought, its closing mark and the answer; the end token is not part of it."""
    ids = list(output.token_ids)
    return tokenizer.decode(ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids)


def spread(n: int, wanted: int) -> list[int]:
    """`wanted` of n indices, ascending, always the same: one drawn from each of as many equal stretches. A mix sorted
    by task stays a mix, and so does one whose tasks take turns, of which even distances may leave but one."""
    wanted = min(n, wanted)
    draw = random.Random(n).random
    return [int((i + draw()) * n / wanted) for i in range(wanted)]


def majority(problem: Problem, answers: Sequence[str | None]) -> int | None:
    """Index of the first response that gives the most frequent answer to `problem`; no answer has no vote, ties go to
    the first. Answers that say the same (`tasks.judges.same_answer`) share their votes."""
    given = {i: answer for i, answer in enumerate(answers) if answer is not None}
    votes: dict[int, int] = {}  # by the first response that gives the answer
    for i, answer in given.items():
        first = next((j for j in votes if same_answer(problem, given[j], answer)), i)
        votes[first] = votes.get(first, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)


def _generate(engine: Engine, requests: list[Request]) -> dict[str, Output]:
    return {output.request_id: output for output in engine.generate(requests)}


def _asked(tokenizer: Tokenizer, problem: Problem, output: Output) -> Asked:
    return Asked(problem, completion_text(tokenizer, output), output.finish_reason == "stop")


def _verdicts(asked: Sequence[Asked], judge_s: float) -> list[Reward | Fault]:
    found = judge(asked, lambda each: reward(*each), limit_s=judge_s)
    check([each.why for each in found if isinstance(each, Fault)], len(found))
    return found


def _item(asked: Asked, found: Reward | Fault, length: int) -> Item:
    problem = asked.problem
    return Item(
        task=problem.task,
        lang=problem.lang,
        difficulty=problem.difficulty,
        prompt=problem.prompt,
        answer=problem.answer,
        completion=asked.text,
        right=isinstance(found, Reward) and found.accuracy > 0,
        formatted=isinstance(found, Reward) and found.format > 0,
        length=length,
        truncated=not asked.finished,
        fault=found.why if isinstance(found, Fault) else "",
    )


def _sample(
    engine: Engine, tokenizer: Tokenizer, problems: list[Problem], cfg: EvalConfig, seed: int, judge_s: float
) -> tuple[Sampled | None, int]:
    """The figures over the problems whose responses were all judged, and the responses that were not."""
    params = SamplingParams(
        max_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=cfg.top_p, stop_ids=(tokenizer.eos_id,)
    )
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    requests = [
        Request(f"eval-{x}-{y}", prompt, replace(params, seed=seed + x * cfg.k + y))
        for x, prompt in enumerate(prompts)
        for y in range(cfg.k)
    ]
    outputs = _generate(engine, requests)
    asked = [
        _asked(tokenizer, problem, outputs[f"eval-{x}-{y}"]) for x, problem in enumerate(problems) for y in range(cfg.k)
    ]
    verdicts, n_right, majority_right = _verdicts(asked, judge_s), [], []
    for x, problem in enumerate(problems):
        group = slice(x * cfg.k, (x + 1) * cfg.k)
        right = [found.accuracy > 0 for found in verdicts[group] if isinstance(found, Reward)]
        if len(right) < cfg.k:
            continue
        winner = majority(problem, [answer_in(problem, each.text) for each in asked[group]])
        n_right.append(sum(right))
        majority_right.append(winner is not None and right[winner])
    unjudged = sum(isinstance(found, Fault) for found in verdicts)
    if not n_right:
        return None, unjudged
    curve = {}
    for k in sorted({1, *(2**i for i in range(1, 10) if 2**i < cfg.k), cfg.k}):
        values = [pass_at_k(cfg.k, right, k) for right in n_right]
        low, high = bootstrap(values, seed=seed)
        curve[str(k)] = {"value": sum(values) / len(values), "ci_low": low, "ci_high": high}
    return Sampled(cfg.k, cfg.temperature, cfg.top_p, _share(majority_right), curve), unjudged


def _share(flags: Iterable[bool]) -> Share:
    values = list(flags)
    return wilson(sum(values), len(values))


def _by(items: Iterable[Item], name: Callable[[Item], str]) -> dict[str, Share]:
    groups: dict[str, list[bool]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item.right)
    return {group: _share(right) for group, right in groups.items()}
