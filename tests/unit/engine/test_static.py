"""Decode steps over fixed buffers: the same logits as the plain step, and nothing in them that the host decides.

A tape (tape.py) stands in for the device that records: it runs torch's operations again, and no Python.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tape import Recorder

from sobre.engine import runner, static
from sobre.engine.config import EngineConfig
from sobre.engine.determinism import fixed_shapes
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.engine.static import Replays, StaticStep, bucket
from sobre.kernels import experts, select
from sobre.models.adapt import adapt
from sobre.models.cache import BlockTables, PagedCache
from sobre.models.config import (
    BLOCK,
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    LoraConfig,
    MemoryConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
)
from sobre.models.decoder import Decoder

COMMON = {"vocab_size": 61, "max_len": 160, "d_model": 32, "n_layers": 2}
LATENT = MLAConfig(n_heads=2, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8)
EXPERTS = MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=48)
SHAPES = {
    "grouped queries, dense": ModelConfig(
        **COMMON, attention=GQAConfig(n_heads=4, n_kv_heads=2, qk_norm=True), ffn=DenseConfig(d_ff=48)
    ),
    "latent attention, experts": ModelConfig(**COMMON, attention=LATENT, ffn=EXPERTS),
}
ACCELERATED = {kernel.op: kernel.name for kernel in reversed(select.KERNELS) if not kernel.devices}
"""What any accelerator may take, the first of each operation: torch's operations alone, which a tape can write down."""
each_shape = pytest.mark.parametrize("name", SHAPES)


@pytest.fixture(autouse=True)
def _counts_as_an_accelerator(monkeypatch):
    """On a CPU experts' rows are counted by what a device would be asked for."""
    counted = lambda values_M, n: values_M.new_zeros(n).index_add_(0, values_M, torch.ones_like(values_M))  # noqa: E731
    monkeypatch.setattr(experts, "counted", counted)


def model_of(name: str) -> Decoder:
    model = Decoder(SHAPES[name])
    model.init_weights(3)
    return model.eval()


