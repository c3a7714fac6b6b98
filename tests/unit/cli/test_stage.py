"""One stage on its own: it goes on from the model that it is given, and nothing else runs."""

import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import sobre
from sobre.app import convert, prepare, stage
from sobre.app import run as verb
from sobre.app.begin import begin
from sobre.app.layout import check_layout
from sobre.app.problems import open_problems
from sobre.app.session import Session, Spending
from sobre.config.load import to_dict
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import CheckpointError, ConfigError, DataError, RunError, SobreError
from sobre.models.checkpoint import load_adapted, load_model
from sobre.plan.plan import Plan
from sobre.runtime.console import Console
from sobre.runtime.device import Calibration
from sobre.runtime.processes import Processes
from sobre.runtime.run_folder import claim
from sobre.schemas import schema
from sobre.tasks import sampling
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train import loop

SCHEMAS = Path(sobre.__file__).parent / "schemas"
SHORT = ["--sft.steps", "2", "--rl.steps", "1"]


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch):
    speed = {"fp32_flops": 1e11, "bf16_flops": 1e10, "fp32_best": 1e11, "bf16_best": 1e10, "bytes_per_s": 1e10}
    monkeypatch.setattr(
        prepare, "calibrate", lambda device: Calibration(name="t", device="cpu", threads=1, seconds=0.0, **speed)
    )
    monkeypatch.setattr(prepare, "choose_threads", lambda: 1)
    monkeypatch.setattr(verb, "reexec_once", lambda: None)


@pytest.fixture
def learns_by_letters(monkeypatch):
    """The model solves nothing, and yet there is something to learn: a reward for small letters."""
    reward = lambda problem, text, finished, **_: Reward(0.0, 0.0, sum(map(str.islower, text)) / 100)  # noqa: E731
    monkeypatch.setattr("sobre.rl.rollout.reward", reward)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "base"


