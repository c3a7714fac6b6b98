"""`sobre serve` as a process of its own, asked by the official client: a tiny model with random weights."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import anthropic
import httpx
import httpx2
import jsonschema
import openai
import pydantic
import pytest

from sobre.app import eval as evaluation
from sobre.models.checkpoint import save_model
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.serve.replicas import beginning, ranked
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
MAX_LEN = 1024
QUESTION = [{"role": "user", "content": "Combien font 3 + 4 ? 🙂 三加四"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as the trainers write it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer.train(["Three plus four is seven. 三加四等于七。"] * 3, TokenizerConfig(vocab_size=300))
    attention = MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8)
    ffn = MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=64)
    model = Decoder(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, attention=attention, ffn=ffn, max_len=MAX_LEN
        )
    )
    model.init_weights(0)
    save_model(model, path)
    tokenizer.save(path, max_len=MAX_LEN)
    return path


@pytest.mark.parametrize(
    ("api", "thinking", "rounding"),
    [("openai", "6", ()), ("anthropic", "off", ("--weights", "int8", "--cache", "int8"))],
)
def test_an_evaluation_asks_the_server_and_the_folder_alike(folder, tmp_path, api, thinking, rounding):
    """Greedy answers of one model are the same in this process and behind either dialect, with and without thoughts."""
    flags = ["--tasks", "sorting", "--n", "3", "--temperature", "0", "--max-tokens", "24", "--thinking", thinking]
    assert evaluation.main([str(folder), *flags, *rounding, "--out", str(tmp_path / "local.json")]) == 0
    server = Process(folder, *rounding)
    try:
        assert ("; weights in int8, cache in int8" in "".join(server.lines)) == bool(rounding)
        remote = ["--endpoint", f"{server.url}/v1", "--model", "tiny", "--api", api, *flags]
        assert evaluation.main([*remote, "--out", str(tmp_path / "remote.json")]) == 0
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.wait()
    local, far = (json.loads((tmp_path / f"{name}.json").read_text())["items"] for name in ("local", "remote"))
    assert [item["prompt"] for item in local] == [item["prompt"] for item in far]
    for one, other in zip(local, far, strict=True):
        assert one["replies"][0]["n_tokens"] == other["replies"][0]["n_tokens"]
        assert one["replies"][0]["finished"] == other["replies"][0]["finished"]
        assert one["replies"][0]["right"] == other["replies"][0]["right"]
        thoughts = [each["replies"][0]["text"].partition("</think>") for each in (one, other)]
        assert [closed for _, closed, _ in thoughts] == ["</think>" if thinking == "6" else ""] * 2
        assert [part.strip() for part in thoughts[0]] == [part.strip() for part in thoughts[1]]


class Process:
    """A server that runs, its address, and what it has said."""

    def __init__(self, *arguments, ready_s=60):
        port = () if "--port" in arguments else ("--port", "0")
        command = [sys.executable, "-m", "sobre", "serve", *map(str, arguments), *port]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        assert self.ready.wait(ready_s), self.lines
        self.url = re.search(r"http://\S+", next(line for line in self.lines if line.startswith("ready")))[0]

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("ready"):
                self.ready.set()
        self.ready.set()

    def wait(self):
        """The exit code, once it has ended by itself."""
        code = self.process.wait(30)
        self.reader.join(10)
        self.process.stderr.close()
        return code

    def end(self):
        if self.process.returncode is None:
            self.process.terminate()
            assert self.wait() == 0


@pytest.fixture(scope="module")
def server(folder):
    running = Process(folder, "--experts", "--api-key", "k0 admin", "k1", "k2")
    yield running
    running.end()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k2", max_retries=0) as made:
        yield made


def ask(client, **fields):
    return client.chat.completions.create(model="tiny", messages=QUESTION, **{"max_tokens": 20} | fields)


def test_the_start_tells_memory_speed_and_price(server):
    said = "".join(server.lines)
    assert re.search(r"memory [\d,]+ MiB now; the cache of 16 full answers takes [\d.,]+ MiB", said)
    assert re.search(r"speed [\d,]+ tokens/s for one request, [\d,]+ tokens/s for 16 at once", said)
    assert re.search(r"price [\d.e-]+ USD per million tokens", said)


def test_a_model_is_shown_with_its_context_and_its_price(server, client):
    (entry,) = [model.model_dump() for model in client.models.list()]
    assert (entry["id"], entry["object"], entry["owned_by"], entry["max_model_len"]) == (
        "tiny",
        "model",
        "sobre",
        MAX_LEN,
    )
    assert isinstance(entry["created"], int)
    assert entry["pricing"]["usd_per_hour"] > 0
    assert entry["pricing"]["usd_per_million_output_tokens"] > 0


def test_guesses_fixed_shapes_and_a_small_cache_are_flags_and_what_they_cost_is_told(folder, client):
    running = Process(folder, "--deterministic", "--speculate", "--cache-tokens", "2048")
    try:
        said = "".join(running.lines)
        assert "the cache of 2,048 tokens takes" in said
        assert re.search(r"deterministic: the same bits .* at [\d.]+ times the time of a token for one request", said)
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0) as one:
            fields = {"temperature": 0, "max_tokens": 120, "logit_bias": {"50": 4}, "reasoning_effort": "none"}
            assert ask(one, **fields).choices[0].message == ask(client, **fields).choices[0].message
        told = httpx.get(f"{running.url}/metrics").text
        counts = {
            name: float(re.search(rf"sobre_spec_decode_num_{name}_tokens_total\{{\S* (\S+)", told)[1])
            for name in ("draft", "accepted")
        }
        assert 0 < counts["accepted"] <= counts["draft"]
    finally:
        running.end()


def test_the_address_answers_503_until_the_model_is_there_and_never_fails_to(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = []
    starting = threading.Thread(target=lambda: made.append(Process(folder, "--port", port)))
    starting.start()
    seen = []
    while not seen or seen[-1] != 200:
        try:
            response = httpx.get(f"http://127.0.0.1:{port}/readyz")
        except httpx.ConnectError:
            assert 503 not in seen, "once it answers, it goes on answering"
            time.sleep(0.01)
            continue
        except (httpx.RemoteProtocolError, httpx.ReadError):
            continue  # connected at the moment of the change, and closed before the request was read
        seen.append(response.status_code)
        if seen[-1] == 503:
            assert response.json()["error"]["code"] == "loading"
            assert int(response.headers["retry-after"]) >= 1
    starting.join(60)
    made[0].end()
    assert set(seen) == {503, 200}
    assert seen == sorted(seen, reverse=True)


LM_EVAL_TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], do_sample: false, temperature: 0.0, max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


def test_lm_eval_asks_the_server_and_gets_what_a_client_gets(server, client, tmp_path):
    """As docs/how-to/evaluate-a-model.md says; a task of its own, for lm-eval fetches the known ones."""
    pytest.importorskip("lm_eval")
    rows = [{"question": f"{i} + 4 ?", "answer": "7"} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(LM_EVAL_TASK.format(file=tmp_path / "sums.jsonl"))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--tasks", "sums"]
    command += ["--model_args", f"model=tiny,base_url={server.url}/v1/chat/completions,num_concurrent=2,max_retries=1"]
    command += ["--apply_chat_template", "--include_path", str(tmp_path), "--log_samples"]
    environment = {**os.environ, "OPENAI_API_KEY": "k2", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (log,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    found = {line["doc"]["question"]: line["resps"][0][0] for line in map(json.loads, log.read_text().splitlines())}
    asked = {
        row["question"]: client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": row["question"]}], temperature=0, max_tokens=12
        )
        for row in rows
    }
    assert found == {question: answer.choices[0].message.content or "" for question, answer in asked.items()}


def test_streaming_and_not_agree_and_a_seed_repeats(client):
    first, again, other = ask(client, seed=5), ask(client, seed=5), ask(client, seed=6)
    text = first.choices[0].message.reasoning_content
    assert text == again.choices[0].message.reasoning_content
    assert text != other.choices[0].message.reasoning_content
    chunks = list(ask(client, seed=5, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.reasoning_content or "" for chunk in chunks[:-1])
    assert streamed == text
    assert chunks[-1].usage.total_tokens == first.usage.total_tokens
    assert first.usage.cost_usd > 0
    n_tokens, reason = first.usage.completion_tokens, first.choices[0].finish_reason
    assert reason == ("length" if n_tokens == 20 else "stop")


def test_greedy_answers_are_the_same_alone_and_in_a_crowd(client):
    alone = ask(client, temperature=0).choices[0].message.reasoning_content
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        crowd = list(pool.map(lambda _: ask(client, temperature=0, max_tokens=20), range(20)))
    assert {answer.choices[0].message.reasoning_content for answer in crowd} == {alone}


def test_errors_reach_the_official_client_as_its_own_classes(client, server):
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {MAX_LEN}"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "七" * MAX_LEN}])
    with pytest.raises(openai.BadRequestError, match="tools"):
        ask(client, tools=[{"type": "function", "function": {"name": "not a name"}}])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k3", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}

DIGIT = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


def test_answers_of_random_weights_follow_a_schema_after_their_thought(client):
    """Check 64 of the conformance list: 24 at once, with thoughts."""
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}

    def one(seed):
        return ask(client, max_tokens=150, seed=seed, temperature=1, response_format=form).choices[0]

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        choices = list(pool.map(one, range(24)))
    for choice in choices:
        assert choice.finish_reason == "stop"
        assert choice.message.reasoning_content
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_parse_gives_the_clients_own_model(client):
    class Sum(pydantic.BaseModel):
        sum: int
        sure: bool

    parsed = client.chat.completions.parse(
        model="tiny", messages=QUESTION, response_format=Sum, max_tokens=200, reasoning_effort="none"
    )
    assert isinstance(parsed.choices[0].message.parsed, Sum)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_random_weights_call_the_tools_that_they_must(client, choice):
    tools = [{"type": "function", "function": {"name": name, "parameters": DIGIT}} for name in ("sub", "add")]
    for seed in range(2):
        made = ask(client, tools=tools, tool_choice=choice, max_tokens=300, seed=seed, parallel_tool_calls=False)
        assert made.choices[0].finish_reason == "tool_calls"
        assert not made.choices[0].message.content
        (call,) = made.choices[0].message.tool_calls
        assert call.function.name == "add" or choice == "required"
        jsonschema.validate(json.loads(call.function.arguments), DIGIT)


def test_a_thinking_budget_is_kept_and_an_answer_follows(client):
    for budget in (1, 5, 20):
        made = ask(client, temperature=1, max_tokens=60, extra_body={"thinking_token_budget": budget}, seed=1)
        assert made.usage.completion_tokens_details.reasoning_tokens <= budget + 1
        assert made.usage.completion_tokens > budget + 1


def test_logprobs_name_the_tokens_of_the_answer(client):
    made = ask(client, logprobs=True, top_logprobs=3, temperature=0, max_tokens=30, reasoning_effort="none").choices[0]
    entries = made.logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode(errors="replace") == made.message.content
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries), "greedy takes the likeliest"


def test_biases_forbid_and_force(client):
    made = ask(client, logit_bias={"50": 100}, max_tokens=5, reasoning_effort="none", logprobs=True)
    assert len({entry.token for entry in made.choices[0].logprobs.content}) == 1
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        ask(client, logit_bias={"999999": 1})


def test_a_prompt_is_found_again_by_its_own_key_alone(client, server):
    history = [{"role": "user", "content": "A question that no other test asks: why is it seven and not eight?"}]

    def asked(key="k2"):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as one:
            return one.chat.completions.create(model="tiny", messages=history, max_tokens=1).usage

    assert asked().prompt_tokens_details.cached_tokens == 0
    again = asked()
    assert 0 < again.prompt_tokens_details.cached_tokens < again.prompt_tokens
    assert again.prompt_cache_hit_tokens == again.prompt_tokens_details.cached_tokens
    assert asked("k1").prompt_tokens_details.cached_tokens == 0, "what one key computed is found by no other"


def test_a_restart_forgets_no_prefix_and_gives_it_to_its_own_key_alone(folder, tmp_path):
    history = [{"role": "user", "content": "A question from before the restart: why is it seven and not eight?"}]

    def found(running, key):
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as one:
            made = one.chat.completions.create(model="tiny", messages=history, max_tokens=3, temperature=0)
        return made.usage.prompt_cache_hit_tokens, made.choices[0].message.reasoning_content

    first = Process(folder, "--prefix-dir", tmp_path, "--api-key", "k1", "k2")
    _, said = found(first, "k1")
    first.end()
    assert re.search(r"prefixes: [1-9][\d,]* tokens kept in", first.lines[-1])
    again = Process(folder, "--prefix-dir", tmp_path, "--api-key", "k2", "k1")
    try:
        assert any(re.search(r"prefixes: [1-9][\d,]* tokens found again in", line) for line in again.lines)
        assert found(again, "k2")[0] == 0, "the place in the list of keys is not the key"
        n_found, repeated = found(again, "k1")
        assert n_found > 0
        assert repeated == said
    finally:
        again.end()


def test_the_experts_of_each_token_of_the_answer_are_told_when_asked_for(client):
    made = ask(client, max_tokens=12, temperature=0, extra_body={"return_experts": True})
    told = made.choices[0].experts
    assert told["n_experts"] == 4
    n_tokens = made.usage.completion_tokens - 1
    assert len(told["tokens"]) == n_tokens
    for layer in told["layers"]:
        assert len(layer["experts"]) == n_tokens
        assert all(len(set(chosen)) == 2 and set(chosen) <= set(range(4)) for chosen in layer["experts"])


def streams(running, n, **fields):
    """`n` streams that have begun, and their client."""
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0)
    begun = [ask(client, stream=True, temperature=0, seed=i, **fields) for i in range(n)]
    for stream in begun:
        next(stream)
    return client, begun


def test_kill_9_under_load_leaves_nothing_that_keeps_the_port_and_a_log_without_room_stops_nobody(folder, tmp_path):
    """The second server writes its log to a full disk; it can be known by its answers alone."""
    prefixes = ("--prefix-dir", tmp_path)
    first = Process(folder, *prefixes)
    port = first.url.rpartition(":")[2]
    client, begun = streams(first, 4, max_tokens=400)
    first.process.kill()
    first.process.wait(10)
    first.reader.join(10)
    first.process.stderr.close()
    for stream in begun:
        with pytest.raises((openai.APIError, httpx.HTTPError, httpx2.HTTPError)):
            list(stream)
    client.close()
    assert list(tmp_path.iterdir()) == [], "no half of a file of prefixes"
    command = [sys.executable, "-m", "sobre", "serve", str(folder), "--port", port, *map(str, prefixes)]
    with open("/dev/full", "w") as full:
        second = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=full)
    try:
        deadline, ready = time.monotonic() + 60, 0
        while ready != 200:
            assert time.monotonic() < deadline
            assert second.poll() is None, "a log that cannot be written ends no server"
            try:
                ready = httpx.get(f"http://127.0.0.1:{port}/readyz").status_code
            except httpx.HTTPError:
                time.sleep(0.05)
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 3}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60).status_code == 200
    finally:
        second.terminate()
        assert second.wait(30) in (0, 120)  # Python's own for a last line that it could not write
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_size > 0


def test_a_client_that_leaves_stops_its_answer(client, server):
    stream = ask(client, stream=True, max_tokens=400, temperature=0)
    for _ in zip(range(3), stream, strict=False):
        pass
    stream.close()
    ask(client, max_tokens=1)
    deadline = time.monotonic() + 10
    while not (left := [line for line in server.lines if "left=early" in line]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert int(re.search(r"completion_tokens=(\d+)", left[0])[1]) < 400


def test_no_question_no_thought_no_answer_and_no_key_is_in_the_log_or_the_metrics(client, server):
    letters = {str(i): 100 for i in range(60, 80)}  # a thought and an answer that can be searched for
    made = ask(client, max_tokens=40, logit_bias=letters, extra_body={"thinking_token_budget": 15}).choices[0].message
    assert min(len(made.reasoning_content), len(made.content)) > 8
    ask(client, stop=["the secret stop"], user="the secret user", logit_bias=letters)
    with pytest.raises(openai.BadRequestError):
        ask(client, tools=[{"type": "function", "function": {"name": "the secret tool"}}])
    said = "".join(server.lines)
    told = httpx.get(f"{server.url}/metrics", headers={"authorization": "Bearer k0"}).text
    assert "POST '/v1/chat/completions' 200" in said
    assert "sobre_" in told
    secrets = ["Combien", "三加四", "k0", "k1", "k2", "the secret", made.reasoning_content[:8], made.content[:8]]
    for secret in secrets:
        assert secret not in said
        assert secret not in told


def test_the_page_and_its_examples_come_from_the_same_server(server):
    assert "<title>sobre chat</title>" in httpx.get(server.url).text
    examples = httpx.get(f"{server.url}/v1/sobre/examples", headers={"authorization": "Bearer k1"}).json()["data"]
    assert {example["lang"] for example in examples} == {"en", "fr", "zh"}


def test_sigterm_lets_running_answers_end_and_exits_with_0(folder):
    running = Process(folder)
    fields = {"max_tokens": 100, "stream_options": {"include_usage": True}, "logit_bias": {"1": -100}}
    client, begun = streams(running, 4, **fields)
    running.process.send_signal(signal.SIGTERM)
    for stream in begun:
        chunks = list(stream)
        assert chunks[-1].usage.completion_tokens == 100
        assert chunks[-2].choices[0].finish_reason == "length"
    client.close()
    assert running.wait() == 0


ADD_TOOL = {"name": "add", "description": "adds", "parameters": DIGIT}


def test_anthropics_client_talks_to_the_process(server):
    """Text, a thought, a stream, a forced tool, counts and errors."""
    with anthropic.Anthropic(base_url=server.url, api_key="k2", max_retries=0) as claude:
        asked = {"model": "tiny", "max_tokens": 60, "messages": QUESTION}
        thinking = {"type": "enabled", "budget_tokens": 12}
        made = claude.messages.create(**asked, thinking=thinking)
        assert [block.type for block in made.content][0] == "thinking"
        assert made.usage.output_tokens <= 60
        with claude.messages.stream(**asked, thinking=thinking) as stream:
            streamed = stream.get_final_message()
        assert streamed.content[0].thinking
        assert streamed.stop_reason in ("end_turn", "max_tokens")
        tool = {"name": "add", "input_schema": DIGIT}
        direct = {"max_tokens": 300, "thinking": {"type": "disabled"}}
        called = claude.messages.create(**asked | direct, tools=[tool], tool_choice={"type": "tool", "name": "add"})
        assert called.stop_reason in ("tool_use", "max_tokens")  # no seed: random weights may go in circles of blanks
        if called.stop_reason == "tool_use":
            assert called.content[-1].name == "add"
            jsonschema.validate(called.content[-1].input, DIGIT)
        assert claude.messages.count_tokens(model="tiny", messages=QUESTION).input_tokens > 10
        with pytest.raises(anthropic.NotFoundError):
            claude.messages.create(**asked | {"model": "other"})
    with anthropic.Anthropic(base_url=server.url, api_key="k3", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(**asked)


def test_langchains_wrappers_talk_to_the_process(server):
    deepseek, chat = pytest.importorskip("langchain_deepseek"), pytest.importorskip("langchain_openai")
    fields = {"model": "tiny", "api_key": "k2", "max_retries": 0, "max_tokens": 40, "temperature": 0}
    wrapper = deepseek.ChatDeepSeek(api_base=f"{server.url}/v1", **fields)
    message = wrapper.invoke(QUESTION[0]["content"])
    assert message.additional_kwargs["reasoning_content"]
    chunks = list(wrapper.stream(QUESTION[0]["content"]))
    streamed = "".join(chunk.additional_kwargs.get("reasoning_content", "") for chunk in chunks)
    assert streamed == message.additional_kwargs["reasoning_content"]
    direct = {"thinking": {"type": "disabled"}}
    drawn = {"max_tokens": 300, "temperature": 1, "seed": 1, "extra_body": direct}  # greedy, it would go in circles
    other = chat.ChatOpenAI(base_url=f"{server.url}/v1", **fields | drawn)
    tool = {"type": "function", "function": ADD_TOOL}
    called = other.bind_tools([tool], tool_choice="add").invoke(QUESTION[0]["content"])
    assert {call["name"] for call in called.tool_calls} == {"add"}
    for call in called.tool_calls:
        jsonschema.validate(call["args"], DIGIT)
    used = called.usage_metadata
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
    for one in (wrapper, other):
        one.root_client.close()


def test_what_is_asked_wrongly_is_said_before_anything_is_loaded(folder, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "sobre", "serve", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    code, said = run(folder.parent)
    assert code == 1
    assert "is no model folder" in said
    assert str(folder) in said, "names the model folder that is near"
    assert run(tmp_path / "nothing")[0] == 1
    assert run(folder, "--port", "99999")[0] == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = run(folder, "--port", taken.getsockname()[1])
    assert code == 1
    assert "cannot listen on 127.0.0.1" in said


def test_a_router_keeps_chats_where_they_are_and_moves_those_of_a_replica_that_is_killed(folder):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        replicas = list(pool.map(lambda _: Process(folder), range(2)))
    router = Process("tiny", "--engine", *(replica.url for replica in replicas))

    def chat(i):
        said = {"role": "user", "content": f"chat {i}: {'3+4? ' * 8}"}
        return {"model": "tiny", "messages": [said], "max_tokens": 2}

    def home(i):
        """Which replica chat `i` belongs to."""
        urls = [replica.url for replica in replicas]
        return urls.index(ranked(urls, beginning(chat(i)))[0])

    def n_asked():
        return [sum("/v1/chat/completions" in line for line in replica.lines) for replica in replicas]

    def place(i):
        """Which replica answers chat `i`, and how much of its prompt it found in its cache."""
        before, deadline = n_asked(), time.monotonic() + 10
        answered = httpx.post(f"{router.url}/v1/chat/completions", json=chat(i), timeout=60).json()
        while sum(now := n_asked()) == sum(before):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(now[1] > before[1]), answered["usage"]["prompt_cache_hit_tokens"]

    try:
        chats = [i for at in range(2) for i in [i for i in range(100) if home(i) == at][:4]]
        first, again = [place(i) for i in chats], [place(i) for i in chats]
        assert [where for where, _ in first] == [0] * 4 + [1] * 4
        assert [where for where, _ in again] == [0] * 4 + [1] * 4
        assert all(found > 0 for _, found in again)
        replicas[0].process.kill()
        assert [where for where, _ in map(place, chats)] == [1] * 8
        assert httpx.get(f"{router.url}/readyz").status_code == 200
    finally:
        replicas[0].process.kill()
        replicas[0].wait()
        router.end()
        replicas[1].end()


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """`vllm(command)`: from now on `vllm serve MODEL --host H --port P --served-model-name N` runs this shell command;
    what it gives back tells the number of its process."""

    def install(command):
        script, pid = tmp_path / "vllm", tmp_path / "pid"
        script.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}\n{command}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

        def number():
            deadline = time.monotonic() + 60
            while not pid.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            return int(pid.read_text())

        return number

    return install


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_engine_that_was_started_answers_and_its_death_is_noticed(folder, vllm):
    number = vllm(f'exec {sys.executable} -m sobre serve "$2" --host "$4" --port "$6" --name "$8" 2>/dev/null')
    running = Process(folder, "--engine", "vllm", "--name", "front", ready_s=180)
    try:
        (about,) = httpx.get(f"{running.url}/v1/models").json()["data"]
        assert (about["id"], about["answer_now"]) == ("front", False)
        assert "default_sampling" not in about, "the engine behind samples as it was told"
        asked = {"model": "front", "messages": QUESTION, "max_tokens": 5}
        answered = httpx.post(f"{running.url}/v1/chat/completions", json=asked, timeout=60)
        assert answered.status_code == 200
        assert 1 <= answered.json()["usage"]["completion_tokens"] <= 5
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        os.kill(number(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while httpx.get(f"{running.url}/readyz").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = httpx.post(f"{running.url}/v1/chat/completions", json=asked, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_stopped")
        while not any("the engine ended with exit code -9" in line for line in running.lines):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        running.end()


def test_an_engine_that_was_started_ends_with_the_server(tmp_path, vllm):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text("{}")
    number = vllm(f'exec {sys.executable} -m http.server "$6" --bind "$4" --directory {tmp_path}')
    running = Process("tiny", "--engine", "vllm")
    assert not is_gone(number())
    running.end()
    assert is_gone(number())


@pytest.mark.parametrize(("command", "code"), [("exit 3", 1), ("exec sleep 1000", 0)])
def test_an_engine_that_is_never_ready_leaves_nothing_behind(vllm, command, code):
    """It ends by itself, or the server is told to leave while it waits."""
    number = vllm(command)
    line = [sys.executable, "-m", "sobre", "serve", "tiny", "--engine", "vllm", "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        started = number()
        if not code:
            while "starting" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert is_gone(started)
    assert ("the engine ended with exit code 3 before it answered" in said) == bool(code)
