"""The body of POST /v1/chat/completions, as OpenAI's and DeepSeek's clients send it."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from sobre.serve.decode import (
    Parts,
    Strict,
    absent_if_null,
    decode,
    join_parts,
    read_object,
    within,
    without_labels,
    without_neutral,
)
from sobre.serve.errors import invalid
from sobre.serve.thinking import Thinking, read_thinking

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_PATTERN_CHARS = 10_000
MAX_NAMED = 4
"""Fields of messages that a header names one by one."""
INT64_MAX = 2**63 - 1

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "store": (None, False),
    "web_search_options": (None,),
}
LABELS = (
    "metadata",
    "user",
    "service_tier",
    "verbosity",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "function_call": (None,),
    "refusal": (None,),
    "audio": (None,),
    "annotations": (None, []),
}
ROLES = ("system", "developer", "user", "assistant", "tool")


def split_stops(stop: Any) -> Any:
    """OpenAI allows one stop string without a list."""
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


def text_or_nothing(content: Any) -> str | None:
    """An assistant's turn may have no text."""
    return None if content is None else join_parts(content)


def known_role(role: Any) -> Any:
    if role not in ROLES:
        raise PydanticCustomError("role", "must be one of " + ", ".join(ROLES))
    return role


def choice_of_tool(choice: Any) -> Any:
    """none, auto, required, or the name of one tool."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise PydanticCustomError("choice", "must be none, auto, required or a function")
        return choice
    return within(NamedTool, choice)


class FunctionCall(Strict):
    """What the model called, with arguments as JSON text."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: str


class ToolCall(Strict):
    """One call of an assistant's turn."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None
    """Left by clients that pass on what they have gathered from a stream."""


class ReasoningDetail(Strict):
    """A piece of a thought as OpenRouter's clients keep it; only `text` can be read here."""

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    format: str | None = None
    index: int | None = None


class Message(Strict):
    """One turn. A thought comes under any of three names; the chat layout knows which to drop (DeepSeek's rule)."""

    role: Annotated[str, BeforeValidator(known_role, json_schema_input_type=Literal[ROLES])]  # type: ignore[valid-type]
    content: Annotated[str | None, BeforeValidator(text_or_nothing, json_schema_input_type=Parts | None)] = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Annotated[list[ReasoningDetail], absent_if_null([])] = []
    name: Annotated[str, Field(max_length=256)] | None = None
    prefix: Annotated[bool, absent_if_null(False)] = False
    """DeepSeek's: the last message, an assistant's, is the beginning of the answer."""
    tool_calls: Annotated[list[ToolCall], absent_if_null([])] = []
    tool_call_id: Annotated[str, Field(max_length=64)] | None = None

    @property
    def thought(self) -> str:
        """What was thought, whatever it is called; "" for nothing."""
        detailed = "".join(detail.text or "" for detail in self.reasoning_details)
        return self.reasoning_content or self.reasoning or detailed

    def plain(self) -> dict[str, Any]:
        """What the tokenizer renders."""
        turn: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        thought = self.thought
        if thought and self.role == "assistant":
            turn["reasoning_content"] = thought
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump(include={"id", "type", "function"}) for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn


class StreamOptions(Strict):
    """Extras of a stream."""

    include_usage: Annotated[bool, absent_if_null(False)] = False
    continuous_usage_stats: Annotated[bool, absent_if_null(False)] = False
    """vLLM's: every chunk carries the usage so far."""
    include_obfuscation: Literal[False, None] = None
    """OpenAI's padding against an observer of packet sizes; not offered."""


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopList = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
Stops = Annotated[StopList, BeforeValidator(split_stops, json_schema_input_type=Stop | StopList | None)]
AtLeastOne = Annotated[int, Field(ge=1, le=INT64_MAX)]


SentBiases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]


def biases(value: Any) -> Any:
    """JSON's keys are strings; here they are token ids."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PydanticCustomError("bias", "must be an object of token ids and numbers")
    if len(value) > MAX_BIASES:
        raise PydanticCustomError("bias", "may hold at most {most} tokens", {"most": MAX_BIASES})
    found = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and re.fullmatch(r"[0-9]{1,9}", key)):
            raise PydanticCustomError("bias", "has a key that is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias) or abs(bias) > 100:
            raise PydanticCustomError("bias", "has a value that is no number in -100..100")
        found[int(key)] = float(bias)
    return found


class Sampling(Strict):
    """The fields that every dialect of completion shares."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT64_MAX), absent_if_null(0)] = 0
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: Stops = []
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), absent_if_null(1)] = 1
    min_p: Annotated[float, Field(ge=0, le=1), absent_if_null(0.0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2), absent_if_null(0.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), absent_if_null(0.0)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10), absent_if_null(1.0)] = 1.0
    logit_bias: Annotated[dict[int, float], BeforeValidator(biases, json_schema_input_type=SentBiases | None)] = {}


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Strict):
    """What the model may call."""

    name: ToolName
    description: Annotated[str, absent_if_null("")] = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Arguments follow the schema either way."""


class Tool(Strict):
    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """What the tokenizer renders."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