@pytest.fixture(autouse=True)
def _pretrained(base, _no_measuring):
    if not base.exists():
        assert (
            stage.run_stage("pretrain", ["nano", "--out", str(base), "--pretrain.steps", "1", "--data.seq-len", "256"])
            == 0
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parallel.experts", "3"], "parallel.experts=3 does not divide the 16 experts of a layer evenly"),
        (["--parallel.tensor", "2"], "parallel.tensor=2 divides the heads of grouped-query attention"),
        (
            ["--parallel.pipeline", "2", "--stages", "dpo", "--dpo.paths", "pairs.jsonl"],
            "dpo runs in one process, .* this run has 6 --parallel.pipeline 2",
        ),
    ],
)
@pytest.mark.slow
def test_a_layout_that_no_size_of_the_model_can_have_is_refused_before_a_folder_is_taken(
    flags, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(Processes, "start", lambda timeout: Processes(rank=0, count=6))
    with pytest.raises(ConfigError, match=message):
        verb.main(["demo", "deepseek", "--pretrain.batch-tokens", "2048", "--out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "3s"], "is too small"),
        (["--data", "nothing.txt"], "nothing.txt does not exist"),
        (["--model", "./nothing"], "nothing"),
    ],
)
def test_a_run_that_is_refused_before_its_first_part_leaves_no_folder(flags, message, tmp_path):
    with pytest.raises(SobreError, match=message):
        verb.main(["demo", *flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("sobre.data.shards._write", OSError(28, "No space left on device")),
        ("sobre.train.state.save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
    ],
)
@pytest.mark.slow
def test_a_full_disk_is_said_with_the_line_that_goes_on(writer, error, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        with pytest.raises(RunError, match=r"disk of .*out is full") as told:
            verb.main(["nano", "--out", str(out), "--pretrain.steps", "1", *SHORT])
    assert shlex.split(str(told.value).splitlines()[-1]) == ["sobre", "run", "--out", str(out), "--resume"]
    assert verb.main(["--out", str(out), "--resume"]) == 0


@pytest.mark.parametrize(
    ("text", "message"), [("a few words", "too little data for the plan"), ("a\0b", r"a.txt: a NUL at character 1")]
)
def test_so_does_one_that_is_refused_for_what_its_text_is(text, message, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("and more words")
    flags = ["--data", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--out", str(tmp_path / "out")]
    with pytest.raises(SobreError, match=message):
        verb.main(["nano", *flags])
    assert not (tmp_path / "out").exists()


def test_the_layout_is_checked_against_the_model_that_the_run_goes_on_from(base):
    flags = ["--model", str(base / "base"), "--parallel.experts", "3"]
    recipe, _ = load_recipe(["nano", *flags], verb.RunOptions, prog="sobre run", shortcuts=verb.SHORT_FLAGS)
    n_experts = load_model(base / "base").cfg.ffn.n_experts
    with pytest.raises(ConfigError, match=f"parallel.experts=3 does not divide the {n_experts} experts"):
        check_layout(recipe, 3)


@pytest.mark.slow
def test_a_stage_goes_on_from_the_model_that_it_is_given_and_examines_it_first(base, tmp_path):
    out = tmp_path / "out"
    assert (
        stage.run_stage(
            "sft", ["nano", "--model", str(base / "base"), "--out", str(out), "--sft.lr-scale", "0", *SHORT]
        )
        == 0
    )
    before, after = load_model(base / "base"), load_model(out / "sft")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert Tokenizer.load(base / "base").encode("sort 3 1 2") == Tokenizer.load(out / "sft").encode("sort 3 1 2")
    report = json.loads((out / "report.json").read_text())
    assert list(report["stages"]) == ["start", "sft"]
    assert report["stages"]["start"]["n"] == report["stages"]["sft"]["n"] == 12
    assert not (out / "state" / "corpus").exists()


@pytest.mark.slow
def test_a_stage_for_which_nothing_is_left_says_so(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Plan, "allowance", lambda *_, **__: 0.0)
    flags = ["nano", "--model", str(base / "base"), "--out", str(tmp_path / "out"), "--sft.steps", "0"]
    assert stage.run_stage("sft", flags) == 0
    assert "sft: not one step, for what is left of the budget is kept" in " ".join(capsys.readouterr().err.split())


def test_what_prepares_a_part_is_billed_to_it_and_what_was_before_a_resume_is_not():
    bills, meter = [], SimpleNamespace(seconds=0.0)
    session = SimpleNamespace(
        meter=meter,
        billed_s=0.0,
        ledger=SimpleNamespace(append=bills.append),
        entry=lambda stage, steps, *, wall_s, **_: (stage, wall_s),
    )
    for name, begins, ends, step in (("start", 1.0, 3.0, 0), ("sft", 5.0, 9.0, 0), ("rl", 12.0, 13.0, 4)):
        meter.seconds = begins
        spending = Spending(session, name, step=step)
        meter.seconds = ends
        spending.pay()
    assert bills == [("start", 3.0), ("sft", 6.0), ("rl", 1.0)]


@pytest.mark.slow
def test_reinforcement_learning_takes_any_model_folder(base, tmp_path):
    out = tmp_path / "out"
    assert stage.run_stage("rl", ["nano", "--model", str(base / "base"), "--out", str(out), *SHORT]) == 0
    assert load_model(out / "rl").cfg == load_model(base / "base").cfg


def test_a_stage_without_a_model_says_what_it_needs():
    with pytest.raises(ConfigError, match="goes on from a model: --model"):
        stage.run_stage("rl", ["nano"])


def test_a_context_too_short_for_the_tasks_is_refused_with_both_lengths(base, tmp_path):
    told = r"need [\d,]+ tokens, 9,999 of them for an answer, and .* reads at most.*tasks.max_question"
    with pytest.raises(ConfigError, match=told):
        stage.run_stage(
            "sft",
            ["nano", "--model", str(base / "base"), "--out", str(tmp_path / "o"), "--eval.max-new-tokens", "9999"],
        )


@pytest.mark.slow
def test_reinforcement_learning_takes_problems_from_a_file(base, tmp_path):
    """Real sets lie in files like this one; a model of two layers that learned one step solves none of it."""
    records = [{"question": f"{i}+{i % 7}?", "answer": f"so\n#### {i + i % 7}"} for i in range(300)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(f"{json.dumps(record)}\n" for record in [*records, {"question": "?"}]))
    out = tmp_path / "out"
    recipe = ["nano", "rl/gsm8k", "--model", str(base / "base"), "--data", str(data), "--out", str(out)]
    short = ["--budget", "1e12flop", "--rl.steps", "2", "--rl.n-prompts", "4", "--rl.group-size", "2"]
    short += ["--rl.max-tokens", "8", "--eval.n-problems", "20", "--eval.max-new-tokens", "8", "--eval.k", "0"]
    assert stage.run_stage("rl", [*recipe, *short]) == 0

    document = json.loads((out / "problems.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "problems.schema.json").read_text()))
    found = document["sets"]["mine"]
    assert found["train"] + found["val"] + found["test"] + found["left_out"]["overlapping"] == 300
    assert document["bad_records"]["problem"]["count"] == 1
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, json.loads((SCHEMAS / "report.schema.json").read_text()))
    assert report["problems"] == document
    for name in ("start", "rl"):
        assert report["stages"][name]["n"] == 20
        assert list(report["stages"][name]["by_task"]) == ["mine"]
    trained = {line["stage"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())}
    assert trained == {"rl"}
    assert "What it was asked" in (out / "report.html").read_text()


@pytest.mark.slow
def test_tokenizer_and_data_stop_there_and_the_run_goes_on_from_them(tmp_path, capsys, learns_by_letters):
    short = ["--pretrain.steps", "2", "--data.seq-len", "256", *SHORT]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert verb.main(["nano", "--out", str(whole), *short]) == 0
    assert begin("tokenizer", ["nano", "--out", str(parts), *short]) == 0
    assert (parts / "state" / "tokenizer" / "tokenizer.json").is_file()
    assert not (parts / "state" / "corpus").exists()
    with pytest.raises(RunError, match="unfinished run of this very recipe"):
        begin("data", ["nano", "--out", str(parts), *short])
    capsys.readouterr()
    assert begin("data", ["--out", str(parts), "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, schema("begun"))
    assert told["tokenizer"]["vocab_size"] == Tokenizer.load(whole / "base").vocab_size
    assert told["data"] == json.loads((whole / "data.json").read_text())
    assert not (parts / "base").exists()
    assert verb.main(["--out", str(parts), "--resume"]) == 0
    one, other = ((out / "rl" / "model.safetensors").read_bytes() for out in (whole, parts))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("moves", [False, True])
def test_router_biases_move_in_fine_tuning_and_in_reinforcement_learning_where_asked(
    moves, tmp_path, learns_by_letters
):
    out = tmp_path / "out"
    flags = ["--pretrain.steps", "1", *(["--rl.rebalance"] if moves else [])]
    assert verb.main(["nano", "--out", str(out), *flags, *SHORT]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["grad_norm"] > 0 for line in lines if line["stage"] == "rl"] == [True]
    assert {line["stage"] for line in lines if "signal" in line} == {"rl"}, "how much of a step is chance"
    base, sft, rl = ([router.bias_E for router in load_model(out / name).routers()] for name in ("base", "sft", "rl"))
    assert not all(torch.equal(one, other) for one, other in zip(base, sft, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(sft, rl, strict=True)) is not moves


def test_without_pretraining_there_is_no_text_to_read():
    with pytest.raises(ConfigError, match="read no text"):
        begin("data", ["nano", "--stages", "sft"])


def chat_row(question: str, answer: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


@pytest.mark.slow
def test_what_is_wrong_with_chats_of_ones_own_is_counted_named_and_said(base, tmp_path, capsys):
    asked = sampling.test_set(cfg=TasksConfig(names=("sorting", "arithmetic"), test_size=12))[0].prompt
    rows = [chat_row(f"say {i}", f"it is {i}") for i in range(40)]
    rows += [chat_row(asked, "no"), chat_row("say 3", "it is 3"), '{"text": "no chat"}', chat_row("q", "long " * 2000)]
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(rows))
    out = tmp_path / "out"
    flags = ["nano", "--model", str(base / "base"), "--data", str(data), "--out", str(out), *SHORT]
    with pytest.raises(DataError, match=r"chats\.jsonl:43: the field 'messages' is missing"):
        stage.run_stage("sft", flags)
    assert stage.run_stage("sft", [*flags[:-4], "--out", f"{out}-2", "--data.on-bad-record", "count", *SHORT]) == 0
    out = Path(f"{out}-2")
    document = json.loads((out / "records.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "records.schema.json").read_text()))
    found = document["stages"]["sft"]
    assert {kind: event["count"] for kind, event in found["bad_records"].items()} == {
        "wrong fields": 1,
        "chat too long": 1,
    }
    assert found["chats"] == 43
    assert found["duplicates"]["first"] == [f"{data}:42 equals {data}:4"]
    assert found["test_overlap"]["first"] == [f"{data}:41 holds test problem 0"]
    assert json.loads((out / "report.json").read_text())["records"] == document
    said = " ".join(capsys.readouterr().err.split())
    assert "sft: 2 malformed records are left out" in said
    assert "sft: 1 chats hold a test problem and are learned from all the same" in said


def test_a_file_that_changes_under_a_run_is_refused(base, tmp_path):
    data = tmp_path / "mine.jsonl"
    records = [{"question": f"{i}+{i % 7}?", "answer": i + i % 7} for i in range(200)]
    data.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    recipe = Recipe(stages=("rl",), tasks=TasksConfig(names=(), files=(str(data),)))
    with Console(quiet=True) as console:
        session = Session.open(recipe, claim("run", to_dict(recipe), out=tmp_path / "run"), console)
        open_problems(session)
        data.write_text("".join(f"{json.dumps(record)}\n" for record in records[:-1]))
        with pytest.raises(RunError, match=r"mine\.jsonl: not what the run began with"):
            open_problems(session)


LORA = ["--lora.rank", "4", "--lora.alpha", "8", "--optim.lr-adam", "0.02"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def adapted(base, runs):
    """A run that trained adapters on the base by worked examples, made by the first test that asks."""
    out = runs / "adapted"
    if not out.exists():
        flags = ["nano", "--model", str(base / "base"), "--out", str(out), "--lora.merged", *LORA, *SHORT]
        assert stage.run_stage("sft", flags) == 0
    return out


@pytest.mark.slow
def test_adapters_are_what_a_stage_leaves_and_merged_on_request(base, runs):
    out = adapted(base, runs)
    assert not (out / "sft" / "config.json").exists()
    config = json.loads((out / "sft" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(base / "base"))
    before, after = load_model(base / "base"), load_model(out / "sft")
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert "layers.0.attn.kv_up.weight" in moved
    assert not any("norm" in n or "router" in n or n.startswith(("embed", "head")) for n in moved)
    merged = load_model(out / "sft" / "merged")
    assert all(torch.equal(p, merged.get_parameter(n)) for n, p in after.named_parameters())
    assert Tokenizer.load(out / "sft").vocab_size == Tokenizer.load(out / "sft" / "merged").vocab_size
    states = sorted((out / "state" / "sft").glob("step-*/model.safetensors"))
    assert set(load_file(states[-1])) == {f"{n}" for n in load_adapted(out / "sft").state_dict() if is_learned(n)}


def is_learned(name: str) -> bool:
    return ".lora." in name or name.endswith("bias_E")


def test_converting_an_adapter_writes_the_merged_model(base, runs, tmp_path):
    made = adapted(base, runs)
    assert convert.main([str(made / "sft"), str(tmp_path / "whole"), "--to", "hf"]) == 0
    whole, merged = load_model(tmp_path / "whole"), load_model(made / "sft" / "merged")
    assert all(torch.equal(p, merged.get_parameter(n)) for n, p in whole.named_parameters())
    assert (tmp_path / "whole" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_reinforcement_learning_goes_on_with_an_adapter_over_the_same_base(base, runs, tmp_path):
    made, out = adapted(base, runs), tmp_path / "out"
    flags = ["nano", "--model", str(made / "sft"), "--out", str(out), *LORA, *SHORT]
    assert stage.run_stage("rl", flags) == 0
    config = json.loads((out / "rl" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base / "base")
    with pytest.raises(CheckpointError, match=r"rank 4 and scale 2, .* to go on with it: --lora.rank 4"):
        stage.run_stage("rl", ["nano", "--model", str(made / "sft"), "--out", str(tmp_path / "o"), "--lora.rank", "8"])


def test_adapters_need_a_model_to_adapt(base, tmp_path):
    with pytest.raises(ConfigError, match=r"lora.rank=4 adapts a model that is there"):
        stage.run_stage("pretrain", ["nano", "--lora.rank", "4", "--out", str(tmp_path / "o")])


def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {a}", "chosen": f"{a} it is", "rejected": f"no, never {a}"} for a in "abcdefgh"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prefer(base: Path, out: Path, tmp_path: Path, *flags: str) -> list[dict]:
    """`sobre dpo` for four steps; its lines of metrics."""
    pairs = pairs_file(tmp_path)
    common = ["--out", str(out), "--dpo.paths", str(pairs), "--dpo.steps", "4", "--dpo.lr-scale", "1.0"]
    assert stage.run_stage("dpo", ["nano", "--model", str(base / "base"), *common, *flags]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("flags", [[], LORA])
@pytest.mark.slow
def test_pairs_move_a_model_towards_what_was_chosen(base, tmp_path, flags):
    lines = prefer(base, tmp_path / "out", tmp_path, *flags)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # the model is its own reference
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["reward_chosen"] > lines[-1]["reward_rejected"]
    before, after = load_model(base / "base"), load_model(tmp_path / "out" / "dpo")
    assert any(not torch.equal(p, before.get_parameter(n)) for n, p in after.named_parameters())
    ledger = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert sum(line["stage"] == "reference:dpo" for line in ledger) == 1


@pytest.mark.slow
def test_a_run_on_pairs_that_was_broken_off_keeps_what_its_reference_said(base, tmp_path, monkeypatch):
    whole = prefer(base, tmp_path / "whole", tmp_path)
    true_step, out = loop._step, tmp_path / "broken"

    def breaks_off(*args):
        if args[3] == 3:
            raise KeyboardInterrupt
        return true_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            prefer(base, out, tmp_path, "--save.every-s", "0")
    monkeypatch.setattr("sobre.app.lessons.reference_log_probs", lambda *_: pytest.fail("asked again"))
    assert verb.main(["--out", str(out), "--resume"]) == 0
    again = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]
    ours, theirs = (load_file(folder / "dpo" / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
