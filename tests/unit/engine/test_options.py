"""Everything a request may ask of its logits and its end, through the engine and against plain formulas."""

import math
import re

import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.ending import Loops, ThoughtState
from sobre.engine.engine import Engine
from sobre.engine.request import Repetition, Request, SamplingParams, Thought
from sobre.errors import EngineError

VOCAB = 50


def ask(id, prompt=(1, 2, 3), *, stop=None, mask=None, thought=None, **params):
    sampling = SamplingParams(**({"max_tokens": 8} | params))
    return Request(id, tuple(prompt), sampling, stop=stop, mask=mask, thought=thought)


def answer(model, *requests, **sizes):
    return Engine(model, EngineConfig(**({"max_batch": 4} | sizes))).generate(requests)


def mask_of(*tokens):
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[list(tokens)] = True
    return allowed


def greedy_by_hand(model, prompt, n, change):
    """Token by token; `change(logits_V, answer)` gives the changed logits."""
    got = []
    for _ in range(n):
        logits_V = model.next_logits([*prompt, *got])[0].clone()
        got.append(int(change(logits_V, got).argmax()))
    return got


def penalised(presence, frequency):
    def change(logits_V, got):
        for token in set(got):
            logits_V[token] -= presence + frequency * got.count(token)
        return logits_V

    return change


@pytest.mark.parametrize(("presence", "frequency"), [(3.0, 0.0), (0.0, 2.0), (-4.0, 1.5)])
def test_penalties_subtract_once_and_per_time(model, presence, frequency):
    asked = ask("a", temperature=0.0, presence_penalty=presence, frequency_penalty=frequency, max_tokens=20)
    assert answer(model, asked)[0].token_ids == greedy_by_hand(model, (1, 2, 3), 20, penalised(presence, frequency))


def test_the_repetition_penalty_is_that_of_transformers(model):
    processors = pytest.importorskip("transformers.generation.logits_process")
    processor = processors.RepetitionPenaltyLogitsProcessor(penalty=1.7)

    def change(logits_V, got):
        return processor(torch.tensor([[1, 2, 3, *got]]), logits_V[None])[0]

    asked = ask("a", temperature=0.0, repetition_penalty=1.7, max_tokens=15)
    assert answer(model, asked)[0].token_ids == greedy_by_hand(model, (1, 2, 3), 15, change)


def test_a_bias_lifts_a_token_and_forbids_another(model):
    free = answer(model, ask("a", temperature=0.0))[0].token_ids
    lifted = answer(model, ask("a", temperature=0.0, logit_bias=((9, 100.0),)))[0]
    assert lifted.token_ids == [9] * 8
    assert free[0] != answer(model, ask("a", temperature=0.0, logit_bias=((free[0], -100.0),)))[0].token_ids[0]


def test_min_p_leaves_out_what_is_far_below_the_most_probable(model):
    outputs = answer(model, *(ask(f"{seed}", max_tokens=1, min_p=0.5, seed=seed) for seed in range(300)), max_batch=300)
    probs_V = model.next_logits([1, 2, 3])[0].softmax(-1)
    kept = set((probs_V >= 0.5 * probs_V.max()).nonzero().flatten().tolist())
    assert {output.token_ids[0] for output in outputs} == kept
    total = sum(float(probs_V[token]) for token in kept)
    for output in outputs:
        assert output.logprobs[0] == pytest.approx(math.log(float(probs_V[output.token_ids[0]]) / total), abs=1e-6)


def test_a_mask_sees_the_answer_and_rules_the_next_token(model):
    seen = []

    def mask(answer):
        seen.append(list(answer))
        return None if len(answer) == 1 else mask_of(5, 6)

    got = answer(model, ask("a", mask=mask, max_tokens=4), ask("b"))
    assert seen == [got[0].token_ids[:n] for n in range(4)]
    assert all(token in (5, 6) for n, token in enumerate(got[0].token_ids) if n != 1)
    assert got[1].token_ids == answer(model, ask("b"))[0].token_ids


def broken(answer):
    raise KeyError("broken")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"mask": broken}, "mask of request 'bad' failed: KeyError"),
        ({"mask": lambda answer: torch.zeros(VOCAB, dtype=torch.bool)}, "allows no token after 0"),
        ({"mask": lambda answer: torch.ones(3, dtype=torch.bool)}, r"must be bool of shape \(50,\)"),
        ({"stop": broken}, "stop of request 'bad' failed: KeyError"),
    ],
)
def test_a_request_whose_own_function_fails_ends_with_that_error_and_disturbs_nobody(model, given, what):
    engine = Engine(model, EngineConfig(max_batch=4))
    engine.add(ask("bad", **given))
    engine.add(good := ask("good"))
    got, ended = [], []
    while engine.has_work:
        for token in engine.step():
            if token.request_id == "good":
                got.append(token.token_id)
            elif token.finish_reason:
                ended.append((token.finish_reason, token.error))
    assert got == answer(model, good)[0].token_ids
    ((reason, error),) = ended
    assert reason == "error"
    assert re.search(what, error)


