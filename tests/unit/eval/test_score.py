"""The examination: what counts as right, in the agreed form, cut off; votes; and that it repeats itself."""

from dataclasses import dataclass, replace

import jsonschema
import pytest

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Output
from sobre.errors import ConfigError
from sobre.eval.config import EvalConfig
from sobre.eval.score import evaluate, majority, prompt_ids, spread
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.schemas import schema
from sobre.tasks.base import Problem
from sobre.tasks.format import completion
from sobre.tasks.registry import TASKS
from sobre.tasks.sampling import test_set as fixed_problems
from sobre.tokenizer.config import SMALLEST, TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["12 + 30 = 42, une réponse, 答案"], TokenizerConfig(vocab_size=SMALLEST))


@pytest.fixture(scope="module")
def problems():
    return fixed_problems(36)


@dataclass
class Oracle:
    """Answers as it is told: `reply(index of the problem, the request)` gives (text, finished)."""

    tokenizer: Tokenizer
    problems: list
    reply: object

    def generate(self, requests):
        by_prompt = {prompt_ids(self.tokenizer, p): i for i, p in enumerate(self.problems)}
        outputs = []
        for request in requests:
            text, finished = self.reply(by_prompt[request.prompt_ids], request)
            ids = self.tokenizer.encode_completion(text) if finished else self.tokenizer.encode(text)
            outputs.append(Output(request.id, ids, [0.0] * len(ids), "stop" if finished else "length"))
        return outputs


def right(problem):
    return completion("so it is", problem.answer)


NO_SAMPLES = EvalConfig(k=0)


def test_every_right_answer_counts_in_its_task_and_language(tokenizer, problems):
    def reply(i, request):
        return (right(problems[i]) if problems[i].lang == "fr" else completion("hm", "no idea")), True

    result = evaluate(Oracle(tokenizer, problems, reply), tokenizer, problems, NO_SAMPLES, seed=0)
    assert result.pass_at_1 == pytest.approx(1 / 3)
    assert {lang: share.value for lang, share in result.by_lang.items()} == {"en": 0.0, "fr": 1.0, "zh": 0.0}
    assert all(share.n == 6 and share.right == 2 for share in result.by_task.values())
    assert result.formatted.value == 1.0


def test_a_right_answer_in_another_form_is_right_and_left_out_of_the_share_among_formatted(tokenizer, problems):
    def reply(i, request):
        text = right(problems[i])
        return (text + "\nThat is all." if i % 2 else completion("hm", "no idea")), True

    result = evaluate(Oracle(tokenizer, problems, reply), tokenizer, problems, NO_SAMPLES, seed=0)
    assert result.pass_at_1 == 0.5
    assert result.formatted.value == 0.5
    assert (result.right_formatted.n, result.right_formatted.right) == (18, 0)


def test_a_response_that_was_cut_off_is_wrong_and_counted_as_truncated(tokenizer, problems):
    def reply(i, request):
        return ("thinking, thinking", False) if i < 9 else (right(problems[i]), True)

    result = evaluate(Oracle(tokenizer, problems, reply), tokenizer, problems, NO_SAMPLES, seed=0)
    assert (result.truncated.right, result.overall.right) == (9, 27)
    assert result.items[0].completion == "thinking, thinking"
    assert result.items[0].length == len(tokenizer.encode("thinking, thinking"))


def test_items_keep_the_whole_response_without_its_end_token(tokenizer, problems):
    result = evaluate(
        Oracle(tokenizer, problems, lambda i, _: (right(problems[i]), True)), tokenizer, problems, NO_SAMPLES, seed=0
    )
    assert [item.completion for item in result.items] == [right(problem) for problem in problems]


def test_majority_and_pass_at_k_are_taken_over_samples_with_seeds_of_their_own(tokenizer, problems):
    cfg = EvalConfig(k=4, n_sampled=6)
    seeds = []

    def reply(i, request):
        if request.params.temperature == 0:
            return completion("hm", "no idea"), True
        seeds.append(request.params.seed)
        turn = int(request.id.rsplit("-", 1)[1])
        return (right(problems[i]) if turn < (2 if i < 18 else 1) else completion("hm", f"wrong {turn}")), True

    result = evaluate(Oracle(tokenizer, problems, reply), tokenizer, problems, cfg, seed=7)
    assert len(set(seeds)) == 24
    assert result.pass_at_1 == 0.0
    assert result.sampled.majority_at_k.value == 1.0  # with one vote each, the first response wins
    assert result.sampled.pass_at_k["1"]["value"] == pytest.approx((3 * 2 / 4 + 3 * 1 / 4) / 6)
    assert result.sampled.pass_at_k["4"]["value"] == 1.0
    jsonschema.validate(result.to_dict(), schema("eval"))


