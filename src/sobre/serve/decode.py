"""A request body to a typed request, strictly: nothing that is sent is silently ignored.

A field that is unknown is a 400 that names it and the near one. Fields of the official clients that this server does
not offer come in two kinds: those that would change the answer are accepted only with the value that means "nothing
asked" (`neutral`), because clients send those unasked; those that only label the request (`labels`) are accepted and
named in the answer's `x-ignored-params` header.

The same classes are the requests of /openapi.json (openapi.py), so a field that is read before pydantic sees it says
what it may be sent as (`sent_as`).
"""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, from_json

from sobre.serve.errors import ApiError, invalid

MAX_LABEL_CHARS = 1024
"""Of a field that only labels the request, as JSON."""


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no NaN, and no input text in errors (they may be logged)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


T = TypeVar("T", bound=Strict)
Neutral = Mapping[str, tuple[Any, ...]]
"""Field to the values that ask for nothing."""


class absent_if_null:
    """Clients send null for "not said"."""

    def __init__(self, default: Any) -> None:
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        said = lambda value: self.default if value is None else value  # noqa: E731
        return core_schema.no_info_before_validator_function(said, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "null"}]}


def sent_as(form: Any) -> BeforeValidator:
    """What a field may be sent as, where other code than pydantic reads it."""
    return BeforeValidator(lambda value: value, json_schema_input_type=form)


class TextPart(Strict):
    """A piece of a text; what other servers attach to one comes back with histories and says nothing to a model."""

    type: Literal["text"]
    text: str
    cache_control: Any = None
    citations: Any = None


Parts = str | list[TextPart]


def join_parts(content: Any, kind: type[Strict] = TextPart) -> str:
    """Text as a string or as a list of text parts; anything else is refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PydanticCustomError("content", "must be text, or a list of text parts")
    said = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in get_args(kind.model_fields["type"].annotation):
            raise PydanticCustomError(
                "content", 'must be text, or a list of {{"type": "text", "text": ...}}: this model reads text only'
            )
        said.append(within(kind, part).text)  # type: ignore[attr-defined]
    return "".join(said)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; a name that comes twice in one object, here or further in, is a 400."""
    try:
        fields = from_json(body, allow_inf_nan=False)
        json.loads(body.decode(), object_pairs_hook=check_once, parse_int=str, parse_float=str)
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {str(error)[:200]}.", None, "invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid("The body must be a JSON object.", None, "invalid_json")
    return fields


def check_once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object that has a name twice: readers differ in which value holds."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise invalid(f"'{name[:100]}' comes twice in one object.", name[:100], "duplicate_field")
        seen.add(name)


def without_labels(fields: dict[str, Any], labels: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields without those that only label the request, and the names of what was left out."""
    found = tuple(name for name in fields if name in labels and fields[name] is not None)
    for name in found:
        if len(repr(fields[name])) > MAX_LABEL_CHARS:
            raise invalid(f"'{name}' is longer than {MAX_LABEL_CHARS} characters.", name)
    return {name: value for name, value in fields.items() if name not in labels}, found


def without_neutral(fields: dict[str, Any], neutral: Neutral, where: str = "") -> dict[str, Any]:
    """Drop fields that ask for nothing; refuse those that ask for what is not offered."""
    for name, value in fields.items():
        if name in neutral and not any(value == allowed and type(value) is type(allowed) for allowed in neutral[name]):
            if value == 0 and 0 in neutral[name] and not isinstance(value, bool):
                continue  # 0.0 is the same nothing as 0
            raise invalid(
                f"'{where}{name}' is not supported by this server; leave it out.", where + name, "unsupported"
            )
    return {name: value for name, value in fields.items() if name not in neutral}


def decode(kind: type[T], fields: Any, where: str = "") -> T:
    """Validate, or raise the 400 that says what is wrong and where; `where`: the place of `fields` in the body."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise from_validation(kind, error, where) from None


def within(kind: type[T], value: Any) -> T:
    """A value of a field that may also be something else: its errors become those of the field."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        said = f"{address(first['loc'])[:60]}: {first['msg']}" if first["loc"] else first["msg"]
        raise PydanticCustomError("inside", "does not fit ({said})", {"said": said}) from None


def from_validation(kind: type[Strict], error: ValidationError, where: str) -> ApiError:
    """The first thing wrong, in one sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = f"{where}.{address(first['loc'])}".strip(".")[:100]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1])[:100], fields_at(kind, first["loc"][:-1]), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return invalid(f"Unknown field: '{param}'.{hint}", param, "unknown_field")
    if first["type"] == "missing":
        return invalid(f"Missing required field: '{param}'.", param, "missing_field")
    message = first["msg"][0].lower() + first["msg"][1:]
    return invalid(f"Invalid '{param}': {message[:300]}.", param)


def fields_at(kind: Any, loc: Sequence[int | str]) -> list[str]:
    """The names that fit at a place inside a request."""
    for part in loc:
        kind = kind.model_fields[part].annotation if isinstance(part, str) and part in kind.model_fields else kind
        while not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            inner = [one for one in get_args(kind) if one is not type(None)]
            if not inner:
                return []
            kind = inner[0]
    return list(kind.model_fields)


def address(loc: Sequence[int | str]) -> str:
    """('messages', 0, 'role') as messages[0].role."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.lstrip(".")
