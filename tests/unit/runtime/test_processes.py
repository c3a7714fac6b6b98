"""One process on its own agrees with itself; a share is consecutive and even."""

import os
from pathlib import Path

import pytest
from torch.distributed import HashStore

from sobre.errors import RunError
from sobre.ledger.prices import Price
from sobre.runtime import flight
from sobre.runtime.processes import Processes


def test_one_process_decides_for_itself_and_lets_errors_through() -> None:
    alone = Processes()
    assert alone.decide(lambda: 7) == 7
    assert alone.gather("a") == ["a"]
    assert alone.any(True, False) == [True, False]
    assert (alone.is_first, alone.n_nodes, alone.data_group) == (True, 1, None)
    with pytest.raises(RunError, match="full"):
        alone.decide(lambda: (_ for _ in ()).throw(RunError("the disk is full")))


def test_the_shares_of_all_processes_are_the_items_in_order() -> None:
    shares = [Processes(rank, 3).share(range(8)) for rank in range(3)]
    assert shares == [[0, 1], [2, 3, 4], [5, 6, 7]]


def test_several_machines_cost_several_times_as_much_and_say_so() -> None:
    one = Price(2.5, "a list, 2026-01-01")
    assert one.times(1) == one
    assert one.times(4) == Price(10.0, "4 machines at 2.5 usd/h: a list, 2026-01-01")


def test_the_watchdog_of_nccl_is_told_where_the_flight_record_lies_unless_the_user_said_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", raising=False)
    monkeypatch.setattr(flight, "leave_stacks", lambda folder, rank: None)
    monkeypatch.setattr(flight, "nothing_to_tell", lambda folder, rank: None)
    one = Processes()
    one._store = HashStore()  # of several processes
    with one.watched(tmp_path / "flight"):
        assert os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == str(tmp_path / "flight" / "nccl-process-")
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "/elsewhere/record-")
    with one.watched(tmp_path / "flight"):
        assert os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == "/elsewhere/record-"
