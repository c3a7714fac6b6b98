"""Result files: they say which code ran, and land where they should; the verb knows its benchmarks."""

import json
import subprocess
import sys

import pytest

from sobre.bench import result
from sobre.bench.result import Result, Source, checked
from sobre.cli import main
from sobre.errors import RunError
from sobre.runtime.environment import environment


def test_a_clean_commit_names_its_folder_and_a_changed_tree_adds_its_digest():
    assert Source("a" * 40, False, "d" * 32).short == "a" * 12
    assert Source("a" * 40, True, "d" * 32).short == "a" * 12 + "-dddddddd"
    assert Source(None, None, "d" * 32).short == "wheel-dddddddd"


def test_the_digest_follows_the_files_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "sobre"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(result.sobre, "__file__", str(package / "__init__.py"))
    first = result.this_source()
    (package / "__init__.py").write_text("x = 2\n")
    assert result.this_source().digest != first.digest
    (package / "__init__.py").write_text("x = 1\n")
    assert result.this_source() == first


def test_what_computes_wrongly_is_not_timed():
    assert checked("logits", 1e-6, 1e-4) == {"what": "logits", "value": 1e-6, "limit": 1e-4}
    for wrong in (1e-3, float("nan")):
        with pytest.raises(RunError, match="logits: .* exceeds 0.0001"):
            checked("logits", wrong, 1e-4)


def test_a_result_lands_in_a_new_file_or_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Result("story demo", "summary", {}, 1, []).document(Source(None, None, "0" * 32))
    path = result.save(document, "")
    assert path.parent == result.FOLDER
    assert path.name.startswith("story-demo-2")
    assert json.loads(path.read_text()) == document
    assert result.save(document, str(tmp_path / "deep" / "x.json")).is_file()


def test_the_machine_is_told_without_the_source_twice():
    found = result.machine(1)
    assert found["threads"] == 1
    assert found.keys() == environment().keys() - {"schema", "source"} | {"omp_num_threads"}
    assert set(result.PEERS) <= found["packages"].keys()


def test_the_verb_names_its_benchmarks(capsys):
    assert main(["bench", "--help"]) == 0
    assert "sobre bench story" in capsys.readouterr().out
    assert main(["bench", "swim"]) == 2
    assert (
        "no benchmark 'swim'; there are train, decode, rl, families, load, saves, serve, soak, quality, speculate"
        ", twin, story, distill, climb, frugality, laws, and all" in capsys.readouterr().err
    )
    assert main(["bench", "all", "--rounds", "3"]) == 2


def test_the_help_of_every_benchmark_imports_no_torch():
    code = (
        "import sys\nfrom sobre.cli import main\n"
        "for name in ('train', 'decode', 'rl', 'twin', 'story'):\n"
        "    try:\n        main(['bench', name, '--help'])\n    except SystemExit as done:\n"
        "        assert not done.code, name\n    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_seen_folder_of_results_is_not_in_git():
    root = result.Path(__file__).resolve().parents[3]
    assert "/bench-results/" in (root / ".gitignore").read_text().split("\n")
