"""Compile the C pages beside this one with the machine's own compiler, once, and load them.

The library lies in the user's cache under a name made of the sources, the compiler's version and the processor, so that
a change of any of them builds it anew. Without a compiler everything runs through torch, and `lacks` says why. The
pages need nothing but libm and OpenMP, whose functions are the ones that torch has already loaded: a second copy would
bring a second set of threads to fight over the same cores. Compiled by clang (Apple's, or where there is no gcc) the
kernels use one thread: its OpenMP needs a library that torch does not bring.
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
READ = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.uint8)
"""What the pages read."""
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120
"""After which a compiler is taken not to work."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | str:
    """The loaded library, or why there is none, which is said once. Compiles it if need be: some seven seconds of a
    core, once."""
    found = _library()
    if isinstance(found, str):
        log.warning("no kernels in C, so torch computes in their place, more slowly: %s", found.strip())
    return found


def _library() -> ctypes.CDLL | str:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return f"needs a C compiler ({', '.join(COMPILERS)}); none is on the path"
    if sys.platform not in ("linux", "darwin"):
        return f"is built on Linux and macOS, not on {sys.platform}"
    try:
        path = cache_folder(os.environ) / f"native-{_key(compiler)}.so"
        if not path.is_file():
            build(compiler, path)
        if sys.platform == "linux":
            for loaded in openmp_libraries(Path("/proc/self/maps").read_text()):
                ctypes.CDLL(loaded, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return f"could not be built: {getattr(error, 'stderr', None) or error}"


def lacks() -> str | None:
    """Why the kernels cannot run here, or None."""
    found = library()
    return found if isinstance(found, str) else None


def lacks_bfloat16_products() -> str | None:
    """Why pairs of bfloat16 cannot be multiplied as such here, or None."""
    found = library()
    if isinstance(found, str):
        return found
    return None if found.multiplies_bfloat16() else "needs AVX-512's products of bfloat16 pairs"


def call(name: str, *arguments: Tensor | ctypes.Array[Any] | float | None) -> int:
    """Call a function of the library: tensors and arrays by address, whole numbers as long, others as float, None as
    NULL.

    The caller sees to it that tensors lie as the function reads them; they live until it returns. A first one in
    bfloat16 takes the function's form for it.
    """
    found = library()
    assert not isinstance(found, str), found
    first = arguments[0]
    is_half = isinstance(first, Tensor) and first.dtype == torch.bfloat16
    function = getattr(found, name + "_bfloat16" if is_half else name)
    if function.argtypes is None:  # told once, ctypes converts three times as fast as from an object for each argument
        function.argtypes = [_kind(argument) for argument in arguments]
    return int(function(*[_address(argument) if isinstance(argument, Tensor) else argument for argument in arguments]))


def learns(*tensors: Tensor) -> bool:
    """Whether a gradient is asked for: what is forward only then leaves the work to torch."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _kind(argument: Tensor | ctypes.Array[Any] | float | None) -> Any:
    if isinstance(argument, Tensor | ctypes.Array) or argument is None:
        return ctypes.c_void_p
    return ctypes.c_long if isinstance(argument, int) else ctypes.c_float


def _address(tensor: Tensor) -> int:
    assert tensor.dtype in READ, tensor.dtype
    return tensor.data_ptr()


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the library is kept: the user's cache, or a folder of this process's own where that cannot be written."""
    home = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sobre"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="sobre-native-"))


def openmp_libraries(maps: str) -> list[str]:
    """The OpenMP libraries among what a process has loaded (`/proc/self/maps`).

    Ours calls the one that torch has loaded. Torch's wheels for x86 show it to every library, those for ARM do not.
    """
    paths = {line.split(maxsplit=5)[5].strip() for line in maps.splitlines() if "/" in line}
    return sorted(path for path in paths if re.match(r"lib(gomp|iomp5|omp)\b.*\.so", Path(path).name))


def build(compiler: str, path: Path) -> None:
    """Compile into `path`, which appears whole or not at all. Raises CalledProcessError with what the compiler said."""
    flags = _flags(compiler)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        pages = [(source, form) for source in sorted(SOURCES.glob("*.c")) for form in forms(source)]
        objects = [f"{folder}/{number}.o" for number in range(len(pages))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each compiler is a process of its own
            made = [
                pool.submit(_call, compiler, *flags, *form, "-c", str(source), "-o", each)
                for (source, form), each in zip(pages, objects, strict=True)
            ]
        for each in made:
            each.result()
        # linked without OpenMP: its functions are found in the library that torch has loaded
        undefined = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
        _call(compiler, "-shared", *undefined, *objects, "-lm", "-o", f"{folder}/library.so")
        os.replace(f"{folder}/library.so", path)


def forms(source: Path) -> tuple[tuple[str, ...], ...]:
    """The flags of each form in which a page is compiled: also for bfloat16, and for weights in few bits."""
    text, half = source.read_text(), "-DBFLOAT16"
    found: list[tuple[str, ...]] = [()]
    if "NAMED(" in text:
        found.append((half,))
    if "const weight *" in text:
        found += [(half, "-DINT8"), (half, "-DINT4")]
    return tuple(found)


def _flags(compiler: str) -> tuple[str, ...]:
    gnu = sys.platform != "darwin" and "clang" not in _version(compiler)
    return (*FLAGS, "-fopenmp" if gnu else "-fno-openmp")


@cache
def _version(compiler: str) -> str:
    return _call(compiler, "--version")


def _call(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout


def _key(compiler: str) -> str:
    known = [platform.machine(), _processor(), _version(compiler), *_flags(compiler)]
    known += [source.read_text() for source in sorted(SOURCES.glob("*.[ch]"))]
    return hashlib.blake2b("\n".join(known).encode(), digest_size=10).hexdigest()


def _processor() -> str:
    """Model and abilities: a home shared by several machines holds a library for each kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
