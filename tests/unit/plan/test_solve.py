"""The plan: pure, within the budget, larger for more money, and in words."""

import dataclasses
import json
from dataclasses import dataclass, replace

import pytest
from jsonschema import Draft202012Validator

from sobre.errors import ConfigError
from sobre.ledger.config import PriceConfig
from sobre.models.config import DenseConfig, GQAConfig, MemoryConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.plan.config import BudgetConfig, SplitConfig
from sobre.plan.count import flops_per_token, params
from sobre.plan.ladder import at_rung
from sobre.plan.plan import Machine
from sobre.plan.rules import LADDER, Rules
from sobre.plan.solve import solve
from sobre.schemas import schema

LAPTOP = Machine("two cores", "bfloat16", peak_flops=600e9, memory_bytes=24 * 2**30)
STAGES = ("pretrain", "sft", "rl")


@dataclass(frozen=True)
class Recipe:
    budget: BudgetConfig = BudgetConfig()
    model: ModelConfig = ModelConfig()
    stages: tuple[str, ...] = STAGES


def plan(amount="7m", *, machine=LAPTOP, recipe=None, **options):
    recipe = recipe or Recipe()
    recipe = replace(recipe, budget=replace(recipe.budget, amount=amount))
    return solve(recipe, machine, **{"vocab_size": 2048, "seq_len": 256, **options})


def test_the_same_question_has_the_same_answer():
    assert plan() == plan()
    assert plan().table() == plan().table()


@pytest.mark.parametrize("amount", ["90s", "2m", "7m", "10m", "60m", "0.05usd", "1e12flop", "1e13flop", "3e15flop"])
def test_the_parts_of_the_budget_add_up_to_it(amount):
    p = plan(amount)
    parts = p.start + p.end + sum(stage.amount + stage.evaluation + stage.text for stage in p.stages)
    assert parts == pytest.approx(p.budget.amount)
    assert min(stage.steps for stage in p.stages) >= Rules().least_steps


@pytest.mark.parametrize(("amount", "stages"), [("3e12flop", ("pretrain",)), ("1e14flop", STAGES)])
def test_of_flops_reading_the_held_out_text_is_kept_once_after_pretraining(amount, stages):
    recipe = Recipe(stages=stages)
    without, p = (plan(amount, recipe=recipe, data_tokens=10**8, held_out_tokens=n) for n in (0, 200_000))
    kept = sum(stage.amount + stage.evaluation + stage.text for stage in p.stages)
    assert p.start + p.end + kept == pytest.approx(p.budget.amount)
    read = 200_000 * flops_per_token(p.model, p.seq_len).forward
    assert [stage.text for stage in p.stages] == [read, 0.0, 0.0][: len(stages)]
    assert [stage.eval_problems for stage in p.stages] == [stage.eval_problems for stage in without.stages]
    assert p.allowance("pretrain", used=p.start) == pytest.approx(p.stages[0].amount)
    last = p.stages[-1]
    spent = p.budget.amount - p.end - last.evaluation - last.text - last.amount
    assert p.allowance(last.name, used=spent) == pytest.approx(last.amount)


def test_of_seconds_the_reserve_holds_the_held_out_text_and_what_it_does_not_hold_is_kept_beside_it():
    recipe = Recipe(stages=("pretrain",))
    little, much = (plan("10m", recipe=recipe, data_tokens=10**9, held_out_tokens=n) for n in (10_000, 10**7))
    assert little.stages[0].text == 0.0
    read = 10**7 * flops_per_token(much.model, much.seq_len).forward / (LAPTOP.total_flops * Rules().read_efficiency)
    assert much.stages[0].text == pytest.approx(read - much.stages[0].evaluation)
    assert much.start + much.end + much.stages[0].amount + read == pytest.approx(600.0)


@pytest.mark.parametrize("amount", ["90s", "2m", "7m", "60m"])
def test_at_least_seven_tenths_of_the_seconds_are_for_training(amount):
    p = plan(amount)
    assert sum(stage.amount for stage in p.stages) >= 0.7 * p.budget.amount


def test_more_budget_buys_a_model_that_is_no_smaller_and_more_tokens():
    plans = [plan(amount) for amount in ("90s", "3m", "7m", "20m", "60m", "1usd", "20usd")]
    active = [p.params.active for p in plans]
    tokens = [p.stage("pretrain").tokens for p in plans]
    assert active == sorted(active)
    assert active[0] < active[-1]
    assert tokens == sorted(tokens)


