"""A planned layout becomes flags that a run takes, and what a run does not have is said."""

import json
import shlex
from dataclasses import replace

import jsonschema
import pytest

from sobre.app.layout import check_layout
from sobre.app.plan import main
from sobre.app.run import RunOptions
from sobre.config.recipe import load_recipe
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.plan.launch import division
from sobre.plan.layout import Layout
from sobre.schemas import schema

MIXTURE = ModelConfig(vocab_size=64, n_layers=8, attention=MLAConfig(), ffn=MoEConfig(n_experts=12))
DENSE = ModelConfig(vocab_size=64, n_layers=8, attention=GQAConfig(n_heads=4, n_kv_heads=4), ffn=DenseConfig(d_ff=64))


def test_a_planned_context_is_in_the_flags_where_a_run_can_have_it() -> None:
    parallel, notes = division(Layout(data=4, context=2), MIXTURE)
    assert (parallel.context, notes) == (2, [])
    parallel.check(8)
    parallel, notes = division(Layout(data=2, context=2, pipeline=2), MIXTURE)
    assert parallel.context == 1
    assert notes == ["the plan counts on context 2 too: a run does not have it in a pipeline"]


@pytest.mark.parametrize(
    ("planned", "n_layers", "taken", "said"),
    [
        ("1f1b", 8, "1f1b", ""),
        ("zb1p", 8, "zero-bubble", ""),
        ("zb1p", 7, "1f1b", "the plan counts on zb1p, for which a run cuts the layers into 8 stages, and there are 7"),
        ("interleaved", 8, "interleaved", ""),
        ("dualpipev", 4, "1f1b", "the plan counts on dualpipev, for which"),
        ("dualpipe", 8, "1f1b", "the plan counts on dualpipe, which a run does not have"),
    ],
)
def test_a_schedule_that_becomes_another_is_noted(planned: str, n_layers: int, taken: str, said: str) -> None:
    cfg = replace(DENSE, n_layers=n_layers)
    parallel, notes = division(Layout(data=2, pipeline=4, schedule=planned), cfg)
    assert parallel.schedule == taken
    parallel.check_model(cfg)
    assert len(notes) == bool(said)
    assert all(note.startswith(said) for note in notes)


def test_what_the_model_cannot_have_is_noted_with_the_reason() -> None:
    parallel, notes = division(Layout(data=4, tensor=2, expert=8, recompute="selective"), MIXTURE)
    assert (parallel.tensor, parallel.experts) == (1, 4)
    assert "tensor 2 too: parallel.tensor=2 divides the heads of grouped-query attention" in notes[0]
    assert "experts 8 too: parallel.experts=8 does not divide the 12 experts" in notes[1]
    assert "whole layers" in notes[2]
    parallel, notes = division(Layout(data=4, tensor=2), DENSE)
    assert (parallel.tensor, parallel.shards, notes) == (2, 0, [])


@pytest.mark.parametrize(("chips", "begins"), [(1, "sobre run"), (8, "torchrun --nproc-per-node 8"), (64, "torchrun")])
@pytest.mark.parametrize("name", ["nano", "demo"])
def test_the_line_that_is_printed_is_one_that_runs(name: str, chips: int, begins: str, capsys) -> None:
    asked = ["--layout", name, "--chip", "h800", "--chips", str(chips)]
    assert main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("planning"))
    command, notes = document["command"], document["notes"]
    assert command.startswith(begins)
    typed = shlex.split(command)
    recipe, _ = load_recipe(typed[typed.index("run") + 1 :], RunOptions)
    recipe.parallel.check(chips)
    check_layout(recipe, chips)
    assert recipe.pretrain.micro_tokens == recipe.data.seq_len * document["layout"]["micro_batch"] * chips
    assert recipe.pretrain.batch_tokens == document["batch_tokens"]
    own, _ = load_recipe([name], RunOptions)
    is_other = own.pretrain.batch_tokens != document["batch_tokens"]
    assert any("are another training" in note for note in notes) == is_other
    assert any("every machine runs that line" in note for note in notes) == (chips == 64)
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert f"to run it:\n  {command}\n" in shown
    assert all(f"note: {note}" in shown for note in notes)
