"""The rest of the abuse list, by number: where each input is, and those that need a real engine or their own server.

After everything that the real engine is asked here, no choice is open and every block is free or kept for a prefix.
"""

import asyncio
import concurrent.futures
import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from sobre.serve.server import bind

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"
TESTS = Path(__file__).parents[2]
ELSEWHERE = {
    "unit/serve/test_abuse.py": {
        "test_02_a_declared_gigabyte_is_refused_before_it_comes": (2,),
        "test_04_headers_beyond_measure_end_the_connection": (4,),
        "test_10_texts_that_cannot_fit_are_refused_before_they_are_read": (10,),
        "test_11_an_error_is_short_whatever_came": (11,),
        "test_41_to_45_schemas_that_are_none_are_refused": (44,),
        "test_42_a_schema_nested_without_end_is_refused": (),
        "test_43_costly_schemas_are_bounded_in_time": (43,),
        "test_46_many_schemas_leave_few_behind": (),
        "test_47_tools_have_plain_names": (),
        "test_49_and_50_idle_connections_keep_nobody_out": (),
        "test_54_the_same_request_many_times_at_once_is_answered_each_time": (),
        "test_61_smuggled_and_broken_requests_are_refused": (),
        "test_62_other_origins_get_no_permission": (62,),
    },
    "unit/serve/test_abuse_wire.py": {
        "test_03_a_body_that_comes_byte_by_byte_without_end_is_told_408": (3,),
        "test_49_a_thousand_connections_that_say_nothing_keep_nobody_out": (49,),
        "test_54_five_hundred_times_the_same_request_is_answered_the_same_each_time": (),
        "test_58_whoever_is_turned_away_costs_no_rendering": (58,),
        "test_61_two_requests_in_one_piece_are_answered_in_their_order": (),
        "test_61_a_body_of_two_lengths_is_read_by_its_chunks_or_refused_and_ends_the_connection": (61,),
        "test_61_no_line_can_be_put_into_the_answer_by_way_of_the_request_id": (),
    },
    "unit/serve/test_abuse_bodies.py": {
        "test_07_no_number_field_takes_what_is_no_number_and_minus_zero_is_zero": (7,),
        "test_38_the_context_of_the_real_engine_ends_where_it_says_also_for_a_prompt_found_again": (38,),
        "test_41_what_no_automaton_can_follow_is_refused": (41,),
        "test_41_patterns_that_would_take_other_engines_for_ever_are_compiled_or_refused_at_once": (),
        "test_42_and_43_schemas_too_deep_or_too_long_are_refused_with_the_limit": (42,),
        "test_45_no_field_takes_a_grammar": (),
        "test_46_compiled_grammars_are_kept_up_to_a_size_whatever_their_number": (46,),
        "test_47_names_that_a_page_might_trip_over_are_only_names": (47,),
        "test_48_a_hundred_calls_come_whole_and_in_order": (48,),
        "test_48_braces_in_a_text_end_no_call": (),
        "test_57_a_full_disk_keeps_no_prefixes_and_spoils_no_earlier_file": (57,),
        "test_68_vocabularies_beyond_measure_or_against_themselves_are_refused": (68,),
    },
    "unit/serve/test_conformance_answers.py": {
        "test_86_a_client_that_leaves_after_any_token_leaves_nothing": (52,),
        "test_86_a_client_that_leaves_between_the_last_token_and_the_usage_leaves_nothing": (),
    },
    "unit/serve/test_real_answers.py": {
        "test_62_penalties_change_no_token_while_the_models_own_head_guesses": (27,),
    },
    "unit/serve/test_lifecycle.py": {
        "test_a_body_that_is_too_large_or_too_slow_is_refused": (1,),
        "test_five_hundred_bodies_that_never_end_keep_nobody_out_and_are_told_408": (),
        "test_five_hundred_clients_that_leave_at_every_moment_leave_nothing_behind": (51,),
        "test_a_client_that_leaves_frees_the_engine_at_once_and_disturbs_nobody": (),
        "test_keys_guard_everything_but_the_page_and_the_health": (59,),
    },
    "unit/serve/test_conformance.py": {
        "test_90_a_client_that_takes_nothing_is_dropped_and_disturbs_nobody": (),
    },
    "unit/serve/test_schema.py": {
        "test_what_is_no_json_object_is_refused_whatever_it_is": (5, 6),
        "test_numbers_beyond_all_bounds_are_refused": (),
        "test_each_wrong_field_is_named": (13, 16, 19, 20, 23, 24, 25, 29, 31),
    },
    "unit/serve/test_api.py": {
        "test_compressed_bodies_are_refused": (9,),
    },
    "unit/serve/test_dialects.py": {
        "test_completions_take_texts_and_ids_and_echo": (37,),
        "test_answer_now_ends_the_thought_of_a_running_answer": (),
    },
    "unit/serve/test_real_engine.py": {
        "test_87_one_that_leaves_while_another_reads_a_long_prompt_disturbs_neither_it_nor_the_next": (53,),
        "test_54_the_same_prompt_many_times_at_once_is_read_once": (54,),
        "test_86_who_leaves_before_the_engine_is_asked_leaves_nothing": (),
        "test_86_a_thousand_clients_that_leave_at_random_leave_no_block_behind": (),
    },
    "unit/serve/test_memory.py": {
        "test_weights_beyond_the_memory_are_refused_before_they_are_read": (),
        "test_a_context_that_does_not_fit_is_refused_if_asked_for_and_else_cut_to_what_does": (),
    },
    "unit/serve/test_keys.py": {
        "test_keys_have_limits_of_their_own_and_an_administrator_sees_them_all": (64,),
    },
    "unit/serve/test_page_in_browser.py": {
        "test_what_a_model_writes_cannot_execute_load_or_lead_astray": (70, 71),
        "test_answers_without_end_are_shown_whole_and_with_few_elements": (),
        "test_text_that_turns_the_line_around_turns_nothing_beside_it": (),
    },
    "unit/engine/test_saved.py": {
        "test_a_server_says_why_it_starts_without_them_and_replaces_the_file": (),
    },
    "unit/engine/test_engine.py": {
        "test_abort_works_in_every_phase_and_returns_what_the_request_got": (),
        "test_five_hundred_different_prompts_pass_a_small_cache_in_their_order": (55,),
    },
    "unit/tokenizer/test_folder.py": {"test_a_template_can_neither_reach_out_nor_crash": (33,)},
    "unit/models/test_shards.py": {"test_a_header_that_lies_is_refused": (66,)},
    "unit/serve/test_small_parts.py": {"test_a_weight_that_is_no_number_is_named": ()},
    "unit/models/test_checkpoint.py": {"test_a_pickle_is_never_opened": (67,)},
    "e2e/test_serve_process.py": {
        "test_sigterm_lets_running_answers_end_and_exits_with_0": (56,),
        "test_kill_9_under_load_leaves_nothing_that_keeps_the_port_and_a_log_without_room_stops_nobody": (),
        "test_no_question_no_thought_no_answer_and_no_key_is_in_the_log_or_the_metrics": (72,),
    },
}
HERE = (8, 12, 14, 15, 17, 18, 21, 22, 26, 28, 30, 32, 34, 35, 36, 39, 40, 50, 60, 63)
NOT_OURS = {
    45: "no field takes a grammar, and those of other servers are refused by name; patterns are under 41",
    65: "there is no process of ours to talk to: the engine is a thread",
    69: "GGUF is written, never read",
}


