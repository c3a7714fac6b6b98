"""Our kernels against the modules of `transformers` that compute the same: an oracle nobody here wrote."""

import pytest
import torch
from torch.testing import assert_close

from sobre.kernels import select

transformers = pytest.importorskip("transformers")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def deepseek():
    return pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")


@pytest.fixture
def config():
    return transformers.DeepseekV3Config(
        hidden_size=32, moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=2, num_hidden_layers=1
    )


def test_rms_norm_is_that_of_deepseek(deepseek):
    norm = deepseek.DeepseekV3RMSNorm(24, eps=1e-6)
    norm.weight.data = randn(24, seed=1)
    x = randn(7, 24).requires_grad_()
    ours = select.rms_norm(x, norm.weight.detach(), 1e-6)
    assert_close(ours, norm(x))
    assert_close(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(norm(x).sum(), x)[0], rtol=1e-4, atol=1e-5)


def test_interleaved_rope_gives_the_scores_of_deepseek(deepseek):
    q, k = randn(1, 2, 6, 8), randn(1, 1, 6, 8, seed=1)
    angles = torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.3, 0.1, 0.01]))
    doubled = torch.cat([angles, angles], -1)[None]
    theirs_q, theirs_k = deepseek.apply_rotary_pos_emb_interleave(q, k, doubled.cos(), doubled.sin())
    ours_q, ours_k = (
        select.rope(x[0].transpose(0, 1), angles.cos(), angles.sin(), True).transpose(0, 1) for x in (q, k)
    )
    assert_close(ours_q @ ours_k.mT, (theirs_q @ theirs_k.mT)[0])  # they permute both sides, so only products agree


def test_routed_experts_are_those_of_deepseek(deepseek, config):
    config._experts_implementation = "eager"
    experts = deepseek.DeepseekV3Experts(config)
    for seed, parameter in enumerate(experts.parameters()):
        parameter.data = 0.2 * randn(*parameter.shape, seed=seed)
    x_ND, weights_NA = randn(40, 32, seed=5), randn(40, 2, seed=6).abs()
    experts_NA = randn(40, 8, seed=7).topk(2).indices
    gate_EFD, up_EFD = experts.gate_up_proj.detach().chunk(2, dim=1)
    wanted = experts(x_ND, experts_NA, weights_NA)
    assert_close(select.moe_ffn(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, experts.down_proj.detach()), wanted)


def test_causal_attention_is_torchs():
    q, k, v = randn(2, 150, 4, 8), randn(2, 150, 2, 8, seed=1), randn(2, 150, 2, 8, seed=2)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=0.4, enable_gqa=True
    )
    found = select.causal_attention(*(x.flatten(0, 1) for x in (q, k, v)), (150, 150), 0.4)
    assert_close(found, wanted.transpose(1, 2).flatten(0, 1), rtol=1e-4, atol=1e-5)
