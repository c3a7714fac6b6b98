"""Engine and trainer agree: the engine over the real decoder against full forward passes without a cache."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.kernels import select
from sobre.models.adapt import adapt, adapters
from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    LoraConfig,
    MemoryConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
)
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

VOCAB, MAX_LEN = 100, 64
ATTENTIONS = {
    "mla": MLAConfig(n_heads=3, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12),
    "mla-q": MLAConfig(n_heads=3, q_rank=20, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12),
    "gqa": GQAConfig(n_heads=4, n_kv_heads=2, head_dim=8, qk_norm=True),
}
MEMORY = MemoryConfig(layers=(0, 1), n_rows=101, dim=8)
FFNS = {"dense": DenseConfig(d_ff=48), "moe": MoEConfig(n_experts=8, n_active=2, d_expert=16, d_ff=48)}


CASES = [
    ("mla", "moe"),
    ("mla-q", "dense"),
    ("gqa", "moe"),
    ("mla-q", "moe", "adapted"),
    ("gqa", "moe", "memory"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request):
    attention, ffn, *parts = request.param
    cfg = ModelConfig(
        vocab_size=VOCAB,
        d_model=32,
        n_layers=2,
        max_len=MAX_LEN,
        attention=ATTENTIONS[attention],
        ffn=FFNS[ffn],
        memory=MEMORY if "memory" in parts else MemoryConfig(),
        init_std=0.2,
    )
    decoder = Decoder(cfg)
    decoder.init_weights(1)
    if "adapted" in parts:
        adapt(decoder, LoraConfig(rank=4, alpha=8), seed=2)
        generator = torch.Generator().manual_seed(3)
        for lora in adapters(decoder).values():
            list(lora.parameters())[1].data.normal_(0.0, 0.3, generator=generator)
    if decoder.memory is not None:
        for layer in decoder.memory.at.values():
            layer.conv_KD.data.normal_(generator=torch.Generator().manual_seed(2))
    return decoder.eval()


def requests_for(n, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)

    def prompt():
        length = int(torch.randint(1, 20, (), generator=generator))
        return tuple(torch.randint(VOCAB, (length,), generator=generator).tolist())

    prompts = [prompt() for _ in range(n)]
    prompts[n // 2] = prompts[0]
    params = [SamplingParams(**({"max_tokens": 3 + i % 7, "seed": i} | given)) for i in range(n)]
    return [Request(str(i), prompts[i], params[i]) for i in range(n)]


@torch.no_grad()
def full_logits(model, tokens):
    """Of every position, in one pass without a cache."""
    return model.logits(model(StepInput(torch.tensor(tokens), (len(tokens),))).hidden_ND)


@pytest.mark.parametrize("prefill_tokens", [6, 4096])
@pytest.mark.slow
def test_sampled_log_probabilities_are_those_of_the_full_forward(model, prefill_tokens):
    requests = requests_for(10, temperature=0.8)
    outputs = Engine(model, EngineConfig(max_batch=4, prefill_tokens=prefill_tokens)).generate(requests)
    for asked, got in zip(requests, outputs, strict=True):
        logits = full_logits(model, [*asked.prompt_ids, *got.token_ids])[len(asked.prompt_ids) - 1 : -1]
        logprobs = (logits.double() / 0.8).log_softmax(-1)
        exact = logprobs.gather(1, torch.tensor(got.token_ids)[:, None]).squeeze(1)
        assert_close(torch.tensor(got.logprobs, dtype=torch.float64), exact, rtol=0, atol=1e-5)


def test_greedy_answers_equal_full_recomputation_step_by_step(model):
    requests = requests_for(5, temperature=0.0)
    for asked, got in zip(requests, Engine(model, EngineConfig(max_batch=3)).generate(requests), strict=True):
        context = list(asked.prompt_ids)
        for _ in range(asked.params.max_tokens):
            context.append(int(full_logits(model, context)[-1].argmax()))
        assert got.token_ids == context[len(asked.prompt_ids) :]


@pytest.mark.slow
def test_the_size_of_the_batch_changes_no_token(model):
    requests = requests_for(10, seed=3)
    tokens = [
        [output.token_ids for output in Engine(model, EngineConfig(max_batch=size)).generate(requests)]
        for size in (1, 4, 10)
    ]
    assert tokens[0] == tokens[1] == tokens[2]


@pytest.mark.slow
def test_guesses_found_prefixes_and_little_memory_change_no_token(model):
    own = requests_for(
        8, seed=5, max_tokens=24, temperature=0.7, repetition_penalty=0.2
    )  # answers that repeat are guessed
    requests = [replace(request, prompt_ids=(*range(20), *request.prompt_ids)) for request in own]
    plain = Engine(model, EngineConfig(max_batch=4, prefix_cache=False)).generate(requests)
    engine = Engine(model, EngineConfig(max_batch=4, speculate=True, cache_tokens=80, prefill_tokens=7))
    for _ in range(2):  # the second time the prompts are found
        outputs = engine.generate(requests)
        assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]
        for output, wanted in zip(outputs, plain, strict=True):
            # penalty and temperature multiply logits, and what rounding left in them, by up to 1 / (0.2 * 0.7)
            assert_close(torch.tensor(output.logprobs), torch.tensor(wanted.logprobs), rtol=0, atol=1e-5 / 0.14)
    assert engine.stats.preemptions
    assert engine.stats.found_tokens


def test_routes_are_those_of_the_full_forward_and_replaying_them_gives_its_hidden_states(model):
    if model.cfg.n_moe_layers == 0:
        pytest.skip("a dense model routes nothing")
    requests = requests_for(6)
    outputs = Engine(model, EngineConfig(max_batch=4, return_routes=True)).generate(requests)
    for asked, got in zip(requests, outputs, strict=True):
        tokens = torch.tensor([*asked.prompt_ids, *got.token_ids])[:-1]
        step = StepInput(tokens, (len(tokens),))
        with torch.no_grad():
            free, replayed = model(step), model(step, routes_LNA=got.routes_LTA.long())
        assert_close(got.routes_LTA.long().sort(-1).values, free.routes_LNA.sort(-1).values)
        assert_close(free.hidden_ND, replayed.hidden_ND, rtol=0, atol=1e-5)


def test_new_weights_take_effect_in_the_middle_of_an_answer(model):
    engine = Engine(model, EngineConfig(max_batch=2))
    asked = Request("a", (1, 2, 3), SamplingParams(max_tokens=6, temperature=0.0))
    engine.add(asked)
    context = [*asked.prompt_ids, *(engine.step()[0].token_id for _ in range(3))]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.init_weights(2)
        engine.weights_changed()
        expected = int(full_logits(model, context)[-1].argmax())
        assert engine.step()[0].token_id == expected
    finally:
        model.load_state_dict(kept)


def bfloat16_twin(model):
    return copy.deepcopy(model).computing_in(torch.bfloat16)


@pytest.fixture
def in_parts() -> Iterator[None]:
    """Layers part by part: one call for a layer takes weights that are rounded already, and rounds less between."""
    with select.overrides(dict.fromkeys(select.WHOLE, "parts")):
        yield


@pytest.mark.usefixtures("in_parts")
def test_weights_rounded_once_give_the_same_bits_as_weights_rounded_at_every_use(model):
    twin = bfloat16_twin(model)
    requests = requests_for(6)
    engine = Engine(twin, EngineConfig(max_batch=5, prefix_cache=False))
    rounded_once = engine.generate(requests)
    engine._runner.model = twin
    rounded_always = engine.generate(requests)
    assert [output.token_ids for output in rounded_once] == [output.token_ids for output in rounded_always]
    assert [output.logprobs for output in rounded_once] == [output.logprobs for output in rounded_always]


def test_rounded_weights_follow_the_masters_router_biases_included(model):
    twin = bfloat16_twin(model)
    engine = Engine(twin, EngineConfig(max_batch=5))
    twin.init_weights(7)
    for router in twin.routers():
        router.bias_E.copy_(torch.linspace(-1, 1, len(router.bias_E)))
    engine.weights_changed()
    requests = requests_for(6)
    fresh = Engine(twin, EngineConfig(max_batch=5)).generate(requests)
    assert [output.logprobs for output in engine.generate(requests)] == [output.logprobs for output in fresh]


def test_a_model_that_rounds_nothing_is_not_copied(model):
    assert Engine(model, EngineConfig())._runner.model is model
