"""Attacks on the sandbox. Each is first shown to succeed outside, in a plain interpreter, and does no harm there.

As root the whole set runs twice, the second time as the user nobody.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sobre.errors import SandboxError
from sobre.tasks import sandbox, seccomp
from sobre.tasks.sandbox import Limits, Outcome, mechanism, run_code

SRC = Path(sandbox.__file__).parents[2]
RUN = """
import json, sys
from sobre.tasks.sandbox import Limits, run_code
outcome = run_code(sys.argv[1], Limits(seconds=float(sys.argv[2]), memory_bytes=int(sys.argv[3])))
print(json.dumps(vars(outcome)))
"""
BECOME_NOBODY = """
import ctypes, os, sys
prefix, source, place, name, *arguments = sys.argv[1:]
libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 16384 | 1 << 18, None) == 0
for path, at in ((prefix, "python"), (source, "src")):
    os.mkdir(f"{place}/{at}")
    assert libc.mount(path.encode(), f"{place}/{at}".encode(), None, 4096, None) == 0
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.chdir("/")
python = f"{place}/python/bin/{name}"
libraries = f"{place}/python/lib"  # where a Python built as a shared library has itself
os.execve(python, [python, "-c", *arguments], {"PYTHONPATH": f"{place}/src", "LD_LIBRARY_PATH": libraries})
"""

pytestmark = [pytest.mark.slow]
try:
    mechanism()
except SandboxError as refused:
    pytestmark += [pytest.mark.skip(reason=str(refused))]


def outside(code: str, arguments: Sequence[str] = (), **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **more)


def as_nobody(code: str, limits: Limits = Limits()) -> Outcome:  # noqa: B008
    """The sandbox built by the user nobody. Interpreter and sources are put where nobody can read them."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        arguments = (code, str(limits.seconds), str(limits.memory_bytes))
        done = outside(
            BECOME_NOBODY,
            arguments=(sys.base_prefix, str(SRC), place, Path(sys.executable).resolve().name, RUN, *arguments),
        )
    assert done.returncode == 0, done.stderr
    return Outcome(**json.loads(done.stdout))


@pytest.fixture(params=["this user", "nobody"])
def inside(request: pytest.FixtureRequest) -> Callable[..., Outcome]:
    if request.param == "this user":
        return run_code
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    return as_nobody


READS = {
    "passwd": "print('root' in open('/etc/passwd').read())",
    "through a symlink": (
        "import os, tempfile; d = tempfile.mkdtemp(); os.symlink('/etc/passwd', d + '/x');"
        " print('root' in open(d + '/x').read())"
    ),
    "by going up": "import os; print('root' in open('../' * 20 + 'etc/passwd').read())",
    "through /proc": "print(len(open('/proc/self/environ').read()) >= 0)",
    "through another's root": "import os; print('passwd' in os.listdir(f'/proc/{os.getppid()}/root/etc'))",
    "the user's programs": "import os; print('sh' in os.listdir('/bin'))",
    "a device": "print(len(open('/dev/zero', 'rb').read(3)) == 3)",
}


@pytest.mark.parametrize("attack", READS)
@pytest.mark.slow
def test_it_cannot_read_what_lies_outside(attack: str, inside) -> None:
    assert outside(READS[attack]).stdout == "True\n"
    outcome = inside(READS[attack])
    assert (outcome.status, outcome.stdout) == ("error", "")
    assert "No such file" in outcome.stderr or "Permission" in outcome.stderr


def test_it_sees_no_environment(inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "token")
    code = "import os; print(dict(os.environ).get('A_SECRET'), os.getenv('A_SECRET'))"
    assert outside(code).stdout == "token token\n"
    assert inside(code).stdout == "None None\n"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")  # told to the interpreter, forgotten before the code runs
    assert inside("import os; print(os.environ.get('LD_LIBRARY_PATH'))").stdout == "None\n"


def test_it_cannot_write_outside(inside, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    code = f"open({str(tmp_path / 'mark')!r}, 'w').write('here')"
    assert outside(code).returncode == 0
    (tmp_path / "mark").unlink()
    assert inside(code).status == "error"
    assert not (tmp_path / "mark").exists()
    assert inside("open('/tmp/own', 'w').write('x'); print(open('/tmp/own').read())").stdout == "x\n"
    assert "No such file" in inside("open('/tmp/own')").stderr  # the next one starts with an empty /tmp


def test_it_cannot_reach_the_network(inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.socket().connect(('127.0.0.1', {server.getsockname()[1]})); print('in')"
        assert outside(code).stdout == "in\n"
        server.accept()[0].close()
        assert "PermissionError" in inside(code).stderr
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(0)\nprint('in')",
        "import threading\nthreads = [threading.Thread(target=list) for _ in range(3)]\n"
        "[t.start() for t in threads]\nprint('in')",
        "import os\nif os.fork() == 0: os.execv('/bin/sh', ['sh', '-c', 'true'])\nprint('in')",
        "import subprocess; subprocess.run(['true']); print('in')",
    ],
    ids=["fork bomb", "threads", "exec", "subprocess"],
)
def test_it_cannot_start_anything(code: str, inside) -> None:
    assert outside(code).stdout.endswith("in\n")
    outcome = inside(code)
    assert outcome.status == "error"
    assert "in\n" not in outcome.stdout


