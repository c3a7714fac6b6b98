"""`sobre plan` by its flags: one document on standard output, clear refusals, and a page of the docs made by it."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest

from sobre.app.plan import main, read
from sobre.errors import ConfigError
from sobre.plan.layout import Layout
from sobre.plan.plan import short
from sobre.schemas import schema

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = DOCS / "planning.md"
FENCE = re.compile(r"^```\n(sobre plan [^\n]*(?:\\\n[^\n]*)*)\n```\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = [shown for page in (PAGE, DOCS / "scaling.md") if page.exists() for shown in FENCE.findall(page.read_text())]
ASKED = {
    "training": "--model qwen3-8b --chip h100 --chips 8",
    "purchase": "--budget 20usd --chip h100",
    "serving": "--model qwen3-8b --serve --chip rtx4090 --context 32k --users 16",
    "reasoning": "--model qwen3-8b --reason --rollouts 100 --chip h100",
    "distillation": "--model qwen3-8b --teacher deepseek-r1 --weights fp8 --chip h200 --chips 8",
    "one-card": "--model qwen3-0.6b --one-card --chip rtx4090 --lora-rank 8 --reference",
    "comparison": "compare qwen3-8b llama-3.1-8b --chips 64",
    "validation": "validate",
    "engines": "engines demo deepseek-v3",
    "trace": "trace --model deepseek-v3 --chip h800 --chips 2048",
    "schedule": "schedule dualpipe --stages 4 --micro 12",
}


def test_help_shows_every_question_and_each_of_them_can_be_asked(capsys):
    assert main(["--help"]) == 0
    shown = re.findall(r"^  (sobre plan .*?)(?:   |$)", capsys.readouterr().out, re.MULTILINE)
    assert len(shown) == 14
    asked = [read(shlex.split(line)[2:])[0].__name__ for line in shown]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("kind", ASKED)
def test_every_question_is_answered_with_one_document(kind, capsys):
    assert main([*ASKED[kind].split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == kind
    jsonschema.validate(document, schema("planning"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model deepsek-v3", "deepseek-v3"),
        ("--model qwen3-8b --chip h10O", "h100"),
        ("--model qwen3-8b --tokens 15t", "14.8T"),
        ("--model qwen3-8b --chips 0", "1 or more"),
        ("--model qwen3-8b --schedule gpipe --pipeline 2 --chips 8", "1f1b"),
        ("--model qwen3-8b --serve --context 32M", "32k"),
        ("--model qwen3-8b --serve --input-per-day 3B", "belong together"),
        ("--model qwen3-8b --reason --rollouts 3 --mean-tokens 9k", "exceeds"),
        ("--model qwen3-0.6b --one-card --chips 2", "one chip"),
        ("--model qwen3-0.6b --one-card --at-once 0", "1 or more"),
        ("--model qwen3-0.6b --one-card --chip rtx4090 --context 8k", "fewer answers"),
        ("compare qwen3-8b", "two models"),
        ("engines", "needs a recipe"),
        ("engines mixtral-8x7b", "none of ours"),
        ("schedule gpipe", "dualpipe"),
        ("--budget 20usd --chip m4-max", "rent"),
        ("--budget 20 --chip h100", "did you mean"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_what_would_fit(flags, words):
    with pytest.raises(ConfigError, match=words):
        main(flags.split())


def test_a_recipe_s_own_model_is_laid_out(capsys):
    assert main(["--layout", "demo", "--chip", "rtx4090", "--chips", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layout"]["data"] == 1
    assert document["params_total"] > 1e5


def test_a_published_run_on_its_own_chips_is_planned_as_published(capsys):
    asked = "--model deepseek-v3 --tokens 14.8T --chip h800 --chips 2048 --json".split()
    main(asked)
    published = json.loads(capsys.readouterr().out)
    main(
        [*asked, "--precision", "fp8", "--batch", "62914560", "--tensor", "1", "--pipeline", "16", "--expert", "64"]
        + ["--schedule", "dualpipe", "--zero", "1", "--recompute", "selective"]
    )
    assert json.loads(capsys.readouterr().out) == published
    main([*asked, "--precision", "bf16"])
    assert json.loads(capsys.readouterr().out)["gpu_hours"] > 1.2 * published["gpu_hours"]


def test_a_student_costs_less_than_its_teacher_s_answers(capsys):
    assert main([*ASKED["distillation"].split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gpu_hours"] == pytest.approx(document["sampling_hours"] + document["training_hours"])
    assert document["tokens"] == 800e3 * 5120 * 2


def test_a_recipe_is_written_where_asked(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    assert main(["--budget", "10m", "--chip", "h100", "--write", str(path)]) == 0
    assert "wrote" in capsys.readouterr().err
    assert 'name = "mine"' in path.read_text()
    with pytest.raises(ConfigError, match=r"\.toml"):
        main(["--budget", "10m", "--chip", "h100", "--write", str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_page_about_planning_shows_what_the_command_prints(command, shown, capsys):
    assert main(shlex.split(command.replace("\\\n", " "))[2:]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_the_page_about_planning_has_commands_to_check():
    assert len(FENCE.findall(PAGE.read_text())) >= 5


def table_rows(page: str) -> list[list[str]]:
    """The rows of the planner's table of docs/scaling.md."""
    table = page.partition("<!-- planner -->")[2].partition("<!-- end of planner -->")[0]
    lines = [line for line in table.splitlines() if "`sobre plan" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def predicted(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Parameters, tokens of a step, layout and seconds, as the table has them."""
    assert main([*shlex.split(command)[2:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if "stages" in found:
        stage, params = found["stages"]["pretrain"], found["params"]
        sizes, tokens, layout = (params["active"], params["total"]), stage["step_tokens"], "one process"
        step_s = stage["seconds"] / stage["steps"]
    else:
        sizes, tokens, step_s = (found["params_active"], found["params_total"]), found["batch_tokens"], found["step_s"]
        layout = str(Layout(**found["layout"]))
    return [f"{short(sizes[0])} of {short(sizes[1])}", short(tokens), layout, f"{step_s:.3g} s"]


def test_the_table_from_a_laptop_to_a_cluster_is_what_the_planner_says(capsys):
    rows = table_rows((DOCS / "scaling.md").read_text())
    assert [row[0] for row in rows] == ["1 laptop", "1", "8", "64", "2,048"]
    for row in rows:
        assert row[2:6] == predicted(row[1].strip("`"), capsys), row[1]
