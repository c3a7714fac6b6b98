"""One decoder: ragged, cached, replayed and accumulated forms of the same forward agree."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from sobre.errors import ConfigError
from sobre.models import mla
from sobre.models.cache import BlockTables, PagedCache
from sobre.models.checkpoint import save_model
from sobre.models.config import BLOCK, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.plan.count import params

from .conftest import KINDS, build, ragged

MTP_NAMES = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def scattered_cache(cfg, n_slots: int, max_len: int) -> PagedCache:
    """Every slot has its blocks, in no order and far from each other."""
    per_slot = -(-max_len // BLOCK)
    tables = BlockTables(n_slots, max_len, "cpu")
    blocks = torch.randperm(n_slots * per_slot, generator=torch.Generator().manual_seed(0))
    for slot, mine in enumerate(blocks.split(per_slot)):
        tables.place(slot, mine.tolist())
    return PagedCache(cfg, tables, n_slots * per_slot, torch.float32)


def logits(model: Decoder, step: StepInput, cache: PagedCache | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(step, cache).hidden_ND)


def test_sequences_of_a_ragged_step_do_not_see_each_other(kind):
    model, step = build(kind), ragged((9, 4, 13))
    alone = [logits(model, StepInput(tokens, lengths=(len(tokens),))) for tokens in step.tokens_N.split((9, 4, 13))]
    assert_close(logits(model, step), torch.cat(alone), **CLOSE)


def test_a_later_token_changes_nothing_before_it(kind):
    model, step = build(kind), ragged((12,))
    changed = StepInput(step.tokens_N.clone().index_fill_(0, torch.tensor([7]), 3), lengths=(12,))
    # not to the last bit: other experts get other numbers of rows, and a product of other rows may round otherwise
    assert_close(logits(model, changed)[:7], logits(model, step)[:7], rtol=0, atol=1e-6)
    assert not torch.allclose(logits(model, changed)[7:], logits(model, step)[7:], atol=1e-3)


@pytest.mark.parametrize("chunks", [(16, 1, 1, 1, 1), (1,) * 20, (5, 15), (20,), (7, 6, 7)])
@pytest.mark.slow
def test_prefill_in_chunks_and_decode_equal_one_forward(kind, chunks):
    model, length = build(kind), 20
    tokens_RT = torch.stack([ragged((length,), seed=seed).tokens_N for seed in range(3)])
    cache = scattered_cache(kind, n_slots=4, max_len=20)
    start, parts = 0, []
    for size in chunks:
        step = StepInput(
            tokens_RT[:, start : start + size].flatten(), (size,) * 3, starts=(start,) * 3, slots=(0, 1, 2)
        )
        parts.append(logits(model, step, cache).unflatten(0, (3, size)))
        start += size
    whole = logits(model, StepInput(tokens_RT.flatten(), (length,) * 3)).unflatten(0, (3, length))
    assert_close(torch.cat(parts, 1), whole, **CLOSE)


@pytest.mark.parametrize("wide_numbers", [mla.WIDE_NUMBERS, 1])
@pytest.mark.parametrize("reads_fresh", [False, True])
def test_a_long_piece_widens_cached_latents_unless_there_is_one_way_for_all(reads_fresh, wide_numbers, monkeypatch):
    cfg, lengths, starts = KINDS["mla+moe"], (15, 24), (5, 2)
    assert cfg.attention.widens(lengths, starts)
    assert not cfg.attention.widens((1, 2), starts)
    model, cache = build(cfg), scattered_cache(cfg, n_slots=2, max_len=26)
    cache.reads_fresh = reads_fresh
    wholes = [ragged((start + new,), seed=new).tokens_N for start, new in zip(starts, lengths, strict=True)]
    begins = [whole[:start] for whole, start in zip(wholes, starts, strict=True)]
    ends = [whole[start:] for whole, start in zip(wholes, starts, strict=True)]
    logits(model, StepInput(torch.cat(begins), starts, (0, 0), slots=(0, 1)), cache)
    forms: list[str] = []
    for name in ("_widened", "_absorbed"):
        form = getattr(mla.MLA, name)
        monkeypatch.setattr(mla.MLA, name, lambda *given, name=name, form=form: (forms.append(name), form(*given))[1])
    monkeypatch.setattr(mla, "WIDE_NUMBERS", wide_numbers)
    found = logits(model, StepInput(torch.cat(ends), lengths, starts, slots=(0, 1)), cache)
    assert forms == ["_absorbed" if reads_fresh else "_widened"] * cfg.n_layers
    expected = [
        logits(model, StepInput(whole, (len(whole),)))[start:] for whole, start in zip(wholes, starts, strict=True)
    ]
    assert_close(found, torch.cat(expected), **CLOSE)


def test_decoding_sequences_of_different_ages_in_scattered_slots_equals_the_full_forward(kind):
    model, lengths = build(kind), (9, 3, 6)
    step = ragged(lengths)
    cache = scattered_cache(kind, n_slots=6, max_len=12)
    sequences, slots = step.tokens_N.split(lengths), (4, 0, 2)
    for tokens, slot in zip(sequences, slots, strict=True):
        logits(model, StepInput(tokens[:-1], (len(tokens) - 1,), slots=(slot,)), cache)
    last = StepInput(
        torch.stack([tokens[-1] for tokens in sequences]), (1, 1, 1), tuple(n - 1 for n in lengths), slots=slots
    )
    ends = torch.tensor(lengths).cumsum(0) - 1
    assert_close(logits(model, last, cache), logits(model, step)[ends], **CLOSE)


def test_replayed_routes_give_the_same_output_and_other_routes_another():
    model, step = build(KINDS["mla+moe"]), ragged((8, 5))
    output = model(step)
    replayed = model(step, routes_LNA=output.routes_LNA)
    assert_close(replayed.hidden_ND, output.hidden_ND, rtol=0, atol=0)
    other = model(step, routes_LNA=(output.routes_LNA + 1) % 8)
    assert not torch.allclose(other.hidden_ND, output.hidden_ND, atol=1e-3)
    assert torch.equal(other.routes_LNA, (output.routes_LNA + 1) % 8)


def test_the_load_counts_every_routed_token_once():
    model, step = build(KINDS["mla+moe"]), ragged((8, 5))
    output = model(step)
    assert output.load_LE.shape == (2, 8)
    assert output.load_LE.sum(-1).tolist() == [13 * 3, 13 * 3]
    assert torch.equal(output.load_LE[0], torch.bincount(output.routes_LNA[0].flatten(), minlength=8))


def test_the_mtp_module_sees_only_the_past_and_the_next_token():
    model, step = build(KINDS["mla+moe"]), ragged((10,))
    hidden_ND = model(step).hidden_ND
    next_N = step.tokens_N.roll(-1)
    ahead = model.predict_second(hidden_ND, next_N, step).hidden_ND
    changed = next_N.clone()
    changed[6] = (changed[6] + 1) % 61
    again = model.predict_second(hidden_ND, changed, step).hidden_ND
    assert_close(again[:6], ahead[:6], rtol=0, atol=0)
    assert not torch.allclose(again[6], ahead[6], atol=1e-3)


def test_the_mtp_module_is_the_formula_over_the_names_of_the_release(tmp_path):
    """Section 2.2 of DeepSeek-V3, eq. 21: the embedding comes first, and each half has a norm of its own."""
    model, step = build(KINDS["mla+moe"]), ragged((10,))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for norm in (model.mtp.embed_norm, model.mtp.hidden_norm, model.mtp.norm):
            norm.weight.normal_(1.0, 0.3, generator=generator)
    save_model(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    theirs = {name: weights[f"model.layers.{model.cfg.n_layers}.{name}"] for name in MTP_NAMES}
    inputs_ND, outputs_ND = [], []
    model.mtp.block.register_forward_pre_hook(lambda _, given: inputs_ND.append(given[0]))
    model.mtp.norm.register_forward_pre_hook(lambda _, given: outputs_ND.append(given[0]))
    with torch.no_grad():
        hidden_ND, next_N = model(step).hidden_ND, step.tokens_N.roll(-1)
        found_ND = model.predict_second(hidden_ND, next_N, step).hidden_ND

    def norm(x_ND: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return x_ND * (x_ND.square().mean(-1, keepdim=True) + model.cfg.norm_eps).rsqrt() * weight_D

    embedded_ND = norm(weights["model.embed_tokens.weight"][next_N], theirs["enorm.weight"])
    joined_N = torch.cat([embedded_ND, norm(hidden_ND, theirs["hnorm.weight"])], -1)
    assert_close(inputs_ND[0], joined_N @ theirs["eh_proj.weight"].T, **CLOSE)
    assert_close(found_ND, norm(outputs_ND[0], theirs["shared_head.norm.weight"]), **CLOSE)


@pytest.mark.parametrize("name", list(KINDS))
def test_counted_parameters_equal_the_modules(name):
    cfg = KINDS[name]
    with torch.device("meta"):
        model = Decoder(cfg)
    n_mtp = sum(p.numel() for n, p in model.named_parameters() if n.startswith("mtp."))
    n_mtp += sum(b.numel() for n, b in model.named_buffers() if n.startswith("mtp.") and n.endswith("bias_E"))
    buffers = sum(router.bias_E.numel() for router in model.routers() if router.cfg.biased)
    buffers += 0 if model.memory is None else model.memory.classes_V.numel()
    counted = params(cfg)
    assert counted.total == sum(p.numel() for p in model.parameters()) + buffers - n_mtp


def test_bf16_compute_over_float32_masters_is_close_and_leaves_the_masters_alone():
    cfg = KINDS["mla+moe"]
    exact, step = build(cfg), ragged((16,))
    rough = Decoder(cfg, dtype=torch.bfloat16)
    rough.load_state_dict(exact.state_dict())
    output = rough.eval()(step, routes_LNA=exact(step).routes_LNA)
    assert output.hidden_ND.dtype == torch.bfloat16
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert_close(output.hidden_ND.float(), exact(step).hidden_ND, rtol=0.1, atol=0.1)


def test_weights_are_a_function_of_the_seed():
    one, same, other = (Decoder(KINDS["mla+moe"]) for _ in range(3))
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        model.init_weights(seed)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert all(not torch.equal(a, c) for a, _, c in pairs if a.ndim > 1)


def test_a_model_of_unknown_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="vocab_size=0"):
        Decoder(ModelConfig(max_len=8))


def test_configs_that_cannot_be_say_what_would_fit():
    with pytest.raises(ConfigError, match=r"n_active=9 must lie in 1\.\.n_experts=8"):
        MoEConfig(n_experts=8, n_active=9)
    with pytest.raises(ConfigError, match="exceeds the 4 experts"):
        MoEConfig(n_experts=8, n_active=5, n_groups=4, n_active_groups=2)
    with pytest.raises(ConfigError, match="rope_dim=7"):
        MLAConfig(rope_dim=7)
    with pytest.raises(ConfigError, match="n_mtp=2"):
        dataclasses.replace(KINDS["mla+moe"], n_mtp=2)