SentToolChoice = Literal["none", "auto", "required"] | NamedTool | None


class JsonSchema(Strict):
    name: Annotated[str, Field(max_length=256)] = "answer"
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(validation_alias="schema")] = {}
    strict: bool | None = None
    """Answers follow the schema either way."""


CacheSalt = Annotated[str, Field(min_length=1, max_length=1024)] | None
"""vLLM's: what is computed is found again by requests of the same key and salt alone."""
Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)]


class ResponseFormat(Strict):
    """Text, any JSON object, JSON of a schema, or (ours) text that a regular expression describes from end to end."""

    type: Literal["text", "json_object", "json_schema", "regex"] = "text"
    json_schema: JsonSchema | None = None
    pattern: Pattern | None = None


class StructuredOutputs(Strict):
    """vLLM's: here for regular expressions alone."""

    regex: Pattern


class ChatRequest(Sampling):
    """The whole body, checked."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: Annotated[bool, absent_if_null(False)] = False
    stream_options: StreamOptions | None = None
    max_tokens: AtLeastOne | None = None
    max_completion_tokens: AtLeastOne | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), absent_if_null([])] = []
    tool_choice: Annotated[Any, BeforeValidator(choice_of_tool, json_schema_input_type=SentToolChoice)] = "auto"
    parallel_tool_calls: Annotated[bool, absent_if_null(True)] = True
    response_format: Annotated[ResponseFormat, absent_if_null({})] = ResponseFormat()
    structured_outputs: StructuredOutputs | None = None
    """vLLM's: the same as `response_format` of the type regex."""
    logprobs: Annotated[bool, absent_if_null(False)] = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), absent_if_null(0)] = 0
    continue_final_message: Annotated[bool, absent_if_null(False)] = False
    """vLLM's: the same as `prefix` in the last message."""
    add_generation_prompt: bool | None = None
    """vLLM's: the other side of `continue_final_message`."""
    cache_salt: CacheSalt = None
    return_experts: Annotated[bool, absent_if_null(False)] = False
    """Ours: which experts each token visited."""
    thinking: SkipJsonSchema[Thinking] = Thinking()
    """Read from the fields of ThinkingFields, as `include_reasoning` is."""
    include_reasoning: SkipJsonSchema[bool] = True
    """False: the thought is counted and paid for, and not sent."""
    ignored: SkipJsonSchema[tuple[str, ...]] = ()
    """Labels that came with the request and have no effect."""

    @property
    def answer_limit(self) -> int | None:
        """Longest answer asked for, thoughts included; `max_tokens` is the older name of the same thing and gives way,
        named in `x-ignored-params` where the two differ."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def continues(self) -> bool:
        """The answer goes on from the last message instead of beginning anew."""
        return self.continue_final_message or self.messages[-1].prefix

    @property
    def pattern(self) -> tuple[str, str]:
        """The regular expression that the answer follows ("" for none), and the field that holds it."""
        if self.structured_outputs is not None:
            return self.structured_outputs.regex, "structured_outputs.regex"
        return self.response_format.pattern or "", "response_format.pattern"

    @property
    def has_form(self) -> bool:
        """The answer is to be something else than text as it comes."""
        return self.response_format.type != "text" or self.structured_outputs is not None

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """Tools that the model is told of: none when it must not call any."""
        return [tool.plain() for tool in self.tools] if self.tool_choice != "none" else []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse_chat_request(body: bytes) -> ChatRequest:
    """Decode a request body, or raise the 400 that says what is wrong and where."""
    fields, ignored = without_labels(read_object(body), LABELS)
    fields = without_neutral(fields, NEUTRAL)
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [
            without_neutral(message, NEUTRAL_IN_MESSAGE, f"messages[{i}].") if isinstance(message, dict) else message
            for i, message in enumerate(fields["messages"])
        ]
    if "ignored" in fields:
        raise invalid("Unknown field: 'ignored'.", "ignored", "unknown_field")
    if fields.get("tools") == []:
        raise invalid("Invalid 'tools': an empty list; leave it out.", "tools")
    fields, thinking, include = read_thinking(fields)
    request = decode(ChatRequest, fields)
    check_messages(request.messages)
    check_together(request)
    named = unread(request.messages)
    if request.max_tokens not in (None, request.answer_limit):
        ignored = (*ignored, "max_tokens")
    return request.model_copy(
        update={"thinking": thinking, "include_reasoning": include, "ignored": (*ignored, *named)}
    )


def unread(messages: list[Message]) -> tuple[str, ...]:
    """Names of what came with the messages and no model is told."""
    named = [f"messages[{i}].name" for i, message in enumerate(messages) if message.name is not None]
    for i, message in enumerate(messages):
        for j, detail in enumerate(message.reasoning_details):
            if detail.text is None:
                named.append(f"messages[{i}].reasoning_details[{j}]")
    more = (f"and {len(named) - MAX_NAMED} more",) if len(named) > MAX_NAMED else ()
    return (*named[:MAX_NAMED], *more)


def check_messages(messages: list[Message]) -> None:
    """What a turn must and must not have, by its role."""
    called: set[str] = set()
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.role == "tool":
            if message.tool_call_id is None:
                raise invalid(
                    f"Missing required field: '{where}.tool_call_id'.", f"{where}.tool_call_id", "missing_field"
                )
            if message.tool_call_id not in called:
                raise invalid(
                    f"Invalid '{where}.tool_call_id': no earlier assistant message made this call.",
                    f"{where}.tool_call_id",
                )
        elif message.tool_call_id is not None:
            raise invalid(f"'{where}.tool_call_id' belongs to messages of the role tool.", f"{where}.tool_call_id")
        if message.content is None and message.role != "assistant":
            raise invalid(f"Missing required field: '{where}.content'.", f"{where}.content", "missing_field")
        if message.tool_calls and message.role != "assistant":
            raise invalid(f"'{where}.tool_calls' belongs to messages of the role assistant.", f"{where}.tool_calls")
        called |= {call.id for call in message.tool_calls}


def check_thoughts(request: ChatRequest) -> None:
    """DeepSeek's rule (`--strict-reasoning`): where thoughts are on, a turn that called tools brings its thought."""
    for i, message in enumerate(request.messages if request.thinking.on else ()):
        sent = message.reasoning_content, message.reasoning, message.reasoning_details or None
        if message.tool_calls and sent == (None, None, None):
            where = f"messages[{i}].reasoning_content"
            raise invalid(
                f"The 'reasoning_content' in the thinking mode must be passed back to the API: '{where}' is missing.",
                where,
                "missing_field",
            )


