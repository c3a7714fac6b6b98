"""The same answers through the official clients: OpenAI's chat, text and responses, Anthropic's messages, LangChain."""

import asyncio
import json

import anthropic
import openai
import pytest

THOUGHT, ANSWER = "three plus four 🙂", "It is seven: 七 🧑‍🚀."
ASKED = [{"role": "user", "content": "3+4?"}]
ADD = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
TOOL = {"type": "function", "function": ADD}
CALLS = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 3}<｜tool▁call▁end｜>'
    '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 4}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def claude(live):
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def calling(serving, scripted, answer_ids):
    """A server whose model thinks and then calls `add` twice."""
    with serving(scripted(lambda request: answer_ids(THOUGHT, CALLS), max_context=2000)) as live:
        yield live


def test_async_and_stream_helpers_of_openai_gather_thought_and_answer(live):
    async def gather():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            async with client.chat.completions.stream(model="scripted", messages=ASKED) as stream:
                return (await stream.get_final_completion()).choices[0].message

    message = asyncio.run(gather())
    assert message.content == ANSWER
    assert message.reasoning_content == message.reasoning == THOUGHT


def test_without_thinking_there_are_no_thought_fields_and_the_prompt_is_closed(live, client, tokenizer):
    off = {"thinking": {"type": "disabled"}}
    body = live.http.post("/v1/chat/completions", json={"model": "scripted", "messages": ASKED} | off).json()
    assert not {"reasoning_content", "reasoning"} & body["choices"][0]["message"].keys()
    assert live.engine.asked[-1].prompt_ids[-2] == tokenizer.think_close_id
    chunks = client.chat.completions.create(model="scripted", messages=ASKED, extra_body=off, stream=True)
    assert not any({"reasoning_content", "reasoning"} & chunk.choices[0].delta.model_extra.keys() for chunk in chunks)


def test_excluded_thoughts_are_counted_and_not_sent(client):
    whole = client.chat.completions.create(model="scripted", messages=ASKED, extra_body={"include_reasoning": False})
    assert not hasattr(whole.choices[0].message, "reasoning_content")
    assert whole.choices[0].message.content == ANSWER
    assert whole.usage.completion_tokens_details.reasoning_tokens > 5


def test_a_thinking_budget_reaches_the_engine_and_leaves_room_for_the_answer(client, live, tokenizer):
    client.chat.completions.create(model="scripted", messages=ASKED, max_tokens=40, reasoning_effort="medium")
    assert live.engine.asked[-1].thought.max_tokens == 10
    assert live.engine.asked[-1].thought.end_ids == (tokenizer.think_close_id,)
    client.chat.completions.create(
        model="scripted", messages=ASKED, max_tokens=40, extra_body={"thinking_token_budget": 1000}
    )
    assert live.engine.asked[-1].thought.max_tokens == 30
    client.chat.completions.create(model="scripted", messages=ASKED, extra_body={"thinking_token_budget": 0})
    assert live.engine.asked[-1].thought is None


def test_labels_are_named_in_a_header(client):
    raw = client.chat.completions.with_raw_response.create(model="scripted", messages=ASKED, user="me")
    assert raw.headers["x-ignored-params"] == "user"
    assert raw.parse().choices[0].message.content == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_reach_openais_client_whole_and_streamed(calling, stream):
    with openai.OpenAI(base_url=f"{calling.url}/v1", api_key="none", max_retries=0) as client:
        if stream:
            with client.chat.completions.stream(model="scripted", messages=ASKED, tools=[TOOL]) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(model="scripted", messages=ASKED, tools=[TOOL]).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.reasoning_content, choice.message.content or "") == (THOUGHT, "")
        calls = choice.message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("add", {"a": 3}),
            ("add", {"a": 4}),
        ]
        assert len({call.id for call in calls}) == 2
        history = [*ASKED, json.loads(choice.message.model_dump_json(exclude_none=True))]
        history[-1].pop("parsed", None)
        for call in history[-1]["tool_calls"]:
            call["function"].pop("parsed_arguments", None)
        history += [{"role": "tool", "tool_call_id": call.id, "content": "7"} for call in calls]
        client.chat.completions.create(model="scripted", messages=history, tools=[TOOL])


def test_the_prompt_after_a_tools_result_keeps_the_thought_before_the_call(calling, tokenizer):
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "7"}]}
    prompts = []
    pieces = [{"type": "reasoning.text", "text": "beca"}, {"type": "reasoning.encrypted", "data": "x"}]
    pieces.append({"type": "reasoning.text", "text": "use"})
    for thought in ({"reasoning_content": "because"}, {"reasoning": "because"}, {"reasoning_details": pieces}, {}):
        body = {"model": "scripted", "messages": [*ASKED, turn | thought, result], "tools": [TOOL]}
        assert calling.http.post("/v1/chat/completions", json=body).status_code == 200
        prompts.append(tokenizer.decode(calling.engine.asked[-1].prompt_ids))
    assert prompts[0] == prompts[1] == prompts[2]
    assert "because" in prompts[0]
    assert prompts[3] == prompts[0].replace("<think>\nbecause\n</think>", "</think>")


