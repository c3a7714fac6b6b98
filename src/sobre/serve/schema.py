"""The chat request as OpenAI's clients send it, decoded strictly: nothing that is sent is silently ignored.

A field that is unknown, or known but not offered here, is a 400 that names it. Fields of the official clients that are
not offered are accepted only with the value that means "nothing asked" (`NEUTRAL`), because clients send those unasked.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, from_json

from sobre.serve.errors import ApiError, invalid

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 256
INT64_MAX = 2**63 - 1

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None,),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "store": (None, False),
    "metadata": (None, {}),
    "user": (None,),
    "service_tier": (None, "auto", "default"),
    "reasoning_effort": (None,),
    "thinking": (None, {"type": "enabled"}),
    "verbosity": (None,),
    "web_search_options": (None,),
    "safety_identifier": (None,),
    "prompt_cache_key": (None,),
}
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "name": (None,),
    "tool_calls": (None, []),
    "function_call": (None,),
    "refusal": (None,),
    "audio": (None,),
    "annotations": (None, []),
}


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no NaN, and no input text in errors (they may be logged)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


def join_parts(content: Any) -> str:
    """Text as a string or as a list of text parts; anything else is refused."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise PydanticCustomError(
                    "content", 'must be text, or a list of {{"type": "text", "text": ...}}: this model reads text only'
                )
        return "".join(part["text"] for part in content)
    raise PydanticCustomError("content", "must be text, or a list of text parts")


def split_stops(stop: Any) -> Any:
    """OpenAI allows one stop string without a list."""
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


def absent_if_null(default: Any) -> BeforeValidator:
    """OpenAI's clients send null for "not said"."""
    return BeforeValidator(lambda value: default if value is None else value)


class Message(Strict):
    """One turn. A thought comes under either name; the chat layout drops those of earlier turns (DeepSeek's rule)."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(join_parts)]
    reasoning_content: str | None = None
    reasoning: str | None = None

    def plain(self) -> dict[str, str]:
        """What the tokenizer renders."""
        turn = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        thought = self.reasoning_content or self.reasoning
        return turn | {"reasoning_content": thought} if thought and self.role == "assistant" else turn


class StreamOptions(Strict):
    """Extras of a stream."""

    include_usage: Annotated[bool, absent_if_null(False)] = False


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class ChatRequest(Strict):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: Annotated[bool, absent_if_null(False)] = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT64_MAX), absent_if_null(0)] = 0
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS), BeforeValidator(split_stops)] = []
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), absent_if_null(1)] = 1

    @property
    def answer_limit(self) -> int | None:
        """Longest answer asked for, thoughts included; `max_tokens` is the older name of the same thing."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse_chat_request(body: bytes) -> ChatRequest:
    """Decode a request body, or raise the 400 that says what is wrong and where."""
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {str(error)[:200]}.", None, "invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid("The body must be a JSON object.", None, "invalid_json")
    fields = without_neutral(fields, NEUTRAL, "")
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [
            without_neutral(message, NEUTRAL_IN_MESSAGE, f"messages[{i}].") if isinstance(message, dict) else message
            for i, message in enumerate(fields["messages"])
        ]
    try:
        request = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from None
    check_together(request)
    return request


def check_together(request: ChatRequest) -> None:
    """Rules across fields."""
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' needs 'stream': true.", "stream_options")
    both = request.max_tokens, request.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise invalid("'max_tokens' and 'max_completion_tokens' differ; send one of them.", "max_tokens")


def without_neutral(fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    """Drop fields that ask for nothing; refuse those that ask for what is not offered."""
    for name, value in fields.items():
        if name in neutral and not any(value == allowed and type(value) is type(allowed) for allowed in neutral[name]):
            if value == 0 and 0 in neutral[name]:
                continue  # 0.0 is the same nothing as 0
            raise invalid(
                f"'{where}{name}' is not supported by this server; leave it out.", where + name, "unsupported"
            )
    return {name: value for name, value in fields.items() if name not in neutral}


def from_validation(error: ValidationError) -> ApiError:
    """The first thing wrong, in one sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = address(first["loc"])
    if first["type"] == "extra_forbidden":
        offered = [*(Message if param.startswith("messages") else ChatRequest).model_fields]
        near = difflib.get_close_matches(str(first["loc"][-1]), offered, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return invalid(f"Unknown field: '{param[:100]}'.{hint}", param[:100], "unknown_field")
    if first["type"] == "missing":
        return invalid(f"Missing required field: '{param}'.", param, "missing_field")
    message = first["msg"][0].lower() + first["msg"][1:]
    return invalid(f"Invalid '{param}': {message[:300]}.", param)


def address(loc: Sequence[int | str]) -> str:
    """('messages', 0, 'role') as messages[0].role."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.lstrip(".")
