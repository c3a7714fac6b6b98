"""Do the documents tell the truth? What they link to, name, type or letter exists; nothing here trains or serves."""

import ast
import io
import re
import shlex
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from sobre import __all__ as PUBLIC
from sobre.app import (
    begin,
    bench,
    chat,
    config,
    convert,
    distill,
    doctor,
    launch,
    ledger,
    plan,
    report,
    run,
    serve,
    stage,
)
from sobre.app import eval as evaluation
from sobre.bench.config import TRAIN_CONTESTANTS
from sobre.cli import verbs
from sobre.config.load import Layer, decode, load, read_recipe, to_json
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "sobre"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
NAME = re.compile(r"(?:[a-z_]+/)*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
CALL = re.compile(r"(?<![/\w])([a-z_]+)/([a-z_0-9]+)\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
SHAPED = re.compile(r"_*[a-z]\w*_([A-Z][A-Z0-9]*r?)")
OUR_FOLDERS = ("src", "tests", "docs", "scripts")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return COMMENT.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text_of(page)) if name == language]


def spans(page: Path) -> list[str]:
    return SPAN.findall(FENCE.sub("", text_of(page)))


def typed(page: Path) -> Iterator[list[str]]:
    """Every command that the page shows, in words, comments taken off."""
    lines: list[str] = [line.strip() for _, body in FENCE.findall(text_of(page)) for line in body.splitlines()]
    for line in [*lines, *(span for span in spans(page) if span not in TRAIN_CONTESTANTS)]:
        for command in line.split(" && "):
            if re.match(r"(\.venv/bin/)?(sobre|make) \S", command) and "VERB" not in command:
                yield shlex.split(command.removeprefix(".venv/bin/"), comments=True)


@cache
def words() -> frozenset[str]:
    """Every word of code, recipes and build files, and their names; of the tests too, but not of this one."""
    files = [path for folder in ("src", "tests", "scripts") for path in (ROOT / folder).rglob("*")]
    files = [path for path in files if path.is_file() and path.parent.name != "__pycache__"]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml"]
    names = " ".join(str(path.relative_to(ROOT)) for path in [*files, *PAGES])
    kinds = {".py", ".toml", ".js", ".html", ".jinja", ".json", ""}
    texts = (path.read_text(encoding="utf-8") for path in files if path.suffix in kinds and path != Path(__file__))
    return frozenset(word for text in (names, *texts) for word in re.findall(r"\w+", text))


@cache
def defined(path: Path) -> frozenset[str]:
    """Names that a module defines, at any depth: functions, classes, methods, fields, attributes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.alias():
                found.add(node.asname or node.name.rpartition(".")[2])
    return frozenset(found)


@cache
def shaped() -> dict[str, set[str]]:
    """Letters of the shapes that each file of the package names."""
    found: dict[str, set[str]] = {}
    for path in SRC.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [getattr(node, kind) for node in nodes for kind in ("id", "arg", "attr") if hasattr(node, kind)]
        shapes = [match[1] for name in names if isinstance(name, str) and (match := SHAPED.fullmatch(name))]
        if shapes:
            found[path.relative_to(SRC).as_posix()] = {
                letter for shape in shapes for letter in shape if not letter.isdigit()
            }
    return found


@each_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = [target for target, _ in LINK.findall(CODE.sub("", text_of(page))) if not re.match(r"[a-z]+:", target)]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.relative_to(ROOT)} links to {', '.join(missing)}"


@each_page
def test_every_name_in_the_text_is_a_name_in_the_code(page: Path) -> None:
    unknown = [span for span in spans(page) if NAME.fullmatch(span) and not {*re.findall(r"\w+", span)} <= words()]
    assert not unknown, f"{page.relative_to(ROOT)} names {', '.join(unknown)}"


@each_page
def test_every_file_of_ours_in_the_text_is_there(page: Path) -> None:
    paths = [
        span for span in spans(page) if span.partition("/")[0] in OUR_FOLDERS and re.fullmatch(r"[\w./-]+\w", span)
    ]
    made_by_the_reader = {"src/sobre/models/families/NAME.py", "src/sobre/tasks/doubles.py"}
    missing = [path for path in paths if not (ROOT / path).exists() and path not in made_by_the_reader]
    assert not missing, f"{page.relative_to(ROOT)} names {', '.join(missing)}"


def test_the_lifecycle_follows_calls_that_are_there() -> None:
    calls = CALL.findall("\n".join(blocks(ROOT / "docs" / "lifecycle.md", "")))
    assert len(calls) > 40
    missing = []
    for package, module, names in calls:
        path = SRC / package / f"{module}.py"
        if not path.is_file() or not {*names.split(".")} <= defined(path):
            missing.append(f"{package}/{module}.{names}")
    assert not missing, ", ".join(missing)


@pytest.mark.slow
def test_every_letter_of_a_shape_is_explained() -> None:
    page = text_of(ROOT / "docs" / "shapes.md")
    alphabet = set(re.findall(r"^\| (\w) \|", page, re.MULTILINE))
    rows = re.findall(r"^\| `([\w/.]+)` \| (.*) \|$", page, re.MULTILINE)
    local = {file: set(re.findall(r"(?:^|[;,] |or |and )([A-Zr]) ", text)) for file, text in rows}
    unknown = {file: letters - alphabet - local.get(file, set()) for file, letters in shaped().items()}
    assert not {file: letters for file, letters in unknown.items() if letters}
    idle = {file: letters - shaped().get(file, set()) for file, letters in local.items()}
    assert not {file: letters for file, letters in idle.items() if letters}, "explained, and not there (any more)"


@pytest.fixture
def in_a_folder_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the files that the commands name exist."""
    (tmp_path / "mine.toml").write_text('name = "mine"\n')
    for name in ("demo", "demo-2"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "config.json").write_text(to_json(Recipe()))
    monkeypatch.chdir(tmp_path)