def test_every_input_is_somewhere_or_said_not_to_be_ours():
    numbers = [n for tests in ELSEWHERE.values() for some in tests.values() for n in some]
    assert sorted([*numbers, *HERE, *NOT_OURS]) == list(range(1, 73))
    for file, tests in ELSEWHERE.items():
        text = (TESTS / file).read_text(encoding="utf-8")
        for name in tests:
            assert f"def {name}(" in text, f"{file} has no {name}"


def post(live, path=PATH, **fields):
    return live.http.post(path, json=HELLO | fields)


def refused(response, param=None):
    """A 400 in OpenAI's shape, about this field."""
    error = response.json()["error"]
    assert response.status_code == 400, response.text[:300]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(response.content) < 4096
    assert param is None or error["param"].startswith(param), error
    return error


@pytest.fixture
def real(serving, real_engine, eventually):
    """A server before the real engine; when a test is over, nothing is open and no block is lost."""
    engine = real_engine(speculate=True, cache_tokens=1024)
    with serving(engine) as live:
        yield live
        assert eventually(lambda: live.bridge.n_open == 0 and not engine.has_work)
        assert live.http.get("/readyz").status_code == 200
    engine.check_integrity()
    assert engine.n_running == engine.n_waiting == 0


@pytest.fixture
def guarded(serving, scripted):
    """A server with a key."""
    with serving(scripted(lambda request: []), api_key=("k",)) as live:
        yield live


