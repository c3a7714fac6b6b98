"""The conformance list of reasoning on OpenAI's wire, by number: what is checked here, and where the rest is.

The 92 checks come in the blocks transport, roles, multi-turn, tools, usage, endpoints, errors.
"""

import concurrent.futures
import json
import re
from pathlib import Path

import httpx
import pytest

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"
ELSEWHERE = {
    "test_api.py": {
        "test_the_stream_says_the_same_as_the_whole_answer_in_the_promised_shape": (
            1,
            2,
            6,
            8,
            9,
            13,
            14,
            15,
            16,
            18,
        ),
        "test_deepseeks_own_sample_loop_runs_unchanged": (17,),
        "test_a_whole_answer_has_thought_answer_usage_and_cost": (29, 53, 54),
        "test_several_choices_come_with_their_own_index_and_seed": (10, 55),
        "test_an_answer_cut_off_inside_the_thought_is_all_thought_and_says_length": (23,),
        "test_without_include_usage_no_chunk_has_usage": (50, 51),
        "test_earlier_thoughts_are_dropped_from_the_history": (31, 32),
        "test_special_tokens_spelt_in_a_message_stay_text": (40,),
        "test_models_and_health": (),
        "test_every_error_has_the_openai_shape": (81,),
        "test_request_ids_are_kept_when_harmless_and_made_when_not": (83,),
        "test_an_answer_is_cut_to_the_room_there_is_and_a_prompt_without_room_refused": (79,),
    },
    "test_events.py": {"test_the_newlines_beside_the_tag_are_layout_and_everything_else_is_kept": (7, 19, 22)},
    "test_dialects.py": {
        "test_without_thinking_there_are_no_thought_fields_and_the_prompt_is_closed": (24,),
        "test_excluded_thoughts_are_counted_and_not_sent": (27,),
        "test_answer_now_ends_the_thought_of_a_running_answer": (28,),
        "test_the_prompt_after_a_tools_result_keeps_the_thought_before_the_call": (33,),
        "test_tool_calls_reach_openais_client_whole_and_streamed": (48,),
        "test_labels_are_named_in_a_header": (66,),
        "test_completions_take_texts_and_ids_and_echo": (70,),
        "test_openais_responses_have_reasoning_and_text": (),
        "test_anthropics_client_gets_text_thought_and_counts": (73,),
        "test_langchains_deepseek_wrapper_sees_the_thought": (),
    },
    "test_schema.py": {
        "test_every_way_to_say_how_long_to_think_is_understood": (),
        "test_each_wrong_field_is_named": (45, 49, 61, 65, 67),
        "test_limits_themselves_are_accepted": (),
    },
    "test_lifecycle.py": {
        "test_a_stream_that_waits_is_kept_alive_by_comments": (4,),
        "test_an_engine_error_reaches_the_client_and_the_next_request_is_served": (80,),
        "test_keys_guard_everything_but_the_page_and_the_health": (82,),
        "test_more_requests_than_may_wait_are_told_429_and_when_to_come_back": (),
        "test_a_client_that_leaves_frees_the_engine_at_once_and_disturbs_nobody": (),
        "test_what_still_runs_when_the_drain_is_over_ends_with_an_error_and_done": (),
    },
    "test_conformance_details.py": {
        "test_03_one_connection_carries_stream_after_stream_also_of_the_async_client": (),
        "test_05_a_stream_speaks_before_its_first_token": (5,),
        "test_16_thoughts_come_under_the_one_name_that_was_chosen": (),
        "test_34_a_called_turn_without_its_thought_is_read_and_refused_where_that_is_asked_for": (34,),
        "test_35_with_tools_no_thought_of_the_history_is_dropped_and_without_them_all_are": (35,),
        "test_36_an_assistants_turn_may_have_no_text_in_every_way_of_saying_so": (36,),
        "test_37_histories_of_unusual_order_are_read": (37,),
        "test_41_to_43_a_call_begins_with_its_name_and_goes_on_with_its_arguments_alone": (41, 42, 43),
        "test_44_a_call_that_was_cut_off_says_length": (44,),
        "test_45_a_model_that_must_not_call_is_told_of_no_tool": (),
        "test_56_the_newer_name_of_the_longest_answer_goes_before_the_older": (56,),
        "test_60_a_probability_of_nothing_is_a_number_that_json_knows": (),
        "test_68_and_69_a_models_name_may_have_a_slash_and_must_be_said": (68, 69),
        "test_70_a_gap_is_filled_between_deepseeks_marks": (),
        "test_70_completions_stream_to_done_count_as_they_go_and_refuse_more_than_one_try": (),
        "test_72_an_effort_is_echoed_only_where_openais_client_knows_the_word": (),
        "test_77_langchains_openai_wrapper_gets_text_usage_and_tools": (),
        "test_82_a_stranger_is_told_so_before_a_byte_of_the_body_is_read": (),
        "test_84_the_official_client_waits_as_long_as_it_is_told_and_is_then_served": (84,),
        "test_89_while_it_drains_newcomers_get_a_503_and_a_second_signal_ends_it_at_once": (89,),
    },
    "test_conformance_answers.py": {
        "test_11_each_token_reaches_the_client_before_the_engine_writes_the_next": (11,),
        "test_20_tags_that_are_no_tokens_never_leak_wherever_tokens_cut_them": (20,),
        "test_20_a_thought_that_the_prompt_has_opened_ends_at_any_cut_and_its_tokens_are_counted": (),
        "test_21_a_tag_that_is_only_text_ends_and_opens_nothing": (21,),
        "test_25_two_ways_of_saying_whether_to_think_must_agree": (25,),
        "test_25_a_budget_goes_before_an_effort_and_contradicts_another_and_no_thought": (),
        "test_30_a_thought_of_white_space_comes_as_it_was_written": (30,),
        "test_57_stops_are_looked_for_in_the_answer_alone_and_never_returned": (57,),
        "test_72_the_thought_streams_in_its_own_events_and_storing_is_answered_with_no": (72,),
        "test_76_headers_of_the_official_client_are_heard_and_bodies_are_its_own_type": (76,),
        "test_77_bodies_of_chat_pages_are_answered_with_a_thought_that_they_show": (77,),
        "test_86_a_client_that_leaves_after_any_token_leaves_nothing": (),
        "test_86_a_client_that_leaves_between_the_last_token_and_the_usage_leaves_nothing": (),
    },
    "test_abuse_wire.py": {
        "test_90_a_reader_that_takes_a_byte_at_a_time_is_dropped_and_disturbs_nobody": (),
    },
    "test_real_answers.py": {
        "test_59_a_seed_says_the_same_alone_and_in_a_busy_batch": (59,),
        "test_62_penalties_change_no_token_while_the_models_own_head_guesses": (62,),
        "test_63_any_object_and_any_value_are_json_and_end": (63,),
        "test_63_references_that_come_back_to_themselves_are_followed_as_deep_as_the_answer_goes": (),
        "test_63_patterns_and_values_of_any_script_are_held_to": (),
        "test_70_text_completions_tell_the_log_probability_of_every_token": (),
    },
    "test_real_engine.py": {
        "test_39_the_next_turn_finds_its_history_though_the_thought_is_gone": (39,),
        "test_39_a_turn_after_a_tools_result_finds_the_call_and_its_thought": (),
        "test_47_arguments_hold_to_their_schema_while_the_models_own_head_guesses": (47,),
        "test_58_a_deterministic_server_gives_the_same_bits_in_a_crowd_found_again_and_guessed": (),
        "test_64_schemas_and_thoughts_hold_while_the_models_own_head_or_the_context_guesses": (64,),
        "test_86_whoever_leaves_gives_everything_back": (86,),
        "test_86_who_leaves_before_the_engine_is_asked_leaves_nothing": (),
        "test_86_a_thousand_clients_that_leave_at_random_leave_no_block_behind": (),
        "test_87_one_that_leaves_while_another_reads_a_long_prompt_disturbs_neither_it_nor_the_next": (87,),
        "test_92_a_request_that_the_model_fails_at_fails_alone_and_the_others_lose_nothing": (92,),
    },
    "test_loading.py": {
        "test_85_while_it_loads_the_server_lives_is_not_ready_and_says_how_far_it_is": (85,),
        "test_who_connects_between_loading_and_ready_is_served": (),
    },
    "test_embeddings.py": {
        "test_the_official_client_reads_numbers_and_base64_alike": (71,),
    },
    "test_batches.py": {
        "test_74_each_line_is_answered_or_told_its_error": (74,),
    },
    "../../parity/test_tokenizer_transformers.py": {  # which is what vLLM and SGLang lay a chat out with
        "test_the_saved_template_gives_the_ids_of_render": (78,),
        "test_chats_with_tools_give_the_same_ids": (),
    },
    "../../parity/test_gguf.py": {  # llama.cpp
        "test_texts_become_the_same_ids_there_and_make_no_special_token": (),
    },
    "../../e2e/test_serve_process.py": {
        "test_anthropics_client_talks_to_the_process": (),
        "test_langchains_wrappers_talk_to_the_process": (),
        "test_a_prompt_is_found_again_by_its_own_key_alone": (),
        "test_a_thinking_budget_is_kept_and_an_answer_follows": (26,),
        "test_random_weights_call_the_tools_that_they_must": (46,),
        "test_greedy_answers_are_the_same_alone_and_in_a_crowd": (58,),
        "test_logprobs_name_the_tokens_of_the_answer": (60,),
        "test_answers_of_random_weights_follow_a_schema_after_their_thought": (),
    },
}
HERE = (3, 12, 38, 52, 75, 88, 90, 91)