def test_completions_take_texts_and_ids_and_echo(client, live, tokenizer):
    def create(**fields):
        return client.completions.create(model="scripted", **fields)

    ids = [tokenizer.bos_id, *tokenizer.encode("3+4=")]
    for prompt in ("3+4=", ["3+4="], ids, [ids]):
        made = create(prompt=prompt, max_tokens=100)
        assert live.engine.asked[-1].prompt_ids == tuple(ids)
        assert (made.object, made.choices[0].finish_reason) == ("text_completion", "stop")
    assert made.choices[0].text.startswith(THOUGHT)
    assert create(prompt="3+4=", echo=True, max_tokens=100).choices[0].text == "3+4=" + made.choices[0].text
    many = create(prompt=["a", "b"], n=2, max_tokens=100)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.usage.prompt_tokens == sum(len(tokenizer.encode(one)) + 1 for one in "ab")
    chunks = list(create(prompt="a", max_tokens=100, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == made.choices[0].text
    assert chunks[-1].usage.completion_tokens == made.usage.completion_tokens
    for wrong in ([], [[]], [-1], [10**6], [1.5], 5, [["a"]], ["a"] * 65):
        with pytest.raises(openai.BadRequestError, match="prompt"):
            create(prompt=wrong)
    with pytest.raises(openai.BadRequestError, match="suffix"):
        create(prompt="a", suffix="b")


def test_anthropics_client_gets_text_thought_and_counts(claude, tokenizer):
    made = claude.messages.create(model="scripted", max_tokens=100, messages=ASKED, system="Be brief.")
    assert made.stop_reason == "end_turn"
    assert made.usage.output_tokens > 5
    thinking = {"type": "enabled", "budget_tokens": 50}
    made = claude.messages.create(model="scripted", max_tokens=100, messages=ASKED, thinking=thinking)
    thought, text = made.content
    assert (thought.type, thought.thinking, text.type, text.text) == ("thinking", THOUGHT, "text", ANSWER)
    again = [*ASKED, {"role": "assistant", "content": made.content}, {"role": "user", "content": "and?"}]
    counted = claude.messages.count_tokens(model="scripted", messages=again)
    plain = [*ASKED, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "and?"}]
    assert counted.input_tokens == len(tokenizer.render(plain, generation_prompt=True, thinking=False))
    with claude.messages.stream(model="scripted", max_tokens=100, messages=ASKED, thinking=thinking) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert (final.content[0].thinking, final.content[1].text) == (THOUGHT, ANSWER)
    assert final.content[0].signature == thought.signature
    assert final.usage.output_tokens == made.usage.output_tokens
    with claude.messages.stream(model="scripted", max_tokens=100, messages=ASKED, thinking=thinking) as stream:
        (told,) = (event.usage for event in stream if event.type == "message_delta")
    assert not hasattr(stream.current_message_snapshot.usage, "cost_usd"), "nothing is known at the beginning"
    for usage in (made.usage, told):  # fields of ours that their types do not name
        assert 5 < usage.reasoning_tokens < usage.output_tokens
        assert usage.cost_usd > 0
        assert usage.cost_basis.endswith("USD per hour (a test)")
    made = claude.messages.create(
        model="scripted", max_tokens=100, messages=ASKED, stop_sequences=["seven"], thinking=thinking
    )
    assert (made.stop_reason, made.stop_sequence, made.content[1].text) == ("stop_sequence", "seven", "It is ")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.slow
def test_tool_calls_reach_anthropics_client(calling, stream):
    tool = {"name": "add", "description": "adds", "input_schema": ADD["parameters"]}
    asked = {"model": "scripted", "max_tokens": 300, "messages": ASKED, "tools": [tool]}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 50}
    with anthropic.Anthropic(base_url=calling.url, api_key="none", max_retries=0) as claude:
        if stream:
            with claude.messages.stream(**asked) as events:
                made = events.get_final_message()
        else:
            made = claude.messages.create(**asked)
        assert made.stop_reason == "tool_use"
        assert [block.type for block in made.content] == ["thinking", "tool_use", "tool_use"]
        assert [block.input for block in made.content[1:]] == [{"a": 3}, {"a": 4}]
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": "7"} for block in made.content[1:]]
        asked["messages"] = [
            *ASKED,
            {"role": "assistant", "content": made.content},
            {"role": "user", "content": results},
        ]
        assert claude.messages.create(**asked).content


def test_anthropics_errors_have_their_shape(claude, live):
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="other", max_tokens=10, messages=ASKED)
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="colour"):
        claude.messages.create(model="scripted", max_tokens=10, messages=ASKED, extra_body={"colour": "red"})
    image = [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}]
    with pytest.raises(anthropic.BadRequestError, match="reads text"):
        claude.messages.create(model="scripted", max_tokens=10, messages=[{"role": "user", "content": image}])