@pytest.mark.parametrize("kind", ["application/json; charset=utf-7", "application/json;charset=utf-16", "text/json"])
@pytest.mark.slow
def test_08_other_encodings_of_json_are_refused(live, kind):
    assert live.http.post(PATH, content=json.dumps(HELLO), headers={"content-type": kind}).status_code == 415
    for same in ("application/json; charset=utf-8", 'application/json; charset="UTF-8"', "Application/JSON"):
        assert live.http.post(PATH, content=json.dumps(HELLO), headers={"content-type": same}).status_code == 200


def test_12_two_hundred_tools_of_a_megabyte_are_refused(live):
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 2**20}}
    assert post(live, tools=[tool] * 2).status_code == 413
    assert refused(post(live, tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(200)]), "tools")


def test_14_fifty_clients_who_want_eight_of_everything_get_it_or_429(serving, scripted, answer_ids):
    with serving(scripted(lambda request: answer_ids("hm", "yes")), max_open=40) as live:
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            codes = list(pool.map(lambda _: post(live, n=8).status_code, range(50)))
        assert set(codes) <= {200, 429}
        assert codes.count(200) >= 5
        assert live.bridge.n_open == 0


@pytest.mark.parametrize(
    "field", ["best_of", "use_beam_search", "stream_interval", "min_tokens", "ignore_eos", "priority", "bad_words"]
)
def test_15_26_and_28_what_other_servers_know_and_we_do_not_is_named(live, field):
    assert refused(post(live, **{field: 2**63}), field)["code"] == "unknown_field"


def test_17_what_cannot_fit_is_cut_to_what_does_however_many_log_probabilities_it_wants(real):
    asked = [{"role": "user", "content": "7" * 400}]
    fields = {"logprobs": True, "top_logprobs": 20, "n": 8, "max_tokens": 32_000, "reasoning_effort": "none"}
    made = post(real, messages=asked, **fields)
    usage = made.json()["usage"]
    room = 512 - usage["prompt_tokens"]
    assert made.headers["x-clamped-params"] == f"max_tokens={room}"
    assert usage["completion_tokens"] <= 8 * room
    assert len(made.content) < 8 * room * 4000, "some hundred bytes for each of the twenty"


@pytest.mark.slow
def test_18_biases_of_a_million_tokens_and_of_none_are_refused(live):
    assert post(live, logit_bias={str(i): 1 for i in range(1_000_000)}).status_code == 413
    for wrong in ({str(i): 1 for i in range(50_000)}, {"999999": 1}, {"5": None}, {"5": True}, {"05x": 1}, [1]):
        refused(post(live, logit_bias=wrong), "logit_bias")


def test_30_names_that_are_none_of_a_model_are_404_and_one_line_of_the_log(live, caplog):
    caplog.set_level("INFO", "sobre.serve")
    for name in ("../../etc/passwd", "x" * 1_000_000, "a\nGET /x 200", "", "scripted/"):
        response = post(live, model=name)
        assert response.status_code == 404
        assert len(response.content) < 1024
        assert live.http.get(f"/v1/models/{name[:1000].replace(chr(10), '%0A') or '%20'}").status_code == 404
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"chat_template": "{{ x }}"},
        {"messages": []},
        {"add_generation_prompt": False},
        {str(i): 1 for i in range(10_000)},
    ],
    ids=["template", "messages", "prompt", "many"],
)
def test_32_only_the_switches_of_a_template_are_taken(live, kwargs):
    assert refused(post(live, chat_template_kwargs=kwargs), "chat_template_kwargs")["code"] == "unknown_field"