def test_a_faster_machine_gets_a_larger_model_for_the_same_minutes_and_the_same_for_the_same_flops():
    fast = replace(LAPTOP, peak_flops=60e12)
    assert plan(machine=fast).params.active > plan().params.active
    assert plan("1e14flop", machine=fast).model == plan("1e14flop").model


def test_the_chosen_model_comes_nearest_to_the_rule():
    aim = BudgetConfig().tokens_per_active
    p = plan("30m")
    ratio = sum(stage.tokens for stage in p.stages) / p.params.active
    assert aim / 1.7 < ratio < aim * 1.7
    assert p.runner_up.startswith("a ")


def test_a_recipe_may_keep_its_own_model():
    own = ModelConfig(d_model=96, n_layers=2)
    p = plan(recipe=Recipe(budget=BudgetConfig(choose_model=False), model=own))
    assert p.model == replace(own, vocab_size=2048, max_len=256)
    assert p.runner_up == ""


def test_the_kind_of_model_is_the_recipe_s_and_only_sizes_change():
    dense = ModelConfig(attention=GQAConfig(n_heads=8, n_kv_heads=2, qk_norm=True), ffn=DenseConfig(), tied=True)
    chosen = plan(recipe=Recipe(model=dense)).model
    assert isinstance(chosen.attention, GQAConfig)
    assert chosen.attention.qk_norm
    assert isinstance(chosen.ffn, DenseConfig)
    assert chosen.tied
    moe = ModelConfig(ffn=MoEConfig(n_experts=32, n_active=4, n_groups=4, n_active_groups=2))
    ffn = plan(recipe=Recipe(model=moe)).model.ffn
    assert (ffn.n_experts, ffn.n_active, ffn.n_groups) == (32, 4, 4)


@pytest.mark.parametrize(
    "kind",
    [
        ModelConfig(),
        ModelConfig(attention=GQAConfig(n_heads=8, n_kv_heads=2)),
        ModelConfig(attention=MLAConfig(q_rank=64)),
        ModelConfig(ffn=DenseConfig(), attention=GQAConfig(n_heads=4, n_kv_heads=4)),
    ],
)
def test_every_rung_is_a_valid_model_larger_than_the_one_below(kind):
    sizes = [params(replace(at_rung(kind, rung), vocab_size=2048)) for rung in LADDER]
    active = [count.active for count in sizes]
    assert active == sorted(set(active))


def test_memory_lies_as_deep_on_every_rung_and_its_tables_are_the_recipe_s():
    kind = ModelConfig(n_layers=4, memory=MemoryConfig(layers=(1, 3), n_rows=500))
    layers = {rung.n_layers: at_rung(kind, rung).memory.layers for rung in LADDER}
    assert (layers[2], layers[3], layers[4], layers[8]) == ((0, 1), (0, 2), (1, 3), (2, 6))
    assert {at_rung(kind, rung).memory.n_rows for rung in LADDER} == {500}


def test_tables_take_less_memory_in_training_than_other_parameters():
    model = ModelConfig(vocab_size=64, memory=MemoryConfig(layers=(1,), n_rows=1000, dim=8))
    tables, total = 4 * 1000 * 8, params(model).total
    assert Rules().training_bytes(total, model) == (total - tables) * 24 + tables * 8


def test_a_model_that_would_not_fit_the_memory_is_not_chosen():
    small = replace(LAPTOP, memory_bytes=200 * 2**20)
    p = plan("20usd", machine=small)
    assert p.params.total * Rules().bytes_per_parameter <= 100 * 2**20
    assert any("memory" in note for note in p.notes)
    with pytest.raises(ConfigError, match="the smallest model needs more than"):
        plan(machine=replace(LAPTOP, memory_bytes=2**20))


@pytest.mark.parametrize("peak_flops", [3e8, 2e9, 1e10])
def test_a_budget_too_small_for_a_slow_machine_says_the_smallest_that_works(peak_flops):
    slow = replace(LAPTOP, peak_flops=peak_flops)
    with pytest.raises(ConfigError, match=r"budget '90s' is too small: \w+ gets \d+ of the \d+ steps") as told:
        plan("90s", machine=slow)
    smallest = str(told.value).rpartition("the smallest that works here is about ")[2]
    assert min(stage.steps for stage in plan(smallest, machine=slow).stages) > 0
    with pytest.raises(ConfigError, match="is too small"):
        plan(f"{0.95 * float(smallest.removesuffix('s')):.0f}s", machine=slow)


