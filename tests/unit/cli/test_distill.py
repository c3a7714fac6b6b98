"""R1's path and distillation through the verbs: who begins with what, who teaches, and what becomes of each answer."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from sobre.app import answers, distill, prepare
from sobre.app import run as verb
from sobre.app.problems import training_problem
from sobre.app.session import Session
from sobre.config.load import Layer, decode, read_recipe
from sobre.config.recipe import Recipe
from sobre.distill import choose
from sobre.errors import ConfigError, RunError
from sobre.eval.measure import Marked
from sobre.models.checkpoint import load_model
from sobre.runtime.device import Calibration
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import completion
from sobre.tasks.sampling import mixed_problem
from sobre.tokenizer.tokenizer import Tokenizer

R1 = ["--stages", "pretrain", "sft", "rl", "sft2", "rl2", "distill", "--start.sft2", "pretrain"]
R1 += ["--start.distill", "nothing", "--sft2.answers.teacher", "rl", "--distill.answers.teacher", "rl2"]
R1 += ["--distill.student.d-model", "16", "--distill.student.n-layers", "1"]
FEW = ["--sft2.answers.n-problems", "40", "--sft2.answers.k", "2", "--sft2.answers.max-tokens", "8"]
FEW += ["--distill.answers.n-problems", "8", "--distill.answers.k", "2", "--distill.answers.max-tokens", "8"]
SHORT = [f"--{name}.steps=2" for name in ("pretrain", "sft", "rl", "sft2", "rl2", "distill")]
SHORT += [f"--{name}.batch-tokens=512" for name in ("sft2", "distill")]
SHORT += [
    "--sft2.lr-scale=0",
    "--eval.k=0",
    "--eval.n-problems=4",
    "--rl2.n-prompts=2",
    "--rl2.group-size=2",
    "--rl2.max-tokens=8",
    "--distill.max-tokens=8",
]


pytestmark = pytest.mark.slow  # a run of six stages, and a few short ones


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch):
    speed = {"fp32_flops": 1e11, "bf16_flops": 1e10, "fp32_best": 1e11, "bf16_best": 1e10, "bytes_per_s": 1e10}
    monkeypatch.setattr(
        prepare, "calibrate", lambda device: Calibration(name="t", device="cpu", threads=1, seconds=0.0, **speed)
    )
    monkeypatch.setattr(prepare, "choose_threads", lambda: 1)
    monkeypatch.setattr(verb, "reexec_once", lambda: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "r1"


@pytest.fixture
def r1(place: Path) -> Path:
    """A run of R1's path by a model that solves nothing: every other of its answers is taken for right."""
    if not place.exists():
        counter = iter(range(10**6))

        def half_right(problems, replies, **_):
            return [[Marked(it.text, "", next(counter) % 2 == 0, True, it.n_tokens) for it in each] for each in replies]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choose, "marks", half_right)
            patch.setattr(choose, "laid_out", lambda problem, text: True)
            patch.setattr(choose, "readable", lambda text, repeats: True)
            patch.setattr(answers.Teacher, "answer", _ended(answers.Teacher.answer))
            assert verb.main(["nano", *R1, *FEW, *SHORT, "--out", str(place)]) == 0
    return place


def _ended(ask):
    """The model never ends an answer by itself."""

    def answer(self, asked, part):
        replies, flops = ask(self, asked, part)
        return [
            [choose.Reply("x " + reply.text.strip(), True, reply.n_tokens) for reply in group] for group in replies
        ], flops

    return answer


def test_the_whole_path_runs_and_each_stage_goes_on_from_the_one_it_names(r1: Path) -> None:
    report = json.loads((r1 / "report.json").read_text())
    assert list(report["stages"]) == ["pretrain", "sft", "rl", "sft2", "rl2", "distill"]
    student, big = load_model(r1 / "distill").cfg, load_model(r1 / "rl2").cfg
    assert (student.d_model, student.ffn.kind) == (16, "dense")
    assert (student.vocab_size, student.max_len) == (big.vocab_size, big.max_len)
    assert any("distill teaches a student" in note for note in json.loads((r1 / "plan.json").read_text())["notes"])


