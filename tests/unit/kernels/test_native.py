"""Kernels in C are built once, whole or not at all; without a compiler there are none, and the reason is said."""

import os
import platform
import shutil
import subprocess

import pytest
import torch

from sobre.kernels import select
from sobre.kernels.native import build

compiled = pytest.mark.skipif(build.lacks() is not None, reason=str(build.lacks()))


@pytest.fixture
def fresh():
    """A first look, as in a new process."""
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_torch_computes_and_the_reason_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.lacks() == "needs a C compiler (cc, gcc, clang); none is on the path"
    kernel, why = select._choose("rms_norm", "cpu", torch.float32)
    assert kernel.name == "fused"
    assert "native needs a C compiler" in why
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == (
        "no kernels in C, so torch computes in their place, more slowly: needs a C compiler (cc, gcc, clang); none is"
        " on the path"
    )


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such flag" >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.lacks() == "could not be built: no such flag\n"
    assert list((tmp_path / "cache" / "sobre").iterdir()) == []


@compiled
@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_it_is_built_once_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.lacks() is None
    (kept,) = (tmp_path / "sobre").iterdir()
    build.library.cache_clear()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("compiled a second time"))
    assert build.lacks() is None
    assert kept.suffix == ".so"


@compiled
@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_clang_builds_it_for_one_thread_since_torch_brings_no_openmp_for_it(monkeypatch, tmp_path):
    real, asked = shutil.which("cc") or shutil.which("gcc"), tmp_path / "asked"
    clang = tmp_path / "cc"
    clang.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "Apple clang version 17"; exit 0; }\n'
        f'echo "$@" >> {asked}; exec {real} "$@"\n'
    )
    clang.chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(clang))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.lacks() is None
    assert "-march=native" in asked.read_text()
    assert "-fopenmp" not in asked.read_text()
    assert "-fno-openmp" in asked.read_text()


def test_the_openmp_that_torch_has_loaded_is_found_among_the_processs_libraries():
    maps = """7f0 r-xp 00000000 08:01 12 /a b/torch/lib/libgomp.so.1
7f1 rw-p 00000000 08:01 12 /a b/torch/lib/libgomp.so.1
7f2 r-xp 00000000 08:01 13 /x/torch.libs/libgomp-d22c30c5.so.1.0.0
7f3 r-xp 00000000 08:01 14 /x/libompanion.so
7f4 r-xp 00000000 08:01 15 /opt/libiomp5.so
7f5 rw-p 00000000 00:00 0 [heap]
7f6 rw-p 00000000 00:00 0
"""
    assert build.openmp_libraries(maps) == [
        "/a b/torch/lib/libgomp.so.1",
        "/opt/libiomp5.so",
        "/x/torch.libs/libgomp-d22c30c5.so.1.0.0",
    ]


def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_of_this_process(tmp_path):
    (tmp_path / "file").write_text("")
    found = build.cache_folder({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert found.is_dir()
    assert os.access(found, os.W_OK)
    found.rmdir()


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("processor", ["native", "x86-64-v3"])
def test_the_pages_compile_without_a_warning(tmp_path, processor):
    if processor != "native" and platform.machine() != "x86_64":
        pytest.skip("an older processor of another kind")
    compiler = next(name for name in build.COMPILERS if build.shutil.which(name))
    pages = [(page, form) for page in sorted(build.SOURCES.glob("*.c")) for form in build.forms(page)]
    for page, form in pages:
        flags = [*build.FLAGS, f"-march={processor}", *form, "-O0", "-Wall", "-Wextra", "-fopenmp"]
        done = subprocess.run(
            [compiler, *flags, "-c", page, "-o", tmp_path / "x.o"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == "", (page.name, form)
