"""The inside of the sandbox: runs as a script of its own, never imported. Standard library only.

Reads {code, filter, limits, secret} from standard input, closes every door behind itself, then runs the code in this
same interpreter. In order: namespaces of its own for users, mounts, processes, network, IPC and host name; process 1 of
the new process namespace, in a session of its own; a root that holds the standard library (read-only), an empty /tmp,
no /proc and no /dev; limits on memory, time, files; no capabilities; the filter of system calls.

On descriptor 3 it says "ready" when all doors are closed, and the secret when the code has run to its end.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
READ_ONLY, NO_SUID, NO_DEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
KEPT = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""Flags of a mounted file system (statvfs) that a new user namespace may not take away, as mount(2) spells them."""
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
REPORT = 3

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """A call of the C library; failing raises."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source, target, kind, flags, options=None):
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def enter_namespaces():
    """Namespaces of our own; inside them this user is number 0 with no rights outside."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEW_NAMESPACES)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def close_root(size):
    """A root of our own with the standard library and an empty /tmp; the old one is gone."""
    library = os.path.dirname(os.__file__)
    source = os.open(library, os.O_PATH)
    mount("none", "/", None, REC | PRIVATE)
    mount("root", "/tmp", "tmpfs", NO_SUID | NO_DEV, "size=64k,mode=755")
    for name in ("python", "tmp"):
        os.mkdir(f"/tmp/{name}")
    mount(f"/proc/self/fd/{source}", "/tmp/python", None, BIND)
    present = os.statvfs("/tmp/python").f_flag
    kept = sum(flag for bit, flag in KEPT.items() if present & bit)
    mount("none", "/tmp/python", None, BIND | REMOUNT | READ_ONLY | NO_SUID | NO_DEV | kept)
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(f"/tmp/python/{name}"):
            mount("empty", f"/tmp/python/{name}", "tmpfs", READ_ONLY, "size=4k,mode=755")
    mount("tmp", "/tmp/tmp", "tmpfs", NO_SUID | NO_DEV, f"size={size},nr_inodes=1000,mode=777")
    mount("none", "/tmp", None, BIND | REMOUNT | READ_ONLY | NO_SUID | NO_DEV)
    os.close(source)
    os.chdir("/tmp")
    if libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    call("umount2", b".", 2)
    os.chdir("/tmp")
    sys.path[:] = ["/python", "/python/lib-dynload"]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):  # packages that are imported already look for their parts here too
        if hasattr(module, "__path__"):
            module.__path__ = [path.replace(library, "/python") for path in module.__path__]


def limit(limits):
    memory, files, seconds = limits["memory_bytes"], limits["file_bytes"], limits["cpu_s"]
    wanted = {"AS": memory, "FSIZE": files, "CPU": seconds, "NOFILE": 64, "NPROC": 1, "CORE": 0}
    for name, value in wanted.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def drop_rights():
    for capability in range(64):
        if libc.prctl(24, capability, 0, 0, 0) != 0:  # out of the bounding set
            break
    header, empty = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call("capset", header, empty)
    call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # dies with the process that watches it
    call("prctl", 38, 1, 0, 0, 0)  # no new privileges


def filter_calls(program):
    buffer = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    call("prctl", 22, 2, pointer, 0, 0)


def inside(task):
    """Process 1 of the sandbox."""
    os.setsid()
    os.environ.clear()
    close_root(task["limits"]["file_bytes"])
    limit(task["limits"])
    drop_rights()
    filter_calls(bytes.fromhex(task["filter"]))
    os.write(REPORT, b"ready\n")
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(task["code"], "<answer>", "exec"), module.__dict__)
    sys.stdout.flush()
    os.write(REPORT, task["secret"].encode())


def main():
    task = json.loads(sys.stdin.read())
    call("prctl", 1, signal.SIGKILL, 0, 0, 0)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.closerange(REPORT + 1, 1024)
    enter_namespaces()
    child = os.fork()
    if child == 0:
        try:
            inside(task)
        except MemoryError:
            os.write(REPORT, b"memory\n")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    os._exit(os.waitstatus_to_exitcode(status) & 127)


if __name__ == "__main__":
    main()
