from dataclasses import replace
from types import SimpleNamespace

import pytest

from sobre.engine.request import Request
from sobre.rl.config import DAPOConfig, GRPOConfig, PublishedConfig, RLConfig
from sobre.rl.rollout import collect, overlong_penalty
from sobre.tasks.config import TasksConfig
from sobre.tasks.sampling import sample_problem

CFG = RLConfig(n_prompts=3, group_size=2, max_tokens=5, algorithm=GRPOConfig(refill_rounds=1))


class Drawer:
    """Draws sorting problems and remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, round_: int, n: int):
        self.asked.append((round_, n))
        return [sample_problem("sorting", "en", 1, "train", f"{round_}", i) for i in range(n)]


def roll(make, answer, cfg=CFG, seed=4):
    draw, engine = Drawer(), make.engine(answer)
    rollouts = collect(engine, make.tokenizer, draw, cfg, TasksConfig(), seed=seed)
    return rollouts, engine, draw


def test_requests_sample_the_whole_distribution_with_seeds_of_their_own(make: SimpleNamespace) -> None:
    rollouts, engine, draw = roll(make, lambda request: ([make.tokenizer.WRONG, make.eos], True))
    params = [request.params for request in engine.requests]
    assert {(p.max_tokens, p.temperature, p.top_p, p.top_k, p.stop_ids) for p in params} == {
        (5, 1.0, 1.0, 0, (make.eos,))
    }
    assert len({p.seed for p in params}) == len({r.id for r in engine.requests}) == 12
    other = roll(make, lambda request: ([make.tokenizer.WRONG, make.eos], True), seed=5)[1]
    assert not {p.seed for p in params} & {request.params.seed for request in other.requests}


def test_of_an_engine_that_guesses_the_share_that_was_right_is_logged(make: SimpleNamespace) -> None:
    class Guessing(make.engine):
        @property
        def stats(self):
            return replace(super().stats, drafted_tokens=8 + 4 * self.n_tokens, accepted_tokens=3 * self.n_tokens)

    def answer(request: Request) -> tuple[list[int], bool]:
        return [make.tokenizer.WRONG, make.eos], True

    found = collect(Guessing(answer), make.tokenizer, Drawer(), CFG, TasksConfig(), seed=4).metrics()
    assert found["draft_acceptance"] == 0.75
    assert "draft_acceptance" not in roll(make, answer)[0].metrics()


def test_flat_groups_are_replaced_once_and_what_was_thrown_away_is_counted(make: SimpleNamespace) -> None:
    def answer(request: Request) -> tuple[list[int], bool]:
        flat = len(seen) < 4  # the first two groups: all cut, nothing earned
        seen.append(request)
        wrong_form = [9, make.eos]  # decodes to "?": no reward; the next one has the form but not the answer
        good_form = [make.tokenizer.WRONG, make.eos]
        if flat:
            return wrong_form, True
        return (good_form, True) if len(seen) % 2 else (wrong_form, True)

    seen: list[Request] = []
    rollouts, engine, draw = roll(make, answer)
    assert draw.asked == [(0, 3), (1, 2)]
    assert len(rollouts.groups) == 3
    assert len(rollouts.dropped) == 2
    assert not any(group.is_flat for group in rollouts.groups)
    metrics = rollouts.metrics()
    assert metrics["flat_groups"] == 2
    assert metrics["rollout_tokens"] == metrics["rollout_flops"] == engine.n_tokens == 20
    assert metrics["wasted_tokens"] == metrics["wasted_flops"] == 8
    assert metrics["format_rate"] == pytest.approx(3 / 10)


def test_without_any_difference_no_group_is_left_and_all_are_counted(make: SimpleNamespace) -> None:
    rollouts, _, draw = roll(make, lambda request: ([9, make.eos], True))
    assert draw.asked == [(0, 3), (1, 3)]
    assert (len(rollouts.groups), len(rollouts.dropped), rollouts.wasted_share) == (0, 6, 1)
    assert rollouts.metrics()["flat_groups"] == 6


def test_the_published_form_neither_replaces_nor_throws_away(make: SimpleNamespace) -> None:
    cfg = RLConfig(n_prompts=3, group_size=2, algorithm=PublishedConfig())
    words = iter([9, 9, 9, make.tokenizer.WRONG, 9, 9])
    rollouts, _, draw = roll(make, lambda request: ([next(words), make.eos], True), cfg)
    assert [group.is_flat for group in rollouts.groups] == [True, False, True]
    assert draw.asked == [(0, 3)]
    assert (len(rollouts.groups), len(rollouts.dropped)) == (3, 0)


def test_a_cut_answer_earns_nothing_even_when_it_looks_right(make: SimpleNamespace) -> None:
    cut, _, _ = roll(make, lambda request: ([9, make.tokenizer.WRONG], False))
    answers = [answer for group in cut.all for answer in group.rollouts]
    assert {(answer.finished, answer.reward.total, answer.n_tokens) for answer in answers} == {(False, 0.0, 2)}
    assert answers[0].text.endswith("</answer>")
    assert cut.metrics()["truncated"] == 1
    whole, _, _ = roll(make, lambda request: ([make.tokenizer.WRONG, make.eos], True))
    assert whole.metrics()["format_rate"] == 1
    assert whole.all[0].rollouts[0].response_ids[-1] == make.eos


def test_the_penalty_near_the_limit_rises_evenly_to_one(make: SimpleNamespace) -> None:
    assert [overlong_penalty(n, 20, 4) for n in (1, 16, 17, 18, 20)] == [0, 0, 0.25, 0.5, 1]
    assert overlong_penalty(20, 20, 0) == 0
    cfg = RLConfig(n_prompts=1, group_size=2, max_tokens=4, algorithm=DAPOConfig(overlong_cache=2))
    lengths = iter([4, 3, 2, 3])
    rollouts, _, _ = roll(make, lambda request: ([9] * (next(lengths) - 1) + [make.eos], True), cfg)
    assert [answer.reward.total for answer in rollouts.groups[0].rollouts] == [-1, -0.5]