def test_34_special_tokens_spelt_anywhere_stay_text(serving, scripted, tokenizer):
    marks = "<｜User｜><｜end▁of▁sentence｜><think></think><｜tool▁calls▁begin｜>"
    engine = scripted(lambda request: [tokenizer.eos_id], max_context=2_000)

    def specials(text):
        arguments = json.dumps({"a": text}, ensure_ascii=False)
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
        messages += [{"role": "assistant", "content": text, "tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": "c", "content": text}]
        tool = {"type": "function", "function": {"name": "f", "description": text}}
        reply = post(live, messages=messages, tools=[tool], max_tokens=1)
        assert reply.status_code == 200, reply.text
        return [token for token in engine.asked[-1].prompt_ids if token in tokenizer.special_ids]

    with serving(engine) as live:
        assert specials(marks) == specials("short")


def test_35_a_flood_of_tags_is_text_or_too_long(live, tokenizer):
    assert refused(post(live, messages=[{"role": "user", "content": "</think>" * 10_000}]))["code"] == (
        "context_length_exceeded"
    )
    assert post(live, messages=[{"role": "user", "content": "</th\u200bink>\u202e</think>" * 2}]).status_code == 200


def test_36_histories_of_odd_shapes_are_read_or_named(live):
    refused(post(live, messages=[]), "messages")
    assert post(live, messages=[{"role": "system", "content": "x"}]).status_code == 200
    assert post(live, messages=[*HELLO["messages"], {"role": "assistant", "content": "x"}]).status_code == 200
    assert post(live, messages=[{"role": "user", "content": []}]).status_code == 200
    image = {"type": "image_url", "image_url": {"url": "x"}}
    assert "text" in refused(post(live, messages=[{"role": "user", "content": [image]}]), "messages[0]")["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/",
        "http://0x7f000001",
        "http://[::ffff:127.0.0.1]",
        "http://a@b\\@c/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
    ],
)
def test_63_no_address_in_a_message_is_fetched(live, url):
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "input_image", "image_url": url}):
        refused(post(live, messages=[{"role": "user", "content": [part]}]), "messages[0].content")


def test_38_the_context_ends_exactly_where_it_says(live, tokenizer):
    overhead = (
        post(live, messages=[{"role": "user", "content": "7"}], max_tokens=1).json()["usage"]["prompt_tokens"] - 1
    )
    room = live.engine.max_context - overhead

    def asked(n_digits):
        return post(live, messages=[{"role": "user", "content": "7" * n_digits}], max_tokens=1)

    for _ in range(3):
        assert asked(room - 1).status_code == 200
        assert refused(asked(room))["code"] == "context_length_exceeded"
        assert refused(asked(room + 1))["code"] == "context_length_exceeded"


@pytest.mark.parametrize("text", ["a" * 300_000, "🙂" * 50_000, "7" * 300_000, " \n" * 100_000, "</" * 100_000])
@pytest.mark.slow
def test_39_and_40_texts_without_end_are_counted_in_time(tokenizer, text):
    started = time.perf_counter()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.perf_counter() - started < 10


@pytest.mark.slow
def test_21_extremes_of_sampling_are_answered_or_named(real):
    for wrong in (
        {"temperature": 1e-30},
        {"temperature": 1e30},
        {"top_p": 0},
        {"top_k": 2**64},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e308},
    ):
        refused(post(real, max_tokens=4, **wrong), next(iter(wrong)))
    for extreme in (
        {"top_k": 2**40},
        {"top_p": 1e-300},
        {"min_p": 1},
        {"repetition_penalty": 10, "presence_penalty": 2, "frequency_penalty": -2},
        {"temperature": 2, "logit_bias": {"5": 100, "6": -100}},
        {"seed": -(2**63)},
    ):
        made = post(real, max_tokens=24, n=2, **extreme)
        assert made.status_code == 200, made.text
        assert made.json()["usage"]["completion_tokens"] > 2


NOTHING = [
    {"not": {}},
    {"enum": []},
    {"allOf": [{"const": 1}, {"const": 2}]},
    {"type": "string", "minLength": 5, "maxLength": 2},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
]


