"""What filters leave of probabilities, through `likely.c`, on a CPU.

Shapes: R rows, V vocabulary, F filtered rows.
"""

from torch import Tensor

from sobre.kernels.native.build import call


def keep_likely(probs_RV: Tensor, rows_F: Tensor, top_k_F: Tensor, top_p_F: Tensor, min_p_F: Tensor, _: int) -> None:
    """The same function as `reference.keep_likely`."""
    assert probs_RV.is_contiguous()
    call("keep_likely", probs_RV, rows_F, top_k_F, top_p_F, min_p_F, len(rows_F), probs_RV.shape[1])
