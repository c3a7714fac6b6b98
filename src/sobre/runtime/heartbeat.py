"""Signs of life: who waits for a process that is gone notices it, whatever he waits in.

The exchanges of a step end by themselves after `parallel.timeout_s`. Other waits are long by right: for what the first
process does alone, for the thread that writes a state with others, for an answer of the store. A network that is cut
closes no connection, and the kernel goes on sending for a quarter of an hour (net.ipv4.tcp_retries2 = 15, 924.6 s by
Linux's ip-sysctl.rst) or, where nothing is to be sent, waits for ever; nor does a stopped process (SIGSTOP) close one.

Every process counts up its sign in the store of the first one, over a connection of its own. The first looks which
signs stand still, and tells all. Who does not reach the store is cut off himself. A thread gives the signs, so they
say that a process is there, not that it gets on.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
BEATS = 4
"""Signs in the time after which silence is noticed."""
KEEPER = "process 0, which keeps the store of all, does not answer: it hangs, is dead, or the network is cut"


class Heartbeat:
    """Example: heartbeat = Heartbeat(store, rank=1, count=8, silence_s=60, on_silence=end); heartbeat.stop()"""

    def __init__(
        self, store: dist.Store, *, rank: int, count: int, silence_s: float, on_silence: Callable[[str], None]
    ) -> None:
        """`on_silence` is called once, in a thread of its own, with who is silent; at the latest 1.5 `silence_s` after
        the last sign."""
        # on the shared connection a wait of the main thread would hold the signs back
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        self._rank, self._silence_s, self._on_silence = rank, silence_s, on_silence
        self._seen = dict.fromkeys(range(1, count), (0, time.monotonic()))
        """By the first process: the last sign of each other, and since when it stands."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave in good order, when all do: others miss the signs of this process from now on."""
        self._stopped.set()
        self._thread.join(self._silence_s)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self._silence_s / BEATS):
            try:
                silent, last = within(self._silence_s, self._exchange), time.monotonic()
            except TimeoutError:
                silent = KEEPER
            except dist.DistError:  # closed: its process has ended, and this one may be about to, too
                silent = KEEPER if time.monotonic() - last > self._silence_s else ""
            if silent and not self._stopped.is_set():
                self._on_silence(silent)
                return

    def _exchange(self) -> str:
        """Give a sign; return who is silent, or nothing."""
        self._store.add(f"sign/{self._rank}", 1)
        if self._rank == 0 and (silent := self._silent()):
            who = ", ".join(map(str, silent))
            self._store.set("silent", f"no sign of life from process {who}: it hangs, is dead, or its network is cut")
            time.sleep(self._silence_s / BEATS)  # the store may end with this process, and all shall read it
        return self._store.get("silent").decode() if self._store.check(["silent"]) else ""

    def _silent(self) -> list[int]:
        now = time.monotonic()
        for rank, (before, _) in self._seen.items():
            if (sign := self._store.add(f"sign/{rank}", 0)) != before:
                self._seen[rank] = sign, now
        return [rank for rank, (_, since) in self._seen.items() if now - since > self._silence_s]


def within(limit_s: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises. Raises TimeoutError if that takes longer; a thread waits on for it."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(ask())
        except Exception as error:  # raised where it is waited for
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([found], limit_s).done:
        raise TimeoutError(f"no answer in {limit_s:g} s")
    return found.result()
