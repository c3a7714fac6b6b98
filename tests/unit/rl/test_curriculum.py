import json
import random
from types import SimpleNamespace

import pytest

from sobre.errors import ConfigError
from sobre.rl import curriculum
from sobre.rl.config import CurriculumConfig
from sobre.rl.curriculum import Cell
from sobre.rl.types import Group
from sobre.tasks.base import Problem

CFG = CurriculumConfig(difficulty=(1, 4))
NAMES, LANGS = ("sorting", "arithmetic"), ("en", "zh")


def share_of(state: dict[str, float], cfg: CurriculumConfig = CFG) -> dict[str, float]:
    ladder = curriculum.cells(NAMES, cfg)
    return dict(zip([cell.key for cell in ladder], curriculum.shares(state, ladder, cfg), strict=True))


def test_an_unseen_difficulty_is_guessed_from_the_one_below() -> None:
    state = {"sorting/2": 0.5}
    rates = [curriculum.pass_rate(state, Cell("sorting", d), CFG) for d in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.5, 0.5, 0.3, 0.18])


def test_shares_sum_to_one_and_prefer_what_is_neither_too_easy_nor_too_hard() -> None:
    state = {"sorting/1": 1.0, "sorting/2": 0.9, "sorting/3": 0.5, "sorting/4": 0.0} | {
        f"arithmetic/{d}": 0.5 for d in (1, 2, 3, 4)
    }
    shares = share_of(state)
    assert sum(shares.values()) == pytest.approx(1)
    assert (
        shares["sorting/3"] > shares["sorting/2"] > shares["sorting/1"] == pytest.approx(shares["sorting/4"], rel=1e-3)
    )
    assert min(shares.values()) >= CFG.explore / 8
    by_task = [sum(shares[f"{name}/{d}"] for d in (1, 2, 3, 4)) for name in NAMES]
    assert by_task == pytest.approx([0.5, 0.5], rel=1e-4)


def test_a_mastered_task_leaves_room_for_the_others() -> None:
    state = {f"sorting/{d}": 0.97 for d in (1, 2, 3, 4)} | {f"arithmetic/{d}": 0.5 for d in (1, 2, 3, 4)}
    shares = share_of(state)
    assert sum(shares[f"sorting/{d}"] for d in (1, 2, 3, 4)) < 0.1


def test_nothing_but_zeros_can_still_be_drawn_from() -> None:
    state = {cell.key: 0.0 for cell in curriculum.cells(NAMES, CFG)}
    assert sum(share_of(state).values()) == pytest.approx(1)


def test_switched_off_it_draws_all_alike() -> None:
    shares = share_of({"sorting/1": 1.0}, CurriculumConfig(enabled=False, difficulty=(1, 4)))
    assert list(shares.values()) == pytest.approx([1 / 8] * 8)


def test_the_running_rate_forgets_by_group(make: SimpleNamespace) -> None:
    groups = [make.group(1.0, 1.0), make.group(1.0, 0.0)]  # pass rates 1 and 0.5 of sorting/1
    state = curriculum.updated({"sorting/1": 0.2, "x/1": 0.3}, groups, CFG)
    assert state == pytest.approx({"sorting/1": 0.64 * 0.2 + 0.36 * 0.75, "x/1": 0.3})
    assert json.loads(json.dumps(state)) == state


def test_a_draw_gives_each_cell_its_share_and_depends_on_its_key_alone() -> None:
    state = {"sorting/1": 0.5, "sorting/2": 0.05}
    draw = [curriculum.draw(state, NAMES, LANGS, CFG, 40, "0/3/0") for _ in range(2)]
    assert draw[0] == draw[1]
    other = curriculum.draw(state, NAMES, LANGS, CFG, 40, "0/4/0")
    assert not {p.key for p in other} & {p.key for p in draw[0] if p.difficulty > 2}
    assert [p.lang for p in other] != [p.lang for p in draw[0]]
    for key, share in share_of(state).items():
        task, difficulty = key.split("/")
        count = sum((p.task, p.difficulty) == (task, int(difficulty)) for p in draw[0])
        assert abs(count - 40 * share) < 1
    assert {p.lang for p in draw[0]} == set(LANGS)
    assert len({p.key for p in draw[0]}) > 30


def test_it_keeps_a_learner_between_20_and_80_percent(make: SimpleNamespace) -> None:
    """A learner that gets better at what it practises climbs the ladder, and its pass rate stays in the range."""
    rng = random.Random(0)
    cfg = CurriculumConfig()
    skill = {name: 0.0 for name in NAMES}
    state: dict[str, float] = {}
    rates, difficulties = [], []
    for step in range(120):
        groups: list[Group] = []
        for problem in curriculum.draw(state, NAMES, LANGS, cfg, 16, f"0/{step}/0"):
            chance = min(max(0.9 - 0.3 * (problem.difficulty - skill[problem.task]), 0.02), 0.98)
            rewards = [float(rng.random() < chance) for _ in range(8)]
            groups.append(make.group(*rewards, name=problem.task, difficulty=problem.difficulty))
            skill[problem.task] += 0.004 * (0.05 < chance < 0.95)
        state = curriculum.updated(state, groups, cfg)
        rates.append(sum(group.pass_rate for group in groups) / 16)
        difficulties.append(sum(group.problem.difficulty for group in groups) / 16)
    assert sum(0.2 <= rate <= 0.8 for rate in rates[5:]) == len(rates[5:])
    assert difficulties[-1] > difficulties[0] + 1


def from_file(level: int, n: int) -> tuple[Problem, ...]:
    return tuple(Problem("mine", "en", level, f"{level}/{i}", "1", f"mine:{level}/{i}", {}) for i in range(n))


def test_a_file_has_the_rungs_at_which_it_has_problems() -> None:
    sets = {"mine": {1: from_file(1, 3), 5: from_file(5, 3)}}
    assert curriculum.cells(("sorting",), CurriculumConfig(difficulty=(1, 2)), sets) == [
        Cell("sorting", 1),
        Cell("sorting", 2),
        Cell("mine", 1),
    ]
    with pytest.raises(ConfigError, match=r"no problem of mine lies within"):
        curriculum.cells((), CurriculumConfig(difficulty=(2, 3)), sets)


def test_problems_of_a_file_are_drawn_where_some_are_solved_and_none_twice() -> None:
    sets = {"mine": {level: from_file(level, 40) for level in (1, 3, 5)}}
    state = {"mine/1": 1.0, "mine/3": 0.5, "mine/5": 0.0}
    cfg = CurriculumConfig(explore=0.1)
    drawn = curriculum.draw(state, (), LANGS, cfg, 20, "k", sets)
    assert drawn == curriculum.draw(state, (), LANGS, cfg, 20, "k", sets)
    assert drawn != curriculum.draw(state, (), LANGS, cfg, 20, "l", sets)
    assert sum(problem.difficulty == 3 for problem in drawn) >= 17
    assert len({problem.key for problem in drawn}) == 20
    few = curriculum.draw(state, (), LANGS, cfg, 9, "k", {"mine": {3: from_file(3, 4)}})
    counts = [sum(problem.key == f"mine:3/{i}" for problem in few) for i in range(4)]
    assert sorted(counts) == [2, 2, 2, 3]


def test_a_mixture_draws_from_tasks_and_files_alike() -> None:
    sets = {"mine": {3: from_file(3, 40)}}
    drawn = curriculum.draw({"mine/3": 0.5}, ("sorting",), LANGS, CFG, 200, "k", sets)
    assert 80 <= sum(problem.task == "mine" for problem in drawn) <= 120
