"""Guesses change how many tokens a step brings, and nothing else."""

import random

import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Repetition, Request, SamplingParams, Thought
from sobre.models.config import DenseConfig, MLAConfig, ModelConfig
from sobre.models.decoder import Decoder


def requests_of(n, **given):
    rng = random.Random(3)
    return [
        Request(
            str(i),
            tuple(rng.randrange(3) for _ in range(rng.randint(1, 18))),
            SamplingParams(max_tokens=rng.randint(1, 24), temperature=rng.choice([0.0, 1.0]), seed=i, n_logprobs=2),
            **given,
        )
        for i in range(n)
    ]


def tokens_of(engine, requests):
    """Everything that `step` says, by request, and the number of steps."""
    got = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for token in engine.step():
            got[token.request_id].append((token.token_id, token.logprob, token.top, token.finish_reason))
        engine.check_integrity()
    return got


class Oracle:
    """Guesses the true continuation, and a wrong token now and then."""

    def __init__(self, truth, wrong=0.3):
        self.truth, self.wrong, self.rng = truth, wrong, random.Random(0)

    def draft(self, rows):
        for row in rows:
            left = row.request.params.max_tokens - row.n_generated - 1
            ahead = [token for token, *_ in self.truth[row.request.id][row.n_generated :]]
            row.drafts = [
                t if self.rng.random() > self.wrong else 0 for t in ahead[: min(left, self.rng.randint(0, 4))]
            ]


@pytest.mark.parametrize("cache_tokens", [0, 64])
def test_right_and_wrong_guesses_leave_every_token_as_it_is(model, cache_tokens):
    requests = requests_of(12)
    sizes = {"max_batch": 5, "cache_tokens": cache_tokens, "return_routes": True}
    plain = tokens_of(engine := Engine(model, EngineConfig(**sizes)), requests)
    guessing = Engine(model, EngineConfig(speculate=True, **sizes))
    guessing._lookup = Oracle(plain)
    assert tokens_of(guessing, requests) == plain
    assert 0 < guessing.stats.accepted_tokens < guessing.stats.drafted_tokens
    assert guessing.stats.steps < engine.stats.steps


def test_routes_are_those_of_the_tokens_that_stayed(model):
    requests = requests_of(6)
    plain = Engine(model, EngineConfig(max_batch=5, return_routes=True)).generate(requests)
    guessing = Engine(model, EngineConfig(max_batch=5, return_routes=True, speculate=True))
    guessing._lookup = Oracle({output.request_id: [(t,) for t in output.token_ids] for output in plain})
    for a, b in zip(plain, guessing.generate(requests), strict=True):
        assert a.routes_LTA.tolist() == b.routes_LTA.tolist()


def test_masks_thoughts_and_stops_see_the_same_answers_with_and_without_guesses(model):
    def mask(answer):
        assert not answer or answer[-1] % 2 == len(answer) % 2, "asked about an answer that breaks the grammar"
        allowed = torch.zeros(50, dtype=torch.bool)
        allowed[(len(answer) + 1) % 2 :: 2] = True
        return allowed

    thought = Thought(end_ids=(41, 42), max_tokens=4)
    for given in ({"mask": mask}, {"thought": thought}, {"stop": lambda answer: sum(answer) > 200}):
        requests = requests_of(8, **given)
        plain = tokens_of(Engine(model, EngineConfig(max_batch=5)), requests)
        guessing = Engine(model, EngineConfig(max_batch=5, speculate=True))
        guessing._lookup = Oracle(plain)
        assert tokens_of(guessing, requests) == plain


def test_what_repeats_in_the_context_is_guessed_and_a_request_may_say_no(model):
    params = SamplingParams(max_tokens=30, temperature=0.0, logit_bias=((9, 100.0),), repetition=Repetition(times=30))
    engine = Engine(model, EngineConfig(speculate=True))
    assert engine.generate([Request("a", (1,), params)])[0].token_ids == [9] * 30
    assert engine.stats.steps < 15
    engine = Engine(model, EngineConfig(speculate=True))
    engine.generate([Request("a", (1,), params, speculate=False)])
    assert engine.stats.drafted_tokens == 0


@pytest.fixture(scope="module")
def two_heads():
    """A decoder whose MTP module is right now and then: a small vocabulary, and mild logits."""
    cfg = ModelConfig(
        vocab_size=50,
        d_model=16,
        n_layers=2,
        max_len=64,
        n_mtp=1,
        attention=MLAConfig(n_heads=2, kv_rank=8, nope_dim=4, rope_dim=4, v_dim=4),
        ffn=DenseConfig(d_ff=16),
    )
    decoder = Decoder(cfg)
    decoder.init_weights(1)
    return decoder.eval()


@pytest.mark.parametrize("prefill_tokens", [5, 1000])
def test_the_models_own_head_guesses_and_the_text_stays(two_heads, prefill_tokens):
    sizes = {"max_batch": 4, "prefill_tokens": prefill_tokens}
    requests = requests_of(10)
    plain = Engine(two_heads, EngineConfig(**sizes)).generate(requests)
    guessing = Engine(two_heads, EngineConfig(speculate=True, **sizes))
    outputs = guessing.generate(requests)
    assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]
    assert guessing.stats.drafted_tokens > guessing.stats.accepted_tokens > 0


@pytest.mark.parametrize("warmed", [0, 16, 17, 30])
def test_the_head_reads_from_the_cache_what_it_would_read_in_one_pass(two_heads, warmed):
    """Also where the beginning was computed in idle time."""
    seen = {}
    guessing = Engine(two_heads, EngineConfig(max_batch=4, speculate=True, prefill_tokens=7))
    long = tuple(i * i % 7 for i in range(33))
    requests = [*requests_of(4), Request("long", long, SamplingParams(max_tokens=9))]
    if warmed:
        guessing.warm(long[:warmed])
        while guessing.has_work:
            guessing.step()
    head = guessing._runner.own_head
    logits, inner = two_heads.logits, head.draft

    def draft(rows, hidden_ND, n_new):
        head.model = type("Spy", (), {"predict_second": two_heads.predict_second, "logits": staticmethod(spy)})()
        head.draft_rows = rows
        inner(rows, hidden_ND, n_new)

    def spy(hidden_RD):
        for row, hidden_D in zip(head.draft_rows, hidden_RD, strict=True):
            seen[row.request.id] = (list(row.context), hidden_D.clone())
        return logits(hidden_RD)

    head.draft = draft
    assert guessing.generate(requests)[-1].n_found == max(0, warmed - 1)
    from sobre.models.step import StepInput

    for context, hidden_D in seen.values():
        step = StepInput(torch.tensor(context[:-1]), (len(context) - 1,))
        with torch.no_grad():
            whole = two_heads.predict_second(two_heads(step).hidden_ND, torch.tensor(context[1:]), step)
        torch.testing.assert_close(hidden_D, whole.hidden_ND[-1], rtol=0, atol=1e-5)
