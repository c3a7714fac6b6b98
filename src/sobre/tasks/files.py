"""Problems from files: GSM8K, MATH, AIME, HumanEval, MBPP, MMLU, ARC, or your own, one record a line.

.jsonl, .jsonl.gz or .parquet, here or on the hub (tasks/hub.py). The question is `prompt`, `question` or `problem`;
what else a record holds decides how it is judged: `test` or `tests` as code, `choices` as multiple choice, else
`answer` as mathematics (a solution that ends in `#### 72` is read as 72). A record that does not fit is an error that
names file and line, unless the caller takes it (`reject`) and goes on without it.

Difficulty, 1 to 5, is the `level` or `difficulty` that the records state (`Level 4`, 4.0; one that states none among
others that do is a 3), or else the fifth of the set that a problem falls in by the length of its solution, or, where
there are none, of its question.
"""

import gzip
import hashlib
import json
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sobre.errors import ConfigError, DataError
from sobre.tasks.base import Problem
from sobre.tasks.equality import MAX_CHARS
from sobre.tasks.hub import ADDRESSES, located
from sobre.tasks.judges import LETTERS
from sobre.tasks.registry import TASKS

KNOWN: Mapping[str, tuple[str, ...]] = {
    "gsm8k": ("gsm8k_test", "gsm8k_test_first_half", "gsm8k"),
    "math500": ("math500", "math_500"),
    "aime2024": ("aime2024", "aime24"),
    "aime2025": ("aime2025", "aime25"),
    "amc23": ("amc23",),
    "mgsm": ("mgsm",),
    "humaneval": ("humaneval", "HumanEval"),
    "mbpp": ("mbpp", "mbpp_sanitized_dev"),
    "mmlu": ("mmlu",),
    "arc_easy": ("arc_easy",),
    "arc_challenge": ("arc_challenge",),
}
"""Names of well-known sets, and the names their files go by, without the ending."""
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
Reject = Callable[[str], None]
UNSTATED = 0
"""Difficulty of a record that states none, until all are read."""
_HALF, _HALVES = re.compile(r"\\u[dD]"), re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\[\\{}]")
_LEVEL = re.compile(r"(?:[Ll]evel )?([1-5])(?:\.0)?")


def find_file(name: str, folder: Path) -> Path:
    """The file of a well-known set somewhere under `folder`, else from the hub."""
    stems = KNOWN.get(name, (name,))
    for stem in stems:
        for ending in ENDINGS:
            if found := sorted(folder.rglob(f"{stem}{ending}")):
                return found[0]
    if name in ADDRESSES:
        return located(ADDRESSES[name])
    missing = f"no file {' or '.join(stems)} with an ending of {', '.join(ENDINGS)} under {folder}"
    if name in KNOWN:
        raise ConfigError(f"{name}: {missing}")
    raise ConfigError(
        f"{name} is neither a generated task ({', '.join(sorted(TASKS))}) nor a well-known set ({', '.join(KNOWN)}),"
        f" and there is {missing}; NAME=PATH names a file of your own"
    )


def read_problems(path: Path, name: str, reject: Reject | None = None) -> list[Problem]:
    """All problems of a file; the set is called `name`. Raises DataError for what cannot be read.

    `reject` is told of each record that does not fit, and may raise or return; without it such a record is an error.
    """
    problems: dict[str, Problem] = {}
    places: dict[str, str] = {}
    for where, raw in _records(path):
        try:
            record = _object(raw, where)
            problem = _problem(record, name, where)
            if not _stated_id(record):
                problem = _numbered(problem, problems)
            if problem.key in problems:
                raise DataError(f"{where} has the id of {places[problem.key]}, {problem.key}")
        except DataError as error:
            if reject is None:
                raise
            reject(str(error))
            continue
        problems[problem.key], places[problem.key] = problem, where
    if not problems:
        raise DataError(f"{path} holds no problem")
    return _graded(list(problems.values()))


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record or line of JSON) of each record."""
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
        return
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{path}: problems are read from {', '.join(ENDINGS)}")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    yield from ((f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _object(raw: Any, where: str) -> Mapping[str, Any]:
    """A record that was read, or a line of JSON, as an object."""
    try:
        record = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
        raise DataError(f"{where} is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} is {type(record).__name__}, not an object")
    if isinstance(raw, str) and _HALF.search(raw) and _HALVES.search(json.dumps(record, ensure_ascii=False)):
        raise DataError(f"{where} holds half of a character (\\ud800 to \\udfff alone), which is no text")
    return record


def _problem(record: Mapping[str, Any], name: str, where: str) -> Problem:
    prompt = _text(record, ("prompt", "question", "problem"), where)
    if "test" in record or "tests" in record or "test_list" in record:
        answer, data = _code(record, where)
    elif "choices" in record:
        answer, data = _choice(record, where)
    else:
        answer, data = _math(record, where)
    key = str(_stated_id(record) or hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest())
    level = _LEVEL.fullmatch(str(record.get("level") or record.get("difficulty")))
    difficulty = int(level[1]) if level else UNSTATED
    lang = record.get("lang") or "en"
    if not isinstance(lang, str):
        raise DataError(f"{where}: lang must be text such as en, not {lang!r:.60}")
    return Problem(name, lang, difficulty, prompt, answer, f"{name}:{key}", data)


def _stated_id(record: Mapping[str, Any]) -> Any:
    return record.get("id") or record.get("task_id")


def _numbered(problem: Problem, others: Mapping[str, Problem]) -> Problem:
    """Tell apart the records without an id that ask the same (MMLU has a hundred): key, key#2, key#3."""
    number, key = 1, problem.key
    while key in others:
        number += 1
        key = f"{problem.key}#{number}"
    return replace(problem, key=key)


