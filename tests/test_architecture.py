"""Is the house in order? Imports point down, what must be light stays light, and every shipped recipe loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sobre.cli import VERBS
from sobre.config.load import decode, read_recipe, recipe_names
from sobre.config.recipe import Recipe

SRC = Path(__file__).resolve().parent.parent / "src" / "sobre"
LAYERS = (
    {"errors"},
    {"schemas"},
    {"config"},
    {"plan", "ledger", "runtime"},
    {"optim", "kernels", "tasks", "tokenizer"},
    {"models", "data", "parallel"},
    {"train", "engine"},
    {"rl", "preference", "eval", "serve", "report"},
    {"distill"},
    {"bench"},
    {"app"},
    {"cli"},
    {"__main__"},
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
FREE = ("sobre.models.families",)
"""Data that any package may read, like every config.py."""
ALLOWED = {("plan", "ledger"): "a plan turns hours into dollars by the ledger's list of prices"}


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of ours, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            inside = SRC.parent / (node.module or "").replace(".", "/")
            parts = [f"{node.module}.{alias.name}" for alias in node.names if inside.is_dir()]
            found += [(node.lineno, name) for name in parts or [node.module or ""]]
    return [(line, name) for line, name in found if name.startswith("sobre.")]


def breach(package: str, module: str) -> bool:
    """Whether `package` must not import `module`."""
    target = module.split(".")[1]
    free = module.startswith(FREE) or "config" in module.split(".")[2:] or target.startswith("__")
    return not free and target != package and (package, target) not in ALLOWED and LEVEL[target] >= LEVEL[package]


@pytest.mark.slow
def test_imports_point_down_only() -> None:
    files = [path for path in SRC.rglob("*.py") if path != SRC / "__init__.py"]
    breaches = [
        f"{path.relative_to(SRC)}:{line}: {package} must not import {module}"
        for path in files
        for package in [path.relative_to(SRC).parts[0].removesuffix(".py")]
        for line, module in imported(path)
        if breach(package, module)
    ]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize(
    ("package", "module", "forbidden"),
    [
        ("train", "sobre.engine.engine", True),
        ("engine", "sobre.tokenizer.tokenizer", False),
        ("models", "sobre.data.loader", True),
        ("plan", "sobre.models.config", False),
        ("plan", "sobre.models.families.llama", False),
        ("plan", "sobre.models.decoder", True),
        ("config", "sobre.rl.config", False),
        ("tasks", "sobre.app.config", False),
        ("rl", "sobre.train.batch", False),
        ("rl", "sobre.eval.score", True),
    ],
)
def test_the_rule_itself_knows_up_from_down(package: str, module: str, forbidden: bool) -> None:
    assert breach(package, module) is forbidden


def test_what_must_be_light_imports_no_torch() -> None:
    light = [path for path in SRC.rglob("config.py")]
    light += [path for package in ("config", "plan", "ledger") for path in (SRC / package).glob("*.py")]
    light += [SRC / "cli.py", SRC / "errors.py", SRC / "runtime" / "allocator.py"]
    modules = sorted({module_name(path) for path in light if path.exists()})
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_help_of_every_verb_imports_no_torch() -> None:
    code = (
        "import sys\nfrom sobre.cli import main, verbs\n"
        "for verb in verbs():\n"
        "    try:\n        code = main([verb, '--help'])\n"
        "    except SystemExit as done:\n        code = done.code\n"
        "    assert not code, (verb, code)\n"
        "    assert 'torch' not in sys.modules, verb\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_every_verb_of_app_is_in_the_table() -> None:
    modules = {path.stem for path in (SRC / "app").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert modules <= VERBS.keys()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_what_it_is(name: str) -> None:
    layer = read_recipe(name)
    recipe = decode(Recipe, [layer])
    assert recipe.name == name.rpartition("/")[2]
    header = Path(layer.origin).read_text(encoding="utf-8").partition("\n\n")[0]
    for word in ("what", "command", "hardware", "minutes", "dollars", "score"):
        assert f"# {word}:" in header, f"{layer.origin}: the header lacks `# {word}:`"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")
