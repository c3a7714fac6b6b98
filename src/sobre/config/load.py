"""From a command line to a checked configuration, and back to data.

    sobre run demo mine.toml --model.attention.n-heads 8

Leading arguments are recipes: names of shipped ones, TOML files, or the config.json of a run. They compose left to
right: tables merge, lists replace, and a table whose `kind` changes starts afresh. pydantic decodes the result
strictly (true is no integer, "7" neither) and names every wrong key at once, with its file. What follows are dotted
flags, read by tyro on top of the recipes; they set values, and the variant of a union (`kind`) is the recipe's choice.
Wrong input is a ConfigError, or tyro's own framed message; both end with exit code 2.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, make_dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError

from sobre.errors import ConfigError
from sobre.schemas import VERSION

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
ABSENT = "(absent)"
"""Stands in `diff` for a key that one side does not have."""

S = TypeVar("S")
O = TypeVar("O")  # noqa: E741  the options of one verb
Tree = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """One recipe: where it came from and what it says."""

    origin: str
    tree: Tree


@dataclass(frozen=True)
class NoOptions:
    """A verb without flags of its own."""


def load(schema: type[S], argv: Sequence[str], *, recipes: Path | None = RECIPES, prog: str | None = None) -> S:
    """Build `schema` from recipes and flags.

    With `recipes=None` there are no recipes and leading arguments fill the schema's positionals, as in
    `sobre chat out/demo/rl --max-tokens 100` with a field `model: tyro.conf.Positional[str]`.
    """
    if recipes is not None:
        return load_with(schema, NoOptions, argv, recipes=recipes, prog=prog)[0]
    return tyro.cli(schema, args=list(argv), prog=prog, config=(tyro.conf.AvoidSubcommands,))


def load_with(
    schema: type[S],
    options: type[O],
    argv: Sequence[str],
    *,
    recipes: Path = RECIPES,
    shortcuts: Mapping[str, str] | None = None,
    prog: str | None = None,
) -> tuple[S, O]:
    """Build `schema` from recipes and flags, and `options`, the flags of the verb that are no part of the recipe.

    Example: load_with(Recipe, RunOptions, ["demo", "--budget", "5m", "--resume"],
                       shortcuts={"--budget": "--budget.amount"}).
    """
    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    base = decode(schema, [read_recipe(name, recipes) for name in names])
    _check_short(argv[len(names) :], schema, options, shortcuts or {})
    flags = [_expand(argument, shortcuts or {}) for argument in argv[len(names) :]]
    if not flags:
        return base, options()
    part, chosen = _named(schema, base, options, flags)
    both = make_dataclass(
        "Both",
        [(name, Annotated[one, tyro.conf.arg(name="")]) for name, one in (("recipe", part), ("options", options))],
        frozen=True,
        kw_only=True,
    )
    parsed: Any = tyro.cli(
        both,
        default=both(recipe=chosen, options=options()),
        args=flags,
        prog=prog,
        description=_description(schema, recipes, shortcuts or {}),
        config=(tyro.conf.AvoidSubcommands,),
    )
    said = to_dict(base) | to_dict(parsed.recipe)
    return decode(schema, [Layer("command line", said)]), parsed.options


def _named(schema: type, base: Any, options: type, flags: Sequence[str]) -> tuple[type, Any]:
    """The sections of the schema that flags name, as a class of its own, with their values.

    A parser of every setting takes most of a second to build. Where help is asked for, or a flag belongs to none of the
    sections, it is the whole schema, so that all of it is shown and near ones are found.
    """
    wanted = {flag.partition("=")[0].partition(".")[0] for flag in flags if flag.startswith("-")}
    own = {f"--{field.name}".replace("_", "-") for field in fields(options)}
    sections = {f"--{field.name}".replace("_", "-"): field.name for field in fields(schema)}
    names = [name for flag, name in sections.items() if flag in {one.replace("_", "-") for one in wanted}]
    if len(names) < len({one.replace("_", "-") for one in wanted} - own):
        return schema, base
    hints = get_type_hints(schema, include_extras=True)
    part = make_dataclass(schema.__name__, [(name, hints[name]) for name in names], frozen=True, kw_only=True)
    return part, part(**{name: getattr(base, name) for name in names})


def decode(schema: type[S], layers: Sequence[Layer]) -> S:
    """Merge the layers over the schema's defaults and check the result; report every fault with its path and file."""
    defaults = _defaults(schema)
    tree = defaults
    for layer in layers:
        tree = merge(tree, layer.tree)
    try:
        return cast(S, _adapter(cast(Any, schema)).validate_json(json.dumps(tree, default=str), strict=True))
    except ValidationError as error:
        faults = [_explain(fault, schema, tree, defaults, layers) for fault in error.errors()]
    head = "this setting cannot be" if len(faults) == 1 else f"{len(faults)} settings cannot be"
    raise ConfigError("\n  ".join([f"{head}:", *faults]))


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    """pydantic's reader of a schema; to build one takes longer than to read with it."""
    return TypeAdapter(schema)