def test_the_second_fine_tuning_goes_on_from_the_base_and_not_from_what_rl_left(r1: Path) -> None:
    """Its rate is 0, so it stays where it begins; so does the second RL after it."""
    base, sft, rl, sft2 = (load_model(r1 / name).embed.weight for name in ("base", "sft", "rl", "sft2"))
    assert torch.equal(sft2, base)
    assert not torch.equal(sft2, sft)
    assert not torch.equal(sft2, rl)


def test_every_answer_is_counted_and_the_chats_lie_there_to_be_read(r1: Path) -> None:
    told = json.loads((r1 / "answers" / "sft2.json").read_text())
    assert (told["teacher"], told["problems"], told["answers"]) == ("rl", 40, 80)
    assert sum(told[fate] for fate in choose.FATES) == 80
    assert told["wrong"] == 40
    chats = [json.loads(line)["messages"] for line in (r1 / "answers" / "sft2.jsonl").read_text().splitlines()]
    assert len(chats) == told["kept"] + told["plain"]
    assert told["plain"] == round(told["kept"] / 3)  # a quarter of all
    report = json.loads((r1 / "report.json").read_text())
    assert report["stages"]["sft2"]["metrics"]["answers_kept"] == told["kept"]


def test_what_the_share_of_the_budget_will_pay_for_is_told_from_what_it_has_paid_for() -> None:
    assert answers._expected(64, {"used": 100.0, "end_at": 180.0}, used=120.0) == 256
    assert answers._expected(64, {"used": 100.0, "end_at": 180.0}, used=200.0) == 64
    assert answers._expected(0, {"used": 100.0, "end_at": 180.0}, used=100.0) == 0


def test_the_report_tells_what_became_of_the_answers_and_calls_the_student_one(r1: Path) -> None:
    page = (r1 / "report.html").read_text(encoding="utf-8")
    told = json.loads((r1 / "answers" / "sft2.json").read_text())
    assert f"Second fine-tuning learned from {told['kept']} of 80 answers to 40 problems (" in page
    assert "40 wrong" in page
    assert "whose student solves" in page
    assert "The student" in page


def test_chats_without_a_thought_teach_the_mode_that_does_not_think(r1: Path) -> None:
    tokenizer = Tokenizer.load(r1 / "sft2")
    chats = [json.loads(line)["messages"] for line in (r1 / "answers" / "sft2.jsonl").read_text().splitlines()]
    plain = [chat for chat in chats if chat[1]["content"].startswith("<answer>")]
    ids, mask = tokenizer.render_with_mask(plain[0])
    prompt = tokenizer.render(plain[0][:1], generation_prompt=True, thinking=False)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def test_the_bill_has_the_answers_as_a_part_of_its_own(r1: Path) -> None:
    entries = [json.loads(line) for line in (r1 / "ledger.jsonl").read_text().splitlines()]
    told = [entry for entry in entries if entry["stage"] == "answers:sft2"]
    assert [(entry["step_from"], entry["step_to"]) for entry in told] == [(0, 1), (1, 2)]
    assert all(entry["flops"] > 0 and entry["tokens"] > 0 for entry in told)