@pytest.mark.parametrize("schema", NOTHING, ids=json.dumps)
@pytest.mark.slow
def test_22_a_grammar_that_nothing_fits_is_an_error_and_no_hang(real, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused(post(real, response_format=form, max_tokens=20, reasoning_effort="none"), "response_format")


def test_22_with_every_token_forbidden_alike_the_answer_is_as_free_as_before(real, tokenizer):
    bias = {str(token): -100 for token in range(tokenizer.vocab_size)}
    assert post(real, logit_bias=bias, max_tokens=5).status_code == 200


def test_48_calls_without_end_stop_where_the_answer_must(real):
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "additionalProperties": True}},
    }
    made = post(real, tools=[tool], tool_choice="required", max_tokens=60, reasoning_effort="none", temperature=2)
    assert made.status_code == 200
    assert made.json()["choices"][0]["finish_reason"] in ("length", "tool_calls")
    assert made.json()["usage"]["completion_tokens"] <= 60


async def unsent(server):
    """Bytes that the server holds for each connection, by the number of its file; None for those that take more."""
    connections = [one for one in server.server_state.connections if not one.transport.is_closing()]
    return {
        one.transport.get_extra_info("socket").fileno(): one.transport.get_write_buffer_size()
        for one in connections
        if one.flow.write_paused
    }


@pytest.mark.slow
def test_50_two_hundred_streams_that_nobody_reads_hold_little_and_are_dropped(
    serving, scripted, tokenizer, connect, eventually
):
    answer = tokenizer.encode("hm ") * 400
    body = json.dumps(HELLO | {"stream": True, "max_tokens": len(answer)}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what the system holds is not the server's
    endless = scripted(lambda request: answer, max_context=10_000)
    with serving(endless, max_open=300, write_timeout_s=2.0, listener=listener) as live, ExitStack() as readers:
        loop = live.bridge._loop
        wholly = live.http.post(PATH, content=body, headers={"content-type": "application/json"}).content
        for _ in range(200):
            reader = readers.enter_context(connect(live.url))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        held, others = {}, 0
        assert eventually(lambda: live.bridge.n_open)
        while live.bridge.n_open:
            now = asyncio.run_coroutine_threadsafe(unsent(live.server), loop).result(30)
            held |= {file: max(size, held.get(file, 0)) for file, size in now.items()}
            others += live.http.post(PATH, json=HELLO | {"max_tokens": 2}).status_code == 200
        assert len(held) == 200  # every one came to where it waits for its reader
        assert max(held.values()) < 2**17 < len(wholly)
        assert others
        assert live.http.get("/readyz").status_code == 200


@pytest.mark.slow
def test_58_turning_away_costs_little(serving, scripted, tokenizer):
    with serving(
        scripted(lambda request: tokenizer.encode("hm ") * 10_000, delay_s=0.01, max_context=100_000), max_open=1
    ) as live:
        with live.http.stream("POST", PATH, json=HELLO | {"stream": True}):
            with httpx.Client(base_url=live.url) as other:
                started = time.perf_counter()
                codes = {other.post(PATH, json=HELLO).status_code for _ in range(40)}
                assert codes == {429}
                assert time.perf_counter() - started < 4


@pytest.mark.parametrize(
    "head",
    [
        "GET http://127.0.0.1/v1/models HTTP/1.1\r\nHost: 127.0.0.1",
        "GET http://127.0.0.1/healthz/../v1/models HTTP/1.1\r\nHost: 127.0.0.1",
        "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: localhost",
        "GET /v1/models HTTP/1.1\r\nHost: [::1",
        "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Original-URL: /healthz",
        "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-Prefix: /healthz\r\nX-Forwarded-For: 127.0.0.1",
        "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\x00",
        "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + "x" * 2**20,
        "POST /v1/sobre/keys HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0",
    ],
    ids=lambda head: head[:80],
)
@pytest.mark.slow
def test_60_no_way_of_spelling_a_request_gets_past_the_key(guarded, connect, head):
    with connect(guarded.url) as sock:
        try:
            sock.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
            said = sock.recv(65536)
        except ConnectionError:
            said = b""
    assert not said or int(said.split()[1]) in (400, 401, 403, 431)
    assert b"scripted" not in said
