"""Kernels in C are built once, whole or not at all; without a compiler there are none, and the reason is said."""

import os
import platform
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
def test_without_a_compiler_torch_computes_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.lacks() == "needs a C compiler (cc, gcc, clang); none is on the path"
    kernel, why = select._choose("rms_norm", "cpu", torch.float32)
    assert kernel.name == "fused"
    assert "native needs a C compiler" in why


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
