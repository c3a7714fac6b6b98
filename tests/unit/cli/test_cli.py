import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jsonschema
import pytest

from sobre import __version__, cli
from sobre.errors import ConfigError, RunError
from sobre.schemas import schema


def stub(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """Make `sobre plan` a verb that raises `error`, or returns 0."""

    def main(argv: list[str]) -> int:
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr(cli, "verbs", lambda: {"plan": "", "pretrain": ""})
    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=main))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ConfigError("no such thing"), 2),
        (RunError("disk full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_went_wrong_is_one_line_and_an_exit_code(error, code, monkeypatch, capsys) -> None:
    stub(monkeypatch, error)
    assert cli.main(["plan"]) == code
    shown = capsys.readouterr()
    assert not shown.out
    assert len(shown.err.splitlines()) == (code != 0)
    assert code not in (1, 2) or shown.err == f"sobre plan: {error}\n"


def test_debug_shows_where_it_happened(monkeypatch, capsys) -> None:
    stub(monkeypatch, RunError("disk full"))
    monkeypatch.setenv("SOBRE_DEBUG", "1")
    assert cli.main(["plan"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_of_ours_is_not_hidden(monkeypatch) -> None:
    stub(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


def test_an_unknown_verb_shows_the_near_ones(monkeypatch, capsys) -> None:
    stub(monkeypatch, None)
    assert cli.main(["pretrian"]) == 2
    assert "no verb 'pretrian'; perhaps pretrain" in capsys.readouterr().err
    assert cli.main(["xyz"]) == 2
    assert "there are plan, pretrain" in capsys.readouterr().err


def test_help_lists_the_verbs_and_no_arguments_are_asked_wrongly(capsys) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in cli.verbs())
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"sobre {__version__}\n")


def test_python_m_sobre_is_sobre() -> None:
    done = subprocess.run([sys.executable, "-m", "sobre", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no verb 'nothing'" in done.stderr


@pytest.mark.parametrize("argv", [["check", "nano"], ["show"]], ids=["short", "long"])
def test_a_reader_that_leaves_early_meets_no_traceback(argv: list[str]) -> None:
    command = [sys.executable, "-m", "sobre", "config", *argv]
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(write)
    assert done.returncode == 1
    assert not done.stderr


def test_config_show_prints_a_recipe_that_reads_back(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "show", "--seed", "5"]) == 0
    (tmp_path / "again.toml").write_text(capsys.readouterr().out)
    assert cli.main(["config", "show", "again.toml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["seed"]) == (1, 5)
    (tmp_path / "plain.toml").write_text("")
    assert cli.main(["config", "diff", "plain.toml", "again.toml"]) == 0
    assert capsys.readouterr().out == "seed: 0 -> 5\n"
    assert cli.main(["config", "diff", "plain.toml", "again.toml", "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)
    jsonschema.validate(changed, schema("changes"))
    assert changed["changes"] == {"seed": {"left": 0, "right": 5}}


def test_config_check_names_every_bad_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.toml").write_text("seed = 1")
    (tmp_path / "bad.toml").write_text("sead = 1")
    (tmp_path / "worse.toml").write_text("seed = ")
    assert cli.main(["config", "check", "good.toml"]) == 0
    assert cli.main(["config", "check", "good.toml", "bad.toml", "worse.toml"]) == 2
    shown = capsys.readouterr()
    assert "good.toml: a recipe" in shown.out
    assert "perhaps seed" in shown.err
    assert "worse.toml" in shown.err
    assert cli.main(["config", "check", "good.toml", "bad.toml", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, schema("faults"))
    assert told["faults"]["good.toml"] == ""
    assert "perhaps seed" in told["faults"]["bad.toml"]


@pytest.mark.parametrize("argv", [[], ["shw"], ["diff", "one"], ["check"], ["check", "--x"]])
def test_config_asked_wrongly_says_how_to_ask(argv: list[str], capsys) -> None:
    assert cli.main(["config", *argv]) == 2
    assert "usage: sobre config" in capsys.readouterr().err
