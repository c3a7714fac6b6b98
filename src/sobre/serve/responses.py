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
    ToolName,
    check_messages,
    check_together,
)
from sobre.serve.decode import (
    Strict,
    absent_if_null,
    decode,
    join_parts,
    read_object,
    sent_as,
    without_labels,
    without_neutral,
)
from sobre.serve.errors import ApiError, invalid
from sobre.serve.guard import encode
from sobre.serve.thinking import Effort, Thinking

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


class ResponseText(Strict):
    """A piece of a text; answers that come back carry what their server attached."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: str


class Item(Strict):
    """What every item may carry; ids and states of answers that come back say nothing here."""

    id: str | None = None
    status: str | None = None


Role = Literal["user", "assistant", "system", "developer"]
Texts = str | list[ResponseText]


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Role
    content: Annotated[Any, sent_as(Texts)]
    phase: str | None = None


class ReasoningItem(Item):
    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[Any] | None = None
    encrypted_content: None = None


class CallItem(Item):
    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: str


class OutputItem(Item):
    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(max_length=64)]
    output: Annotated[Any, sent_as(Texts)]


Items = Annotated[list[MessageItem | ReasoningItem | CallItem | OutputItem], Field(min_length=1)]


class NamedResponseTool(Strict):
    type: Literal["function"]
    name: str


class ResponseTool(Strict):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ReasoningOptions(Strict):
    effort: Effort = None
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
    input: Annotated[Any, sent_as(str | Items)]
    instructions: str | None = None
    max_output_tokens: AtLeastOne | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: Annotated[bool, absent_if_null(False)] = False
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS), absent_if_null([])] = []
    tool_choice: Annotated[Any, sent_as(Literal["none", "auto", "required"] | NamedResponseTool | None)] = "auto"
    parallel_tool_calls: Annotated[bool, absent_if_null(True)] = True
    reasoning: Annotated[ReasoningOptions, absent_if_null({})] = ReasoningOptions()
    text: Annotated[TextOptions, absent_if_null({})] = TextOptions()


def parse_responses_request(body: bytes) -> tuple[ResponsesRequest, ChatRequest]:
    """Decode a body, and the chat that it asks for."""
    fields, ignored = without_labels(read_object(body), LABELS)
    request = decode(ResponsesRequest, without_neutral(fields, NEUTRAL))
    messages = [] if request.instructions is None else [Message(role="system", content=request.instructions)]
    messages += read_input(request.input)
    word = request.reasoning.effort
    form = request.text.form
    schema = None
    if form.type == "json_schema":
        schema = JsonSchema.model_validate({"name": form.name, "schema": form.json_schema or {}})
    extra: tuple[str, ...] = ("text.verbosity",) if request.text.verbosity else ()
    extra += ("reasoning.summary",) if request.reasoning.summary else ()
    asked = {
        "model": request.model,
        "messages": messages,
        "stream": request.stream,
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": [tool_of(tool) for tool in request.tools],
        "tool_choice": choice_of(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": ResponseFormat(type=form.type, json_schema=schema),
        "thinking": Thinking(word != "none", None, word),
        "ignored": (*ignored, *extra),
    }
    chat = decode(ChatRequest, asked)
    check_messages(chat.messages)
    check_together(chat)
    return request, chat


def tool_of(tool: ResponseTool) -> Tool:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return Tool(type="function", function=Function.model_validate(function))


def choice_of(choice: Any) -> Any:
    if choice is None or choice in ("none", "auto", "required"):
        return choice or "auto"
    if isinstance(choice, dict):
        named = decode(NamedResponseTool, choice, "tool_choice")
        return NamedTool(type="function", function=NamedFunction(name=named.name))
    raise invalid("Invalid 'tool_choice': must be none, auto, required or a function.", "tool_choice")


def read_input(given: Any) -> list[Message]:
    """Text, or items: messages, calls, their results, thoughts. What the assistant did in a row is one turn."""
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise invalid("Invalid 'input': must be text or a list of items, and not empty.", "input")
    messages: list[Message] = []
    turn: Message | None = None  # the assistant's, while its items come
    for i, fields in enumerate(given):
        item = item_of(fields, f"input[{i}]")
        if isinstance(item, MessageItem) and item.role != "assistant":
            messages.append(Message(role=item.role, content=text_of(item.content, f"input[{i}]")))
            turn = None
        elif isinstance(item, OutputItem):
            result = Message(role="tool", content=text_of(item.output, f"input[{i}]"), tool_call_id=item.call_id)
            messages.append(result)
            turn = None
        else:
            if turn is None:
                turn = Message(role="assistant", content="")
                messages.append(turn)
            add_to_turn(turn, item, f"input[{i}]")
    return messages


def item_of(fields: dict[str, Any], where: str) -> MessageItem | ReasoningItem | CallItem | OutputItem:
    """One item of the input, as its type wants it."""
    match fields.get("type", "message"):
        case "message":
            return decode(MessageItem, fields, where)
        case "reasoning":
            return decode(ReasoningItem, fields, where)
        case "function_call":
            return decode(CallItem, fields, where)
        case "function_call_output":
            return decode(OutputItem, fields, where)
        case other:
            raise invalid(f"'{where}' is of type {str(other)[:40]!r}, which this server has not.", where, "unsupported")


def add_to_turn(turn: Message, item: MessageItem | ReasoningItem | CallItem, where: str) -> None:
    """One more item of the assistant's."""
    if isinstance(item, MessageItem):
        turn.content = (turn.content or "") + text_of(item.content, where)
    elif isinstance(item, ReasoningItem):
        turn.reasoning_content = (turn.reasoning_content or "") + "".join(part.text for part in item.content or [])
    else:
        call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
        turn.tool_calls = [*turn.tool_calls, call]


def text_of(content: Any, where: str) -> str:
    try:
        return join_parts(content, ResponseText)
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
            "cost_basis": answer.cost_basis,
        }


NAMES = {"reasoning": "reasoning_text", "content": "output_text", "call": "function_call_arguments"}
PREFIXES = {"reasoning": "rs", "content": "msg", "call": "fc"}


def part(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
