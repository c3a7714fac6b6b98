"""Who may write where: a run never touches what is not its own."""

import errno
import os
import subprocess
import sys

import pytest

from sobre.errors import RunError
from sobre.runtime import files
from sobre.runtime.run_folder import claim, find_unfinished, resume

RECIPE = {"name": "demo", "seed": 0, "budget": {"amount": "7m"}}
OTHER = {"name": "demo", "seed": 1, "budget": {"amount": "5m"}}


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_goes_to_its_default_place_and_can_be_read_back(tmp_path):
    folder = claim("demo", RECIPE, root=tmp_path)
    assert folder.path == tmp_path / "demo"
    assert folder.config == RECIPE
    assert not folder.resumed
    assert folder.model("pretrain") == tmp_path / "demo" / "base"


def test_a_finished_run_of_another_config_sends_the_next_one_beside_it(tmp_path):
    for seed in range(3):
        folder = claim("demo", {**RECIPE, "seed": seed}, root=tmp_path)
        folder.finish()
        folder.release()
    assert folder.path == tmp_path / "demo-3"


def test_an_unfinished_run_of_the_same_config_is_an_error_that_shows_the_resume_line(tmp_path):
    claim("demo", RECIPE, root=tmp_path).release()
    with pytest.raises(RunError, match=r"sobre run --out .*demo --resume"):
        claim("demo", dict(reversed(RECIPE.items())), root=tmp_path)


def test_an_unfinished_run_of_another_config_is_left_alone(tmp_path):
    claim("demo", RECIPE, root=tmp_path).release()
    before = snapshot(tmp_path / "demo")
    assert claim("demo", OTHER, root=tmp_path).path == tmp_path / "demo-2"
    assert snapshot(tmp_path / "demo") == before


@pytest.mark.parametrize("content", ["notes.txt", "config.json", "state/lock/x", "report.html"])
def test_a_folder_with_foreign_content_is_refused_and_not_touched(tmp_path, content):
    file = tmp_path / "demo" / content
    file.parent.mkdir(parents=True)
    file.write_text('{"model_type": "llama"}')
    before = snapshot(tmp_path)
    for out in (None, tmp_path / "demo"):
        with pytest.raises(RunError, match="nothing there was touched"):
            claim("demo", RECIPE, root=tmp_path, out=out)
    assert snapshot(tmp_path) == before


def test_a_saved_recipe_alone_is_no_run(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text('{"schema": 1, "name": "demo"}')
    with pytest.raises(RunError, match="not of a run"):
        claim("demo", RECIPE, root=tmp_path)


def test_an_explicit_folder_with_another_run_is_refused_even_if_it_is_finished(tmp_path):
    folder = claim("demo", RECIPE, out=tmp_path / "here")
    folder.finish()
    folder.release()
    with pytest.raises(RunError, match="another run"):
        claim("demo", OTHER, out=tmp_path / "here")


def test_an_empty_folder_or_one_whose_claim_was_killed_is_free(tmp_path):
    (tmp_path / "demo" / "state").mkdir(parents=True)
    (tmp_path / "demo" / "state" / "lock").write_text("123")
    (tmp_path / "demo" / "config.json.tmp").write_text("{")
    assert claim("demo", RECIPE, root=tmp_path).path == tmp_path / "demo"


def test_a_folder_at_work_cannot_be_taken_by_a_second_process(tmp_path):
    folder = claim("demo", RECIPE, root=tmp_path)
    with pytest.raises(RunError, match=f"pid {os.getpid()}"):
        resume(folder.path)
    folder.release()
    assert resume(folder.path).resumed


def test_a_killed_process_leaves_a_folder_that_can_be_resumed(tmp_path):
    code = f"""
import os, pathlib
from sobre.runtime.run_folder import claim
claim("demo", {RECIPE!r}, root=pathlib.Path({str(tmp_path)!r}))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert find_unfinished("demo", RECIPE, root=tmp_path) == tmp_path / "demo"
    assert resume(tmp_path / "demo", RECIPE).config == RECIPE


def test_resuming_with_another_recipe_names_the_keys_that_differ(tmp_path):
    claim("demo", RECIPE, root=tmp_path).release()
    with pytest.raises(RunError, match=r"budget.amount is '7m' there and '5m' here; seed is 0 there and 1 here"):
        resume(tmp_path / "demo", OTHER)


def test_there_is_nothing_to_resume_in_a_finished_run_or_an_empty_folder(tmp_path):
    folder = claim("demo", RECIPE, root=tmp_path)
    folder.finish()
    folder.release()
    with pytest.raises(RunError, match="finished run"):
        resume(folder.path)
    with pytest.raises(RunError, match="no run to resume"):
        resume(tmp_path / "nothing")
    with pytest.raises(RunError, match="no unfinished run"):
        find_unfinished("demo", RECIPE, root=tmp_path)


def test_find_unfinished_takes_the_last_run_of_this_very_recipe(tmp_path):
    done = claim("demo", RECIPE, root=tmp_path)
    done.finish()
    done.release()
    claim("demo", OTHER, root=tmp_path).release()
    again = claim("demo", RECIPE, root=tmp_path)
    again.release()
    assert again.path == tmp_path / "demo-3" == find_unfinished("demo", RECIPE, root=tmp_path)


@pytest.mark.parametrize(
    ("billed", "resumed", "stays"),
    [
        ([], False, False),
        (["start"], False, False),
        (["start", "data"], False, False),
        (["start", "data", "pretrain"], False, True),
        (["start"], True, True),
    ],
)
def test_a_refused_run_gives_its_folder_back_unless_a_stage_has_begun(tmp_path, billed, resumed, stays):
    folder = claim("demo", RECIPE, root=tmp_path)
    if resumed:
        folder.release()
        folder = resume(folder.path)
    folder.ledger.write_text("".join(f'{{"stage": "{stage}"}}\n' for stage in billed))
    folder.give_back()
    assert folder.path.exists() == stays


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"cannot make the folder .*demo"):
        claim("demo", RECIPE, root=tmp_path / "out")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(
        files, "flush", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(RunError, match=r"cannot write .*No space left on device"):
        files.write_json(path, {"a": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "kein Platz"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (ValueError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("else"), False),
    ],
)
def test_a_full_disk_is_told_by_its_number_or_its_words(error, full):
    assert files.is_disk_full(error) == full


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RunError, match=r"the model needs .* MiB in .*deep, and the disk has .* MiB free"):
        files.ensure_space(tmp_path / "new" / "deep", 10**18, "the model")
    files.ensure_space(tmp_path / "new" / "deep", 1, "a byte")
    assert list(tmp_path.iterdir()) == []
