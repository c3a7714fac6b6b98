import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from pydantic import Field

from sobre.config.base import config
from sobre.config.load import ABSENT, decode, diff, load, load_with, merge, read_recipe, to_dict, to_json
from sobre.errors import ConfigError


@config
class Round:
    kind: Literal["round"] = "round"
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ConfigError(f"radius={self.radius} must be above 0")


@config
class Square:
    kind: Literal["square"] = "square"
    side_len: int = 2


Shape = Annotated[Round | Square, Field(discriminator="kind")]


@config
class Plate:
    """A plate."""

    name: str = "plate"
    n_holes: int = 3
    is_flat: bool = True
    colours: tuple[str, ...] = ("red", "blue")
    shape: Shape = Round()


@config
class Options:
    out: str = ""
    resume: bool = False


@config
class Positional:
    model: tyro.conf.Positional[str]
    n: int = 1


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped").mkdir()

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return name

    return write


def test_recipes_compose_left_to_right_and_flags_come_last(write) -> None:
    a = write("a.toml", 'name = "a"\nn_holes = 5\ncolours = ["green"]\n[shape]\nradius = 4')
    b = write("b.toml", 'n_holes = 6\ncolours = ["black", "white"]')
    plate = load(Plate, [a, b, "--name", "c"])
    assert plate == Plate(name="c", n_holes=6, colours=("black", "white"), shape=Round(radius=4.0))


def test_the_kind_of_the_recipe_chooses_the_variant_whose_flags_exist(write, capsys) -> None:
    square = write("square.toml", '[shape]\nkind = "square"\nside_len = 9')
    assert load(Plate, [square, "--shape.side-len", "4"]).shape == Square(side_len=4)
    assert load(Plate, [square, "--shape.side_len=4"]).shape == Square(side_len=4)
    with pytest.raises(SystemExit) as stop:
        load(Plate, [square, "--shape.radius", "4"])
    assert stop.value.code == 2


def test_a_table_of_another_kind_starts_afresh() -> None:
    left = {"shape": {"kind": "round", "radius": 5.0}, "n": 1}
    assert merge(left, {"shape": {"kind": "square"}}) == {"shape": {"kind": "square"}, "n": 1}
    assert merge(left, {"shape": {"colour": 1}}) == {"shape": {"kind": "round", "radius": 5.0, "colour": 1}, "n": 1}


def test_every_fault_is_named_at_once_with_its_file_and_path(write) -> None:
    good = write("good.toml", "n_holes = 4")
    bad = write("bad.toml", 'nholes = 1\nn_holes = "7"\nis_flat = 1\ncolours = [3]\n[shape]\nradus = 2\nradius = true')
    with pytest.raises(ConfigError) as fault:
        load(Plate, [good, bad])
    message = str(fault.value)
    assert message.startswith("6 settings cannot be")
    for line in (
        "bad.toml: nholes: unknown key; perhaps n_holes",
        'bad.toml: n_holes: input should be a valid integer, not "7"',
        "bad.toml: is_flat: input should be a valid boolean, not 1",
        "bad.toml: colours.0: input should be a valid string, not 3",
        "bad.toml: shape.radus: unknown key; perhaps shape.radius",
        "bad.toml: shape.radius: input should be a valid number, not true",
    ):
        assert line in message, message
    assert "good.toml" not in message


def test_a_key_at_the_wrong_place_is_shown_its_place(write) -> None:
    with pytest.raises(ConfigError, match=r"radius: unknown key; perhaps shape\.radius"):
        load(Plate, [write("a.toml", "radius = 2")])
    with pytest.raises(ConfigError, match="zzz: unknown key; the recipe has name, n_holes"):
        load(Plate, [write("b.toml", "zzz = 2")])


def test_an_unknown_kind_names_the_kinds(write) -> None:
    with pytest.raises(ConfigError, match=r"a.toml: shape: .*'round', 'square'"):
        load(Plate, [write("a.toml", '[shape]\nkind = "oval"')])


def test_a_check_between_fields_is_reported_with_its_path(write) -> None:
    with pytest.raises(ConfigError, match=r"a\.toml: shape: radius=-1.0 must be above 0"):
        load(Plate, [write("a.toml", "[shape]\nradius = -1.0")])