def test_on_policy_a_student_is_drawn_to_its_teacher(r1: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["nano", *SHORT, "--teacher", str(r1 / "rl2"), "--student", str(r1 / "distill"), "--method", "on_policy"]
    assert distill.main([*argv, "--distill.steps", "15", "--distill.n-prompts", "4", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "distill"]
    assert 0 < sum(losses[-5:]) < sum(losses[:5])
    assert all(line["rollout_tokens"] > 0 and line["flops"] > 0 for line in lines)
    assert load_model(out / "distill").cfg == load_model(r1 / "distill").cfg


def test_generated_tasks_and_files_take_turns_and_a_file_is_gone_through_whole() -> None:
    mine = [Problem("mine", "en", 3, f"{i}?", "1", f"mine:{i}", {"judge": "math"}) for i in range(3)]
    tasks = TasksConfig(names=("sorting", "arithmetic"))
    session = cast(Session, SimpleNamespace(recipe=Recipe(tasks=tasks), sets=(SimpleNamespace(train=mine),)))
    drawn = [training_problem(session, "key", i) for i in range(18)]
    assert [problem.task for problem in drawn] == ["sorting", "arithmetic", "mine"] * 6
    asked = [problem.prompt for problem in drawn if problem.task == "mine"]
    assert sorted(asked[:3]) == sorted(asked[3:]) == ["0?", "1?", "2?"]
    assert len({problem.key for problem in drawn if problem.task != "mine"}) > 6


@pytest.fixture
def service() -> Iterator[str]:
    """A service that knows the answers to the first problems of a stage, and says "none" to every third."""
    tasks = decode(Recipe, [read_recipe("nano")]).tasks
    known = {(p := mixed_problem(tasks, "distill/0", i)).prompt: p.answer for i in range(64)}
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            thought, _, content = completion("as known", known[prompt]).partition("\n</think>\n")
            asked[prompt] += 1
            message = {
                "reasoning_content": thought,
                "content": content if asked[prompt] % 3 else "<answer>none</answer>",
            }
            choice = {"message": message, "finish_reason": "stop"}
            said = json.dumps({"choices": [choice], "usage": {"completion_tokens": 5}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_service_may_teach_a_student_from_nothing(service: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["nano", "--teacher", service, "--teacher-name", "wise", "--student-from-nothing", *SHORT]
    few = ["--distill.answers.n-problems", "20", "--distill.answers.k", "3", "--distill.answers.max-tokens", "16"]
    assert distill.main([*argv, *few, "--out", str(out)]) == 0
    told = json.loads((out / "answers" / "distill.json").read_text())
    counts = [told[fate] for fate in ("answers", "wrong", "mixed", "duplicate", "kept")]
    assert counts == [60, 20, 26, 7, 7]  # it thinks in English, whatever it is asked in: seven of twenty are
    chat = json.loads((out / "answers" / "distill.jsonl").read_text().splitlines()[0])["messages"]
    assert chat[1]["content"].startswith("<think>\nas known\n</think>\n<answer>")
    assert torch.isfinite(load_model(out / "distill").embed.weight).all()


def test_a_teacher_of_whom_nothing_can_be_learned_ends_the_run_with_the_counts(r1: Path, tmp_path: Path) -> None:
    argv = ["nano", "--teacher", str(r1 / "rl2"), "--student", str(r1 / "distill"), *SHORT, *FEW]
    with pytest.raises(RunError, match=r"no answer of .*rl2 is fit to learn from \(1\d cut"):
        distill.main([*argv, "--out", str(tmp_path / "o")])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nano", "--teacher", "x"], "--student FOLDER"),
        (["nano", "--student", "x"], "distill needs a teacher"),
        (["nano", "--teacher", "x", "--student", "y", "--student-from-nothing"], "--student FOLDER"),
        (["nano", "--teacher", "x", "--student-from-nothing", "--method", "on_policy"], "begin with --method text"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        distill.read(argv)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"stages": ["sft", "rl"], "start": {"sft": "rl"}}, "must be a stage before it: there is none"),
        ({"stages": ["pretrain", "sft2"], "start": {"sft2": "nothing"}}, "must be a stage before it: pretrain"),
        ({"stages": ["pretrain", "sft2"], "sft2": {"answers": {"teacher": "rl"}}}, "none of those before"),
        ({"stages": ["pretrain", "distill"]}, "needs a teacher"),
        (
            {"distill": {"method": "on_policy", "answers": {"teacher": "http://h/v1", "model_name": "m"}}},
            "whole distribution",
        ),
        ({"stages": ["pretrain", "dpo"]}, "needs pairs"),
        ({"stages": ["pretrain", "rl", "sft"]}, "in this order"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(tree: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        decode(Recipe, [Layer("memory", tree)])