@pytest.mark.slow
def test_openais_responses_have_reasoning_and_text(client):
    made = client.responses.create(model="scripted", input="3+4?", instructions="Be brief.", store=False)
    assert (made.status, made.output_text) == ("completed", ANSWER)
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.output[0].content[0].text == THOUGHT
    assert made.usage.output_tokens_details.reasoning_tokens > 5
    assert made.usage.cost_basis.endswith("USD per hour (a test)")
    again = [{"role": "user", "content": "3+4?"}, *made.output, {"role": "user", "content": "and?"}]
    assert client.responses.create(model="scripted", input=again).output_text == ANSWER
    with client.responses.stream(model="scripted", input="3+4?") as stream:
        numbers = [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert (final.output_text, final.usage.output_tokens) == (ANSWER, made.usage.output_tokens)
    short = client.responses.create(model="scripted", input="3+4?", max_output_tokens=3)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="scripted", input="x", previous_response_id="resp_1")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.slow
def test_function_calls_reach_the_responses_client(calling, stream):
    asked = {"model": "scripted", "input": "3+4?", "tools": [{"type": "function", "strict": True, **ADD}]}
    with openai.OpenAI(base_url=f"{calling.url}/v1", api_key="none", max_retries=0) as client:
        if stream:
            with client.responses.stream(**asked) as events:
                made = events.get_final_response()
        else:
            made = client.responses.create(**asked)
        calls = [item for item in made.output if item.type == "function_call"]
        assert [json.loads(call.arguments) for call in calls] == [{"a": 3}, {"a": 4}]
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "7"} for call in calls]
        items = [json.loads(item.model_dump_json(exclude_none=True)) for item in made.output]
        for item in items:
            item.pop("parsed_arguments", None)
        asked["input"] = [{"role": "user", "content": "3+4?"}, *items, *results]
        assert client.responses.create(**asked).output


@pytest.mark.slow
def test_langchains_deepseek_wrapper_sees_the_thought(live, calling):
    langchain = pytest.importorskip("langchain_deepseek")
    chat = langchain.ChatDeepSeek(model="scripted", api_key="none", api_base=f"{live.url}/v1", max_retries=0)
    message = chat.invoke("3+4?")
    assert (message.content, message.additional_kwargs["reasoning_content"]) == (ANSWER, THOUGHT)
    chunks = list(chat.stream("3+4?"))
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    assert "".join(chunk.additional_kwargs.get("reasoning_content", "") for chunk in chunks) == THOUGHT
    tools = langchain.ChatDeepSeek(model="scripted", api_key="none", api_base=f"{calling.url}/v1", max_retries=0)
    assert [call["args"] for call in tools.bind_tools([TOOL]).invoke("3+4?").tool_calls] == [{"a": 3}, {"a": 4}]
    for wrapper in (chat, tools):
        wrapper.root_client.close()


@pytest.mark.slow
def test_answer_now_ends_the_thought_of_a_running_answer(serving, scripted, tokenizer, eventually):
    slow = scripted(lambda request: tokenizer.encode("hm ") * 1000, delay_s=0.005)
    with serving(slow, api_key=("mine", "yours")) as live:

        def control(answer_id, key="mine", action="reasoning_end"):
            body = {"id": answer_id, "action": action}
            headers = {"authorization": f"Bearer {key}"}
            return live.http.post("/v1/chat/completions/control", json=body, headers=headers)

        body = {"model": "scripted", "messages": ASKED, "stream": True}
        with live.http.stream(
            "POST", "/v1/chat/completions", json=body, headers={"authorization": "Bearer mine"}
        ) as one:
            lines = one.iter_lines()
            answer_id = json.loads(next(lines).removeprefix("data: "))["id"]
            assert control(answer_id, "yours").status_code == 404
            assert control(answer_id).json() == {"success": True}
            assert eventually(lambda: slow.ended == [f"{answer_id}/0"])
            assert control(answer_id, action="stop").status_code == 400
        assert control("chatcmpl-none").json() == {"success": False}


def test_the_next_turn_is_computed_in_idle_time_without_the_thought(live, client, tokenizer, eventually):
    before = len(live.engine.warmed)
    client.chat.completions.create(model="scripted", messages=ASKED)
    assert eventually(lambda: len(live.engine.warmed) == before + 1)
    ids, key = live.engine.warmed[-1]
    turns = [*ASKED, {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}]
    coming = tokenizer.render([*turns, {"role": "user", "content": "and?"}], generation_prompt=True)
    assert list(ids) == coming[: len(ids)]
    assert len(ids) > len(tokenizer.render(ASKED, generation_prompt=True))
    assert key == "", "whoever comes without a key"


def test_experts_that_are_not_kept_cannot_be_asked_for(client):
    with pytest.raises(openai.BadRequestError, match="return_experts|--experts"):
        client.chat.completions.create(model="scripted", messages=ASKED, extra_body={"return_experts": True})