class Prepared:
    """A cache in which some rows have `starts` tokens each, and their next token."""

    def __init__(self, name: str, starts: list[int], *, seed: int = 0) -> None:
        self.model = model_of(name)
        self.tables = BlockTables(8, 160, "cpu")
        self.n_blocks = 80
        self.cache = PagedCache(self.model.cfg, self.tables, self.n_blocks + 1, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        for kept in self.cache.layers.values():
            kept.normal_(generator=generator)
        places = np.random.default_rng(seed).permutation(self.n_blocks).reshape(8, 10)
        for slot in range(8):
            self.tables.place(slot, places[slot].tolist())
        n = len(starts)
        self.batch = SimpleNamespace(
            rows=[None] * n,
            slots=tuple(range(n)),
            starts_R=np.array(starts),
            tokens_T=torch.randint(0, 61, (n,), generator=generator),
        )

    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """logits_NV of the ordinary step, and all that the cache then holds."""
        batch = self.batch
        n = len(batch.rows)
        step = static.StepInput(batch.tokens_T, (1,) * n, tuple(batch.starts_R.tolist()), batch.slots)
        with torch.inference_mode():
            output = self.model(step, self.cache)
            return self.model.logits(output.hidden_ND), self.cache.layers["entries"].clone()

    def fixed(self, n_rows: int, n_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by a step over buffers of that size."""
        with torch.inference_mode():
            step = StaticStep(self.model, self.cache, self.tables, n_rows, n_blocks)
            step.fill(self.batch, self.n_blocks)
            logits_RV = step.run().logits_RV[: len(self.batch.rows)]
            return logits_RV, self.cache.layers["entries"].clone()


def test_buckets_are_at_most_half_as_large_again():
    sizes = [bucket(n) for n in range(1, 200)]
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 128)] == [
        1,
        2,
        3,
        4,
        6,
        8,
        12,
        16,
        24,
        32,
        48,
        128,
    ]
    assert all(n <= size <= max(n, 1.5 * n) for n, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes)


@each_shape
@pytest.mark.parametrize("kernels", [ACCELERATED, {}])
def test_a_step_that_fills_its_buffers_has_the_bits_of_the_plain_one(name, kernels):
    starts = [31, 19, 24, 16]  # two blocks each, the first to their end
    with select.overrides(kernels):
        plain, cached = Prepared(name, starts).plain()
        ours, ours_cached = Prepared(name, starts).fixed(4, 2)
    assert torch.equal(ours, plain)
    assert torch.equal(ours_cached, cached)


@each_shape
def test_rows_and_blocks_that_only_fill_a_bucket_change_nothing_but_the_spare_block(name):
    starts = [31, 4, 70]
    with fixed_shapes():  # the bits of a row then do not depend on how many there are
        plain, cached = Prepared(name, starts).plain()
        ours, ours_cached = Prepared(name, starts).fixed(6, 8)
    assert torch.equal(ours, plain)
    assert torch.equal(ours_cached[:, :-1], cached[:, :-1])
    assert not torch.equal(ours_cached[:, -1], cached[:, -1])
    with select.overrides(ACCELERATED):
        plain, _ = Prepared(name, starts).plain()
        ours, _ = Prepared(name, starts).fixed(6, 8)
    assert torch.allclose(ours, plain, atol=1e-5)


@each_shape
def test_a_recorded_step_reads_all_that_changes_from_its_buffers(name):
    """Step after step from one recording, while contexts grow, tokens change and rows come and go."""
    with select.overrides(ACCELERATED), torch.inference_mode():
        plain, ours, record = Prepared(name, [33, 40, 37]), Prepared(name, [33, 40, 37]), Recorder()
        replays = Replays(ours.model, ours.cache, ours.tables, ours.n_blocks, record)
        for number in range(6):
            if number == 3:  # other rows, in other slots
                for side in (plain, ours):
                    side.batch.slots, side.batch.starts_R = (5, 0, 2), np.array([44, 36, 45])
            expected, cached = plain.plain()
            made = replays.run(ours.batch)
            assert torch.allclose(made.logits_RV, expected, atol=1e-6)
            assert torch.allclose(ours.cache.layers["entries"][:, :-1], cached[:, :-1], atol=1e-6)
            for side in (plain, ours):
                side.batch.tokens_T = expected.argmax(-1)
                side.batch.starts_R = side.batch.starts_R + 1
        assert (record.n_recorded, record.n_run) == (1, 6)
        assert replays.buckets == [(3, 3)]
        for parameter in ours.model.parameters():
            parameter.mul_(0.5)
        replays.weights_changed()
        assert replays.buckets == [(3, 3)]  # new numbers in the same places
        ours.model.norm.weight = torch.nn.Parameter(ours.model.norm.weight.clone())
        replays.weights_changed()
        assert replays.buckets == []


def answers(name: str, monkeypatch: pytest.MonkeyPatch, record: object, **more: object) -> tuple[list[object], Engine]:
    monkeypatch.setattr(runner, "recorder", lambda model, device: record)
    engine = Engine(model_of(name), EngineConfig(max_batch=4, prefill_tokens=64, **more), run_seed=7)
    requests = [
        Request(str(i), tuple(range(3 + i, 12 + 3 * i)), SamplingParams(max_tokens=8 + 5 * i, seed=i)) for i in range(6)
    ]
    outputs = engine.generate(requests)
    return [(list(o.token_ids), list(o.logprobs), o.routes_LTA) for o in outputs], engine


@each_shape
def test_an_engine_that_replays_its_steps_answers_the_same(name, monkeypatch):
    record = Recorder()
    with select.overrides(ACCELERATED):
        plain, before = answers(name, monkeypatch, "nothing records here", return_routes=True)
        ours, engine = answers(name, monkeypatch, record, return_routes=True)
        assert before.n_recorded == 0
        assert engine.n_recorded == record.n_recorded > 3
        assert record.n_run > 2 * record.n_recorded
        for (tokens, logprobs, routes), (tokens_b, logprobs_b, routes_b) in zip(plain, ours, strict=True):
            assert tokens == tokens_b
            assert logprobs == pytest.approx(logprobs_b, abs=1e-5)
            assert routes is None or torch.equal(routes, routes_b)
        engine.check_integrity()
        engine.rest()
        assert engine.n_recorded == 0  # the cache is somewhere else when it wakes
        again = engine.generate([Request("again", tuple(range(3, 12)), SamplingParams(max_tokens=8, seed=0))])
        assert list(again[0].token_ids) == plain[0][0]


def test_a_step_that_cannot_be_recorded_is_launched_and_said(monkeypatch, caplog):
    def fails(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    name = "grouped queries, dense"
    plain, _ = answers(name, monkeypatch, "nothing records here")
    ours, engine = answers(name, monkeypatch, fails)
    assert [tokens for tokens, _, _ in ours] == [tokens for tokens, _, _ in plain]
    assert engine.n_recorded == 0
    assert "recording one failed: operation not permitted" in caplog.text


def test_guesses_and_the_key_keep_steps_from_being_recorded(monkeypatch, caplog):
    caplog.set_level("INFO", logger="sobre")
    for more, why in (({"speculate": True}, "guesses differ in number"), ({"graphs": "off"}, "engine.graphs is off")):
        record = Recorder()
        _, engine = answers("grouped queries, dense", monkeypatch, record, **more)
        assert record.n_recorded == engine.n_recorded == 0
        assert why in caplog.text


VARYING = {
    "memory": ({"memory": MemoryConfig(layers=(1,), n_rows=64, dim=8)}, "n-gram memory"),
    "linear": ({"attention": LightningConfig(n_heads=2, head_dim=16, full_layers=(1,))}, "lightning"),
    "sparse": (
        {
            "attention": MLAConfig(
                n_heads=2,
                q_rank=16,
                kv_rank=16,
                nope_dim=8,
                rope_dim=8,
                v_dim=8,
                indexer=IndexerConfig(n_heads=2, dim=16, n_keys=8),
            )
        },
        "sparse attention",
    ),
}


@pytest.mark.parametrize("name", VARYING)
def test_what_the_host_decides_step_by_step_is_refused_by_name(name):
    parts, why = VARYING[name]
    cfg = ModelConfig(**COMMON | {"attention": LATENT, "ffn": DenseConfig(d_ff=48)} | parts)
    assert why in static.why_it_varies(Decoder(cfg), cfg)


def test_adapters_on_experts_are_refused_and_others_are_not():
    model = model_of("latent attention, experts")
    assert static.why_it_varies(model, model.cfg) is None
    adapt(model, LoraConfig(rank=2, parts=("attention", "dense")), seed=0)
    assert static.why_it_varies(model, model.cfg) is None
    other = model_of("latent attention, experts")
    adapt(other, LoraConfig(rank=2), seed=0)
    assert "adapters on experts" in static.why_it_varies(other, other.cfg)


@pytest.mark.parametrize(
    ("name", "dtype", "capability", "installed", "why"),
    [
        ("latent attention, experts", torch.bfloat16, (9, 0), "triton", None),
        ("latent attention, experts", torch.bfloat16, (8, 9), "triton", "asks for the experts' counts"),
        ("latent attention, experts", torch.float32, (9, 0), "triton", "asks for the experts' counts"),
        ("latent attention, experts", torch.bfloat16, (9, 0), "flashinfer", "FlashInfer plans"),
        ("grouped queries, dense", torch.bfloat16, (8, 9), "flashinfer", None),
    ],
)
def test_what_asks_the_device_is_refused(monkeypatch, name, dtype, capability, installed, why):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(select, "choose", lambda op, device, dtype: SimpleNamespace(name=installed))
    model = model_of(name).computing_in(dtype)
    found = static.why_not(model, torch.device("cuda"))
    assert found is None if why is None else why in found


def test_graphs_are_cuda_s_alone():
    model = model_of("grouped queries, dense")
    assert "and this is cpu" in static.why_not(model, torch.device("cpu"))
    assert "no decoder" in static.why_not(object(), torch.device("cuda"))
    assert Engine(model, EngineConfig(max_batch=2)).n_recorded == 0
    assert BLOCK == 16
