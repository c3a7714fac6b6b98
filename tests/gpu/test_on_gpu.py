"""On an accelerator: what runs there equals the CPU's reference. Skipped where there is none."""

import pytest
import torch
from torch.testing import assert_close

from sobre.kernels import reference, select
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", [(1, 1), (37, 130, 5)])
def test_causal_attention_equals_the_reference(lengths):
    q, k, v = (
        randn(sum(lengths), heads, width, seed=seed) for seed, (heads, width) in enumerate([(4, 48), (2, 48), (2, 32)])
    )
    there = select.causal_attention(q.cuda(), k.cuda(), v.cuda(), lengths, 0.1)
    assert_close(there.cpu(), reference.causal_attention(q, k, v, lengths, 0.1), **CLOSE)


def test_the_experts_equal_the_reference():
    x_ND, experts_NA = randn(50, 32, seed=0), torch.arange(100).view(50, 2) % 7
    weights_NA = torch.full((50, 2), 0.5)
    gate, up, down = randn(7, 24, 32, seed=1), randn(7, 24, 32, seed=2), randn(7, 32, 24, seed=3)
    inputs = (x_ND, experts_NA, weights_NA, gate, up, down)
    there = select.moe_ffn(*(tensor.cuda() for tensor in inputs))
    assert_close(there.cpu(), reference.moe_ffn(*inputs), **CLOSE)


def test_a_forward_and_its_gradients_equal_the_cpus():
    cfg = ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=40),
    )
    found = []
    for device in ("cpu", "cuda"):
        model = Decoder(cfg)
        model.init_weights(0)
        model.to(device).train()
        step = StepInput(torch.arange(30, device=device) % 61, lengths=(13, 17))
        logits_NV = model.logits(model(step).hidden_ND)
        logits_NV.logsumexp(-1).sum().backward()
        found.append((logits_NV.detach().cpu(), model.embed.weight.grad.cpu()))
    assert_close(found[1][0], found[0][0], **CLOSE)
    assert_close(found[1][1], found[0][1], **CLOSE)