def _graded(problems: Sequence[Problem]) -> list[Problem]:
    """Give a difficulty to those that state none."""
    if any(problem.difficulty != UNSTATED for problem in problems):
        return [problem if problem.difficulty != UNSTATED else replace(problem, difficulty=3) for problem in problems]
    lengths = [len(_worked(problem)) for problem in problems]
    if not all(lengths):
        lengths = [len(problem.prompt) for problem in problems]
    order = sorted(range(len(problems)), key=lambda i: lengths[i])
    fifth = {i: 1 + 5 * place // len(problems) for place, i in enumerate(order)}
    return [replace(problem, difficulty=fifth[i]) for i, problem in enumerate(problems)]


def _worked(problem: Problem) -> str:
    """The worked solution of a problem; for code, the reference code."""
    return problem.answer if problem.data["judge"] == "code" else str(problem.data.get("solution", ""))


def _text(record: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if value is not None:
            raise DataError(f"{where}: {name} must be text that is not empty, not {value!r:.60}")
    held = ", ".join(f"{key} (null)" if value is None else key for key, value in record.items())
    raise DataError(f"{where} has no {' or '.join(names)}; it has {held or 'nothing'}")


def _math(record: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    value = record.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"{where}: answer is {value}, which no response can equal")
        record = {**record, "answer": str(value)}
    answer, solution = _text(record, ("answer",), where), str(record.get("solution") or "")
    if "####" in answer:
        worked, _, answer = answer.rpartition("####")
        solution = solution or worked.strip()
    answer = answer.strip()
    if not answer:
        raise DataError(f"{where}: nothing follows the #### of its answer")
    if len(answer) > MAX_CHARS:
        raise DataError(f"{where}: answer has {len(answer):,} characters; up to {MAX_CHARS} are compared")
    braces = _ESCAPED.sub("", answer)
    if braces.count("{") != braces.count("}"):
        raise DataError(f"{where}: answer has braces that do not close: {answer!r:.60}")
    return answer, {"judge": "math", "solution": solution}


def _choice(record: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    choices, answer = record["choices"], record.get("answer", record.get("answerKey"))
    if isinstance(choices, dict):
        labels, choices = choices.get("label"), choices.get("text")
        if isinstance(labels, list) and answer in labels:  # ARC: A to E of most questions, 1 to 4 of some
            answer = labels.index(answer)
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where}: choices must be a list of 2 to {len(LETTERS)}, not {choices!r:.60}")
    texts = [_choice_text(choice, where) for choice in choices]
    if len(set(texts)) == 1:
        raise DataError(f"{where}: all choices say {texts[0]!r:.60}; there is nothing to choose")
    letters = LETTERS[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        answer = letters[answer]
    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        raise DataError(f"{where}: answer must be one of {', '.join(letters)} or 0..{len(choices) - 1}, not {answer!r}")
    return answer, {"judge": "choice", "choices": texts}


def _choice_text(choice: Any, where: str) -> str:
    if isinstance(choice, int | float) and not isinstance(choice, bool):
        return str(choice)
    if not isinstance(choice, str) or not choice.strip():
        raise DataError(f"{where}: a choice must be text that is not empty, not {choice!r:.60}")
    return choice


def _code(record: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    answer = str(record.get("answer") or record.get("canonical_solution") or record.get("code") or "")
    entry = record.get("entry_point", "")
    if "test" in record:
        test = _text(record, ("test",), where)
        if not isinstance(entry, str) or not entry.isidentifier():
            raise DataError(f"{where}: a test needs entry_point, the name of the function, not {entry!r}")
        _compile(test, where)
        head = _text(record, ("prompt", "question", "problem"), where).partition(f"def {entry}(")[0]
        return answer, {
            "judge": "code",
            "entry_point": entry,
            "test": f"{test}\ncheck({entry})",
            "shown": [],
            "head": head,
        }
    tests = record.get("tests", record.get("test_list"))
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise DataError(f"{where}: tests must be a list of assert lines, not {tests!r:.60}")
    imports, before = record.get("test_imports") or [], record.get("test_setup") or record.get("test_setup_code") or ""
    if not isinstance(imports, list) or not all(isinstance(part, str) for part in (*imports, before)):
        raise DataError(f"{where}: test_imports must be a list of lines, and test_setup text")
    test = "\n".join([*imports, before, *tests])
    _compile(test, where)
    return answer, {"judge": "code", "entry_point": "", "test": test, "shown": tests, "head": ""}


def _compile(test: str, where: str) -> None:
    """Refuse tests that no code could pass, since they are no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(test, where, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte
        raise DataError(f"{where}: its tests are no Python: {error}") from None