def test_what_a_judge_fails_on_is_in_no_share_and_is_counted(tokenizer, problems, monkeypatch):
    asked = [replace(problem, task="moody") for problem in problems[:6]]

    class Moody:
        def score(self, problem, answer):
            return {"yes": True, "no": False}[answer]

    def reply(i, request):
        said = "no" if request.params.temperature else ("yes", "no", "boom")[i % 3]
        return completion("hm", "boom" if request.id == "eval-1-3" else said), True

    monkeypatch.setitem(TASKS, "moody", Moody())
    cfg = EvalConfig(k=4, n_sampled=3)
    result = evaluate(Oracle(tokenizer, asked, reply), tokenizer, asked, cfg, seed=0)
    assert (result.overall.n, result.overall.right) == (4, 2)
    assert (result.formatted.n, result.unjudged) == (4, 3)
    assert "answer 'boom': KeyError" in result.items[2].fault
    assert result.sampled.majority_at_k.n == 2
    jsonschema.validate(result.to_dict(), schema("eval"))


def test_majority_ignores_responses_without_an_answer():
    problem = fixed_problems(1)[0]
    assert majority(problem, [None, "7", " 8", "8 ", None]) == 2
    assert majority(problem, [None, None]) is None
    assert majority(problem, ["7", "8"]) == 0


def test_votes_are_counted_by_value_in_mathematics_alone():
    answers = ["3", "1/2", "3", "0.5", "$.50"]
    asked = {"math": 1, "choice": 0}
    for judge, most in asked.items():
        assert majority(Problem("set", "en", 3, "?", "0.5", "set:1", {"judge": judge}), answers) == most
    assert majority(fixed_problems(1)[0], answers) == 0


def test_the_vote_of_a_problem_from_a_file_reads_what_its_judge_reads(tokenizer):
    asked = [Problem("set", "en", 3, "Half?", "0.5", "set:1", {"judge": "math"})]
    boxes = ["3", "1/2", "3", "0.5", "0.50"]

    def reply(i, request):
        return f"hm</think>\\boxed{{{boxes[int(request.id[-1])] if request.params.temperature else 3}}}", True

    result = evaluate(Oracle(tokenizer, asked, reply), tokenizer, asked, EvalConfig(k=5, n_sampled=1), seed=0)
    assert result.sampled.majority_at_k.right == 1


def test_sampled_problems_are_spread_over_the_whole_mix():
    assert spread(3, 9) == [0, 1, 2]
    for n, wanted, n_tasks in ((400, 100, 4), (1000, 100, 6), (1000, 100, 18), (200, 50, 2)):
        chosen = spread(n, wanted)
        assert len(set(chosen)) == wanted
        assert all(i * n // wanted <= index < (i + 1) * n / wanted for i, index in enumerate(chosen))
        sorted_by_task = [chosen_index * n_tasks // n for chosen_index in chosen]
        in_turns = [index % n_tasks for index in chosen]
        for tasks in (sorted_by_task, in_turns):
            assert min(tasks.count(task) for task in range(n_tasks)) > wanted / n_tasks / 3


def test_an_examination_of_a_real_model_repeats_itself(tokenizer, problems):
    model = Decoder(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            max_len=512,
            d_model=16,
            n_layers=1,
            attention=GQAConfig(n_heads=1, n_kv_heads=1, head_dim=16),
            ffn=DenseConfig(d_ff=16),
        )
    )
    model.init_weights(0)
    cfg = EvalConfig(max_new_tokens=12, k=2, n_sampled=3)
    first = evaluate(Engine(model, EngineConfig()), tokenizer, problems[:8], cfg, seed=1)
    busy = Engine(model, EngineConfig(max_batch=3))
    evaluate(busy, tokenizer, problems[8:12], cfg, seed=5)
    assert evaluate(busy, tokenizer, problems[:8], cfg, seed=1).items == first.items
    assert first.truncated.right + sum(not item.truncated for item in first.items) == 8


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        EvalConfig(k=4, temperature=0.0)
    with pytest.raises(ConfigError, match="bits_overlap"):
        EvalConfig(bits_overlap=1.0)
    with pytest.raises(ConfigError, match="n_problems"):
        EvalConfig(n_problems=-1)
