"""Answers of several turns: results of tools are not learned from, and every own token keeps its probability."""

import json
import os
import threading
from dataclasses import replace

import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Output
from sobre.errors import ConfigError, SandboxError
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.rl import turns
from sobre.rl.batch import to_batch, to_samples
from sobre.rl.config import GRPOConfig, PublishedConfig, RLConfig
from sobre.rl.losses import log_probs
from sobre.rl.rollout import sample_groups
from sobre.rl.source import _decode, _encode
from sobre.rl.turns import between, described, read_calls
from sobre.tasks import tools
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.sampling import chat
from sobre.tokenizer.chat import calls_text
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

CFG = RLConfig(n_prompts=1, group_size=2, max_tokens=600, tools=("calculator",), algorithm=GRPOConfig(refill_rounds=0))
PROBLEM = Problem("sums", "en", 1, "What is 6*7?", "42", "sums:x", {"numbers": [6, 7]})


def calls(*expressions: str) -> str:
    asked = [{"function": {"name": "calculator", "arguments": json.dumps({"expression": e})}} for e in expressions]
    return "hm\n</think>\n" + calls_text(asked)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [message["content"] for i in range(50) for message in chat(TasksConfig(), "t", i)]
    return Tokenizer.train([*texts, calls("1+1")], TokenizerConfig(vocab_size=400))


@pytest.fixture
def model(nano_config, tokenizer) -> Decoder:
    model = Decoder(replace(nano_config, vocab_size=tokenizer.vocab_size, max_len=2048))
    model.init_weights(0)
    return model


