import random

import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.engine.sampling import Choice, sample
from sobre.errors import ConfigError, EngineError, PromptTooLong
from sobre.plan.count import decode_flops, forward_flops


def request(id, prompt=(1, 2, 3), **given):
    return Request(str(id), tuple(prompt), SamplingParams(**({"max_tokens": 8} | given)))


def engine_of(model, *, run_seed=0, **sizes):
    return Engine(model, EngineConfig(**({"max_batch": 4} | sizes)), run_seed=run_seed)


def mixed_requests(n, seed=0):
    rng = random.Random(seed)
    return [
        request(
            id,
            [rng.randrange(4) for _ in range(rng.choice([1, 2, 2, 5, 17]))],
            max_tokens=rng.randint(1, 20),
            temperature=rng.choice([0.0, 1.0, 0.7]),
            stop_ids=(7,),
            seed=id,
        )
        for id in range(n)
    ]


def alone(model, request, run_seed=0):
    """Token by token, without engine, batch or cache: what the request must get."""
    context, logprobs = list(request.prompt_ids), []
    choice = Choice.of([request.params], run_seed, model.cfg.vocab_size, "cpu")
    while len(logprobs) < request.params.max_tokens:
        tokens, logprob, _ = sample(model.next_logits(context), choice, torch.tensor([len(context)]).numpy())
        context.append(tokens.item())
        logprobs.append(logprob.item())
        if context[-1] in request.params.stop_ids:
            return context[len(request.prompt_ids) :], logprobs, "stop"
    return context[len(request.prompt_ids) :], logprobs, "length"


@pytest.mark.parametrize("max_batch", [1, 3, 64])
@pytest.mark.parametrize("prefill_tokens", [1, 7, 1000])
@pytest.mark.slow
def test_every_request_gets_what_it_would_get_alone(model, max_batch, prefill_tokens):
    requests = mixed_requests(40)
    outputs = engine_of(model, max_batch=max_batch, prefill_tokens=prefill_tokens).generate(requests)
    for asked, got in zip(requests, outputs, strict=True):
        assert (got.request_id, got.token_ids, got.logprobs, got.finish_reason) == (asked.id, *alone(model, asked))


def test_the_order_of_arrival_changes_nothing_and_both_seeds_do(model):
    requests = mixed_requests(20)
    forward = engine_of(model).generate(requests)
    backward = engine_of(model).generate(requests[::-1])[::-1]
    assert [output.token_ids for output in forward] == [output.token_ids for output in backward]
    other_run = engine_of(model, run_seed=1).generate(requests)
    assert [output.token_ids for output in forward] != [output.token_ids for output in other_run]
    twins = engine_of(model).generate([request("a", seed=1), request("b", seed=1), request("c", seed=2)])
    assert twins[0].token_ids == twins[1].token_ids != twins[2].token_ids


def test_a_stop_token_ends_the_answer_and_is_its_last(model):
    free = engine_of(model).generate([request("a")])[0].token_ids
    stopped = engine_of(model).generate([request("a", stop_ids=(free[3],))])[0]
    assert stopped.token_ids == free[: free.index(free[3]) + 1]
    assert stopped.finish_reason == "stop"


def test_step_hands_out_one_token_per_running_request_and_the_reason_with_the_last(model):
    engine = engine_of(model)
    for id in "ab":
        engine.add(request(id, max_tokens=2))
    first, second = engine.step(), engine.step()
    assert [(token.request_id, token.finish_reason) for token in first] == [("a", None), ("b", None)]
    assert [(token.request_id, token.finish_reason) for token in second] == [("a", "length"), ("b", "length")]
    assert not engine.has_work
    assert engine.step() == []


def test_decode_steps_hold_exactly_the_running_rows(model):
    engine_of(model, max_batch=8).generate([request(n, (n,), max_tokens=n + 1) for n in range(6)])
    assert [step.n_sequences for step in model.steps] == [6, 5, 4, 3, 2, 1]


def test_a_shared_prompt_goes_through_the_model_once(model):
    engine = engine_of(model, max_batch=8)
    engine.generate([request(n, range(10), max_tokens=3, seed=n) for n in range(6)])
    assert engine.stats.prompt_tokens == 60
    assert engine.stats.computed_tokens == 9 + 6 * 3


def test_a_long_prompt_is_computed_in_pieces_of_the_limit(model):
    asked = request("a", range(30), max_tokens=2)
    output = engine_of(model, prefill_tokens=8).generate([asked])[0]
    assert [step.lengths for step in model.steps[:5]] == [(8,), (8,), (8,), (6,), (1,)]  # the last with the first token
    assert output.token_ids == alone(model, asked)[0]


