"""`sobre eval`: figures by hand, verdicts in any layout, comparison of two results."""

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from sobre.app import eval as verb
from sobre.data.sources import Document
from sobre.errors import ConfigError, DataError, RunError, SandboxError
from sobre.eval.answer import Reply, Sampling
from sobre.eval.bits import bits_per_byte
from sobre.eval.measure import Item, Marked, compare, contamination, marks, measure, summary, to_dict, verdicts
from sobre.eval.score import majority
from sobre.models.checkpoint import save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.quantised import quantised
from sobre.schemas import schema
from sobre.tasks import judges
from sobre.tasks.base import Problem
from sobre.tasks.registry import TASKS
from sobre.tasks.sampling import test_set as fixed_problems
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

HOW = Sampling(max_tokens=50, temperature=0.6, top_p=0.9, seed=3)


def item(key: str, *replies: tuple[str | None, bool], prompt: str = "q") -> Item:
    most = majority(Problem("set", "en", 1, prompt, "1", key, {}), [answer for answer, _ in replies])
    marked = tuple(Marked("", answer, right, True, 10) for answer, right in replies)
    return Item("set", key, prompt, "1", marked, most)


ITEMS = [
    item("a", ("1", True), ("1", True), ("2", False), ("3", False)),  # majority right
    item("b", ("2", False), ("2", False), ("1", True), (None, False)),  # majority wrong
    item("c", *[("4", False)] * 4),
]


