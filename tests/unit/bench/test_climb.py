"""The race to 80 %: the same start and problems for both, who runs at which rate, the clock, and what is told."""

from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import pytest

from sobre.bench import climb, climbers, queue, trl_peer
from sobre.bench.config import ClimbBench
from sobre.bench.result import Source
from sobre.bench.table import table
from sobre.config.load import to_dict
from sobre.errors import ConfigError, RunError
from sobre.rl.source import RolloutSource
from sobre.schemas import schema
from sobre.tasks.judging import Asked

HERE = Source("a" * 40, False, "0" * 32)
SECONDS = {("sobre", 1e-5): 20.0, ("sobre", 1e-4): 60.0, ("trl", 1e-5): None, ("trl", 1e-4): 90.0}


TINY = ClimbBench(
    seeds=1, problems=4, every=2, seconds=1e9, prompts=2, group_size=2, new=6, peer_steps=3, dtype="float32", threads=1
)


def test_every_rate_is_swept_with_the_first_seed_and_the_best_runs_the_others(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(queue.Queue.__init__, "__kwdefaults__", {"max_cells": 0, "look": lambda: HERE})
    monkeypatch.setattr(trl_peer, "require", lambda: None)
    monkeypatch.setattr(climb.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(climb, "make", lambda cell, place: {"sft pass@1": 0.4})
    ran = []

    def run(cfg, cell, start, place, say):
        ran.append((cell.contestant, cell.round))
        assert start.parts[-3:] == (start.parts[-3], "run", "base")
        assert start.parts[-3].startswith(f"start-{cell.round}-")
        took = SECONDS[cell.settings["side"], cell.settings["lr"]]
        found = {"seconds": took or 900.0, "steps": 10.0, "reached": float(took is not None)}
        found |= {climb.SECONDS: took} if took else {}
        return {**found, "right at the start": 0.4, "right at the end": 0.5, "curve": [[0, 0.0, 0.4]]}

    monkeypatch.setattr(climb, "climb", run)
    cfg = ClimbBench(folder=str(tmp_path), lrs=(1e-5, 1e-4))
    document = climb.bench(cfg, lambda line: None)
    assert sorted(ran[:4]) == [("sobre 0.0001", 0), ("sobre 1e-05", 0), ("trl 0.0001", 0), ("trl 1e-05", 0)]
    assert sorted(ran[4:]) == [("sobre 1e-05", 1), ("sobre 1e-05", 2), ("trl 0.0001", 1), ("trl 0.0001", 2)]
    jsonschema.validate(document, schema("bench"))
    (target,) = document["targets"]
    assert (target["value"], target["limit"], target["reached"]) == (4.5, 5.0, False)
    assert document["means"].keys() == {"start", "sobre 1e-05", "trl 0.0001"}
    assert document["notes"] == [
        "trl 1e-05, seed 0: 80% not reached within 900 s (50% at the end)",
        "the best rate of sobre, 1e-05, lies at the edge of the sweep",
        "the best rate of trl, 0.0001, lies at the edge of the sweep",
    ]
    assert "4.5" in table(document)
    assert climb.bench(cfg, lambda line: None)["means"] == document["means"]
    assert len(ran) == 8
    few = climb.bench(replace(cfg, folder=str(tmp_path / "few"), max_cells=4), lambda line: None)
    assert few["notes"][0] == "3 starts, 1 of the sweep, 0 climbs are done; run it again to go on"
    assert few["targets"][0]["value"] is None


def test_who_did_not_reach_the_goal_counts_with_its_seconds_and_a_goal_missed_by_us_with_nothing() -> None:
    def cell(name, seed, took, had=900.0):
        figures = {"seconds": took or had, "reached": float(took is not None)} | ({climb.SECONDS: took} if took else {})
        return {"cell": {"contestant": f"{name} 1", "round": seed}, "settings": {"side": name}, "figures": figures}

    done = [cell("sobre", 0, 10.0), cell("trl", 0, None), cell("sobre", 1, None), cell("trl", 1, 50.0)]
    assert climb.speedup([*done, cell("sobre", 2, 30.0), cell("trl", 2, 60.0)]) == 2.0
    assert climb.speedup(done[:2]) == 90.0


def test_both_sides_start_from_one_recipe_for_a_seed_and_differ_in_rate_and_dtype_alone() -> None:
    cfg = ClimbBench(peer_dtype="float32")
    mine, theirs = climb.contestant(cfg, "sobre", 1, 1e-4), climb.contestant(cfg, "trl", 1, 1e-5)
    apart = {key for key in mine.settings if mine.settings[key] != theirs.settings[key]}
    assert apart == {"side", "lr", "dtype"}
    assert mine.settings["start"] == to_dict(replace(climb.beginning(cfg), seed=1))
    assert climb.contestant(cfg, "sobre", 0, 1e-4).id != mine.id
    assert climb.contestant(replace(cfg, goal=0.9), "sobre", 1, 1e-4).id != mine.id


def test_a_start_is_a_recipe_up_to_its_reinforcement_learning_with_chats_of_other_tasks_than_the_courses() -> None:
    cfg = ClimbBench()
    recipe = climb.beginning(cfg)
    assert recipe.stages == ("pretrain",)
    assert (recipe.tasks.names, recipe.tasks.test_difficulty, recipe.text.difficulty) == (("arithmetic",), 2, (2, 3))
    assert (recipe.text.names, recipe.text.chat_names) == (("arithmetic", *cfg.chats), cfg.chats)
    assert climb.beginning(replace(cfg, difficulty=5)).text.difficulty == (5, 5)
    assert climb.beginning(replace(cfg, recipe="demo")).stages == ("pretrain", "sft")
    with pytest.raises(ConfigError, match="arithmetic.*both asked and read in chats"):
        ClimbBench(chats=("arithmetic",))


def test_the_clock_counts_steps_alone_and_ends_at_the_goal_or_with_the_seconds() -> None:
    shares = iter([0.2, 0.5, 0.85])
    told = []
    ascent = climbers.Ascent(lambda model: next(shares), 0.8, 2, 100.0, told.append)
    ascent.begin(None)
    assert [ascent.stepped(1.5, lambda: None) for _ in range(4)] == [False, False, False, True]
    assert ascent.curve == told == [(0, 0.0, 0.2), (2, 3.0, 0.5), (4, 6.0, 0.85)]
    assert ascent.reached
    late = climbers.Ascent(lambda model: 0.1, 0.8, 10, 5.0, told.append)
    late.begin(None)
    assert [late.stepped(3.0, lambda: None) for _ in range(2)] == [False, True]
    assert late.curve[-1] == (2, 6.0, 0.1)
    assert not late.reached
    with pytest.raises(RunError, match="answers 90% right, and the goal is 80%.*smaller --start"):
        climbers.Ascent(lambda model: 0.9, 0.8, 10, 5.0, told.append).begin(None)


def test_the_course_is_what_our_source_draws_and_earns_what_a_rollout_earns(start) -> None:
    course = climbers.Course(TINY, start, 3)
    engine = SimpleNamespace(weight_version=0)
    source = RolloutSource(
        engine, None, course.tokenizer, course.rl, course.tasks, seed=3, forward_flops=lambda batch: 0.0
    )
    source.pass_rates = {"arithmetic/2": 0.01}
    assert [course.problems(n) for n in (0, 7)] == [source._draw(n, 0, 2) for n in (0, 7)]
    assert course.problems(0) != course.problems(1)
    assert not {p.key for n in range(50) for p in course.problems(n)} & {p.key for p in course.held_out}
    problem = course.problems(0)[0]
    good = f"so\n</think>\n<answer>{problem.answer}</answer>"
    found = course.rewards([Asked(problem, good, True), Asked(problem, good, False), Asked(problem, "?", True)])
    assert found == [pytest.approx(1.02), 0.0, 0.0]  # the layout's 0.02 is the recipe's


def test_our_side_takes_real_steps_and_is_examined_between_them(start) -> None:
    course = climbers.Course(TINY, start, 0)
    seen = []

    def score(model):
        seen.append(model.embed.weight.detach().clone())
        return 1.0 if len(seen) == 3 else 0.0

    ascent = climbers.Ascent(score, 0.8, 1, 1e9, lambda point: None)
    climbers.climb_ours(course, ascent, 1e-2)
    assert ascent.steps == 2
    assert ascent.seconds > 0
    assert course.score(climbers.load_model(start)) == 0.0


def test_a_start_that_is_gone_is_named(tmp_path) -> None:
    with pytest.raises(RunError, match="is gone.*remove that cell's file"):
        climb.climb(TINY, climb.contestant(TINY, "sobre", 0, 1e-4), tmp_path / "run" / "sft", tmp_path, print)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seeds": 0}, "seeds=0, at least 1"),
        ({"group_size": 1}, "group_size=1, at least 2"),
        ({"goal": 0.0}, "goal=0.0 must lie in 0..1"),
        ({"lrs": ()}, "at least one rate"),
        ({"difficulty": 9}, "difficulty"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused(keys, said) -> None:
    with pytest.raises(ConfigError, match=said):
        ClimbBench(**keys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL 1.16 says words that transformers 5.23 will forget
def test_trl_climbs_from_the_same_start_over_the_same_problems(start, tmp_path, monkeypatch) -> None:
    pytest.importorskip("trl")
    course = climbers.Course(replace(TINY, peer_dtype="float32"), start, 0)
    asked, weights = [], []
    rewards = climbers.Course.rewards

    def watched(self, answers):
        asked.append([each.problem for each in answers])
        return [float(i) for i, _ in enumerate(rewards(self, answers))]

    monkeypatch.setattr(climbers.Course, "rewards", watched)

    def score(model):
        weights.append(model.embed.weight.detach().clone())
        return 1.0 if len(weights) == 3 else 0.0

    ascent = climbers.Ascent(score, 0.8, 1, 1e9, lambda point: None)
    trl_peer.climb(course, ascent, 1e-3, tmp_path / "cell")
    assert ascent.steps == 2
    assert asked == [[p for p in course.problems(n) for _ in range(2)] for n in range(2)]
    assert (weights[0] == climbers.load_model(start).embed.weight).all()
    assert (weights[1] != weights[0]).any()
    assert (weights[2] != weights[1]).any()
