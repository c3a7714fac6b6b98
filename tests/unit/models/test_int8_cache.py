"""A cache in 8 bits: the plain formula, one set of numbers for all ways of computing, and what it costs in memory."""

import pytest
import torch
from torch.testing import assert_close

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.kernels.int8_entries import from_int8, to_int8
from sobre.models.cache import BlockTables, Int8Cache, PagedCache
from sobre.models.config import BLOCK
from sobre.models.step import StepInput
from sobre.plan.count import cache_bytes_per_token

from .conftest import KINDS, build, ragged

PARTS = ((1, 5), (2, 3))


def plain(entries_NC):
    """The numbers that the codes stand for, vector by vector."""
    found = entries_NC.clone()
    for row in found:
        for begin, end in ((0, 5), (5, 8), (8, 11)):
            scale = row[begin:end].abs().max() / 127
            row[begin:end] = (row[begin:end] / scale).round() * scale if scale else 0.0
    return found


def test_each_vector_of_an_entry_has_its_own_scale(seeded_randn):
    entries_NC = seeded_randn(4, 11) * torch.tensor([1e3] * 5 + [1.0] * 3 + [1e-3] * 3)
    entries_NC[2, 5:8] = 0.0
    codes_NC, scales_NP = to_int8(entries_NC, PARTS)
    assert (codes_NC.dtype, codes_NC.shape, scales_NP.shape) == (torch.int8, (4, 11), (4, 3))
    assert_close(from_int8(codes_NC, scales_NP, PARTS, torch.float32), plain(entries_NC))
    assert scales_NP[2, 1] == 0


def cache_of(cfg, n_slots=3, max_len=40, kind=Int8Cache):
    tables, per_slot = BlockTables(n_slots, max_len, "cpu"), -(-max_len // BLOCK)
    blocks = torch.randperm(n_slots * per_slot, generator=torch.Generator().manual_seed(0))
    for slot, mine in enumerate(blocks.split(per_slot)):
        tables.place(slot, mine.tolist())
    return kind(cfg, tables, n_slots * per_slot, torch.float32)


def logits(model, step, cache):
    with torch.no_grad():
        return model.logits(model(step, cache).hidden_ND)


def test_pieces_and_decoding_read_the_numbers_that_one_pass_computes_with(kind):
    model, length = build(kind), 20
    tokens_RT = torch.stack([ragged((length,), seed=seed).tokens_N for seed in range(3)])
    whole = logits(model, StepInput(tokens_RT.flatten(), (length,) * 3, slots=(0, 1, 2)), cache_of(kind))
    cache, start, parts = cache_of(kind), 0, []
    for size in (9, 4, *[1] * 7):
        tokens = tokens_RT[:, start : start + size].flatten()
        parts.append(
            logits(model, StepInput(tokens, (size,) * 3, (start,) * 3, (0, 1, 2)), cache).unflatten(0, (3, -1))
        )
        start += size
    # a number on the border of two codes may fall to either side where sums were taken in another order
    assert_close(torch.cat(parts, 1), whole.unflatten(0, (3, -1)), rtol=0, atol=2e-2)
    exact = logits(
        model, StepInput(tokens_RT.flatten(), (length,) * 3, slots=(0, 1, 2)), cache_of(kind, kind=PagedCache)
    )
    assert not torch.equal(whole, exact)
    divergence = (exact.softmax(-1) * (exact.log_softmax(-1) - whole.log_softmax(-1))).sum(-1).mean()
    assert divergence < 2e-3


@pytest.mark.parametrize("name", ["mla+moe", "gqa+dense", "mla+moe+memory"])
@pytest.mark.slow
def test_an_engine_shares_copies_rests_and_finds_in_8_bits_as_it_does_in_full(name):
    cfg = KINDS[name]
    model, prompt = build(cfg), tuple(ragged((23,)).tokens_N.tolist())
    asked = [Request(str(i), prompt, SamplingParams(max_tokens=8, temperature=0.0)) for i in range(3)]
    engine = Engine(model, EngineConfig(max_batch=4, cache="int8", deterministic=not cfg.memory.layers))
    n_cells = 4 * -(-cfg.max_len // BLOCK) * BLOCK
    assert engine.cache_bytes == n_cells * cache_bytes_per_token(cfg, 4, int8=True)
    first = engine.generate(asked)
    assert len({tuple(output.token_ids) for output in first}) == 1
    engine.check_integrity()
    again = engine.generate(asked)
    assert again[0].n_found == 22 // BLOCK * BLOCK
    assert [output.token_ids for output in again] == [output.token_ids for output in first]
    engine.rest()
    assert engine.cache_bytes == 0
    assert engine.generate(asked)[0].token_ids == first[0].token_ids


def test_8_bits_hold_about_three_times_the_tokens_of_float32():
    assert [
        cache_bytes_per_token(KINDS[name], 4, int8=True) / KINDS[name].n_layers for name in ("mla+moe", "gqa+dense")
    ] == [16 + 4 + 2 * 4, 2 * 2 * (12 + 4)]