def test_the_figures_are_those_of_their_definitions() -> None:
    found = summary(ITEMS, seed=0)
    assert found["average_at_k"]["value"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found["pass_at_1"]["value"] == pytest.approx(found["average_at_k"]["value"])
    # of the pairs of 4 replies, those without a right one: 1 of 6, 3 of 6, all
    assert found["pass_at_2"]["value"] == pytest.approx((5 / 6 + 3 / 6 + 0) / 3)
    assert found["pass_at_4"]["value"] == pytest.approx(2 / 3)
    assert found["majority_at_k"]["value"] == pytest.approx(1 / 3)
    assert found["no_answer"] == pytest.approx(1 / 12)
    assert found["average_at_k"]["ci_low"] == 0
    assert found["average_at_k"]["ci_high"] <= 0.5


def test_two_models_are_compared_problem_by_problem() -> None:
    found = compare(ITEMS, {"a": [False], "b": [False], "c": [True, False]}, seed=0)
    assert found["difference"]["value"] == pytest.approx((0.5 + 0.25 - 0.5) / 3)
    assert (found["better"], found["worse"]) == (2, 1)
    assert "p_value" not in found
    with pytest.raises(DataError, match="1 are shared, 3 here, 2 there"):
        compare(ITEMS, {"a": [True], "z": [True]}, seed=0)


def test_of_one_reply_each_it_is_told_how_often_chance_alone_splits_so() -> None:
    ours = [item(f"{i}", ("1", i < 9)) for i in range(12)]
    theirs: dict[str, list[bool] | None] = {f"{i}": [i in (0, 1, 11)] for i in range(12)}  # worse on 7, better on 1
    assert compare(ours, theirs, seed=0)["p_value"] == pytest.approx(2 * (1 + 8) / 2**8)
    theirs["0"] = None
    assert compare(ours, theirs, seed=0)["p_value"] == pytest.approx(2 * (1 + 8) / 2**8)  # it was right in both
    theirs["0"] = [True, True]
    assert "p_value" not in compare(ours, theirs, seed=0)


def test_every_problem_that_a_training_text_holds_is_found() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    prompts = [words, "something else entirely, unseen", "what is left of 7 * 8?", "x y"]
    asked = {"a": [Problem("a", "en", 1, said, "1", f"a:{i}", {}) for i, said in enumerate(prompts)]}
    asked["b"] = [replace(asked["a"][2], key="b:0")]
    texts = [f"before {words} between, what is left of 7 * 8? after", "nothing"]
    assert contamination(asked, texts) == {
        "a": {"documents": 2, "found": ["a:0", "a:2"], "not_looked_for": 1},
        "b": {"documents": 2, "found": ["b:0"], "not_looked_for": 0},
    }


def test_a_reply_is_read_in_our_layout_and_without_it() -> None:
    problem = fixed_problems(1)[0]
    for text in (
        f"so\n</think>\n<answer>{problem.answer}</answer>",
        f"<answer>{problem.answer}</answer>",
        f"so\n</think>\n{problem.answer}",
        problem.answer,
    ):
        whole, cut = marks([problem], [[Reply(text, True, 5), Reply(text, False, 5)]])[0]
        assert whole.right, text
        assert not cut.right
    unclear, none = Reply(f"I think it is {problem.answer}, or 0", True, 5), Reply("so\n</think>\n", True, 5)
    ((first, second),) = marks([problem], [[unclear, none]])
    assert not first.right
    assert second.answer is None


class Moody:
    """A judge that says whatever the answer makes it say."""

    name = "moody"

    def score(self, problem, answer):
        if answer == "hang":
            time.sleep(30)
        return {"yes": True, "no": False, "nan": float("nan")}[answer]


class Parrot:
    """Replies as the question tells it to."""

    def answer(self, questions, k, how):
        return [[Reply(word, True, 1) for word in question.split()] for question in questions]


def test_votes_for_one_value_are_one_vote_however_it_is_written() -> None:
    boxes = ["0.25", "1/2", "0.25", "0.5", ".50"]
    half = Problem("set", "en", 3, " ".join(f"\\boxed{{{each}}}" for each in boxes), "0.5", "a", {"judge": "math"})
    (told,) = measure([half], Boxes(), 5, HOW)
    assert [reply.answer for reply in told.replies] == boxes
    assert told.majority == 1
    assert summary([told], seed=0)["majority_at_k"]["value"] == 1


class Boxes:
    """Replies with each of the boxes in the question."""

    def answer(self, questions, k, how):
        return [[Reply(box, True, 1) for box in question.split()[:k]] for question in questions]


def moody(*questions: str) -> list[Problem]:
    return [Problem("moody", "en", 1, said, "yes", f"moody:{i}", {}) for i, said in enumerate(questions)]


def test_what_a_judge_fails_on_is_in_no_figure_and_is_counted(monkeypatch) -> None:
    monkeypatch.setitem(TASKS, "moody", Moody())
    items = measure(moody("yes no", "yes yes", "yes boom", "nan no", "no no"), Parrot(), 2, HOW)
    assert [item.is_judged for item in items] == [True, True, False, False, True]
    assert "judge of moody failed on moody:2, answer 'boom': KeyError" in items[2].replies[1].fault
    assert "neither True nor False" in items[3].replies[0].fault
    found = summary(items, seed=0)
    assert (found["n"], found["unjudged"]) == (3, 2)
    assert found["average_at_k"]["value"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    theirs = verdicts({"items": json.loads(json.dumps(to_dict(items)))}, "moody")
    assert theirs["moody:2"] is None
    theirs["moody:4"] = [True, True]
    against = compare(items, theirs, seed=0)
    assert (against["unjudged"], against["worse"], against["better"]) == (2, 1, 0)
    assert against["difference"]["value"] == pytest.approx(-1 / 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("boom", "boom", "no"), "2 of 3 answers could not be judged; the first: the judge of moody failed on moody:0"),
        (("yes", "hang"), "judge of moody has not answered for 0.1 s on moody:1"),
    ],
)
def test_a_judge_that_fails_on_most_or_hangs_stops_the_evaluation(asked, message, monkeypatch) -> None:
    monkeypatch.setitem(TASKS, "moody", Moody())
    with pytest.raises(RunError, match=message):
        measure(moody(*asked), Parrot(), 1, HOW, judge_s=0.1)