def read(verb: str, argv: list[str]) -> object:
    """Read a command line as its verb does, and do nothing."""
    if verb == "plan":
        return plan.read(argv)
    with_recipe: dict[str, type] = {"run": run.RunOptions}
    plain: dict[str, type] = {
        "chat": chat.ChatConfig,
        "serve": serve.ServeConfig,
        "ledger": ledger.LedgerOptions,
        "report": report.ReportOptions,
        "convert": convert.ConvertOptions,
        "doctor": doctor.DoctorOptions,
        "eval": evaluation.EvalOptions,
    }
    if verb in with_recipe:
        return load_recipe(argv, with_recipe[verb], shortcuts=run.SHORT_FLAGS)
    if verb == "launch":
        return argv[0] in launch.SYSTEMS and load_recipe(argv[1:], launch.LaunchOptions, shortcuts=run.SHORT_FLAGS)
    if verb in ("pretrain", "sft", "rl", "dpo"):
        return stage.read(verb, argv)
    if verb in ("tokenizer", "data"):
        return begin.read(verb, argv)
    if verb == "distill":
        return distill.read(argv)
    if verb in plain:
        return load(plain[verb], argv, recipes=None)
    if verb == "bench":
        return argv[0] == "all" or load(bench.SCHEMAS[argv[0]], argv[1:], recipes=None)
    assert verb == "config", f"this test cannot read `sobre {verb}`; tell it how"
    if argv[0] == "show":
        return load_recipe(argv[1:], config.ShowOptions)
    assert argv[0] in ("diff", "check")
    return [decode(Recipe, [read_recipe(name)]) for name in argv[1:]]


@pytest.mark.usefixtures("in_a_folder_with_runs")
@each_page
@pytest.mark.slow
def test_every_command_can_be_typed(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wrong = []
    for program, first, *rest in typed(page):
        if program == "make":
            if first not in targets:
                wrong.append(f"make {first}")
        elif not first.startswith("-") and (first not in verbs() or (rest and not accepted(read, first, rest))):
            wrong.append(shlex.join(["sobre", first, *rest]))
    assert not wrong, f"{page.relative_to(ROOT)} shows {'; '.join(wrong)}"


def accepted(read: Callable[[str, list[str]], object], verb: str, argv: list[str]) -> bool:
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            read(verb, argv)
    except (ConfigError, SystemExit, KeyError):
        return False
    return True


@each_page
def test_every_recipe_in_a_page_is_a_recipe(page: Path) -> None:
    for body in blocks(page, "toml"):
        decode(Recipe, [Layer(str(page), tomllib.loads(body))])


@each_page
def test_python_in_a_page_parses_and_imports_what_is_there(page: Path) -> None:
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(textwrap.dedent(body))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sobre"):
                home = SRC.parent / (node.module or "").replace(".", "/")
                source = home / "__init__.py" if home.is_dir() else home.with_suffix(".py")
                for name in (alias.name for alias in node.names):
                    there = (home / f"{name}.py").is_file() or (source.is_file() and name in defined(source))
                    assert there, f"{page.relative_to(ROOT)}: from {node.module} import {name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sobre":
                assert node.attr in PUBLIC, f"{page.relative_to(ROOT)}: sobre.{node.attr}"