def merge(left: Tree, right: Tree) -> Tree:
    """`right` over `left`: tables merge, everything else replaces; a table of another `kind` replaces too."""
    merged = dict(left)
    for key, value in right.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def read_recipe(name: str, recipes: Path = RECIPES) -> Layer:
    """Read a recipe by path (a file that exists wins) or by the name of a shipped one."""
    path = find_recipe(name, recipes)
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:  # tomllib and json raise ValueErrors that name line and column
        raise ConfigError(f"{path}: not a readable recipe: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a table of settings, and this is a {type(tree).__name__}")
    if path.suffix == ".json" and tree.pop("schema", VERSION) != VERSION:
        raise ConfigError(f"{path}: written by another version of sobre; this one reads schema {VERSION}")
    return Layer(str(path), tree)


def find_recipe(name: str, recipes: Path = RECIPES) -> Path:
    """Where recipe `name` lies. A leading `recipes/` and the `.toml` are optional for shipped ones."""
    path = Path(name)
    if path.suffix in (".toml", ".json") and path.is_file():
        return path
    bare = name.removeprefix("recipes/").removesuffix(".toml")
    shipped = recipe_names(recipes)
    if bare in shipped:
        return recipes / f"{bare}.toml"
    if path.suffix == ".json":
        raise ConfigError(f"no file {name}")
    near = difflib.get_close_matches(bare, shipped, n=3, cutoff=0.5)
    wanted = f"perhaps {' or '.join(near)}" if near else f"there are {', '.join(shipped) or 'none here'}"
    raise ConfigError(f"no recipe {name!r}, neither as a file nor among the shipped ones; {wanted}")


def recipe_names(recipes: Path = RECIPES) -> list[str]:
    """Names of the shipped recipes, e.g. "demo" or "rl/gsm8k"."""
    return sorted(path.relative_to(recipes).with_suffix("").as_posix() for path in recipes.rglob("*.toml"))


def to_dict(cfg: Any) -> Tree:
    """The configuration as JSON data: nested dicts, lists, numbers, strings."""
    return cast(Tree, json.loads(json.dumps(asdict(cfg))))


def to_json(cfg: Any) -> str:
    """The configuration as one JSON document that `read_recipe` reads back."""
    return json.dumps({"schema": VERSION, **to_dict(cfg)}, indent=2, ensure_ascii=False)


def diff(left: Any, right: Any) -> dict[str, tuple[Any, Any]]:
    """Where two configurations differ: dotted path -> (left, right)."""
    a, b = dict(leaves(to_dict(left))), dict(leaves(to_dict(right)))
    pairs = {path: (a.get(path, ABSENT), b.get(path, ABSENT)) for path in (*a, *b)}
    return {path: (x, y) for path, (x, y) in pairs.items() if x != y}


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of the tree as (dotted path, value)."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _defaults(schema: type) -> Tree:
    """The tree of the schema's defaults; keys without one are left out."""
    tree: Tree = {}
    for field in fields(schema):
        if field.default is not MISSING:
            value = field.default
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            continue
        tree[field.name] = to_dict(value) if is_dataclass(value) else value
    return tree