@pytest.mark.parametrize("flags", [["--n-holes", "x"], ["--n-hols", "3"], ["--shape.radius", "-1"]])
def test_a_wrong_flag_ends_with_exit_code_2_and_an_explanation(flags: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        load(Plate, flags)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert "n-holes" in shown.err or "radius=-1.0 must be above 0" in shown.err


def test_a_file_that_exists_wins_over_a_shipped_recipe(write, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    write("shipped/demo.toml", "n_holes = 1")
    for spelling in ("demo", "demo.toml", "recipes/demo", "recipes/demo.toml"):
        assert load(Plate, [spelling], recipes=shipped).n_holes == 1
    write("demo.toml", "n_holes = 2")
    assert load(Plate, ["demo.toml"], recipes=shipped).n_holes == 2
    assert load(Plate, ["demo"], recipes=shipped).n_holes == 1


def test_an_unknown_recipe_shows_the_near_ones(write, tmp_path: Path) -> None:
    write("shipped/demo.toml", "")
    write("shipped/zero.toml", "")
    with pytest.raises(ConfigError, match="no recipe 'demmo'.*perhaps demo$"):
        load(Plate, ["demmo"], recipes=tmp_path / "shipped")
    with pytest.raises(ConfigError, match="there are demo, zero"):
        load(Plate, ["xxxxxxxx"], recipes=tmp_path / "shipped")


@pytest.mark.parametrize(("name", "text"), [("a.toml", "n_holes = "), ("a.json", "{"), ("a.json", "[1]")])
def test_a_file_that_is_no_recipe_is_named(write, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(Plate, [write(name, text)])


def test_what_is_saved_is_read_back_the_same(tmp_path: Path) -> None:
    plate = Plate(name="é", shape=Square(side_len=7), colours=())
    (tmp_path / "config.json").write_text(to_json(plate))
    assert decode(Plate, [read_recipe(str(tmp_path / "config.json"))]) == plate
    assert json.loads(to_json(plate)) == {"schema": 1, **to_dict(plate)}


def test_a_config_of_another_version_is_refused(write) -> None:
    with pytest.raises(ConfigError, match="another version"):
        load(Plate, [write("config.json", '{"schema": 2}')])


def test_diff_names_every_setting_that_differs() -> None:
    assert diff(Plate(), Plate()) == {}
    assert diff(Plate(n_holes=1), Plate(shape=Square())) == {
        "n_holes": (1, 3),
        "shape.kind": ("round", "square"),
        "shape.radius": (1.0, ABSENT),
        "shape.side_len": (ABSENT, 2),
    }


def test_options_and_shortcuts_stand_beside_the_recipe() -> None:
    short = {"--paint": "--colours", "--holes": "--n-holes"}
    argv = ["--paint", "a", "b", "--holes=8", "--resume"]
    plate, options = load_with(Plate, Options, argv, shortcuts=short)
    assert (plate.colours, plate.n_holes, options) == (("a", "b"), 8, Options(resume=True))
    assert load_with(Plate, Options, []) == (Plate(), Options())


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--piant", "perhaps --paint"), ("--piant=red", "perhaps --paint"), ("--hole", "perhaps --holes or --n-holes")],
)
def test_a_flag_that_is_nearly_a_short_one_is_told_that(flag: str, said: str) -> None:
    short = {"--paint": "--colours", "--holes": "--n-holes"}
    with pytest.raises(ConfigError, match=f"^no flag {flag.partition('=')[0]}; {said}$"):
        load_with(Plate, Options, [flag, "3"], shortcuts=short)


def test_positionals_are_no_recipes() -> None:
    assert load(Positional, ["out/x", "--n", "2"], recipes=None) == Positional(model="out/x", n=2)
    with pytest.raises(SystemExit):
        load(Positional, [], recipes=None)


@pytest.mark.parametrize(
    ("flags", "sections", "expected"),
    [
        (["--n-holes", "7"], ["n_holes"], {"n_holes": 7}),
        (
            ["--n_holes=7", "--resume", "--shape.radius", "2"],
            ["n_holes", "shape"],
            {"n_holes": 7, "shape": Round(radius=2.0)},
        ),
        (["--resume", "--out", "x"], [], {}),
        (["--no-is-flat"], ["name", "n_holes", "is_flat", "colours", "shape"], {"is_flat": False}),
        (["--colours", "green", "red"], ["colours"], {"colours": ("green", "red")}),
    ],
)
def test_only_the_sections_that_flags_name_are_parsed_and_nothing_else_changes(flags, sections, expected, monkeypatch):
    asked: list[list[str]] = []
    cli = tyro.cli

    def watched(both, *, default, **more):
        asked.append(list(vars(default.recipe)))
        return cli(both, default=default, **more)

    monkeypatch.setattr(tyro, "cli", watched)
    plate, _ = load_with(Plate, Options, flags)
    assert asked == [sections]
    assert plate == Plate(**expected)
