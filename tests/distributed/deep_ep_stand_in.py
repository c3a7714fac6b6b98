"""The interface of `deep_ep.Buffer` (DeepEP 1.2.1) over torch's own exchanges, as strict as the original.

Its documentation and its checks are followed: element types, shapes, contiguous rows, keywords by their names; experts
numbered from the first of the process that has them, and -1 for one elsewhere, whose weight is zero; tokens in the
order of the processes that they come from; sums in float32, without weights; a handle that nobody looks into. Only
`element_type` may be changed, to compare without the rounding of bfloat16.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Buffer:
    element_type = torch.bfloat16

    def __init__(self, group: dist.ProcessGroup, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0) -> None:
        self.group, self.rank, self.group_size = group, group.rank(), group.size()

    def get_dispatch_layout(
        self,
        topk_idx: Tensor,
        num_experts: int,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Any]:
        assert topk_idx.dtype == torch.int64
        assert topk_idx.is_contiguous()
        assert num_experts % self.group_size == 0
        chosen_NE = torch.zeros(len(topk_idx), num_experts + 1, dtype=torch.bool)
        chosen_NE = chosen_NE.scatter(1, topk_idx.where(topk_idx >= 0, num_experts), True)[:, :num_experts]
        is_in_rank_NP = chosen_NE.unflatten(1, (self.group_size, -1)).any(-1)
        return is_in_rank_NP.sum(0, dtype=torch.int32), None, chosen_NE.sum(0, dtype=torch.int32), is_in_rank_NP, None

    def dispatch(
        self,
        x: Tensor,
        handle: Any = None,
        num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None,
        is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        expert_alignment: int = 1,
        config: Any = None,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, list[int] | None, Any, Any]:
        self._check(x)
        if handle is not None:
            assert topk_idx is None
            assert topk_weights is None
            token_M, there, back, _ = handle
            return self._exchange(x[token_M], there, back), None, None, None, None, None
        assert num_tokens_per_rank is not None
        assert is_token_in_rank is not None
        assert num_tokens_per_expert is not None
        assert (num_tokens_per_rank.dtype, num_tokens_per_expert.dtype) == (torch.int32, torch.int32)
        assert (is_token_in_rank.dtype, is_token_in_rank.shape) == (torch.bool, (len(x), self.group_size))
        assert topk_idx is not None
        assert topk_weights is not None
        assert topk_idx.shape == topk_weights.shape
        assert (topk_weights.dtype, topk_weights.is_contiguous()) == (torch.float32, True)
        n_here = len(num_tokens_per_expert) // self.group_size
        home_M, token_M = is_token_in_rank.t().nonzero(as_tuple=True)
        received = torch.empty_like(num_tokens_per_rank)
        dist.all_to_all_single(received, num_tokens_per_rank, group=self.group)
        there, back = num_tokens_per_rank.tolist(), received.tolist()
        is_there_MA = topk_idx[token_M] // n_here == home_M[:, None]
        expert_RA = self._exchange(torch.where(is_there_MA, topk_idx[token_M] % n_here, -1), there, back)
        weight_RA = self._exchange(topk_weights[token_M] * is_there_MA, there, back)
        counts = [int((expert_RA == expert).sum()) for expert in range(n_here)]
        x_RD = self._exchange(x[token_M], there, back)
        handle = (token_M, there, back, len(x))
        return x_RD, expert_RA, weight_RA, counts, handle, None

    def combine(
        self,
        x: Tensor,
        handle: Any,
        topk_weights: Tensor | None = None,
        config: Any = None,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Any]:
        self._check(x)
        if topk_weights is not None:
            assert topk_weights.dtype == torch.float32
            assert topk_weights.is_contiguous()
            assert len(topk_weights) == len(x)
        token_M, there, back, n = handle

        def summed(rows: Tensor) -> Tensor:
            home = self._exchange(rows, back, there).float()
            return torch.zeros(n, rows.shape[1]).index_add(0, token_M, home).to(rows.dtype)

        return summed(x), None if topk_weights is None else summed(topk_weights), None

    def _check(self, x: Tensor) -> None:
        assert x.dim() == 2
        assert x.is_contiguous()
        assert x.dtype == self.element_type
        assert x.shape[1] * x.element_size() % 16 == 0

    def _exchange(self, rows: Tensor, there: list[int], back: list[int]) -> Tensor:
        received = rows.new_empty(sum(back), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), back, there, group=self.group)
        return received
