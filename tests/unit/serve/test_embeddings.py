"""/v1/embeddings: OpenAI's client, every form of input, limits; and the engine's vectors against the plain formula."""

import base64
import threading

import numpy as np
import openai
import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import EngineError
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.serve.embeddings import MAX_INPUTS, passes

ASKED = {"model": "scripted", "input": "three plus four"}


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as made:
        yield made


def refused(live, status=400, **fields):
    answer = live.http.post("/v1/embeddings", json=ASKED | fields)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_the_official_client_reads_numbers_and_base64_alike(client, live, tokenizer):
    ids = (tokenizer.bos_id, *tokenizer.encode("three plus four"))
    packed = client.embeddings.create(**ASKED)  # the client asks for base64 unless told
    plain = client.embeddings.create(**ASKED, encoding_format="float")
    assert packed.data[0].embedding == plain.data[0].embedding == [ids[-1], len(ids), 0]
    assert (packed.object, packed.data[0].object, packed.model) == ("list", "embedding", "scripted")
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == len(ids)
    assert packed.usage.cost_usd > 0
    raw = live.http.post("/v1/embeddings", json=ASKED | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(raw), "<f4").tolist() == [ids[-1], len(ids), 0]
    assert threading.get_ident() not in live.engine.threads


def test_inputs_come_back_in_their_order_whatever_was_read_together(client, live):
    inputs = [[7] * n for n in (200, 3, 180, 1, 2, 200)]
    before = len(live.engine.read)
    made = client.embeddings.create(model="scripted", input=inputs, extra_body={"pooling": "last"})
    assert [one.index for one in made.data] == list(range(6))
    assert [one.embedding for one in made.data] == [[7, len(one), 1] for one in inputs]
    assert [[len(one) for one in batch] for batch in live.engine.read[before:]] == [[1, 2, 3], [180, 200], [200]]
    assert client.embeddings.create(model="scripted", input=[5, 6]).data[0].embedding == [6, 2, 0]
    assert len(client.embeddings.create(model="scripted", input=["a", "b"], user="me").data) == 2


def test_passes_hold_every_input_once_within_the_limit():
    inputs = [(0,) * n for n in (9, 1, 700, 30, 30, 8)]
    found = list(passes(inputs, 64))
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(len(inputs[i]) for i in batch) <= 64 for batch in found)


def test_what_does_not_fit_is_refused_with_what_would(live):
    assert refused(live, input="")["param"] == "input"
    assert "must not be empty" in refused(live, input=["a", ""])["message"]
    assert "dimensions" in refused(live, dimensions=2)["message"]
    assert live.http.post("/v1/embeddings", json=ASKED | {"dimensions": 3}).status_code == 200
    assert refused(live, input=[[5]] * (MAX_INPUTS + 1))["message"] == f"'input' may hold at most {MAX_INPUTS} inputs."
    assert refused(live, input=[[5] * 201])["code"] == "context_length_exceeded"
    assert refused(live, input="x" * 100_000)["code"] == "context_length_exceeded"
    assert "'input' holds 99999" in refused(live, input=[99999])["message"]
    assert refused(live, input=[5, "a"])["param"] == "input"
    assert refused(live, pooling="max")["param"] == "pooling"
    assert refused(live, inputs="a")["code"] == "unknown_field"
    assert refused(live, 404, model="other")["code"] == "model_not_found"
    assert live.http.post("/v1/embeddings", json=ASKED | {"user": "me"}).headers["x-ignored-params"] == "user"


def test_vectors_are_charged_counted_and_repeated_under_one_key(serving, scripted):
    with serving(scripted(lambda request: [5]), api_key=("k admin tokens_per_min=20",)) as live:
        head = {"authorization": "Bearer k", "idempotency-key": "a"}
        first = live.http.post("/v1/embeddings", json=ASKED | {"input": [[5] * 30]}, headers=head)
        again = live.http.post("/v1/embeddings", json=ASKED | {"input": [[5] * 30]}, headers=head)
        assert first.json() == again.json()
        assert len(live.engine.read) == 1
        late = live.http.post("/v1/embeddings", json=ASKED, headers={"authorization": "Bearer k"})
        assert late.status_code == 429
        assert int(late.headers["retry-after"]) > 0
        assert 'sobre_prompt_tokens_total{model_name="scripted"} 30.0' in live.http.get("/metrics", headers=head).text


def test_a_dead_engine_says_when_to_come_back(serving, scripted):
    with serving(scripted(lambda request: [5])) as live:
        live.bridge.failure = RuntimeError("dead")
        answer = live.http.post("/v1/embeddings", json=ASKED)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")
        assert int(answer.headers["retry-after"]) == 5


def test_a_server_before_another_engine_says_that_it_has_none(live, front):
    http, _ = front(live.url)
    answer = http.post("/v1/embeddings", json={"model": "front", "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_vector_is_the_mean_or_the_last_of_the_final_norms_states(nano_config, deterministic):
    model = Decoder(nano_config)
    model.init_weights(0)
    engine = Engine(model.eval(), EngineConfig(max_batch=1, deterministic=deterministic))
    prompts = [(1, 2, 3, 4), (9, 8)]
    mean, last = engine.embed(prompts, "mean"), engine.embed(prompts, "last")
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            hidden_ND = model(StepInput(torch.tensor(prompt), (len(prompt),))).hidden_ND
        for got, state in ((mean[row], hidden_ND.mean(0)), (last[row], hidden_ND[-1])):
            torch.testing.assert_close(got, state / state.norm(), rtol=1e-4, atol=1e-5)
    with pytest.raises(EngineError, match="token 64 in its prompt"):
        engine.embed([(64,)], "mean")
    assert engine.embed([tuple(range(64))], "mean").shape == (1, 32)
    engine.check_integrity()
    assert engine.stats.computed_tokens == 2 * 6 + 64
