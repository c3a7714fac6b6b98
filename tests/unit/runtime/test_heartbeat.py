"""Who gives no sign is named to all, and a store that does not answer is noticed in bounded time."""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import pytest
import torch.distributed as dist

from sobre.runtime.heartbeat import KEEPER, Heartbeat, within

SILENCE_S = 0.1


class Closed:
    """A store whose process has ended."""

    def clone(self) -> "Closed":
        return self

    def add(self, key: str, amount: int) -> int:
        raise dist.DistNetworkError("Connection reset by peer")


class Cut(Closed):
    """A store behind a network that is cut: whatever is asked of it, no answer comes, and no error."""

    def add(self, key: str, amount: int) -> int:
        threading.Event().wait(2)
        return 0


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def begin():
    """Starts the heartbeat of a process, and returns it with the queue of what it finds."""
    begun: list[Heartbeat] = []

    def begin(store, rank: int, count: int, silence_s: float = SILENCE_S) -> tuple[Heartbeat, SimpleQueue[str]]:
        said: SimpleQueue[str] = SimpleQueue()
        begun.append(Heartbeat(store, rank=rank, count=count, silence_s=silence_s, on_silence=said.put))
        return begun[-1], said

    yield begin
    for heartbeat in begun:
        heartbeat._stopped.set()


def test_a_process_that_gives_no_sign_is_named_to_all_the_others(store: dist.Store, begin: Callable) -> None:
    found = [begin(store, rank, 3)[1] for rank in (0, 1)]
    for said in found:
        assert said.get(timeout=5) == "no sign of life from process 2: it hangs, is dead, or its network is cut"


def test_who_gives_signs_is_not_silent_and_a_stopped_heartbeat_says_nothing(store: dist.Store, begin: Callable) -> None:
    begun = [begin(store, rank, 2, silence_s=0.25) for rank in range(2)]
    time.sleep(0.35)  # a sign that stood since the begin would have been seen by now
    begun[0][0].stop()
    assert all(said.empty() for _, said in begun)
    first, said = begin(store, 0, 3)
    first.stop()
    time.sleep(1.5 * SILENCE_S)
    assert said.empty()


@pytest.mark.parametrize("gone", [Closed(), Cut()])
def test_a_store_that_does_not_answer_is_noticed_after_the_silence(gone: Closed, begin: Callable) -> None:
    began = time.monotonic()
    assert begin(gone, 1, 2)[1].get(timeout=5) == KEEPER
    assert time.monotonic() - began >= SILENCE_S


def test_a_question_is_waited_for_only_so_long() -> None:
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        within(0.05, lambda: threading.Event().wait(2))


def test_the_first_is_not_silent_to_itself(store: dist.Store, begin: Callable) -> None:
    _, said = begin(store, 0, 1)
    with pytest.raises(Empty):
        said.get(timeout=2 * SILENCE_S)