@pytest.mark.parametrize("code", ["import os, signal; os.kill(os.getppid(), 9)", "import os; os.kill(0, 9)"])
def test_it_cannot_kill_its_parent(code: str, inside) -> None:
    sacrifice = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}]); print('alive')"
    assert outside(sacrifice, start_new_session=True).returncode == -9
    assert inside(code).status == "error"  # and we are still here


@pytest.mark.slow
def test_it_stops_an_infinite_loop(inside) -> None:
    code = "while True: pass"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=0.3, check=False)
    outcome = inside(code, Limits(seconds=0.6))
    assert outcome.status == "time"
    assert outcome.seconds < 3
    deaf = (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    )
    assert inside(deaf + code, Limits(seconds=0.6)).status == "time"


def test_it_stops_huge_output(inside) -> None:
    code = "import sys\nfor _ in range({}): sys.stdout.write('x' * 10**6)"
    assert len(outside(code.format(3)).stdout) == 3 * 10**6
    outcome = inside(code.format(10**9))
    assert outcome.status == "output"
    assert len(outcome.stdout) <= Limits().output_bytes


def test_it_stops_huge_memory_and_huge_files(inside) -> None:
    assert outside("x = bytearray(300 * 2**20); print(len(x))").stdout == f"{300 * 2**20}\n"
    assert inside("x = bytearray(300 * 2**20)", Limits(memory_bytes=128 * 2**20)).status == "memory"
    many = "for i in range(1000):\n    open(f'/tmp/{i}', 'wb').write(bytes(10**6))"
    assert inside(many).status == "error"


@pytest.mark.parametrize(
    "code",
    [
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
        "import os; os.chroot('/tmp')",
        "import os; os.setuid(1)",
        "import os; os.mknod('/tmp/null', 0o20666, os.makedev(1, 3))",
        "open('/python/sitecustomize.py', 'w')",
        "import os; os.fstat(4)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    ],
)
@pytest.mark.slow
def test_it_cannot_win_back_rights(code: str, inside) -> None:
    assert inside(code).status == "error"


@pytest.mark.parametrize("code", ["import os; os._exit(0)", "raise SystemExit(0)", "exit()", "import os; os.close(3)"])
def test_leaving_early_is_not_coming_to_the_end(code: str) -> None:
    assert run_code(f"{code}\nassert False").status == "error"


def test_it_computes_with_the_standard_library() -> None:
    imports = "import math, re, decimal, hashlib, json, datetime\n'é'.encode('idna')\n"
    code = imports + "print(math.comb(5, 2), hashlib.md5(b'a').hexdigest())"
    outcome = run_code(code)
    assert (outcome.status, outcome.stdout) == ("done", "10 0cc175b9c0f1b6a831c399e269772661\n")


def test_where_the_machine_cannot_hold_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jail = tmp_path / "jail.py"
    jail.write_text(sandbox.JAIL.read_text().replace('call("unshare", NEW_NAMESPACES)', "raise OSError(1, 'no')"))
    monkeypatch.setattr(sandbox, "JAIL", jail)
    with pytest.raises(SandboxError, match="cannot hold model-written code, so none is run: PermissionError"):
        run_code(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SandboxError, match="no list of system calls for vax"):
        seccomp.program("vax")


def test_the_filter_lets_computing_through_and_nothing_that_starts_connects_or_mounts() -> None:
    x86, arm = (set(seccomp.numbers(text)) for _, text in seccomp.ALLOWED.values())
    refused_x86 = {41, 42, 43, 56, 57, 58, 59, 62, 101, 165, 166, 272, 308, 310, 311, 321, 322, 425, 435}
    refused_arm = {39, 40, 117, 129, 198, 203, 220, 221, 270, 271, 280, 281, 425, 435}
    assert not x86 & refused_x86
    assert not arm & refused_arm
    assert {0, 1, 9, 15, 231, 257} <= x86
    assert {56, 63, 64, 94, 139, 222} <= arm
