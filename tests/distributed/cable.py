"""Two machines and the cable between them, as two network namespaces of this one; no rights are needed for that.

Both see the same files and processes, as if the disk had a network of its own. Unplugging closes no connection: what
is sent is lost, as with a real cable.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from subprocess import Popen

GIVE_UP = 6
"""Times that an impatient kernel sends again before it gives a connection up: 25 s. Usual are 15, for 15 minutes."""


class Cable:
    """Machine 0 is 10.9.0.1, machine 1 is 10.9.0.2."""

    names = ("here", "there")

    def __init__(self, holders: tuple[int, int]) -> None:
        self._holders = holders

    def at(self, machine: int, *command: str) -> list[str]:
        """The line that runs `command` on a machine."""
        return ["nsenter", "-t", str(self._holders[machine]), "-U", "-n", "--preserve-credentials", *command]

    def impatient(self, machine: int) -> None:
        """Let the kernel of a machine give connections up soon, so that torchrun ends there when it is cut off."""
        _do(self.at(machine, "sh", "-c", f"echo {GIVE_UP} > /proc/sys/net/ipv4/tcp_retries2"))

    def unplug(self) -> None:
        for machine in (0, 1):
            _do(self.at(machine, "ip", "link", "set", self.names[machine], "down"))


@contextmanager
def plugged() -> Iterator[Cable]:
    """Raises CalledProcessError or OSError where this machine allows no namespaces."""
    with ExitStack() as stack:
        first = stack.enter_context(_held(["unshare", "--map-root-user", "--net"]))
        inside = ["nsenter", "-t", str(first), "-U", "--preserve-credentials"]
        second = stack.enter_context(_held([*inside, "unshare", "--net"]))
        cable = Cable((first, second))
        _do(cable.at(0, "ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(second)))
        for machine, name in enumerate(cable.names):
            _do(cable.at(machine, "ip", "address", "add", f"10.9.0.{machine + 1}/24", "dev", name))
            for each in ("lo", name):
                _do(cable.at(machine, "ip", "link", "set", each, "up"))
        yield cable


@contextmanager
def _held(make: list[str]) -> Iterator[int]:
    """A process in namespaces of its own, which live as long as it does: the process id."""
    line = [*make, "sh", "-c", "echo; exec cat"]
    with Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        assert held.stderr is not None
        if not held.stdout.readline():
            raise OSError(held.stderr.read().strip())
        try:
            yield held.pid
        finally:
            held.stdin.close()  # and `cat` ends


def _do(line: list[str]) -> None:
    subprocess.run(line, check=True, capture_output=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"})
