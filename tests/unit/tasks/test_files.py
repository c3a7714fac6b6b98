"""Problems from files: every well-known shape is read, every malformed record is named; answers in any layout."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sobre.errors import ConfigError, DataError, JudgeError, SandboxError
from sobre.tasks import equality
from sobre.tasks.base import Problem
from sobre.tasks.config import JUDGE_S
from sobre.tasks.equality import Checker, compared, equal, read_number
from sobre.tasks.files import find_file, read_problems
from sobre.tasks.format import question, reward
from sobre.tasks.judges import boxed, judge_of, same_answer
from sobre.tasks.sandbox import Limits, run_code

DATA = Path(__file__).resolve().parents[3].parent / "shared/data"
GSM = {"question": "How many?", "answer": "48/2 = 24\n#### 1,072"}
ADD = {
    "task_id": "HumanEval/x",
    "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef add(a, b):\n    """Add."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
}
MBPP = {
    "prompt": "Write a function to double.",
    "code": "def d(x):\n    return 2 * x",
    "test_list": ["assert d(2) == 4"],
}
ARC = {"question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}


def written(folder: Path, *records: object, name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


def one(folder: Path, record: object):
    return read_problems(written(folder, record), "set")[0]


def accuracy(problem, text: str) -> float:
    return reward(problem, text, True).accuracy


def test_each_kind_is_told_by_its_fields(tmp_path: Path) -> None:
    problems = read_problems(
        written(tmp_path, GSM, ADD, MBPP, ARC, {"prompt": "1+1?", "answer": 2, "lang": "fr"}), "set"
    )
    assert [judge_of(problem).kind for problem in problems] == ["math", "code", "code", "choice", "math"]
    assert [problem.answer for problem in problems[::4]] == ["1,072", "2"]
    assert problems[3].answer == "C"
    assert problems[4].lang == "fr"
    assert len({problem.key for problem in problems}) == 5
    assert "\\boxed" in question(problems[0])
    assert "C. c" in question(problems[3])
    assert "assert d(2) == 4" in question(problems[2])


def test_gzip_and_parquet_hold_the_same_problems(tmp_path: Path) -> None:
    plain = read_problems(written(tmp_path, GSM), "set")
    (tmp_path / "set.jsonl.gz").write_bytes(gzip.compress((tmp_path / "set.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist([GSM]), tmp_path / "set.parquet")
    assert read_problems(tmp_path / "set.jsonl.gz", "set") == plain == read_problems(tmp_path / "set.parquet", "set")
    assert find_file("set", tmp_path) == tmp_path / "set.jsonl"
    with pytest.raises(ConfigError, match="mgsm: no file mgsm with an ending of"):
        find_file("mgsm", tmp_path)
    with pytest.raises(ConfigError, match=r"nosuch is neither a generated task \(.*countdown.*gsm8k.*NAME=PATH"):
        find_file("nosuch", tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 1 is no JSON"),
        ([1], "line 1 is list, not an object"),
        ({"answer": "1"}, "has no prompt or question or problem; it has answer"),
        ({"prompt": " ", "answer": "1"}, "prompt must be text that is not empty"),
        ({"prompt": "x"}, r"has no answer; it has prompt$"),
        ('{"prompt": "x", "answer": NaN}', "answer is nan, which no response can equal"),
        ('{"prompt": "x", "answer": 1e999}', "answer is inf, which no response can equal"),
        ('{"prompt": "x", "answer": ' + "9" * 5000 + "}", "line 1 is no JSON: Exceeds the limit"),
        ('{"prompt": "\\ud83d", "answer": "1"}', "line 1 holds half of a character"),
        ({"prompt": "x", "answer": "1", "lang": 5}, "lang must be text such as en, not 5"),
        ({"prompt": "x", "tests": ["assert 1"], "test_imports": 5}, "test_imports must be a list of lines"),
        ({"prompt": "x", "tests": ["assert 1"], "test_setup": [1]}, "and test_setup text"),
        ({"prompt": "x", "answer": True}, "answer must be text"),
        ({"prompt": "x", "answer": "y ####"}, "nothing follows the ####"),
        ({"prompt": "x", "choices": ["a"], "answer": 0}, "choices must be a list of 2 to 10"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, r"answer must be one of A, B or 0\.\.1, not 2"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": "C"}, "answer must be one of A, B"),
        ({"prompt": "x", "choices": ["a", "a"], "answer": 0}, "all choices say 'a'; there is nothing to choose"),
        ({"prompt": "x", "choices": [None, "b"], "answer": 0}, "a choice must be text that is not empty, not None"),
        ({"prompt": "x", "choices": ["a", {"b": 1}], "answer": 0}, r"a choice must be text .* not \{'b': 1\}"),
        ({"prompt": "x", "choices": ["a", " "], "answer": 0}, "a choice must be text that is not empty, not ' '"),
        ({"prompt": "x", "answer": "a" * 401}, "answer has 401 characters; up to 400 are compared"),
        ({"prompt": "x", "answer": "\\frac{1}{"}, r"answer has braces that do not close: '\\\\frac"),
        ({"prompt": "x", "tests": ["assert f( == 1"]}, "its tests are no Python: invalid syntax"),
        ({"prompt": "x", "tests": ["assert 1"], "test_setup": "import"}, "its tests are no Python"),
        ({"prompt": "x", "test": "def check(f) pass", "entry_point": "f"}, "its tests are no Python"),
        ({"prompt": "x", "test": "x = '\0'", "entry_point": "f"}, "its tests are no Python"),
        ({"prompt": "x", "tests": []}, "tests must be a list of assert lines"),
        ({"prompt": "x", "test": "def check(f): pass"}, "a test needs entry_point"),
    ],
)
def test_a_record_that_does_not_fit_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        one(tmp_path, record)


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no problem"):
        read_problems(written(tmp_path, ""), "set")
    with pytest.raises(DataError, match="line 2 has the id of .*line 1, set:a"):
        read_problems(written(tmp_path, {**GSM, "id": "a"}, {**GSM, "id": "a"}), "set")
    for name, content in (("x.csv", b""), ("y.jsonl.gz", b"no gzip"), ("z.jsonl", b"\xff"), ("w.parquet", b"PAR")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_problems(tmp_path / name, "set")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so\n</think>\n<answer>1072</answer>", 1),
        ("<think>\nso\n</think>\n\nThe answer is \\boxed{1072}.", 1),
        ("It is \\boxed{\\$1,072.00}", 1),
        ("#### 1072", 1),
        ("\\boxed{5}, no: \\boxed{1072}", 1),
        ("\\boxed{1072}, no: \\boxed{5}", 0),
        ("<think>\\boxed{1072}", 0),
        ("\\boxed{1072}</think> I do not know", 0),
        ("1072", 0),
        ("\\boxed{1072", 0),
        ("", 0),
    ],
)
def test_an_answer_is_found_after_the_thought_in_any_common_layout(tmp_path: Path, text: str, right: float) -> None:
    assert accuracy(one(tmp_path, GSM), text) == right


def test_a_response_that_was_cut_earns_nothing_and_the_format_asks_for_one_thought(tmp_path: Path) -> None:
    problem, text = one(tmp_path, GSM), "so\n</think>\n\\boxed{1072}"
    assert reward(problem, text, False).total == 0
    assert reward(problem, text, True).total == pytest.approx(1.1)
    assert reward(problem, f"<think>{text}", True).format == 1
    for other in ("\\boxed{1072}", "</think>\\boxed{1072}", "a</think>b</think>\\boxed{1072}", "a</think>"):
        assert reward(problem, other, True).format == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{C}", "C"),
        ("C", "C"),
        ("(C) c", "C"),
        ("C. c", "C"),
        ("The answer is (C).", "C"),
        ("a", None),
        ("", None),
    ],
)
def test_a_choice_is_a_letter(tmp_path: Path, text: str, found: str | None) -> None:
    problem = one(tmp_path, ARC)
    assert judge_of(problem).extract(problem, text) == found


def test_choices_of_one_text_are_right_together(tmp_path: Path) -> None:
    twice = one(tmp_path, {"prompt": "30 + 657?", "choices": [687, "687", "1,493"], "answer": 0})
    assert twice.data["choices"] == ["687", "687", "1,493"]
    assert [accuracy(twice, f"\\boxed{{{letter}}}") for letter in "ABCDE"] == [1, 1, 0, 0, 0]


def test_braces_that_are_text_close_nothing(tmp_path: Path) -> None:
    for answer in ("\\{1, 2\\}", "\\left\\{ x \\right.", "\\begin{array}{c} 1 \\\\{2} \\end{array}"):
        assert one(tmp_path, {"prompt": "x", "answer": answer}).answer == answer


def test_the_same_text_is_right_however_long_and_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sobre.tasks.equality._checker", lambda: pytest.fail("asked for help"))
    assert equal("a" * 401, "a" * 401)
    assert not equal("a" * 401, "a" * 402)
    assert not equal("", "")


def test_a_slow_start_of_math_verify_is_no_judge_that_hangs() -> None:
    assert equality.START_S + equality.LIMIT_S < JUDGE_S


def test_a_reader_that_does_not_start_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr(equality, "START_S", 0.0)
    checker = Checker()
    with pytest.raises(JudgeError, match="did not start within 0 s"):
        checker.ask("x", "2x", 5.0)
    assert checker.n_timeouts == 0


def test_boxes_nest() -> None:
    assert boxed("a \\boxed{1} then \\boxed{\\frac{1}{2}} end") == "\\frac{1}{2}"
    assert boxed("\\boxed{1") is None
    assert boxed("none") is None


def test_numbers_are_compared_exactly_and_without_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sobre.tasks.equality._checker", lambda: pytest.fail("asked for help"))
    for reference, answer in (("1072", "1,072"), ("0.5", "1/2"), ("12", "$12.00"), ("-3", "-3."), ("7", "07")):
        assert equal(reference, answer)
    for reference, answer in (("1072", "1073"), ("0.5", "1/3"), ("1", "١"), ("3", "3e0" * 200)):
        assert not equal(reference, answer) if answer != "١" else read_number(answer) is None
    assert read_number("1/0") is None


@pytest.mark.slow
def test_latex_is_compared_by_math_verify_within_its_time() -> None:
    pytest.importorskip("math_verify")
    for reference, answer in (
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
        ("\\frac{1}{2}", "\\frac{2}{4}"),
        ("x^2+1", "1+x^2"),
        ("\\{1,2\\}", "\\{2,1\\}"),
    ):
        assert equal(reference, answer)
    for reference, answer in (("x^2+1", "x^2-1"), ("(1,2)", "(2,1)"), ("\\sqrt{2}", "\\sqrt{3}"), ("5", "\\frac{")):
        assert not equal(reference, answer)
    unread = Problem("set", "en", 3, "When?", "4:40 a.m.", "set:1", {"judge": "math", "solution": ""})
    assert accuracy(unread, "\\boxed{4:40 a.m.}") == 1
    with pytest.raises(
        JudgeError, match=r"of set failed on set:1, answer '4:41 a.m.': the reference '4:40 a.m.' is no"
    ):
        accuracy(unread, "\\boxed{4:41 a.m.}")
    assert compared("4:40 a.m.", "4:41 a.m.") is None
    assert not same_answer(unread, "4:40 a.m.", "4:41 a.m.")  # votes of a model, of which neither need be readable
    checker = Checker()
    assert checker.ask("2x", "x+x", 60.0)
    assert not checker.ask("1", "9^{9^{9^{9}}}" * 3, 0.0)  # no time at all: wrong, counted, and the next one is served
    assert checker.n_timeouts == 1
    assert checker.ask("2x", "x+x", 60.0)
    checker.close()


def holds() -> bool:
    try:
        run_code("pass")
    except SandboxError:
        return False
    return True


@pytest.mark.skipif(not holds(), reason="this machine has no sandbox")
def test_code_is_right_when_its_tests_come_to_their_end(tmp_path: Path) -> None:
    add, double = one(tmp_path, ADD), one(tmp_path, MBPP)
    whole = "```python\ndef add(a, b):\n    return a + b + half(0)\n```"
    assert accuracy(add, f"hm</think>{whole}") == 1
    assert accuracy(add, "    return a + b\n\nprint('more')") == 1  # a continuation, as a base model writes it
    assert accuracy(add, whole.replace("+ b", "- b")) == 0
    assert accuracy(add, "```python\nraise SystemExit(0)\n```") == 0
    assert accuracy(double, "```\ndef d(x): return x + x\n```") == 1
    assert accuracy(double, "def d(x): return x + x") == 0  # not in a block
    assert run_code("print('é')\n1 / 0", Limits(seconds=5)).stdout == "é\n"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the repository")
def test_the_references_of_real_sets_are_right() -> None:
    sets = ["gsm8k", "math500", "aime2024", "amc23", "mgsm", "humaneval", "mbpp", "mmlu", "arc_challenge"]
    for name in sets:
        problems = read_problems(find_file(name, DATA), name)
        assert len(problems) >= 30
        for problem in problems[:: max(1, len(problems) // 12)]:
            code = judge_of(problem).kind == "code"
            fence = (
                f"```python\n{problem.prompt if problem.data['entry_point'] else ''}{problem.answer}\n```"
                if code
                else ""
            )
            assert accuracy(problem, fence or f"so</think>\\boxed{{{problem.answer}}}") == 1, problem.key


def test_difficulty_is_what_is_stated_or_the_fifth_by_length(tmp_path: Path) -> None:
    stated = [
        {"prompt": f"q{i}", "answer": 1, "level": level} for i, level in enumerate(("Level 4", "Level ?", "Level 1"))
    ]
    assert [p.difficulty for p in read_problems(written(tmp_path, *stated), "set")] == [4, 3, 1]
    numbers = [{"prompt": f"q{i}", "answer": 1, "difficulty": float(i)} for i in range(7)]
    assert [p.difficulty for p in read_problems(written(tmp_path, *numbers), "set")] == [3, 1, 2, 3, 4, 5, 3]
    worked = [{"question": f"q{i}", "answer": "step " * (10 - i) + "#### 1"} for i in range(10)]
    assert [p.difficulty for p in read_problems(written(tmp_path, *worked), "set")] == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    plain = [{"prompt": "q" * (i + 1), "answer": 1} for i in range(5)]
    assert [p.difficulty for p in read_problems(written(tmp_path, *plain), "set")] == [1, 2, 3, 4, 5]