def test_the_verb_writes_a_result_that_another_can_be_set_against(
    service, openai_answer, tmp_path: Path, capsys
) -> None:
    def answer(path: str, headers: dict, body: dict) -> tuple[int, object]:
        question = body["messages"][0]["content"].split()[0]
        return 200, openai_answer(f"\\boxed{{{5 if question == 'second' and body['model'] == 'weak' else 2}}}")

    (tmp_path / "mine.jsonl").write_text(
        '{"prompt": "first question", "answer": "2"}\n{"prompt": "second question", "answer": "2"}\n'
    )
    flags = ["--endpoint", service(answer), "--tasks", f"mine={tmp_path / 'mine.jsonl'}", "--k", "2"]
    assert verb.main([*flags, "--model", "weak", "--out", str(tmp_path / "weak.json")]) == 0
    assert capsys.readouterr().out.startswith("mine: 50.0% right (0.0% to 100.0%); pass@2 50.0%, majority@2 50.0%")
    assert verb.main([*flags, "--model", "strong", "--against", str(tmp_path / "weak.json"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    jsonschema.validate(result, schema("evaluation"))
    jsonschema.validate(json.loads((tmp_path / "weak.json").read_text()), schema("evaluation"))
    assert result["tasks"]["mine"]["against"]["difference"]["value"] == 0.5
    assert [len(found["replies"]) for found in result["items"]] == [2, 2]
    flags[-1] = "1"
    assert verb.main([*flags, "--model", "weak", "--out", str(tmp_path / "weak.json")]) == 0
    page = tmp_path / "page.html"
    to_weak = ["--against", str(tmp_path / "weak.json"), "--out", str(tmp_path / "strong.json"), "--html", str(page)]
    assert verb.main([*flags, "--model", "strong", *to_weak]) == 0
    assert "+50.0% against the other (+0.0% to +100.0%, p = 1)" in capsys.readouterr().out
    jsonschema.validate(json.loads((tmp_path / "strong.json").read_text()), schema("evaluation"))
    row = "<td>mine</td><td>+50.0 (+0.0 to +100.0)</td><td>1</td><td>0</td><td>1</td>"
    assert row in page.read_text(encoding="utf-8")


def test_training_text_is_read_as_training_reads_it(service, openai_answer, tmp_path: Path, capsys) -> None:
    asked = ["wie viele Äpfel hat Zoë jetzt?", "combien font sept fois huit ?", "what is 3 + 4 * 5 then?"]
    twice = ["one and the same question of more than thirteen words, which stands here two times ?"] * 2
    rows = [json.dumps({"id": f"q{i}", "prompt": said, "answer": "2"}) for i, said in enumerate([*asked, *twice])]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text(json.dumps({"text": f"Zwei: {asked[0]} Ja."}))  # escaped: \u00c4pfel
    chat = [{"role": "user", "content": asked[2]}, {"role": "assistant", "content": "23"}]
    (data / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"messages": chat}).encode()))
    (data / "c.pdf").write_text(asked[1])
    flags = ["--endpoint", service(lambda *_: (200, openai_answer("\\boxed{2}"))), "--model", "m", "--json"]
    flags += ["--tasks", f"mine={tmp_path / 'mine.jsonl'}", "--training-text"]
    assert verb.main([*flags, str(data)]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    jsonschema.validate(result, schema("evaluation"))
    found = {"documents": 2, "found": ["mine:q0", "mine:q2"], "not_looked_for": 2}
    assert result["tasks"]["mine"]["contamination"] == found
    assert "2 found in the training text (2 not looked for: too short, or like another)" in said.err
    assert f"1 x file of another kind not read, first {data / 'c.pdf'}" in said.err
    (data / "d.jsonl").write_text('{"text": "cut')
    with pytest.raises(DataError, match=r"d.jsonl:1: invalid JSON"):
        verb.main([*flags, str(data)])


def test_rounded_weights_are_told_in_bits_per_byte_beside_the_models_own(tmp_path: Path, capsys) -> None:
    texts = ["the cost of rounding ", "is measured in bits per byte, "]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(vocab_size=300))
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        max_len=512,
        d_model=32,
        n_layers=2,
        attention=GQAConfig(n_heads=4, n_kv_heads=2, head_dim=8),
        ffn=DenseConfig(d_ff=64),
    )
    model = Decoder(shape).eval()
    model.init_weights(0)
    save_model(model, tmp_path / "m")
    tokenizer.save(tmp_path / "m", max_len=512)
    (tmp_path / "a.txt").write_text("".join(texts))
    asked = ["--tasks", "word", "--n", "1", "--max-tokens", "2", "--text", str(tmp_path / "a.txt"), "--json"]
    assert verb.main([str(tmp_path / "m"), *asked, "--weights", "int8"]) == 0
    result = json.loads(capsys.readouterr().out)
    jsonschema.validate(result, schema("evaluation"))
    found = result["bits_per_byte"]
    by_hand = {
        kind: bits_per_byte(each, tokenizer, [Document("".join(texts))], window=512)["all"].to_dict()
        for kind, each in (("model", model), ("int8", quantised(model, "int8")))
    }
    assert {kind: list(whole.pop("sources")) for kind, whole in found.items()} == {"model": ["a"], "int8": ["a"]}
    assert found == {kind: pytest.approx(bits, rel=1e-6) for kind, bits in by_hand.items()}
    assert 0 < abs(found["int8"]["value"] - found["model"]["value"]) < 0.05


