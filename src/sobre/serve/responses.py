"""OpenAI's responses API (POST /v1/responses) over the same chat: text, thoughts and function calls; nothing is stored.

A request is complete in itself: `previous_response_id` and `conversation` are refused, and `store` is answered with
false.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from sobre.serve.answer import Answer, Event, Finish
from sobre.serve.blocks import Block, Closed, Opened, as_blocks
from sobre.serve.chat_schema import (
    MAX_TOOLS,
    AtLeastOne,
    ChatRequest,
    Function,
    FunctionCall,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
    check_messages,
    check_together,
)
from sobre.serve.decode import Strict, absent_if_null, decode, join_parts, read_object, without_labels, without_neutral
from sobre.serve.errors import ApiError, invalid
from sobre.serve.guard import encode
from sobre.serve.thinking import Thinking, effort

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": (None, False),
    "prompt": (None,),
    "truncation": (None, "disabled"),
    "max_tool_calls": (None,),
    "top_logprobs": (None, 0),
    "stream_options": (None, {"include_obfuscation": False}),
    "context_management": (None,),
}
LABELS = (
    "metadata",
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "store",
    "include",
)
ECHOED_EFFORTS = ("minimal", "low", "medium", "high")
"""What their clients' types know."""


class ResponseTool(Strict):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ReasoningOptions(Strict):
    effort: str | None = None
    summary: str | None = None
    generate_summary: None = None


class TextForm(Strict):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Strict):
    form: Annotated[TextForm, Field(alias="format"), absent_if_null({})] = TextForm()
    verbosity: str | None = None


class ResponsesRequest(Strict):
    """The whole body as it comes."""

    model: str
    input: Any
    instructions: str | None = None
    max_output_tokens: AtLeastOne | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: Annotated[bool, absent_if_null(False)] = False
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS), absent_if_null([])] = []
    tool_choice: Any = "auto"
    parallel_tool_calls: Annotated[bool, absent_if_null(True)] = True
    reasoning: Annotated[ReasoningOptions, absent_if_null({})] = ReasoningOptions()
    text: Annotated[TextOptions, absent_if_null({})] = TextOptions()


