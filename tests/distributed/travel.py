"""Started by torchrun: the same tokens travel by torch's all-to-all and by DeepEP's interface; writes how far apart.

First one layer's dispatch alone, answers and all gradients; then whole training steps of a divided model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deep_ep_stand_in import Buffer
from torch import Tensor
from worker import Learner, learner, train

from sobre.models.moe import MoE
from sobre.parallel.deep_ep import DeepEPDispatch
from sobre.parallel.dispatch import ExpertDispatch
from sobre.runtime.processes import Processes

NAMES = ("y_ND", "x_ND", "weights_NA", "gate_EFD", "up_EFD", "down_EDF")
D, E, F, A = 16, 4, 8, 2


def answers(dispatch: Any, rank: int, dtype: torch.dtype, experts: range) -> list[Tensor]:
    """What a layer says of tokens that visit these experts only, and the gradients of a sum of it."""
    seed = torch.Generator().manual_seed(rank)
    n = 7 + 4 * rank
    x_ND, probe_ND = (torch.randn(n, D, generator=seed).to(dtype) for _ in range(2))
    experts_NA = torch.rand(n, len(experts), generator=seed).topk(A).indices + experts.start
    weights_NA = torch.rand(n, A, generator=seed)
    shapes = ((E // 2, F, D), (E // 2, F, D), (E // 2, D, F))
    leaves = [x_ND, weights_NA, *(torch.randn(shape, generator=seed).to(dtype) for shape in shapes)]
    for leaf in leaves:
        leaf.requires_grad_()
    y_ND = dispatch(leaves[0], experts_NA, *leaves[1:])
    (y_ND * probe_ND).sum().backward()
    return [y_ND.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def apart(processes: Processes, dtype: torch.dtype, experts: range) -> dict[str, float]:
    """The largest difference over the largest number, of answers and of each gradient, over all processes."""
    Buffer.element_type = dtype
    group = dist.group.WORLD
    assert group is not None
    own = answers(ExpertDispatch(group), processes.rank, dtype, experts)
    other = answers(DeepEPDispatch(Buffer(group)), processes.rank, dtype, experts)
    gaps = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(own, other, strict=True)]
    return {name: max(each) for name, *each in zip(NAMES, *processes.gather(gaps), strict=True)}


def learned(processes: Processes, *, deep_ep: bool) -> Learner:
    found = learner({"layout": {"experts": 2}, "dtype": "float32"}, {"experts": 2}, processes)
    Buffer.element_type = torch.float32
    for module in found.model.modules():
        if isinstance(module, MoE) and deep_ep:
            assert isinstance(module.dispatch, ExpertDispatch)
            module.dispatch = DeepEPDispatch(Buffer(module.dispatch.group))
    train(found, 0, 4)
    return found


processes = Processes.start()
result: dict[str, Any] = {
    "bfloat16": apart(processes, torch.bfloat16, range(E)),
    "float32": apart(processes, torch.float32, range(E)),
    "float32, all visit the first process": apart(processes, torch.float32, range(E // 2)),
}
plain, other = (learned(processes, deep_ep=deep_ep) for deep_ep in (False, True))
result["losses"] = [plain.losses, other.losses]
result["norms"] = [plain.norms, other.norms]
if processes.is_first:
    Path(sys.argv[1]).write_text(json.dumps(result))
processes.stop()
