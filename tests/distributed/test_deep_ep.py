"""DeepEP's interface carries tokens as torch's all-to-all does; where it cannot be, the reason is said.

The interface is a stand-in over gloo (deep_ep_stand_in.py): no machine with the hardware has been at hand.
"""

import importlib.util
import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from sobre.errors import ConfigError
from sobre.parallel.config import ParallelConfig
from sobre.parallel.deep_ep import choose_dispatch, refuses
from sobre.parallel.dispatch import ExpertDispatch

from .deep_ep_stand_in import Buffer

TRAVEL = Path(__file__).with_name("travel.py")


@pytest.mark.slow
def test_deep_ep_gives_the_losses_and_gradients_of_the_all_to_all(tmp_path: Path, torchrun: Callable[..., str]) -> None:
    out = tmp_path / "found.json"
    torchrun(2, str(TRAVEL), str(out))
    found = json.loads(out.read_text())
    assert max(found["float32"].values()) < 1e-6, found
    assert max(found["float32, all visit the first process"].values()) < 1e-6, found
    assert max(found["bfloat16"].values()) < 2**-7, found  # sums of two answers are rounded once, not twice
    assert found["losses"][1] == pytest.approx(found["losses"][0], rel=1e-6)
    assert found["norms"][1] == pytest.approx(found["norms"][0], rel=1e-5)
    assert len(set(found["losses"][0])) == 4


@pytest.mark.parametrize("call", ["get_dispatch_layout", "dispatch", "combine"])
def test_the_stand_in_asks_for_what_the_installed_package_takes(call: str) -> None:
    if importlib.util.find_spec("deep_ep") is None:
        pytest.skip("deep_ep is not installed")
    import deep_ep

    theirs = inspect.signature(getattr(deep_ep.Buffer, call)).parameters
    assert set(inspect.signature(getattr(Buffer, call)).parameters) <= set(theirs)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if deep_ep were: with settings for 2, 4 and 8 processes."""

    class Settings(Buffer):
        @staticmethod
        def get_dispatch_config(num_ranks: int) -> None:
            assert num_ranks in (2, 4, 8)

    module = ModuleType("deep_ep")
    module.Buffer = Settings  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("deep_ep", loader=None)
    monkeypatch.setitem(sys.modules, "deep_ep", module)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((8, "cuda", torch.bfloat16, 7168), None),
        ((8, "cpu", torch.bfloat16, 7168), "runs on cuda, not on cpu"),
        ((8, "cuda", torch.float32, 7168), "sends torch.bfloat16, not torch.float32"),
        ((8, "cuda", torch.bfloat16, 100), "needs a width that is a multiple of 8, not 100"),
        ((6, "cuda", torch.bfloat16, 7168), "has no settings for 6 processes"),
    ],
)
def test_what_deep_ep_cannot_carry_is_refused_with_the_reason(where, said, installed: None) -> None:
    assert refuses(*where) == said


def test_the_choice_is_logged_with_its_reason_and_a_wish_that_cannot_be_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, installed: None
) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        where = {"device": "cpu", "dtype": torch.float32, "width": 16}
        with caplog.at_level(logging.INFO):
            assert isinstance(choose_dispatch("auto", dist.group.WORLD, **where), ExpertDispatch)
        assert caplog.messages == [
            "experts: tokens travel by torch's all-to-all (DeepEP runs on cuda, not on cpu)",
        ]
        with pytest.raises(ConfigError, match="dispatch=deep-ep runs on cuda, not on cpu; all-to-all works everywhere"):
            choose_dispatch("deep-ep", dist.group.WORLD, **where)
    finally:
        dist.destroy_process_group()


def test_deep_ep_without_divided_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="dispatch=deep-ep needs experts above 1"):
        ParallelConfig(dispatch="deep-ep")
