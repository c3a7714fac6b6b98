"""Expert parallelism: tokens travel to the processes that hold their experts, and the sums of the answers come back.

A token is sent once to each process that holds any of its experts, however many (as DeepSeek-V3 sends it once to a
node, arXiv 2412.19437, 3.2.2), with the numbers of the experts and their weights; what comes back is one weighted sum
for each token sent. How many go where differs from process to process and step to step, and nothing is dropped.
Which processes a token may visit is the router's affair (`n_active_groups`), and is followed here as it is.

Shapes: N tokens, D width, A active experts, E experts of this process, P processes, M tokens sent, R tokens received,
K pairs of a received token and an expert here.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sobre.kernels import select


class ExpertDispatch:
    """For a MoE layer that holds the experts of this process only: number `rank` of `group` has E * rank onwards."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.n_processes = dist.get_world_size(group)

    def __call__(
        self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        n_here = gate_EFD.shape[0]
        home_NA = experts_NA // n_here
        visited_NP = torch.zeros(len(x_ND), self.n_processes, dtype=torch.bool, device=x_ND.device)
        visited_NP.scatter_(1, home_NA, True)
        home_M, token_M = visited_NP.t().nonzero(as_tuple=True)
        sent = visited_NP.sum(0)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        there, back = sent.tolist(), received.tolist()

        is_there_MA = home_NA[token_M] == home_M[:, None]
        expert_MA = torch.where(is_there_MA, experts_NA[token_M] % n_here, -1)
        weight_MA = weights_NA[token_M] * is_there_MA
        expert_RA = torch.empty(sum(back), experts_NA.shape[1], dtype=expert_MA.dtype, device=x_ND.device)
        dist.all_to_all_single(expert_RA, expert_MA, back, there, group=self.group)
        x_RD, weight_RA = (_Sent.apply(rows, there, back, self.group) for rows in (x_ND[token_M], weight_MA))

        y_RD = answers_here(x_RD, expert_RA, weight_RA, gate_EFD, up_EFD, down_EDF)
        return torch.zeros_like(x_ND).index_add(0, token_M, _Sent.apply(y_RD, back, there, self.group))


def answers_here(
    x_RD: Tensor, expert_RA: Tensor, weight_RA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """For each token that came, the weighted sum of the answers of its experts here; -1 stands for one elsewhere."""
    row_K, column_K = (expert_RA >= 0).nonzero(as_tuple=True)
    y_KD = select.moe_ffn(
        x_RD[row_K],
        expert_RA[row_K, column_K][:, None],
        weight_RA[row_K, column_K][:, None],
        gate_EFD,
        up_EFD,
        down_EDF,
    )
    return torch.zeros_like(x_RD).index_add(0, row_K, y_KD)


class _Sent(torch.autograd.Function):
    """Rows to their processes, `there` to each, `back` from each; the gradient takes the same way back.

    Torch's own are `all_to_all_single_autograd`, in a private module (_functional_collectives), and that of
    torch.distributed.nn, which is deprecated in its favour.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: list[int], back: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = there, back, group
        return _exchange(rows, there, back, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        there, back, group = ctx.way
        return _exchange(gradient, back, there, group), None, None, None


def _exchange(rows: Tensor, there: list[int], back: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(back), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), back, there, group=group)
    return arrived