def test_a_prefill_step_keeps_its_limit_with_padding_counted(model):
    requests = [request(n, range(n % 9 + 1), max_tokens=1) for n in range(30)]
    engine_of(model, max_batch=64, prefill_tokens=16).generate(requests)
    for step in model.steps:
        assert step.max_length == 1 or step.n_sequences * step.max_length <= 16


def test_a_prompt_too_long_is_refused_with_lengths_and_limit_and_nothing_is_lost(model):
    engine = engine_of(model)
    engine.add(request("fits"))
    with pytest.raises(PromptTooLong, match=r"'big': prompt of 40 tokens \+ max_tokens=9 = 49 .* 48 tokens"):
        engine.add(request("big", range(40), max_tokens=9))
    with pytest.raises(PromptTooLong, match="prompts of 47 tokens fit at most"):
        engine.add(request("huge", [1] * 48))
    assert [token.request_id for token in engine.step()] == ["fits"]


def test_the_longest_request_that_fits_is_served_to_its_end(model):
    output = engine_of(model).generate([request("a", range(40), max_tokens=8)])[0]
    assert (len(output.token_ids), output.finish_reason) == (8, "length")


def test_requests_that_cannot_be_served_are_refused_with_the_reason(model):
    engine = engine_of(model)
    engine.add(request("a"))
    with pytest.raises(EngineError, match="'a' is already here"):
        engine.add(request("a"))
    with pytest.raises(EngineError, match="'b' has an empty prompt"):
        engine.add(request("b", ()))
    with pytest.raises(EngineError, match=r"'c' has token 50 in its prompt; ids lie in 0\.\.49"):
        engine.add(request("c", (1, 50)))
    with pytest.raises(EngineError, match="generate needs an idle engine"):
        engine.generate([request("d")])
    engine.abort("a")
    with pytest.raises(PromptTooLong):
        engine.generate([request("e"), request("f", range(48))])
    assert not engine.has_work
    assert engine.stats.requests == 1


def test_a_context_longer_than_the_models_is_a_config_error(model):
    with pytest.raises(ConfigError, match="engine.max_len=49 exceeds the model's max_len=48"):
        engine_of(model, max_len=49)


def test_abort_works_in_every_phase_and_returns_what_the_request_got(model):
    engine = engine_of(model, max_batch=1)
    for id in "ab":
        engine.add(request(id))
    engine.step()
    tokens = [token.token_id for token in engine.step()]
    running, waiting = engine.abort("a"), engine.abort("b")
    assert (running.token_ids[1:], running.finish_reason, len(running.logprobs)) == (tokens, "abort", 2)
    assert (waiting.token_ids, waiting.finish_reason) == ([], "abort")
    assert engine.abort("a") is None
    assert engine.abort("never") is None
    assert not engine.has_work


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_a_thousand_random_additions_aborts_and_steps_leak_no_slot_and_disturb_nobody(model, seed):
    rng = random.Random(seed)
    engine = engine_of(model, max_batch=rng.randint(1, 6), prefill_tokens=rng.choice([4, 100]))
    requests, got, aborted = {}, {}, set()
    for n in range(1000):
        action = rng.random()
        if action < 0.25 and len(requests) - len(aborted) < 150:
            asked = requests[str(n)] = mixed_requests(1, seed=n)[0]
            asked.id = str(n)
            got[asked.id] = []
            engine.add(asked)
        elif action < 0.4 and requests:
            victim = rng.choice(list(requests))
            if engine.abort(victim) is not None:
                aborted.add(victim)
        elif action < 0.42:
            engine.weights_changed()
        else:
            for token in engine.step():
                got[token.request_id].append((token.token_id, token.logprob))
        engine.check_integrity()
    while engine.has_work:
        for token in engine.step():
            got[token.request_id].append((token.token_id, token.logprob))
    assert engine.n_running == engine.n_waiting == 0
    for id, asked in requests.items():
        tokens, logprobs, _ = alone(model, asked)
        expected = list(zip(tokens, logprobs, strict=True))
        assert got[id] == expected[: len(got[id])] if id in aborted else got[id] == expected


def test_changed_weights_raise_the_version_and_void_the_cache_but_not_the_answers(model):
    engine = engine_of(model)
    engine.add(asked := request("a", max_tokens=6, temperature=0.0))
    before = [engine.step()[0].token_id for _ in range(3)]
    model.salt = 1
    engine.weights_changed()
    after = [engine.step()[0].token_id for _ in range(3)]
    continued = request("x", (*asked.prompt_ids, *before), max_tokens=3, temperature=0.0)
    assert after == alone(model, continued)[0]
    assert engine.weight_version == 1
    assert [len(step.tokens_N) for step in model.steps[-3:]] == [6, 1, 1]  # the context so far was computed again