def check_tools(request: ChatRequest) -> None:
    """What must be called must be there, and an answer has one form."""
    names = [tool.function.name for tool in request.tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid(f"Invalid 'tools': '{twice}' comes twice.", "tools")
    choice = request.tool_choice
    if choice == "required" and not names:
        raise invalid("'tool_choice' is required and there are no 'tools'.", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise invalid(f"'tool_choice' names '{choice.function.name[:64]}', which is not in 'tools'.", "tool_choice")
    form = request.response_format
    if (form.type == "json_schema") != (form.json_schema is not None):
        raise invalid("'response_format.json_schema' and the type json_schema belong together.", "response_format")
    if (form.type == "regex") != (form.pattern is not None):
        raise invalid("'response_format.pattern' and the type regex belong together.", "response_format")
    if request.structured_outputs is not None and form.type != "text":
        raise invalid(
            "'structured_outputs' and 'response_format' both say what an answer is; send one.", "response_format"
        )
    if request.has_form and names and choice != "none":
        field = "response_format" if request.structured_outputs is None else "structured_outputs"
        raise invalid(
            f"'{field}' and 'tools' ask for two forms of one answer; send one, or 'tool_choice': \"none\".", field
        )


def check_continued(request: ChatRequest) -> None:
    """An answer that goes on from what stands there has no other form to follow."""
    prefixed = next((i for i, message in enumerate(request.messages[:-1]) if message.prefix), None)
    if prefixed is not None:
        raise invalid(f"'messages[{prefixed}].prefix' belongs to the last message.", f"messages[{prefixed}].prefix")
    generated = request.add_generation_prompt
    if generated is not None and generated == request.continues:
        raise invalid(
            "'add_generation_prompt' is the opposite of 'continue_final_message'; leave it out.",
            "add_generation_prompt",
        )
    if not request.continues:
        return
    if request.messages[-1].role != "assistant":
        raise invalid("Only a last message of the assistant can be continued.", "messages")
    if request.offered_tools or request.has_form:
        raise invalid(
            "A continued message goes with neither 'tools' nor 'response_format' here.", "messages", "unsupported"
        )


def check_together(request: ChatRequest) -> None:
    """Rules across fields."""
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' needs 'stream': true.", "stream_options")
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    check_tools(request)
    check_continued(request)
