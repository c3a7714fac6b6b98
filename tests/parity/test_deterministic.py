"""One request, the same bits: alone or in company, its beginning found or computed, whole or in pieces, guessed
or not."""

import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.kernels import tiled
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder

MLA = MLAConfig(n_heads=3, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12)
GQA = GQAConfig(n_heads=4, n_kv_heads=2, head_dim=8, qk_norm=True)
MOE = MoEConfig(n_experts=8, n_active=3, d_expert=24, d_ff=48)


@pytest.fixture(
    scope="module",
    params=[(MLA, MOE, "float32"), (GQA, DenseConfig(d_ff=72), "bfloat16")],
    ids=["mla-moe", "gqa-dense"],
)
def model(request):
    attention, ffn, dtype = request.param
    cfg = ModelConfig(
        vocab_size=300, d_model=40, n_layers=2, max_len=96, attention=attention, ffn=ffn, init_std=0.2, n_mtp=1
    )
    decoder = Decoder(cfg, dtype=getattr(torch, dtype))
    decoder.init_weights(1)
    return decoder.eval()


def requests_of(n):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(300, (4 + 9 * (i % 4),), generator=generator).tolist() for i in range(n)]
    return [Request(str(i), (*prompts[i],), SamplingParams(max_tokens=3 + i, seed=i)) for i in range(n)]


def bits(outputs):
    return [(output.token_ids, output.logprobs) for output in outputs]


def engine_of(model, **sizes):
    return Engine(model, EngineConfig(deterministic=True, **sizes))


@pytest.mark.slow
def test_company_pieces_prefixes_and_guesses_change_no_bit(model):
    requests = requests_of(6)
    alone = bits(engine_of(model, max_batch=1, prefix_cache=False).generate([r])[0] for r in requests)
    for sizes in (
        {"max_batch": 6},
        {"max_batch": 4, "prefill_tokens": 7},
        {"max_batch": 6, "speculate": True},
        {"max_batch": 4, "cache_tokens": 112, "speculate": True},
    ):
        engine = engine_of(model, **sizes)
        assert bits(engine.generate(requests)) == alone, sizes
        assert bits(engine.generate(requests)) == alone, sizes
        assert engine.stats.found_tokens > 0 or "cache_tokens" in sizes


def test_a_second_turn_is_the_same_found_or_not(model):
    first = requests_of(3)[2]
    answer = engine_of(model).generate([first])[0].token_ids
    second = Request("b", (*first.prompt_ids, *answer, 7, 8, 9), SamplingParams(max_tokens=9, seed=5))
    cold = bits(engine_of(model).generate([second]))
    engine = engine_of(model)
    engine.generate([first])
    warm = engine.generate([second])
    assert warm[0].n_found >= 16
    assert bits(warm) == cold


def test_without_it_the_answers_are_the_same_up_to_rounding(model):
    if model.dtype is torch.bfloat16:
        pytest.skip("rounding in bfloat16 is wide enough to choose other tokens")
    requests = requests_of(5)
    fixed, free = (Engine(model, EngineConfig(deterministic=flag)).generate(requests) for flag in (True, False))
    for a, b in zip(fixed, free, strict=True):
        assert a.token_ids == b.token_ids
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=1e-5)


def test_a_machine_whose_rows_depend_on_their_neighbours_is_refused(model, monkeypatch):
    monkeypatch.setattr(tiled, "rows_are_independent", lambda *a: False)
    with pytest.raises(Exception, match=r"engine.deterministic: .* gives a row other bits at another place"):
        engine_of(model)
