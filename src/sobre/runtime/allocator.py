"""Keep freed memory in the process, so that a training step does not pay for fresh pages again and again.

glibc gives large blocks back to the system at once, and the next step faults every page in again: on two cores that
cost up to a third of a step. The thresholds can be set only before a process starts, hence one re-exec at the start of
a run, printed. SOBRE_NO_REEXEC=1 turns it off; elsewhere than on Linux with glibc nothing happens.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

TUNABLES = ("glibc.malloc.mmap_threshold=4294967296", "glibc.malloc.trim_threshold=4294967296")
MARK = "SOBRE_REEXECED"
"""Set in the new process: it never starts a third one."""


def reexec_once(
    environ: Mapping[str, str] = os.environ,
    execve: Callable[[str, list[str], dict[str, str]], NoReturn] = os.execve,
) -> None:
    """Start the same command again with raised thresholds, unless that is done, impossible or unwanted."""
    wanted = wanted_environment(environ)
    if wanted is None or not _has_glibc():
        return
    if environ.get("RANK", "0") == "0":  # of the processes of a run, the first one speaks
        print(
            f"allocator: GLIBC_TUNABLES={wanted['GLIBC_TUNABLES']} (SOBRE_NO_REEXEC=1 leaves it)",
            file=sys.stderr,
            flush=True,
        )
    execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def wanted_environment(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The environment of the new process, or None when nothing is to change. Thresholds already set are respected."""
    if environ.get("SOBRE_NO_REEXEC") == "1" or environ.get(MARK) == "1":
        return None
    present = [setting for setting in environ.get("GLIBC_TUNABLES", "").split(":") if setting]
    names = {setting.split("=")[0] for setting in present}
    missing = [setting for setting in TUNABLES if setting.split("=")[0] not in names]
    if not missing:
        return None
    return {**environ, "GLIBC_TUNABLES": ":".join(present + missing), MARK: "1"}


def _has_glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False