def _explain(fault: Any, schema: type, tree: Tree, defaults: Tree, layers: Sequence[Layer]) -> str:
    """One line for one fault of pydantic: file, dotted path, what is wrong, what would fit."""
    path = _path_in(tree, fault["loc"])
    dotted = ".".join(map(str, path))
    origin = next((layer.origin for layer in reversed(layers) if _holds(layer.tree, path)), "defaults")
    where = f"{origin}: {dotted}" if dotted else origin
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: unknown key; {_suggest(path, schema, tree, defaults)}"
    if fault["type"] == "value_error":
        return f"{where}: {fault['ctx']['error']}"
    got = "" if isinstance(fault["input"], dict) else f", not {json.dumps(fault['input'], default=str)}"
    return f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}{got}"


def _path_in(tree: Any, loc: tuple[Any, ...]) -> list[Any]:
    """pydantic's location without the tags of unions, which are no keys of the tree."""
    path: list[Any] = []
    for i, key in enumerate(loc):
        if isinstance(tree, dict) and key in tree:
            tree = tree[key]
        elif isinstance(tree, list) and isinstance(key, int):
            tree = tree[key]
        elif i < len(loc) - 1 or isinstance(tree, dict) and key == tree.get("kind"):
            continue
        path.append(key)
    return path


def _holds(tree: Any, path: Sequence[Any]) -> bool:
    for key in path:
        if isinstance(key, int):
            return isinstance(tree, list)
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _suggest(path: Sequence[Any], schema: type, tree: Tree, defaults: Tree) -> str:
    """Near keys of the same table, or the same key elsewhere in the tree, or all the keys there are."""
    *parents, key = path
    prefix = "".join(f"{parent}." for parent in parents)
    home = _class_at(schema, tree, parents)
    known = [field.name for field in fields(home)] if home else []
    near = [prefix + name for name in difflib.get_close_matches(str(key), known, n=3)]
    near += [place for place, _ in leaves(defaults) if place.rpartition(".")[2] == key]
    if near:
        return f"perhaps {' or '.join(near)}"
    return f"{prefix.rstrip('.') or 'the recipe'} has {', '.join(known)}"


def _class_at(schema: Any, tree: Any, path: Sequence[Any]) -> Any:
    """The configuration class that stands at `path`, the variant of a union chosen by the tree's `kind`."""
    for key in path:
        tree = tree[key]
        if isinstance(key, int):
            continue
        hint = get_type_hints(schema)[key]
        variants = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        kind = tree.get("kind") if isinstance(tree, dict) else None
        schema = next((part for part in variants if getattr(part, "kind", None) == kind), None)
        if schema is None:
            return None
    return schema


def _check_short(flags: Sequence[str], schema: type, options: type, shortcuts: Mapping[str, str]) -> None:
    """Refuse a flag that is nearly a short one: of these the parser knows nothing, and could suggest none."""
    known = {f"--{field.name}".replace("_", "-") for cls in (schema, options) for field in fields(cls)}
    for argument in flags:
        given = argument.partition("=")[0]
        flag = given.replace("_", "-")
        if not flag.startswith("--") or "." in flag or flag in known or flag in shortcuts:
            continue
        near = difflib.get_close_matches(flag, {*shortcuts, *known}, n=3, cutoff=0.7)
        if set(near) & set(shortcuts):
            raise ConfigError(f"no flag {given}; perhaps {' or '.join(near)}")


def _expand(argument: str, shortcuts: Mapping[str, str]) -> str:
    """`--budget` or `--budget=5m` spelt in full."""
    flag, equals, value = argument.partition("=")
    return shortcuts.get(flag, flag) + equals + value if flag in shortcuts else argument


def _description(schema: type, recipes: Path, shortcuts: Mapping[str, str]) -> str:
    shipped = ", ".join(recipe_names(recipes))
    about = f"{(schema.__doc__ or '').strip()} Recipes come first and compose left to right: {shipped}, or files."
    return " ".join([about, *(f"{short} stands for {full}." for short, full in shortcuts.items())])
