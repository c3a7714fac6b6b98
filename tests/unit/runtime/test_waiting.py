"""A process's own time is all but that in which it stood in an exchange with others."""

import time
from pathlib import Path

import torch.distributed as dist

from sobre.runtime.waiting import Waiting, is_exchange


def in_an_exchange(seconds: float) -> None:
    """Wait as if in one of torch's exchanges: a function that stands in its file."""
    place = str(Path(dist.__file__).parent / "distributed_c10d.py")
    exec(compile("sleep(seconds)", place, "exec"), {"sleep": time.sleep, "seconds": seconds})


def test_time_in_an_exchange_is_not_a_process_s_own() -> None:
    waiting = Waiting()
    time.sleep(0.1)
    assert waiting.own_s() >= 0.1
    began = time.perf_counter()
    in_an_exchange(0.15)
    took_s = time.perf_counter() - began
    assert waiting.own_s() < took_s / 2
    waiting.stop()


def test_exchanges_are_told_by_the_files_of_torch() -> None:
    home = Path(dist.__file__).parent
    assert all((home / name).is_file() for name in EXCHANGES_HERE)
    assert all(is_exchange(str(home / name)) for name in EXCHANGES_HERE)
    assert not is_exchange(str(home / "tensor" / "_dispatch.py"))
    assert not is_exchange("/elsewhere/distributed_c10d.py")


EXCHANGES_HERE = (
    "distributed_c10d.py",
    "_functional_collectives.py",
    "fsdp/_fully_shard/_fsdp_collectives.py",
    "fsdp/_fully_shard/_fsdp_param_group.py",
    "pipelining/schedules.py",
)