def test_of_flops_the_smallest_that_works_is_said_too():
    large = Recipe(BudgetConfig(choose_model=False), replace(ModelConfig(), d_model=512, n_layers=8))
    with pytest.raises(ConfigError, match="budget '1e12flop' is too small") as told:
        plan("1e12flop", recipe=large)
    smallest = str(told.value).rpartition("the smallest that works here is about ")[2]
    assert smallest.endswith("flop")
    assert min(stage.steps for stage in plan(smallest, recipe=large).stages) > 0
    with pytest.raises(ConfigError, match="is too small"):
        plan(f"{0.95 * float(smallest.removesuffix('flop')):.2e}flop".replace("e+", "e"), recipe=large)


def test_where_no_budget_would_do_that_is_said():
    with pytest.raises(ConfigError, match="no budget would do on this machine"):
        plan("90s", machine=replace(LAPTOP, peak_flops=1.0))
    with pytest.raises(ConfigError, match="and a larger one will not do either: too little data"):
        plan("90s", machine=replace(LAPTOP, peak_flops=2e9), data_tokens=100)


def test_too_little_text_is_refused_and_little_text_is_noted():
    text = Recipe(stages=("pretrain",))
    with pytest.raises(ConfigError, match="too little data for the plan: .* trained tokens over a text of 10k"):
        plan(recipe=text, data_tokens=10_000)
    assert any("read" in note for note in plan(recipe=text, data_tokens=1_000_000).notes)
    assert plan(recipe=text, data_tokens=10**9).notes == ()


def test_the_split_follows_the_recipe_and_skipped_stages_get_nothing():
    split = SplitConfig(pretrain=1.0, sft=3.0, rl=0.0)
    p = plan(recipe=Recipe(budget=BudgetConfig(split=split), stages=("pretrain", "sft")))
    assert p.stage("sft").amount == pytest.approx(3 * p.stage("pretrain").amount)
    with pytest.raises(ConfigError, match="budget.split gives nothing to rl"):
        plan(recipe=Recipe(budget=BudgetConfig(split=split)))
    with pytest.raises(ConfigError, match="no stage at all"):
        plan(recipe=Recipe(stages=()))


def test_allowances_spend_what_is_really_left_and_keep_the_share_of_what_follows():
    p = plan("10m")
    on_time = p.allowance("pretrain", p.start)
    assert on_time == pytest.approx(p.stage("pretrain").amount)
    late = p.allowance("pretrain", p.start + 60)
    assert late < on_time
    used = p.start + late + p.stages[0].evaluation + 60
    assert p.allowance("sft", used) == pytest.approx(p.stage("sft").amount * late / on_time)
    last = p.allowance("rl", 500.0, last_evaluation=10.0)
    assert last == pytest.approx(600.0 - 500.0 - 10.0 - p.end)
    assert p.allowance("rl", 700.0) == 0.0


def test_batch_and_learning_rate_follow_the_published_fit():
    p = plan("7m")
    compute = sum(stage.flops for stage in p.stages)
    assert p.lr == pytest.approx(0.3118 * compute**-0.125)
    assert p.batch_tokens == pytest.approx(0.2920 * compute**0.3271, abs=256)
    assert p.batch_tokens % 256 == 0
    assert plan(step_tokens={"sft": 4096}).stage("sft").step_tokens == 4096


def test_an_own_price_is_used_and_its_source_shown():
    own = BudgetConfig(price=PriceConfig(usd_per_h=0.5, source="my electricity"))
    p = plan("1usd", recipe=Recipe(budget=own))
    assert p.budget.amount == 7200
    assert "my electricity" in p.table()


def test_the_plan_is_a_document_of_its_schema():
    for amount in ("7m", "1e14flop"):
        document = json.loads(json.dumps(plan(amount).to_dict(), allow_nan=False))
        Draft202012Validator(schema("plan")).validate(document)
        assert document["stages"]["sft"]["steps"] == plan(amount).stage("sft").steps


def test_the_table_names_every_stage_and_the_model():
    text = plan().table()
    for word in ("pretrain", "sft", "rl", "evaluation", "1,000 problems", "nearly chosen", "usd at 0.0816 usd/h"):
        assert word in text
    assert max(len(line) for line in plan("1e14flop").table().splitlines()[2:]) < 100


def test_where_text_alone_is_examined_the_table_promises_no_problems():
    p = plan(recipe=Recipe(stages=("pretrain",)))
    assert [stage.eval_problems for stage in p.stages] == [0]
    assert p.stages[0].evaluation > 0
    assert "problems" not in p.table()


def test_a_machine_of_several_devices_is_as_fast_as_all_of_them():
    two = dataclasses.replace(LAPTOP, n_devices=2)
    assert plan(machine=two).stage("sft").flops == pytest.approx(
        plan(machine=replace(LAPTOP, peak_flops=1.2e12)).stage("sft").flops
    )