class Scripted:
    """A real engine whose words are put into its mouth: what is scored is the model's own probability of them."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, *turns: str) -> None:
        self.model, self.tokenizer, self.turns, self.requests = model, tokenizer, turns, []
        self.engine = Engine(model, EngineConfig(max_batch=4, return_routes=True), run_seed=1)

    @property
    def stats(self):
        return self.engine.stats

    def generate(self, requests):
        text = self.turns[len({request.id.count("/") for request in self.requests})]
        self.requests += requests
        outputs = []
        for request in requests:
            ids = [*self.tokenizer.encode_completion(text)]
            logps = self._logprobs((*request.prompt_ids, *ids), len(ids))
            outputs.append(Output(request.id, ids, logps, "stop"))
        return outputs

    @torch.no_grad()
    def _logprobs(self, ids, n):
        hidden_ND = self.model(StepInput(torch.tensor(ids[:-1]), lengths=(len(ids) - 1,))).hidden_ND
        return log_probs(self.model, hidden_ND[-n:], torch.tensor(ids[-n:]), 1.0).tolist()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: calls follow each other")
def test_calls_of_a_turn_run_side_by_side_and_each_answer_gets_its_own(monkeypatch):
    meet = threading.Barrier(2, timeout=30)

    def call(name, arguments, allowed):
        meet.wait()
        return f"{name}({arguments})"

    monkeypatch.setattr(turns, "call", call)
    asked = {0: [("a", "1"), ("b", "2")], 3: [("c", "3")], 5: [("d", "4")]}
    assert turns._called(asked, CFG) == {0: ["a(1)", "b(2)"], 3: ["c(3)"], 5: ["d(4)"]}
    assert turns._called({}, CFG) == {}


def test_the_model_calls_reads_and_answers_in_one_sequence(model, tokenizer):
    engine = Scripted(model, tokenizer, calls("6*7", "2/3", "1/0"), "so\n</think>\n<answer>42</answer>")
    (group,) = sample_groups(engine, tokenizer, [PROBLEM], CFG, TasksConfig(), seed=0)
    for answer in group.rollouts:
        whole = tokenizer.decode(answer.response_ids)
        pairs = zip(answer.response_ids, answer.own, strict=True)
        given = tokenizer.decode([token for token, mine in pairs if not mine])
        assert "42" in given
        assert "2/3" in given
        assert "divides by zero" in given
        assert whole.index("<answer>") > whole.index(given[:10])
        assert (answer.n_calls, answer.finished, answer.text) == (1, True, "so\n</think>\n<answer>42</answer>")
        assert answer.n_tokens == sum(answer.own) < len(answer.response_ids)
        assert answer.reward.accuracy == 1
        question = [{"role": "user", "content": PROBLEM.prompt}]
        shown = tokenizer.render(question, generation_prompt=True, tools=described(CFG))
        assert list(answer.prompt_ids) == shown


def test_results_have_no_weight_and_own_tokens_keep_the_samplers_probability(model, tokenizer):
    engine = Scripted(model, tokenizer, calls("6*7"), "so\n</think>\n<answer>42</answer>")
    groups = sample_groups(engine, tokenizer, [PROBLEM], CFG, TasksConfig(), seed=0)
    for mean_over in ("tokens", "answers"):
        cfg = replace(CFG, algorithm=GRPOConfig() if mean_over == "tokens" else PublishedConfig(kl=0.0))
        samples = to_samples(groups, cfg)
        samples = [_decode(json.loads(json.dumps(_encode(sample)))) for sample in samples]
        batch = to_batch(samples, replay=False)
        own = [mine for sample in samples for mine in (*[False] * (len(sample.prompt_ids) - 1), *sample.own)]
        assert ((batch.weights_N > 0).tolist()) == own
        if mean_over == "answers":
            assert float(batch.weights_N.sum()) == pytest.approx(len(samples))
    trained = batch.weights_N.nonzero().squeeze(1)
    with torch.no_grad():
        logp_N = log_probs(model, model(batch.step).hidden_ND[trained], batch.targets_N[trained], 1.0)
    assert (logp_N - batch.streams["behaviour"][trained]).abs().max() <= 1e-5
    assert batch.targets_N[trained].tolist() == [
        token for s in samples for token, mine in zip(s.response_ids, s.own, strict=True) if mine
    ]


def test_a_real_engine_goes_on_after_a_call_and_agrees_with_the_trainer(model, tokenizer, monkeypatch):
    """An untrained model calls nothing; every turn that ends is taken for a call here."""
    monkeypatch.setattr("sobre.rl.turns.read_calls", lambda text: [("calculator", '{"expression": "6*7"}')])
    engine = Engine(model, EngineConfig(max_batch=8, return_routes=True), run_seed=3)
    cfg = replace(CFG, max_tokens=200, group_size=4, max_calls=2)
    model.head_VD.data[tokenizer.eos_id] *= 80  # so that turns end
    groups = sample_groups(engine, tokenizer, [PROBLEM] * 3, cfg, TasksConfig(), seed=0)
    answers = [answer for group in groups for answer in group.rollouts]
    assert any(answer.n_calls for answer in answers)
    assert any(answer.n_calls == 2 for answer in answers)
    for answer in answers:
        assert len(answer.response_ids) == len(answer.logprobs) <= 200
        assert answer.own is None or answer.n_calls
    samples = [replace(sample, weight=1.0) for sample in to_samples(groups, cfg)]
    batch = to_batch(samples, replay=False)
    trained = batch.weights_N.nonzero().squeeze(1)
    with torch.no_grad():
        output = model(batch.step)
        logp_N = log_probs(model, output.hidden_ND[trained], batch.targets_N[trained], 1.0)
    assert (logp_N - batch.streams["behaviour"][trained]).abs().max() <= 1e-5
    assert torch.equal(batch.streams["engine_routes_LNA"].sort(-1).values, output.routes_LNA.sort(-1).values)


def test_without_room_for_the_result_the_answer_is_cut(model, tokenizer):
    engine = Scripted(model, tokenizer, calls("6*7"), "never")
    cfg = replace(CFG, max_tokens=len(tokenizer.encode_completion(calls("6*7"))) + 3)
    (group,) = sample_groups(engine, tokenizer, [PROBLEM], cfg, TasksConfig(), seed=0)
    assert [(answer.finished, answer.reward.total) for answer in group.rollouts] == [(False, 0.0)] * 2
    assert len(engine.requests) == 2


def test_the_calls_of_a_turn_are_read_in_both_layouts():
    first, second = '{"expression": "1+1"}', '{"expression": "2"}'
    assert read_calls(calls("1+1", "2")) == [("calculator", first), ("calculator", second)]
    hermes = '<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>'
    ((name, arguments),) = read_calls(hermes)
    assert (name, json.loads(arguments)) == ("python", {"code": "print(1)"})
    assert read_calls("no call") == read_calls(calls("1+1")[:-40]) == []


def test_what_stands_between_two_turns_is_the_templates_own(tokenizer):
    given = between(tokenizer, ["42"], CFG)
    assert tokenizer.decode(given) == "<｜User｜><｜tool▁output▁begin｜>42<｜Assistant｜><think>\n"


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calculator", '{"expression": "(3+4)*12"}', "84"),
        ("calculator", '{"expression": "7/3"}', "7/3"),
        ("calculator", '{"expression": "2**9"}', "error: this is no expression"),
        ("calculator", '{"expression": "__import__(1)"}', "error: this is no expression"),
        ("calculator", "{}", "error: the arguments must be JSON such as"),
        ("calculator", "[", "error: the arguments must be JSON such as"),
        ("calculator", '{"expression": 5}', "error: the arguments must be JSON such as"),
        ("python", '{"code": "1"}', "error: there is no tool 'python'; there is calculator"),
    ],
)
def test_a_call_gives_its_result_or_says_what_is_wrong(name, arguments, result):
    assert tools.call(name, arguments, ("calculator",)).startswith(result)


def test_python_prints_from_the_sandbox_and_tells_how_it_failed():
    try:
        assert tools.run("print(6*7)") == "42\n"
    except SandboxError as error:
        pytest.skip(str(error))
    assert tools.run("x = 1") == "(nothing was printed)"
    assert tools.run("print(1)\n1/0") == "1\nerror: ZeroDivisionError: division by zero"
    assert tools.run("open('/etc/passwd')").startswith("error: ")
    long = tools.call("python", json.dumps({"code": "print('x' * 5000)"}), ("python",))
    assert long.endswith("(the first 2,000 of 5,001 characters)")


def test_tools_are_named_once_and_known():
    with pytest.raises(ConfigError, match="each tool once"):
        RLConfig(tools=("python", "python"))
