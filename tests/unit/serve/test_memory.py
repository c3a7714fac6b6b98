"""What does not fit is said before it is read; what fits is what the cache is made for."""

import sys

import pytest
import torch

from sobre.errors import RunError
from sobre.models.config import BLOCK
from sobre.serve import memory
from sobre.serve.memory import check_weights, fitting_cache, free_bytes

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """`free(n)`: the machine has n bytes."""
    return lambda n: monkeypatch.setattr(memory, "free_bytes", lambda device: n)


def test_a_cache_takes_what_all_answers_need_or_half_of_what_is_free(free):
    free(10**9)
    assert fitting_cache(100, 16, 0, 1000, CPU) == (1000, 16 * 1008)
    assert fitting_cache(100, 16, 500, 1000, CPU) == (500, 16 * 512)
    free(2 * 100 * 5000)
    assert fitting_cache(100, 16, 0, 1000, CPU) == (1000, 5000 // BLOCK * BLOCK)


def test_a_context_that_does_not_fit_is_refused_if_asked_for_and_else_cut_to_what_does(free):
    free(2 * 100 * 500)
    with pytest.raises(RunError, match=r"one answer of 1,000 tokens .* --max-context 496 would fit"):
        fitting_cache(100, 16, 1000, 2000, CPU)
    assert fitting_cache(100, 16, 496, 2000, CPU) == (496, 496)
    assert fitting_cache(100, 16, 0, 2000, CPU) == (496, 496)
    free(100)
    with pytest.raises(RunError, match="would fit"):
        fitting_cache(100, 16, 0, 2000, CPU)


def test_weights_beyond_the_memory_are_refused_before_they_are_read(free, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20))
    free(2**20 * 2)
    with pytest.raises(RunError, match=r"its weights take 0\.00 GiB, and 0\.00 GiB of memory are free"):
        check_weights(tmp_path, 1.0, CPU)
    check_weights(tmp_path, 0.5, CPU)


def test_a_group_has_what_its_limit_leaves(tmp_path):
    assert memory._of_the_group(tmp_path) == sys.maxsize
    for limit, left in (("max", sys.maxsize), ("1000", 600), ("300", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("400\n")
        assert memory._of_the_group(tmp_path) == left


def test_this_machine_tells_what_is_free():
    assert 2**20 < free_bytes(CPU) <= sys.maxsize
    assert free_bytes(torch.device("meta")) == sys.maxsize
