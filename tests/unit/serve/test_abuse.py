"""Inputs that have brought servers down, by the numbers of the abuse list: each is refused or bounded, never a 500."""

import concurrent.futures
import json
import random
import time

import pytest

from sobre.serve.grammar import MAX_KEPT, Grammars, json_grammar

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def post(live, **fields):
    return live.http.post(PATH, json=HELLO | fields)


def raw(connect, live, data, seconds=5):
    """What the server says to these bytes."""
    with connect(live.url) as sock:
        sock.settimeout(seconds)
        said = b""
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                said += piece
                if b"\r\n\r\n" in said:
                    break
        except (TimeoutError, ConnectionError):
            pass
        return said


def alive(live):
    return live.http.get("/healthz").status_code == 200


def test_02_a_declared_gigabyte_is_refused_before_it_comes(live, connect):
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {2**30}\r\n\r\n"
    )
    assert raw(connect, live, head.encode()).startswith(b"HTTP/1.1 413")


def test_04_headers_beyond_measure_end_the_connection(live, connect):
    for header in (f"X-A: {'x' * 2**20}", "\r\n".join(f"X-{i}: 1" for i in range(10_000)), f"Cookie: {'c' * 2**20}"):
        said = raw(connect, live, f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
        assert not said.startswith(b"HTTP/1.1 200")
    assert alive(live)


@pytest.mark.slow
def test_10_texts_that_cannot_fit_are_refused_before_they_are_read(live):
    started = time.perf_counter()
    response = post(live, messages=[{"role": "user", "content": "x" * 900_000}])
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert time.perf_counter() - started < 2
    assert post(live, messages=[{"role": "user", "content": "x"}] * 10_001).status_code == 400


def test_11_an_error_is_short_whatever_came(live):
    wrong = {f"field{i}": i for i in range(12_000)}
    response = post(live, **wrong)
    assert response.status_code == 400
    assert len(response.content) < 2048


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": ["string", None]},
        {"properties": []},
        {"required": "a"},
        {"$ref": "http://169.254.169.254/"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "(?<=x)*"},
        {"type": "string", "pattern": "(?=x)"},
        {"type": "string", "pattern": "(((("},
        {"multipleOf": 1e-300},
        {"type": "string", "pattern": "(" * 60_000},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
@pytest.mark.slow
def test_41_to_45_schemas_that_are_none_are_refused(live, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = post(live, response_format=form)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format.json_schema.schema"
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert post(live, tools=[tool], tool_choice="required").status_code == 400


def test_42_a_schema_nested_without_end_is_refused(live):
    schema = {"type": "string"}
    for _ in range(150):
        schema = {"type": "array", "items": schema}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert post(live, response_format=form).status_code == 400


def test_43_costly_schemas_are_bounded_in_time(live):
    for schema in (
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "string", "pattern": "(.*){1000}"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**9},
        {"enum": [f"w{i}" for i in range(5000)]},
        {"$ref": "#"},
    ):
        started = time.perf_counter()
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert post(live, response_format=form).status_code in (200, 400)
        assert time.perf_counter() - started < 5


def test_46_many_schemas_leave_few_behind(live, tokenizer):
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    for i in range(MAX_KEPT + 20):
        grammars.matcher(json_grammar({"const": i}, "x", in_thought=False), "x")
    assert len(grammars._kept) == MAX_KEPT


@pytest.mark.parametrize("name", ["a b", "é", "x" * 10_000, "a\nb", '"', "", "../x"])
def test_47_tools_have_plain_names(live, name):
    tool = {"type": "function", "function": {"name": name}}
    assert post(live, tools=[tool]).status_code == 400


def test_54_the_same_request_many_times_at_once_is_answered_each_time(live):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda _: post(live, temperature=0).status_code, range(60)))
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 16


def test_61_smuggled_and_broken_requests_are_refused(live, connect):
    body = json.dumps(HELLO)
    both = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"
    both += f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\nGET /secret HTTP/1.1\r\n\r\n"
    said = raw(connect, live, both.encode())
    assert not said.startswith(b"HTTP/1.1 500")
    for junk in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", random.Random(0).randbytes(500)):
        assert not raw(connect, live, junk + b"\r\n\r\n", 1).startswith(b"HTTP/1.1 5")
    assert alive(live)


def test_49_and_50_idle_connections_keep_nobody_out(live, connect):
    idle = [connect(live.url) for _ in range(200)]
    assert alive(live)
    assert post(live, max_tokens=2).status_code == 200
    for sock in idle:
        sock.close()


def test_62_other_origins_get_no_permission(live):
    response = live.http.options(
        PATH, headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
    )
    assert "access-control-allow-origin" not in response.headers
    assert live.http.post(PATH, content=json.dumps(HELLO), headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.slow
def test_every_field_with_every_kind_of_value_is_answered_and_never_breaks_the_server(live):
    """A small fuzzer: the fields of the clients with values of every kind, seeded."""
    rng = random.Random(0)
    values = [None, True, 0, -1, 1.5, 2**63, "x", "", [], {}, [None], {"a": 1}, "\u0000", "\u2028", [[[[]]]], 1e308]
    fields = [
        "model",
        "messages",
        "stop",
        "n",
        "seed",
        "tools",
        "tool_choice",
        "response_format",
        "logit_bias",
        "thinking",
    ]
    fields += ["reasoning", "stream_options", "max_tokens", "temperature", "top_p", "metadata", "reasoning_effort"]
    for path in (PATH, "/v1/completions", "/v1/messages", "/v1/responses", "/v1/messages/count_tokens"):
        base = HELLO | {"max_tokens": 3, "prompt": "x", "input": "x"}
        allowed = {
            PATH: ("prompt", "input"),
            "/v1/completions": ("messages", "input"),
            "/v1/responses": ("messages", "prompt"),
        }
        base = {key: value for key, value in base.items() if key not in allowed.get(path, ("prompt", "input"))}
        for _ in range(60):
            body = base | {rng.choice(fields): rng.choice(values) for _ in range(rng.randint(1, 3))}
            response = live.http.post(path, json=body)
            assert response.status_code in (200, 400, 404), (path, body, response.text[:300])
    assert alive(live)
