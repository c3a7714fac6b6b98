"""Anthropic's messages API (POST /v1/messages) over the same chat: their blocks in, their blocks out.

As in their API a request that does not say `thinking` gets no thought. A thought that comes back in the history is
taken with whatever signature it has; ours is its SHA-256. `cache_control` asks for what this server does by itself.
"""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from sobre.serve.answer import Answer, Event, Finish
from sobre.serve.blocks import Block, Closed, Grown, Opened, as_blocks
from sobre.serve.chat_schema import (
    MAX_MESSAGES,
    MAX_TOOLS,
    AtLeastOne,
    ChatRequest,
    Function,
    FunctionCall,
    Message,
    NamedFunction,
    NamedTool,
    Stops,
    Tool,
    ToolCall,
    ToolName,
    check_messages,
    check_together,
)
from sobre.serve.decode import (
    Parts,
    Strict,
    TextPart,
    absent_if_null,
    decode,
    join_parts,
    read_object,
    sent_as,
    without_labels,
    without_neutral,
)
from sobre.serve.errors import ApiError, anthropic_body, invalid
from sobre.serve.guard import encode
from sobre.serve.thinking import EFFORTS, Thinking

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (None,),
    "mcp_servers": (None, []),
    "context_management": (None,),
    "inference_geo": (None,),
}
LABELS = ("metadata", "service_tier")
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class ThinkingBlock(Strict):
    """A thought that comes back; whatever its signature is."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    input: dict[str, Any] = {}
    cache_control: Any = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(max_length=64)]
    content: Annotated[Any, sent_as(Parts | None)] = ""
    is_error: bool | None = None
    cache_control: Any = None


class UserTurn(Strict):
    role: Literal["user"]
    content: str | list[TextPart | ToolResultBlock]


class AssistantTurn(Strict):
    role: Literal["assistant"]
    content: str | list[TextPart | ThinkingBlock | ToolUseBlock]


Turns = Annotated[list[UserTurn | AssistantTurn], Field(min_length=1, max_length=MAX_MESSAGES)]


class MessageTool(Strict):
    """A tool as their clients describe it."""

    name: ToolName
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None


class MessageToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class MessageThinking(Strict):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputConfig(Strict):
    effort: Literal[*EFFORTS] | None = None  # type: ignore[valid-type]


class MessagesRequest(Strict):
    """The whole body as it comes."""

    model: str
    max_tokens: AtLeastOne
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES), sent_as(Turns)]
    system: Annotated[Any, sent_as(Parts | None)] = None
    stop_sequences: Annotated[Stops, absent_if_null([])] = []
    stream: Annotated[bool, absent_if_null(False)] = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31), absent_if_null(0)] = 0
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS), absent_if_null([])] = []
    tool_choice: MessageToolChoice | None = None
    thinking: MessageThinking | None = None
    output_config: OutputConfig | None = None


def parse_messages_request(body: bytes, *, counting: bool = False) -> ChatRequest:
    """Decode a body into the chat that it asks for; `counting`: only its tokens are wanted."""
    fields, ignored = without_labels(read_object(body), LABELS)
    if counting:
        fields.setdefault("max_tokens", 1)
    request = decode(MessagesRequest, without_neutral(fields, NEUTRAL))
    messages = [] if request.system is None else [Message(role="system", content=text_of(request.system, "system"))]
    for i, message in enumerate(request.messages):
        messages += turns(message, f"messages[{i}]")
    thinking = request.thinking
    on = thinking is not None and thinking.type != "disabled"
    if thinking is not None and thinking.type == "enabled" and thinking.budget_tokens is None:
        raise invalid("Missing required field: 'thinking.budget_tokens'.", "thinking.budget_tokens", "missing_field")
    effort = request.output_config.effort if request.output_config else None
    choice = request.tool_choice
    asked = {
        "model": request.model,
        "messages": messages,
        "stream": request.stream,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": request.stop_sequences,
        "tools": [tool_of(tool) for tool in request.tools],
        "tool_choice": choice_of(choice),
        "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
        "thinking": Thinking(on, thinking.budget_tokens if thinking and on else None, effort),
        "include_reasoning": not (thinking and thinking.display == "omitted"),
        "ignored": ignored,
    }
    chat = decode(ChatRequest, asked)
    check_messages(chat.messages)
    check_together(chat)
    return chat


def tool_of(tool: MessageTool) -> Tool:
    function = Function(name=tool.name, description=tool.description or "", parameters=tool.input_schema)
    return Tool(type="function", function=function)


def choice_of(choice: MessageToolChoice | None) -> Any:
    if choice is None:
        return "auto"
    if choice.type == "tool":
        if choice.name is None:
            raise invalid("Missing required field: 'tool_choice.name'.", "tool_choice.name", "missing_field")
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def text_of(content: Any, where: str) -> str:
    """Text, or a list of text blocks."""
    try:
        return join_parts(content)
    except ValueError as error:
        raise invalid(f"Invalid '{where}': {error}.", where) from None


def turns(message: dict[str, Any], where: str) -> list[Message]:
    """One of their messages as ours: results of tools are messages of their own here."""
    role, content = message.get("role"), message.get("content")
    unknown = next((name for name in message if name not in ("role", "content")), None)
    if unknown is not None:
        raise invalid(f"Unknown field: '{where}.{unknown[:60]}'.", f"{where}.{unknown[:60]}", "unknown_field")
    if role not in ("user", "assistant"):
        raise invalid(f"Invalid '{where}.role': must be user or assistant.", f"{where}.role")
    if isinstance(content, str):
        return [Message(role=role, content=content)]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise invalid(f"Invalid '{where}.content': must be text or a list of blocks.", f"{where}.content")
    blocks = [(block, f"{where}.content[{i}]") for i, block in enumerate(content)]
    return [assistant_turn(blocks)] if role == "assistant" else user_turns(blocks)


def assistant_turn(blocks: list[tuple[dict[str, Any], str]]) -> Message:
    text, thought, calls = "", "", []
    for block, where in blocks:
        match block.get("type"):
            case "text":
                text += decode(TextPart, block, where).text
            case "thinking":
                thought += decode(ThinkingBlock, block, where).thinking
            case "tool_use":
                used = decode(ToolUseBlock, block, where)
                arguments = json.dumps(used.input, ensure_ascii=False)
                calls.append(ToolCall(id=used.id, function=FunctionCall(name=used.name, arguments=arguments)))
            case other:
                raise unknown_block(other, where, "text, thinking, tool_use")
    return Message(role="assistant", content=text, reasoning_content=thought or None, tool_calls=calls)


def user_turns(blocks: list[tuple[dict[str, Any], str]]) -> list[Message]:
    results, text = [], []
    for block, where in blocks:
        match block.get("type"):
            case "text":
                text.append(decode(TextPart, block, where).text)
            case "tool_result":
                result = decode(ToolResultBlock, block, where)
                content = text_of("" if result.content is None else result.content, f"{where}.content")
                said = f"error: {content}" if result.is_error else content
                results.append(Message(role="tool", content=said, tool_call_id=result.tool_use_id))
            case other:
                raise unknown_block(other, where, "text, tool_result")
    return [*results, *([Message(role="user", content="".join(text))] if text or not results else [])]


def unknown_block(kind: Any, where: str, known: str) -> ApiError:
    return invalid(f"'{where}' is of type {str(kind)[:40]!r}; this model reads {known}.", where, "unsupported")


@dataclass(frozen=True)
class MessagesDialect:
    """An answer in their shapes."""

    chat: ChatRequest
    answer: Answer
    request_id: str

    @property
    def thoughts(self) -> bool:
        return self.chat.thinking.on and self.chat.include_reasoning

    async def stream(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        """The events of a stream."""
        yield named("message_start", {"message": self.message([], None, started=True)})
        async for step in as_blocks(events, thoughts=self.thoughts):
            if isinstance(step, Finish):
                delta = self.stopped(step)
                yield named("message_delta", {"delta": delta, "usage": self.usage()})
                yield named("message_stop", {})
            elif isinstance(step, Opened):
                yield named("content_block_start", {"index": step.block.index, "content_block": opened(step.block)})
            elif isinstance(step, Grown):
                yield named("content_block_delta", {"index": step.block.index, "delta": grown(step)})
            else:
                if step.block.kind == "reasoning":
                    delta = {"type": "signature_delta", "signature": signature(step.block.text)}
                    yield named("content_block_delta", {"index": step.block.index, "delta": delta})
                yield named("content_block_stop", {"index": step.block.index})

    def failed(self, error: ApiError) -> str:
        return f"event: error\ndata: {encode(anthropic_body(error, self.request_id))}\n\n"

    end = ""

    async def collect(self, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
        """The whole answer as one body."""
        blocks, finish = [], None
        async for step in as_blocks(events, thoughts=self.thoughts):
            if isinstance(step, Closed):
                blocks.append(whole(step.block))
            elif isinstance(step, Finish):
                finish = step
        return self.message(blocks, finish)

    def message(self, blocks: list[dict[str, Any]], finish: Finish | None, *, started: bool = False) -> dict[str, Any]:
        return {
            "id": self.answer.id,
            "type": "message",
            "role": "assistant",
            "model": self.answer.model,
            "content": blocks,
            **self.stopped(finish),
            "usage": self.counts() | {"output_tokens": 0} if started else self.usage(),
        }

    def stopped(self, finish: Finish | None) -> dict[str, Any]:
        if finish is None:
            return {"stop_reason": None, "stop_sequence": None}
        if finish.reason == "stop" and finish.detail is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": finish.detail}
        return {"stop_reason": STOP_REASONS[finish.reason], "stop_sequence": None}

    def usage(self) -> dict[str, Any]:
        """Their counts, and ours of the thought and of the cost; their clients keep what a stream's beginning says of
        fields that they do not know, so ours come at its end alone."""
        answer = self.answer
        return self.counts() | {
            "reasoning_tokens": answer.n_reasoning,
            "cost_usd": answer.cost_usd,
            "cost_basis": answer.cost_basis,
        }

    def counts(self) -> dict[str, Any]:
        """Theirs."""
        answer = self.answer
        return {
            "input_tokens": answer.n_prompt - answer.n_cached,
            "cache_read_input_tokens": answer.n_cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": answer.n_tokens,
        }


def named(kind: str, fields: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {encode({'type': kind, **fields})}\n\n"


def opened(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.call is not None:
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": {}}
    return {"type": "text", "text": ""}


def grown(step: Grown) -> dict[str, Any]:
    if step.block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": step.text}
    if step.block.kind == "call":
        return {"type": "input_json_delta", "partial_json": step.text}
    return {"type": "text_delta", "text": step.text}


def whole(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": signature(block.text)}
    if block.call is not None:
        try:
            arguments = json.loads(block.text)
        except ValueError:  # cut off at the length limit
            arguments = {}
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": arguments}
    return {"type": "text", "text": block.text}


def signature(thought: str) -> str:
    return hashlib.sha256(thought.encode(errors="replace")).hexdigest()