def test_an_output_carries_the_version_that_sampled_its_first_token(model):
    engine = engine_of(model)
    engine.weights_changed()
    assert engine.generate([request("a")])[0].weight_version == 1


def test_routes_cover_every_token_that_the_model_read(model):
    requests = mixed_requests(12) + [request(f"shared{n}", (1, 2, 3), seed=n) for n in range(3)]
    for asked, got in zip(requests, engine_of(model, return_routes=True).generate(requests), strict=True):
        read = torch.tensor([*asked.prompt_ids, *got.token_ids[:-1]])
        assert got.routes_LTA.dtype == torch.int16
        assert got.routes_LTA.tolist() == [torch.stack([read % 8, (read + 1) % 8], -1).tolist()]
        assert not got.routes_LTA.is_inference()
    assert engine_of(model).generate([request("a")])[0].routes_LTA is None


def test_flops_are_those_that_the_planner_counts(model):
    engine = engine_of(model)
    engine.generate([request("a", range(10), max_tokens=3)])
    expected = forward_flops(model.cfg, [9], n_logits=0) + decode_flops(model.cfg, [10, 11, 12])
    assert engine.stats.flops == expected
    assert engine.stats.generated_tokens == engine.stats.steps == 3
    assert engine.stats.seconds > 0


def test_logits_that_are_no_numbers_stop_the_step_name_the_request_and_lose_no_other(model):
    engine = engine_of(model)
    engine.add(good := request("good"))
    engine.add(request("bad", (9, 9)))
    honest = model.logits
    model.logits = lambda hidden_ND: honest(hidden_ND) * torch.tensor([[1.0], [torch.nan]])
    with pytest.raises(EngineError, match="no numbers for bad"):
        engine.step()
    assert engine.suspects == ("bad",)
    model.logits = honest
    engine.abort("bad")
    tokens = []
    while engine.has_work:
        tokens += [token.token_id for token in engine.step()]
    assert tokens == alone(model, good)[0]


def fails(*_):
    raise MemoryError


def test_a_step_that_fails_is_laid_at_the_request_that_began_last_and_the_others_lose_nothing(model):
    engine, honest = engine_of(model), model.logits
    engine.add(old := request("old"))
    got = [token.token_id for token in engine.step()]
    engine.add(request("young", (9, 9)))
    engine.add(request("old again", (1, 2, 3), seed=4))
    model.logits = fails
    for name in ("old again", "young"):
        with pytest.raises(MemoryError):
            engine.step()
        assert engine.suspects == (name,)
        engine.abort(name)
    model.logits = honest
    while engine.has_work:
        got += [token.token_id for token in engine.step()]
    assert got == alone(model, old)[0]
    engine.check_integrity()


def test_a_step_whose_tokens_are_lost_is_laid_at_all_who_lost_one(model):
    engine = engine_of(model, speculate=True)
    engine._lookup.draft = fails
    for name in "ab":
        engine.add(request(name))
    with pytest.raises(MemoryError):
        engine.step()
    assert engine.suspects == ("a", "b")


def test_a_prefix_that_cannot_be_computed_is_given_up(model):
    engine = engine_of(model)
    engine.warm(range(1, 40))
    type(model).__call__, honest = fails, type(model).__call__
    try:
        with pytest.raises(MemoryError):
            engine.step()
    finally:
        type(model).__call__ = honest
    assert engine.suspects == ()
    assert not engine.has_work
    engine.check_integrity()


def test_an_interrupted_generate_leaves_an_idle_engine(model):
    engine = engine_of(model)
    honest = model.logits
    model.logits = lambda hidden_ND: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(mixed_requests(9))
    assert not engine.has_work
    model.logits = honest
    asked = request("a")
    assert engine.generate([asked])[0].token_ids == alone(model, asked)[0]


def test_a_prefill_that_failed_half_way_is_done_again(model):
    engine = engine_of(model, prefill_tokens=4)
    requests = [request("long", range(10)), request("short", range(5))]
    for asked in requests:
        engine.add(asked)
    honest = type(model).__call__

    def fails_on_the_second_step(self, step, cache=None):
        if len(self.steps) == 1:
            self.steps.append(step)
            raise MemoryError
        return honest(self, step, cache)

    type(model).__call__ = fails_on_the_second_step
    try:
        assert engine.step() == []
        with pytest.raises(MemoryError):
            engine.step()
    finally:
        type(model).__call__ = honest
    got = {"long": [], "short": []}
    while engine.has_work:
        for token in engine.step():
            got[token.request_id].append(token.token_id)
    assert got == {asked.id: alone(model, asked)[0] for asked in requests}