def test_stop_is_asked_after_every_token_and_ends_the_answer(model):
    free = answer(model, ask("a"))[0].token_ids
    got = answer(model, ask("a", stop=lambda answer: len(answer) == 3))[0]
    assert (got.token_ids, got.finish_reason) == (free[:3], "stop")


def test_log_probabilities_are_the_models_own_and_the_list_is_sorted(model):
    engine = Engine(model, EngineConfig(max_batch=4))
    engine.add(ask("a", temperature=0.5, top_k=3, logit_bias=((4, 2.0),), n_logprobs=5))
    engine.add(ask("b", n_logprobs=None))
    context = [1, 2, 3]
    while engine.has_work:
        for token in engine.step():
            if token.request_id == "b":
                assert (token.model_logprob, token.top) == (None, ())
                continue
            own_V = model.next_logits(context)[0].double().log_softmax(-1)
            assert token.model_logprob == pytest.approx(float(own_V[token.token_id]), abs=1e-9)
            assert [id for id, _ in token.top] == own_V.topk(5).indices.tolist()
            assert [value for _, value in token.top] == sorted((value for _, value in token.top), reverse=True)
            context.append(token.token_id)


def test_a_thought_is_closed_when_its_budget_is_used_up_and_the_answer_goes_on(model):
    close = (48, 49)
    asked = ask("a", thought=Thought(end_ids=close, max_tokens=3), logit_bias=((48, -100.0),), max_tokens=9)
    got = answer(model, asked)[0]
    assert tuple(got.token_ids[3:5]) == close
    assert got.logprobs[3:5] == [0.0, 0.0]
    assert 48 not in got.token_ids[:3] + got.token_ids[5:]
    assert answer(model, ask("a", thought=Thought(end_ids=close, max_tokens=0), max_tokens=3))[0].token_ids[:2] == [
        48,
        49,
    ]


def test_a_thought_that_ended_by_itself_is_not_closed_again(model):
    free = answer(model, ask("a", max_tokens=12))[0].token_ids
    again = answer(model, ask("a", max_tokens=12, thought=Thought(end_ids=(free[2],), max_tokens=5)))[0].token_ids
    assert again == free


def test_answer_now_closes_the_thought_with_the_next_token(model):
    engine = Engine(model, EngineConfig(max_batch=4))
    engine.add(ask("a", thought=Thought(end_ids=(49,)), logit_bias=((49, -100.0),)))
    engine.add(ask("plain"))
    for _ in range(2):
        engine.step()
    assert engine.end_thought("a")
    assert [token.token_id for token in engine.step() if token.request_id == "a"] == [49]
    assert not engine.end_thought("a")
    assert not engine.end_thought("plain")
    assert not engine.end_thought("nobody")


@pytest.mark.parametrize("period", [1, 3, 64])
def test_an_answer_that_goes_in_circles_is_stopped_at_the_last_round_and_no_sooner(period):
    loops, text = Loops(Repetition(max_period=64, times=4)), [7, 8, 9]
    for n in range(period * 4):
        text.append(n % period + 100)
        assert loops.push(text) == (n == period * 4 - 1)


def test_a_looping_answer_ends_with_the_reason_repetition(model):
    got = answer(model, ask("a", logit_bias=((9, 100.0),), max_tokens=40, repetition=Repetition(times=6)))[0]
    assert (got.token_ids, got.finish_reason) == ([9] * 6, "repetition")


def test_a_thoughts_end_may_be_natural_in_the_middle_of_the_force():
    state = ThoughtState((1, 2), 2)
    assert state.forced(1) is None
    assert (state.forced(2), state.forced(3)) == (1, 2)
    state.push([5, 6, 1, 2])
    assert state.forced(4) is None


@pytest.mark.parametrize(
    ("wrong", "value"),
    [("min_p", 1.5), ("presence_penalty", math.inf), ("frequency_penalty", math.nan), ("repetition_penalty", 0.0)]
    + [("n_logprobs", -1)],
)
def test_an_option_out_of_range_is_refused_with_its_name_and_value(wrong, value):
    with pytest.raises(EngineError, match=f"{wrong}={value}"):
        SamplingParams(**({"max_tokens": 4} | {wrong: value}))


def test_a_bias_on_a_token_that_does_not_exist_is_refused(model):
    with pytest.raises(EngineError, match=r"'a' biases token 50; ids lie in 0\.\.49"):
        answer(model, ask("a", logit_bias=((50, 1.0),)))
    with pytest.raises(EngineError, match="logit_bias of token 3"):
        SamplingParams(max_tokens=1, logit_bias=((3, math.inf),))
    with pytest.raises(EngineError, match=r"repetition.times=1"):
        Repetition(times=1)
    with pytest.raises(EngineError, match="end_ids is empty"):
        Thought(end_ids=())