def parse_responses_request(body: bytes) -> tuple[ResponsesRequest, ChatRequest]:
    """Decode a body, and the chat that it asks for."""
    fields, ignored = without_labels(read_object(body), LABELS)
    request = decode(ResponsesRequest, without_neutral(fields, NEUTRAL))
    messages = [] if request.instructions is None else [Message(role="system", content=request.instructions)]
    messages += read_input(request.input)
    word = None if request.reasoning.effort is None else effort(request.reasoning.effort, "reasoning.effort")
    form = request.text.form
    schema = None
    if form.type == "json_schema":
        schema = JsonSchema.model_validate({"name": form.name, "schema": form.json_schema or {}})
    extra: tuple[str, ...] = ("text.verbosity",) if request.text.verbosity else ()
    extra += ("reasoning.summary",) if request.reasoning.summary else ()
    chat = ChatRequest(
        model=request.model,
        messages=messages,
        stream=request.stream,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        tools=[tool_of(tool) for tool in request.tools],
        tool_choice=choice_of(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=ResponseFormat(type=form.type, json_schema=schema),
        thinking=Thinking(word != "none", None, word),
        ignored=(*ignored, *extra),
    )
    if not chat.messages:
        raise invalid("Invalid 'input': must not be empty.", "input")
    check_messages(chat.messages)
    check_together(chat)
    return request, chat


def tool_of(tool: ResponseTool) -> Tool:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return Tool(type="function", function=decode(Function, function))


def choice_of(choice: Any) -> Any:
    if choice is None or choice in ("none", "auto", "required"):
        return choice or "auto"
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return NamedTool(type="function", function=NamedFunction(name=choice["name"]))
    raise invalid("Invalid 'tool_choice': must be none, auto, required or a function.", "tool_choice")


def read_input(given: Any) -> list[Message]:
    """Text, or items: messages, calls, their results, thoughts. What the assistant did in a row is one turn."""
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise invalid("Invalid 'input': must be text or a list of items.", "input")
    messages: list[Message] = []
    turn: Message | None = None  # the assistant's, while its items come
    for i, item in enumerate(given):
        where, kind = f"input[{i}]", item.get("type", "message")
        if kind == "message" and item.get("role") != "assistant":
            messages.append(Message(role=role_of(item, where), content=text_of(item.get("content"), where)))
            turn = None
        elif kind == "function_call_output":
            result = Message(role="tool", content=text_of(item.get("output"), where), tool_call_id=item.get("call_id"))
            messages.append(result)
            turn = None
        elif kind in ("message", "reasoning", "function_call"):
            if turn is None:
                turn = Message(role="assistant", content="")
                messages.append(turn)
            add_to_turn(turn, item, kind, where)
        else:
            raise invalid(f"'{where}' is of type {str(kind)[:40]!r}, which this server has not.", where, "unsupported")
    return messages


def add_to_turn(turn: Message, item: dict[str, Any], kind: str, where: str) -> None:
    """One more item of the assistant's."""
    if kind == "message":
        turn.content = (turn.content or "") + text_of(item.get("content"), where)
    elif kind == "reasoning":
        parts = [part.get("text", "") for part in item.get("content") or [] if isinstance(part, dict)]
        turn.reasoning_content = (turn.reasoning_content or "") + "".join(map(str, parts))
    else:
        function = decode(FunctionCall, {"name": item.get("name"), "arguments": item.get("arguments")})
        call = decode(ToolCall, {"id": item.get("call_id"), "function": function})
        turn.tool_calls = [*turn.tool_calls, call]


def role_of(item: dict[str, Any], where: str) -> str:
    role = item.get("role")
    if role not in ("user", "system", "developer"):
        raise invalid(f"Invalid '{where}.role': must be user, assistant, system or developer.", f"{where}.role")
    return role


def text_of(content: Any, where: str) -> str:
    try:
        return join_parts(content, ("input_text", "output_text", "text"))
    except ValueError as error:
        raise invalid(f"Invalid '{where}': {error}.", where) from None


@dataclass
class ResponsesDialect:
    """An answer in their shapes."""

    request: ResponsesRequest
    chat: ChatRequest
    answer: Answer
    sequence: int = field(default=0, init=False)

    async def stream(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        """Typed events, each with the next sequence number."""
        yield self.event("response.created", response=self.response([], None))
        yield self.event("response.in_progress", response=self.response([], None))
        items: list[dict[str, Any]] = []
        async for step in as_blocks(events, thoughts=self.chat.thinking.on):
            if isinstance(step, Finish):
                kind = "response.incomplete" if step.reason == "length" else "response.completed"
                yield self.event(kind, response=self.response(items, step))
                return
            block = step.block
            place: dict[str, Any] = {"item_id": self.item_id(block), "output_index": block.index}
            if isinstance(step, Opened):
                item = self.item(block, "in_progress")
                yield self.event("response.output_item.added", output_index=block.index, item=item)
                if block.kind != "call":
                    yield self.event("response.content_part.added", **place, content_index=0, part=part(block))
            elif isinstance(step, Closed):
                for event in self.closed(block, place):
                    yield event
                items.append(self.item(block, "completed"))
                yield self.event("response.output_item.done", output_index=block.index, item=items[-1])
            else:
                extra: dict[str, Any] = {} if block.kind == "call" else {"content_index": 0}
                extra |= {"logprobs": []} if block.kind == "content" else {}
                yield self.event(f"response.{NAMES[block.kind]}.delta", **place, **extra, delta=step.text)

    def closed(self, block: Block, place: dict[str, Any]) -> list[str]:
        """The events that end a block's text."""
        if block.call is not None:
            done = {"name": block.call.name, "arguments": block.text}
            return [self.event("response.function_call_arguments.done", **place, **done)]
        extra: dict[str, Any] = {"logprobs": []} if block.kind == "content" else {}
        return [
            self.event(f"response.{NAMES[block.kind]}.done", **place, content_index=0, text=block.text, **extra),
            self.event("response.content_part.done", **place, content_index=0, part=part(block)),
        ]

    def failed(self, error: ApiError) -> str:
        return self.event("error", code=error.code, message=str(error), param=error.param)

    end = ""

    async def collect(self, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
        """The whole answer as one body."""
        items, finish = [], None
        async for step in as_blocks(events, thoughts=self.chat.thinking.on):
            if isinstance(step, Closed):
                items.append(self.item(step.block, "completed"))
            elif isinstance(step, Finish):
                finish = step
        return self.response(items, finish)

    def event(self, kind: str, **fields: Any) -> str:
        self.sequence += 1
        return f"event: {kind}\ndata: {encode({'type': kind, 'sequence_number': self.sequence - 1, **fields})}\n\n"

    def item_id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}_{self.answer.id.removeprefix('resp_')}_{block.index}"

    def item(self, block: Block, status: str) -> dict[str, Any]:
        """A block as an item of the output."""
        head = {"id": self.item_id(block), "status": status}
        filled = status == "completed"
        if block.kind == "reasoning":
            return head | {"type": "reasoning", "summary": [], "content": [part(block)] if filled else []}
        if block.call is not None:
            call = {"call_id": block.call.id, "name": block.call.name, "arguments": block.text}
            return head | {"type": "function_call", **call}
        return head | {"type": "message", "role": "assistant", "content": [part(block)] if filled else []}

    def response(self, items: list[dict[str, Any]], finish: Finish | None) -> dict[str, Any]:
        """The response object; without a finish it is still being written."""
        request, answer = self.request, self.answer
        status = "in_progress" if finish is None else "incomplete" if finish.reason == "length" else "completed"
        told = self.chat.thinking.effort
        return {
            "id": answer.id,
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": answer.model,
            "output": items,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": told if told in ECHOED_EFFORTS else None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {
                "format": request.text.form.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
                | {"type": request.text.form.type}
            },
            "tool_choice": request.tool_choice or "auto",
            "tools": [tool.model_dump() | {"strict": bool(tool.strict)} for tool in request.tools],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if finish is None else self.usage(),
            "metadata": {},
        }

    def usage(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "input_tokens": answer.n_prompt,
            "input_tokens_details": {"cached_tokens": answer.n_cached},
            "output_tokens": answer.n_tokens,
            "output_tokens_details": {"reasoning_tokens": answer.n_reasoning},
            "total_tokens": answer.n_prompt + answer.n_tokens,
            "cost_usd": answer.cost_usd,
        }


NAMES = {"reasoning": "reasoning_text", "content": "output_text", "call": "function_call_arguments"}
PREFIXES = {"reasoning": "rs", "content": "msg", "call": "fc"}


def part(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