def test_a_second_turn_computes_only_what_is_new_and_says_what_it_found(model):
    engine = engine_of(model)
    first = engine.generate([request("a", range(20), max_tokens=15)])[0]
    before = engine.stats.computed_tokens
    second = request("b", (*range(20), *first.token_ids, 1, 2), max_tokens=1)
    output = engine.generate([second])[0]
    assert output.token_ids == alone(model, second)[0]
    assert output.n_found == 34  # all that was computed: the last token of an answer never is
    assert engine.stats.computed_tokens - before == 37 - 34
    assert engine.stats.found_tokens == 34
    engine.check_integrity()


def test_nothing_is_found_under_another_key_or_without_the_prefix_cache(model):
    engine = engine_of(model)
    for id, key in (("a", "alice"), ("b", "bob"), ("c", "alice")):
        asked = request(id, range(40), max_tokens=1)
        asked.cache_key = key
        assert engine.generate([asked])[0].n_found == (32 if id == "c" else 0)
    engine = engine_of(model, prefix_cache=False)
    assert [engine.generate([request(id, range(40), max_tokens=1)])[0].n_found for id in "ab"] == [0, 0]


def test_a_warmed_prefix_is_computed_in_idle_time_and_found(model):
    engine = engine_of(model, prefill_tokens=10)
    engine.warm(range(1, 40))
    asked = request("a", (3, 4), max_tokens=2)
    engine.add(asked)
    while engine.n_running or engine.n_waiting:
        engine.step()
    assert engine.stats.computed_tokens == 1 + 2  # nothing idle while a request was here
    while engine.has_work:
        assert engine.step() == []
    assert engine.stats.computed_tokens == 3 + 38  # the last goes with what follows it
    later = request("b", range(1, 41), max_tokens=3)
    output = engine.generate([later])[0]
    assert (output.n_found, output.token_ids) == (38, alone(model, later)[0])
    engine.warm(range(1, 40))
    engine.step()
    assert engine.stats.computed_tokens == 41 + 4
    assert not engine.has_work
    engine.check_integrity()


def test_a_request_that_comes_while_a_prefix_is_warmed_goes_first_and_nothing_is_lost(model):
    engine = engine_of(model, max_batch=1, prefill_tokens=16)
    engine.warm(range(1, 47))
    engine.step()
    engine.add(request("a", (5,), max_tokens=2))
    assert [token.request_id for token in engine.step()] == ["a"]
    engine.check_integrity()
    while engine.has_work:
        engine.step()
    assert engine.stats.computed_tokens == 45 + 2


@pytest.mark.parametrize("cache_tokens", [48, 64, 100])
@pytest.mark.slow
def test_with_little_memory_requests_give_way_and_lose_nothing(model, cache_tokens):
    requests = [request(n, (n, 1), max_tokens=40, seed=n) for n in range(6)]
    engine = engine_of(model, max_batch=6, cache_tokens=cache_tokens)
    outputs = engine.generate(requests)
    for asked, got in zip(requests, outputs, strict=True):
        assert (got.token_ids, got.logprobs) == alone(model, asked)[:2]
    assert engine.stats.preemptions > 0 or cache_tokens == 48
    engine.check_integrity()


@pytest.mark.slow
def test_five_hundred_different_prompts_pass_a_small_cache_in_their_order(model):
    requests = [request(n, [n % 50, n // 50, *range(30)], max_tokens=4, seed=n) for n in range(500)]
    engine = engine_of(model, max_batch=4, cache_tokens=4 * 48, prefill_tokens=32)
    for one in requests:
        engine.add(one)
    got, ended = {one.id: [] for one in requests}, []
    while engine.has_work:
        for token in engine.step():
            got[token.request_id].append(token.token_id)
            ended += [token.request_id] if token.finish_reason else []
    places = {one.id: place for place, one in enumerate(requests)}
    assert all(abs(places[id] - place) < 4 for place, id in enumerate(ended)), "nobody waits for who came later"
    assert len(ended) == 500
    for one in requests[::25]:
        assert got[one.id] == alone(model, one)[0]
    engine.check_integrity()


def test_a_cache_that_does_not_hold_one_request_is_a_config_error(model):
    with pytest.raises(ConfigError, match="does not hold one request of 48 tokens; it must be at least 48"):
        engine_of(model, cache_tokens=32)


def test_a_short_prompt_does_not_wait_for_a_long_one(model):
    engine = engine_of(model, prefill_tokens=4)
    engine.add(request("long", range(40), max_tokens=1))
    engine.step()
    engine.add(request("short", (1, 2), max_tokens=1))
    assert [token.request_id for token in engine.step()] == ["short"]
