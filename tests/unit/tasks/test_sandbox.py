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


DEAF = """
import signal
for n in range(1, 32):
    try: signal.signal(n, signal.SIG_IGN)
    except OSError: pass
print('deaf', flush=True)
while True: pass
"""


def test_it_stops_a_loop_that_hears_no_signal(inside) -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "deaf\n"
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.kill()
    assert inside(DEAF, Limits(seconds=0.6)).status == "time"


def test_it_stops_huge_output(inside) -> None:
    code = "import sys\nfor _ in range({}): sys.stdout.write('x' * 10**6)"
    assert len(outside(code.format(3)).stdout) == 3 * 10**6
    outcome = inside(code.format(10**9))
    assert outcome.status == "output"
    assert len(outcome.stdout) <= Limits().output_bytes


def test_it_stops_huge_memory(inside) -> None:
    assert outside("x = bytearray(300 * 2**20); print(len(x))").stdout == f"{300 * 2**20}\n"
    assert inside("x = bytearray(300 * 2**20)", Limits(memory_bytes=128 * 2**20)).status == "memory"


@pytest.mark.parametrize(("n_files", "size"), [(20, 10**6), (1500, 0)], ids=["much", "many"])
def test_it_stops_files_that_fill_the_disk(n_files: int, size: int, inside, tmp_path: Path) -> None:
    code = (
        "import tempfile\nfolder = tempfile.mkdtemp()\n"
        f"for i in range({n_files}):\n    with open(f'{{folder}}/{{i}}', 'wb') as file: file.write(bytes({size}))\n"
        "print('in')"
    )
    assert outside(code, env={**os.environ, "TMPDIR": str(tmp_path)}).stdout == "in\n"
    outcome = inside(code)
    assert (outcome.status, outcome.stdout) == ("error", "")
    assert "No space left on device" in outcome.stderr


LIBC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)
"""
LIBRARY = "library = '/python' if os.path.isdir('/python') else os.path.dirname(os.__file__)\n"
RIGHTS = {  # the attack; rights that it needs outside: none, those in namespaces of its own, root's; its error inside
    "a user namespace": (LIBC + "call('unshare', 0x10000000)", "", "PermissionError"),
    "a mount": (LIBC + "call('mount', b'x', b'/tmp', b'tmpfs', 0, None)", "own", "PermissionError"),
    "mounting proc": (
        LIBC + "call('mount', b'proc', b'/tmp', b'proc', 0, None)\nopen('/tmp/self/environ').close()",
        "own",
        "PermissionError",
    ),
    "tracing": (LIBC + "call('ptrace', 0, 0, 0, 0)", "", "PermissionError"),
    "another root": ("import os; os.chroot('/tmp')", "own", "PermissionError"),
    "another user": ("import os; os.setuid(1)", "root", "PermissionError"),
    "a device": (
        "import os, tempfile; os.mknod(tempfile.mkdtemp() + '/null', 0o20666, os.makedev(1, 3))",
        "root",
        "PermissionError",
    ),
    "the library": (
        f"import os\n{LIBRARY}open(library + '/planted.py', 'w').close()\nos.remove(library + '/planted.py')",
        "",
        "Read-only file system",
    ),
    "more memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "",
        "ValueError: not allowed to raise maximum limit",
    ),
}


@pytest.mark.parametrize("attack", RIGHTS)
@pytest.mark.slow
def test_it_cannot_win_back_rights(attack: str, inside, tmp_path: Path) -> None:
    code, needs, error = RIGHTS[attack]
    code += "\nprint('in')"
    alone = ["unshare", "-Urmpf"] if needs == "own" else []
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    tried = subprocess.run(
        [*alone, sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False, env=environment
    )
    outcome = inside(code)
    assert (outcome.status, outcome.stdout) == ("error", "")
    assert error in outcome.stderr
    if tried.stdout != "in\n":
        pytest.skip(f"it is refused inside, and this machine refuses it outside, too: {tried.stderr.splitlines()[-1]}")


def test_it_inherits_no_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("secret")
    descriptor = os.open(tmp_path / "secret", os.O_RDONLY)
    code = f"import os; print(os.pread({descriptor}, 6, 0).decode())"
    assert outside(code, pass_fds=(descriptor,)).stdout == "secret\n"
    start = subprocess.Popen

    def leaking(command, *, pass_fds, **more):  # as if the sandbox itself had forgotten to close it
        return start(command, pass_fds=(*pass_fds, descriptor), **more)

    monkeypatch.setattr(subprocess, "Popen", leaking)
    outcome = run_code(code)
    os.close(descriptor)
    assert (outcome.status, outcome.stdout) == ("error", "")
    assert "Bad file descriptor" in outcome.stderr


@pytest.mark.parametrize("link", ["symlink", "link"])
def test_it_cannot_write_outside_through_a_link(link: str, inside, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    place = f"{str(tmp_path / 'new')!r} if os.path.isdir({str(tmp_path)!r}) else '/tmp/new'"
    code = f"import os\nnew = {place}\nos.{link}({str(kept)!r}, new)\nopen(new, 'w').write('changed')"
    kept.write_text("kept")
    assert outside(code).returncode == 0
    assert kept.read_text() == "changed"
    (tmp_path / "new").unlink()
    kept.write_text("kept")
    outcome = inside(code)
    assert outcome.status == "error"
    assert "No such file or directory" in outcome.stderr
    assert kept.read_text() == "kept"


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