def test_every_check_is_somewhere():
    numbers = [n for tests in ELSEWHERE.values() for some in tests.values() for n in some]
    assert sorted([*numbers, *HERE]) == list(range(1, 93))
    for file, tests in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        for name in tests:
            assert f"def {name}(" in text, f"{file} has no {name}"


def test_03_nothing_follows_done_and_the_connection_is_used_again(live):
    with httpx.Client(base_url=live.url) as http:
        for _ in range(3):
            response = http.post(PATH, json=HELLO | {"stream": True})
            assert response.text.endswith("data: [DONE]\n\n")
            assert "connection" not in response.headers


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_12_old_clients_closing_ones_and_those_that_ask_to_continue_are_served(live, connect, version):
    body = json.dumps(HELLO).encode()
    head = f"POST {PATH} {version}\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    expect = "Expect: 100-continue\r\n" if version == "HTTP/1.1" else ""
    with connect(live.url) as sock:
        sock.sendall(f"{head}{expect}Content-Length: {len(body)}\r\n\r\n".encode())
        if expect:
            assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        said = b""
        while piece := sock.recv(65536):
            said += piece
    assert b" 200 " in said
    assert b"It is seven" in said


@pytest.mark.parametrize(
    ("message", "text", "begins"),
    [
        ({"reasoning_content": "three plus"}, "<｜Assistant｜><think>\nthree plus", "reasoning_content"),
        ({"content": "<think>\nthree plus"}, "<｜Assistant｜><think>\nthree plus", "reasoning_content"),
        ({"content": "It is "}, "<｜Assistant｜></think>\nIt is ", "content"),
        (
            {"content": "It is ", "reasoning": "easy"},
            "<｜Assistant｜><think>\neasy\n</think>\nIt is ",
            "content",
        ),
    ],
)
def test_38_a_last_message_goes_on_where_it_stands(live, message, text, begins):
    chat = {"messages": [*HELLO["messages"], {"role": "assistant", **message}], "model": "scripted"}
    prompt = live.http.post("/v1/apply-template", json=chat | {"continue_final_message": True}).json()
    assert prompt["prompt"].endswith(text)
    before = len(live.engine.asked)
    answered = live.http.post(PATH, json=chat | {"continue_final_message": True, "add_generation_prompt": False})
    assert answered.status_code == 200, answered.text
    assert live.engine.asked[before].prompt_ids == tuple(prompt["tokens"])
    said = answered.json()["choices"][0]["message"]
    assert said[begins].startswith("three plus four")
    prefixed = [*chat["messages"][:-1], chat["messages"][-1] | {"prefix": True}]
    assert live.http.post(PATH, json=chat | {"messages": prefixed}).json()["choices"][0]["message"] == said


