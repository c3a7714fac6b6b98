"""A stand-in for flash_mla 1.0.0 (9241ae3): refuses what csrc/api/dense_decode.h, flash_mla_interface.py and the tensor
memory accelerator refuse, and computes what tests/test_flash_mla_dense_decoding.py of that repository calls correct.
Of torch's operations alone, so that a tape can write them down.
"""

from typing import Any

import torch
from torch import Tensor

PAGE, WIDTH, RANK = 64, 576, 512


class SchedMeta:
    """flash_mla_interface.FlashMLASchedMeta: empty until the first call."""

    def __init__(self) -> None:
        self.config: tuple[Any, ...] | None = None


class FlashMLA:
    """The module `flash_mla`."""

    def __init__(self) -> None:
        self.metas: list[SchedMeta] = []
        self.n_calls = 0

    def get_mla_metadata(self, *args: Any, **kwargs: Any) -> tuple[SchedMeta, None]:
        lengths_R, n_queries_per_key_head, n_key_heads = args  # what releases before 2026 read
        assert lengths_R.dtype == torch.int32
        assert (n_queries_per_key_head > 0, n_key_heads, kwargs) == (True, 1, {})
        self.metas.append(SchedMeta())
        return self.metas[-1], None

    def flash_mla_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        head_dim_v: int,
        tile_scheduler_metadata: SchedMeta,
        num_splits: None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(tile_scheduler_metadata, SchedMeta)
        assert num_splits is None
        self.check(q, k_cache, block_table, cache_seqlens, head_dim_v)
        config = (*q.shape[:3], *k_cache.shape[1:3], causal)
        assert tile_scheduler_metadata.config in (None, config)
        tile_scheduler_metadata.config = config
        self.n_calls += 1
        scale = WIDTH**-0.5 if softmax_scale is None else softmax_scale
        n_rows, n_pages = block_table.shape
        pages = block_table.long().clamp(0, len(k_cache) - 1)  # what lies beyond a length is not read, here and there
        seen_RS = torch.arange(n_pages * PAGE) < cache_seqlens.unsqueeze(1)
        entries_RSC = k_cache[pages].reshape(n_rows, n_pages * PAGE, WIDTH).float()
        entries_RSC = torch.where(seen_RS.unsqueeze(2), entries_RSC, 0.0)
        scores_RTHS = torch.einsum("rthc,rsc->rths", q.float(), entries_RSC) * scale
        scores_RTHS = scores_RTHS.masked_fill(~seen_RS[:, None, None], -torch.inf)
        out_RTHC = torch.einsum("rths,rsc->rthc", scores_RTHS.softmax(-1), entries_RSC[..., :RANK])
        return out_RTHC.to(q.dtype), scores_RTHS.logsumexp(-1).transpose(1, 2)

    @staticmethod
    def check(q: Tensor, k_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor, head_dim_v: int) -> None:
        assert q.dtype in (torch.bfloat16, torch.float16)
        assert k_cache.dtype == q.dtype
        assert (block_table.dtype, cache_seqlens.dtype) == (torch.int32, torch.int32)
        assert {x.stride(-1) for x in (q, k_cache, block_table)} == {1}
        assert cache_seqlens.is_contiguous()
        assert (q.shape[3], head_dim_v) == (WIDTH, RANK)
        assert k_cache.shape[1:] == (PAGE, 1, WIDTH)
        assert q.shape[0] == len(block_table) == len(cache_seqlens) > 0
        q.view(*q.shape[:2], 1, q.shape[2], WIDTH)  # raises where q does not lie so
        for tensor in (q, k_cache):
            assert tensor.data_ptr() % 16 == 0
            assert all(stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:-1])
