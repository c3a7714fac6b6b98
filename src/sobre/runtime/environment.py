"""environment.json: on what a run ran, so that its figures can be made again. No host name, no user name, no paths."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import sobre
from sobre.schemas import VERSION

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "pydantic", "pyarrow")
"""Those that can change a result."""


def environment(threads: int | None = None) -> dict[str, Any]:
    """The machine, the versions and the source; `threads` is what the computation uses."""
    return {
        "schema": VERSION,
        "sobre": sobre.__version__,
        "source": source(Path(sobre.__file__).parent),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "packages": {name: _version(name) for name in PACKAGES},
        "allocator": os.environ.get("GLIBC_TUNABLES", ""),
    }


def source(folder: Path) -> dict[str, Any]:
    """Commit of the source and whether it was changed since; unknown (None) for an installed wheel."""
    unknown = {"commit": None, "dirty": None}
    # an installed package may lie inside another project's clone, whose commit says nothing about it
    if not _git(folder, "ls-files", "__init__.py"):
        return unknown
    commit = _git(folder, "rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--", "."))} if commit else unknown


def cpu_name() -> str:
    """The processor's own name for itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Memory of the machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    """What git answers; empty without git or outside a clone."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