def test_38_what_cannot_go_on_is_refused(live):
    ended, told = [*HELLO["messages"], {"role": "assistant", "content": "It is"}], {"continue_final_message": True}
    for fields, param in (
        (told, "messages"),
        (told | {"messages": [*HELLO["messages"], {"role": "assistant", "content": ""}]}, "messages"),
        (told | {"messages": ended, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        (told | {"messages": ended, "response_format": {"type": "json_object"}}, "messages"),
        ({"messages": [ended[0] | {"prefix": True}, ended[1]]}, "messages[0].prefix"),
    ):
        answer = live.http.post(PATH, json=HELLO | fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), fields


def test_75_texts_and_chats_become_tokens_and_come_back(live, tokenizer):
    text = "Sept 七 🙂 <｜User｜>"
    made = live.http.post("/v1/tokenize", json={"model": "scripted", "prompt": text}).json()
    assert made["tokens"] == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert (made["count"], made["max_model_len"]) == (len(made["tokens"]), live.engine.max_context)
    plain = {"model": "scripted", "prompt": text, "add_special_tokens": False}
    assert live.http.post("/v1/tokenize", json=plain).json()["tokens"] == made["tokens"][1:]
    back = live.http.post("/v1/detokenize", json={"model": "scripted", "tokens": made["tokens"][1:]}).json()
    assert back == {"prompt": text}
    chat = live.http.post("/v1/apply-template", json=HELLO | {"reasoning_effort": "none"}).json()
    assert chat["tokens"] == tokenizer.render(HELLO["messages"], generation_prompt=True, thinking=False)
    again = live.http.post("/v1/detokenize", json={"model": "scripted", "tokens": chat["tokens"]}).json()
    assert again["prompt"] == chat["prompt"]
    counted = live.http.post(PATH, json=HELLO | {"reasoning_effort": "none"}).json()["usage"]["prompt_tokens"]
    assert chat["count"] == counted
    for path, body in (("tokenize", {"prompt": "x" * 100_000}), ("detokenize", {"tokens": [99999]})):
        answer = live.http.post(f"/v1/{path}", json={"model": "scripted"} | body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, *body)


def test_52_usage_while_it_streams_grows_to_the_total(live):
    options = {"continuous_usage_stats": True, "include_usage": True}
    text = live.http.post(PATH, json=HELLO | {"stream": True, "stream_options": options}).text
    counts = [int(n) for n in re.findall(r'"completion_tokens":(\d+)', text)]
    assert counts == sorted(counts)
    assert counts[-1] == live.http.post(PATH, json=HELLO).json()["usage"]["completion_tokens"]


@pytest.mark.slow
def test_88_the_same_request_under_the_same_key_is_answered_once(serving, scripted, answer_ids, eventually):
    engine = scripted(lambda request: answer_ids("hm " * 20, "yes"), delay_s=0.01)
    with serving(engine) as live, concurrent.futures.ThreadPoolExecutor(4) as pool:

        def ask(key, **fields):
            return httpx.post(f"{live.url}{PATH}", json=HELLO | fields, headers={"idempotency-key": key}, timeout=20)

        answers = list(pool.map(lambda _: ask("a"), range(4)))
        assert len({answer.content for answer in answers}) == 1
        assert answers[0].json()["choices"][0]["message"]["content"] == "yes"
        assert len(engine.asked) == 1
        assert ask("a").content == answers[0].content
        assert ask("b").json()["id"] != answers[0].json()["id"]
        assert (ask("a", seed=1).status_code, len(engine.asked)) == (409, 2)
        assert [ask("c", temperature=9).status_code, ask("c").status_code] == [400, 200], "no error is kept"
        assert ask("x" * 256).status_code == 400
        before = len(engine.asked)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{live.url}{PATH}", json=HELLO, headers={"idempotency-key": "d"}, timeout=0.1)
        assert eventually(lambda: len(engine.asked) > before and not engine.left), "who leaves alone, stops it"
        assert engine.aborted
        assert ask("d").status_code == 200


@pytest.mark.slow
def test_90_a_client_that_takes_nothing_is_dropped_and_disturbs_nobody(
    serving, scripted, tokenizer, connect, eventually
):
    endless = scripted(lambda request: tokenizer.encode("hm ") * 100_000, max_context=100_000)
    with serving(endless, write_timeout_s=0.3) as live:
        body = json.dumps(HELLO | {"stream": True}).encode()
        sock = connect(live.url)
        sock.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF: little fits on the way
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: endless.left)
        assert live.http.post(PATH, json=HELLO | {"max_tokens": 5}).status_code == 200
        assert eventually(lambda: live.bridge.n_open == 0, 20)
        sock.close()


@pytest.mark.slow
def test_91_a_deadline_ends_the_answer_with_what_there_is(serving, scripted, tokenizer, eventually):
    with serving(scripted(lambda request: tokenizer.encode("hm ") * 1000, delay_s=0.01)) as live:
        response = live.http.post(PATH, json=HELLO, headers={"x-request-timeout-s": "0.2"})
        choice = response.json()["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
        assert choice["message"]["reasoning_content"]
        assert eventually(lambda: live.bridge.n_open == 0)
        for wrong in ("0", "-1", "x", "inf", "nan"):
            assert live.http.post(PATH, json=HELLO, headers={"x-request-timeout-s": wrong}).status_code == 400