@pytest.mark.parametrize(
    ("record", "missing", "message"),
    [
        ({"answer": "2"}, "find_spec", r"asks for mathematics.*sobre\[math\]"),
        ({"tests": ["assert f(1)"]}, "mechanism", "no sandbox here"),
    ],
)
def test_what_cannot_be_judged_here_is_refused_before_anything_is_asked(
    service, openai_answer, tmp_path, monkeypatch, record, missing, message
) -> None:
    asked: list[object] = []
    url = service(lambda *request: asked.append(request) or (200, openai_answer("2")))
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "x", **record}))

    def none_is_there(*_: object) -> None:
        if missing == "mechanism":
            raise SandboxError("no sandbox here")

    monkeypatch.setattr(judges, missing, none_is_there)
    with pytest.raises((ConfigError, SandboxError), match=message):
        verb.main(["--endpoint", url, "--model", "m", "--tasks", f"word,mine={tmp_path / 'mine.jsonl'}"])
    assert not asked


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give the folder of a model, or --endpoint"),
        (["m", "--endpoint", "http://x"], "give the folder of a model, or --endpoint"),
        (["--endpoint", "http://x"], "--endpoint URL and --model NAME"),
        (["m", "--model", "m"], "--endpoint URL and --model NAME"),
        (["--endpoint", "http://x", "--model", "m", "--weights", "int8"], "a service has its own"),
        (["m", "--omit", "seed"], "they need --endpoint"),
        (
            ["--endpoint", "http://x", "--model", "m", "--extra-body", "[1]"],
            "--extra-body='[1]' is list, not an object",
        ),
        (["m", "--thinking", "0"], "off is no thought"),
        (["m", "--style", "plain", "--thinking", "off"], "--style plain has none"),
        (["m", "--k", "2", "--temperature", "0"], "all alike"),
        (["m", "--tasks", "word,word"], "each once"),
        (["m", "--tasks", "mgsm", "--files", "/nonexistent"], "mgsm: no file"),
        (["m", "--top-p", "0"], "top_p=0"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(flags: list[str], message: str, capsys) -> None:
    with pytest.raises((ConfigError, SystemExit)) as refused:  # what the flags alone tell is framed on standard error
        verb.main(flags)
    said = f"{refused.value} {capsys.readouterr().err}".replace("│", " ")
    assert message in " ".join(said.split())


def test_a_result_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    asked = ["--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--tasks", "word", "--n", "1"]
    with pytest.raises(DataError, match="is no result of sobre eval"):
        verb.main([*asked, "--against", str(tmp_path / "x.json")])
    (tmp_path / "y.json").write_text('{"schema": 1, "items": []}')
    with pytest.raises(DataError, match="0 are shared, 1 here, 0 there"):  # and nobody is asked
        verb.main([*asked, "--against", str(tmp_path / "y.json")])
