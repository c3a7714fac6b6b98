"""The system calls that model-written code may make: a list of what computing needs, everything else is refused.

The program is classic BPF as seccomp(2) takes it: refuse foreign architectures by killing, allow what is on the list,
answer everything else with EPERM, so that Python raises PermissionError. Processes and threads are not on the list,
nor sockets, execve, signals to others, mounts, ptrace, io_uring.
"""

import platform
import struct

from sobre.errors import SandboxError

_X86_64 = (
    "0-22 24 25 28 32-35 39 60 63 72-89 90 95-98 99 100 102 104 107 108 110 131 158 186 202 204 217 218 219 228-231"
    " 257 258 262-269 270 271 273 292 293 302 316 318 332 334 436 439"
)
_AARCH64 = (
    "17 23-25 29 32 34-36 38 45 46 48 49 52 53 56 57 59 61-68 72 73 78-80 82 93 94 98 99 101 113-115 123 124 128 132"
    " 134 135 139 153 160 163 165 166 169 172-179 214-216 222 226 233 261 276 278 291 293 436 439"
)
ALLOWED = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
"""Machine to (AUDIT_ARCH value, numbers of the allowed calls)."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000


def numbers(text: str) -> list[int]:
    """`0-2 5` as [0, 1, 2, 5]."""
    found: list[int] = []
    for part in text.split():
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def program(machine: str = "") -> bytes:
    """The filter for this machine (struct sock_filter, 8 bytes an instruction)."""
    machine = machine or platform.machine()
    if machine not in ALLOWED:
        raise SandboxError(f"no list of system calls for {machine}; there are lists for {', '.join(ALLOWED)}")
    arch, text = ALLOWED[machine]
    calls = numbers(text)
    code = [
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # its number
        (_AT_LEAST, 0, 1, 0x40000000),  # the x32 names of the same calls
        (_RETURN, 0, 0, _EPERM),
    ]
    code += [(_EQUAL, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    code += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
