"""Blocks of as many tokens as a kernel asks for: which engines take them, and that nothing else changes."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from flash_mla_stand_in import FlashMLA
from tape import Recorder

from sobre.engine import engine as engines
from sobre.engine import runner
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.pages import block_tokens
from sobre.engine.request import Request, SamplingParams
from sobre.errors import ConfigError
from sobre.kernels import flash_mla, select
from sobre.models.config import BLOCK, DenseConfig, GQAConfig, MLAConfig, ModelConfig
from sobre.models.decoder import Decoder

SHAPE = ModelConfig(
    vocab_size=61,
    max_len=160,
    d_model=32,
    n_layers=2,
    attention=MLAConfig(n_heads=2, kv_rank=512, nope_dim=8, rope_dim=64, v_dim=8),
    ffn=DenseConfig(d_ff=48),
)
NARROW = replace(SHAPE, attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8))
GROUPED = replace(SHAPE, attention=GQAConfig(n_heads=2, n_kv_heads=2))


def of(cfg: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    model = Decoder(cfg, dtype=dtype)
    model.init_weights(3)
    return model.eval()


@pytest.fixture
def flash(monkeypatch) -> FlashMLA:
    """FlashMLA as if it ran here: first in the order of choice, on the CPU."""
    stand_in = FlashMLA()
    monkeypatch.setitem(sys.modules, "flash_mla", stand_in)
    monkeypatch.setattr(flash_mla, "_steps", {})
    here = select.Kernel("latent_decode", "flash_mla", flash_mla.latent_decode, ("cpu",), select.HALVES)
    monkeypatch.setattr(select, "KERNELS", (here, *select.KERNELS))
    monkeypatch.setattr(select, "_chosen", {})
    return stand_in


def test_the_pages_of_flash_mla_are_taken_where_it_decodes(flash, caplog):
    cpu, sizes = torch.device("cpu"), EngineConfig()
    with caplog.at_level(logging.INFO):
        assert block_tokens(of(SHAPE), sizes, 160, cpu) == 64
        for cfg, given in [(NARROW, {}), (SHAPE, {"cache": "int8"}), (SHAPE, {"deterministic": True})]:
            assert block_tokens(of(cfg), EngineConfig(**given), 160, cpu) == BLOCK
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "",
        "it takes latents of 512 and rotary keys of 64, not of 16 and 8",
        "entries lie in int8",
        "engine.deterministic has kernels of its own",
    ]
    assert block_tokens(of(GROUPED), sizes, 160, cpu) == BLOCK
    assert block_tokens(of(SHAPE, torch.float32), sizes, 160, cpu) == BLOCK
    with select.override("latent_decode", "gathered"):
        assert block_tokens(of(SHAPE), sizes, 160, cpu) == BLOCK


def test_a_cache_that_holds_a_request_in_small_blocks_alone_has_small_blocks(flash):
    model = of(SHAPE)
    for tokens, block in ((160, BLOCK), (191, BLOCK), (192, 64)):
        assert block_tokens(model, EngineConfig(cache_tokens=tokens), 160, torch.device("cpu")) == block
    Engine(model, EngineConfig(max_batch=1, cache_tokens=160))
    with pytest.raises(ConfigError, match="at least 160"):
        Engine(model, EngineConfig(max_batch=1, cache_tokens=159))


TORCHES = {k.op: k.name for k in reversed(select.KERNELS) if not k.devices and k.op != "latent_decode"}
"""torch's operations alone, which a tape can write down."""
REQUESTS = [
    Request(str(i), tuple((7 * i + j) % 61 for j in range(3 + 30 * i)), SamplingParams(max_tokens=30, seed=i))
    for i in range(4)
]


def likely_the_same(ours, plain) -> bool:
    """Rounding may flip a draw, and all that follows it."""
    same = [a == b for x, y in zip(ours, plain, strict=True) for a, b in zip(x.token_ids, y.token_ids, strict=True)]
    return sum(same) >= 0.9 * len(same)


@pytest.mark.slow
@pytest.mark.parametrize("records", [False, True])
def test_an_engine_answers_by_flash_mla_what_it_answers_without(flash, monkeypatch, records):
    model, record = of(SHAPE), Recorder()
    with select.overrides(TORCHES | {"latent_decode": "reference"}):
        monkeypatch.setattr(runner, "recorder", lambda *_: "nothing records here")
        plain = Engine(model, EngineConfig(max_batch=4)).generate(REQUESTS)
    assert not flash.n_calls
    monkeypatch.setattr(runner, "recorder", lambda *_: record if records else "nothing records here")
    with select.overrides(TORCHES):
        engine = Engine(model, EngineConfig(max_batch=4))
        ours = engine.generate(REQUESTS)
        again = engine.generate([REQUESTS[3]])[0]
    assert (again.n_found, again.token_ids) == (64, ours[3].token_ids)
    assert likely_the_same(ours, plain)
    assert flash.n_calls == 2 * len(flash.metas) > 0  # two layers
    assert engine.n_recorded == record.n_recorded == (len(flash.metas) // 2 if records else 0)
    if records:  # contexts of 123 tokens at most
        assert {n_blocks for _, n_blocks in engine._runner._replays.buckets} == {2}


@pytest.mark.parametrize("block", [1, 24, 64])
def test_every_request_gets_the_same_from_blocks_of_any_size(model, monkeypatch, tmp_path, block):
    asked = [
        Request(f"{x}/{y}", tuple((x + j) % 5 for j in range(1 + 9 * x)), SamplingParams(max_tokens=12, seed=y))
        for x in range(4)
        for y in range(3)
    ]
    asked += [  # prompts that part within what a larger block holds
        Request(f"late {x}", (*range(20), *([x] * 12)), SamplingParams(max_tokens=4)) for x in range(3)
    ]
    expected = [output.token_ids for output in Engine(model, EngineConfig(max_batch=5)).generate(asked)]
    monkeypatch.setattr(engines, "block_tokens", lambda *_: block)
    for tokens in (0, 48 + block, 128):  # and where requests give way to one another
        engine = Engine(model, EngineConfig(max_batch=5, cache_tokens=tokens, return_routes=True))
        assert [output.token_ids for output in engine.generate(asked)] == expected
        engine.check_integrity()
    n_saved = engine.save_prefixes(tmp_path / "p", "w")
    assert n_saved % block == 0
    other = Engine(model, EngineConfig(max_batch=5, cache_tokens=tokens, return_routes=True))
    assert other.load_prefixes(tmp_path / "p", "w") == n_saved
    assert [output.token_ids for output in other.generate(asked)] == expected
