"""The body of POST /v1/completions, and its prompts as token ids.

DeepSeek's marks of a gap are special tokens of its vocabularies; a model without them has no way to see a suffix, and a
request with one is refused.
"""

from typing import Annotated, Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from sobre.serve.chat_schema import AtLeastOne, CacheSalt, Sampling, StreamOptions
from sobre.serve.decode import absent_if_null, decode, read_object, sent_as, without_labels, without_neutral
from sobre.serve.errors import invalid
from sobre.tokenizer.tokenizer import Tokenizer

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
NEUTRAL: dict[str, tuple[Any, ...]] = {"best_of": (None, 1)}
LABELS = ("user",)
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Prompts = str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=MAX_PROMPTS)]


class TextRequest(Sampling):
    """The whole body, checked."""

    model: str
    prompt: Annotated[Any, sent_as(Prompts)]
    suffix: str | None = None
    echo: Annotated[bool, absent_if_null(False)] = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    max_tokens: AtLeastOne | None = None
    stream: Annotated[bool, absent_if_null(False)] = False
    stream_options: StreamOptions | None = None
    cache_salt: CacheSalt = None
    ignored: SkipJsonSchema[tuple[str, ...]] = ()

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse_text_request(body: bytes) -> TextRequest:
    """Decode a request body, or raise the 400 that says what is wrong and where."""
    fields, ignored = without_labels(read_object(body), LABELS)
    if "ignored" in fields:
        raise invalid("Unknown field: 'ignored'.", "ignored", "unknown_field")
    request = decode(TextRequest, without_neutral(fields, NEUTRAL))
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' needs 'stream': true.", "stream_options")
    if request.echo and (request.logprobs is not None or request.suffix is not None):
        raise invalid("'echo' goes with neither 'logprobs' nor 'suffix' here.", "echo", "unsupported")
    return request.model_copy(update={"ignored": ignored})


def prompts_of(request: TextRequest, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of the prompts: a text, texts, ids, or lists of ids."""
    given = request.prompt
    many = given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    if len(many) > MAX_PROMPTS:
        raise invalid(f"'prompt' may hold at most {MAX_PROMPTS} prompts.", "prompt")
    prompts = [ids_of(one, tokenizer) for one in many]
    if request.suffix is None:
        return prompts
    marks = [tokenizer.find(mark) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)]
    if None in marks:
        raise invalid("This model was not taught to fill a gap; leave 'suffix' out.", "suffix", "unsupported")
    begin, hole, end = marks
    after = tokenizer.encode(request.suffix)
    start = [tokenizer.bos_id]
    return [tuple([*start, begin, *ids[1:], hole, *after, end]) for ids in prompts]  # type: ignore[list-item]


def ids_of(prompt: Any, tokenizer: Tokenizer, param: str = "prompt") -> tuple[int, ...]:
    """One prompt: a text has the beginning-of-sequence token put before it, ids are taken as they are."""
    if isinstance(prompt, str):
        return (tokenizer.bos_id, *tokenizer.encode(prompt))
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        wrong = next((one for one in prompt if not 0 <= one < tokenizer.vocab_size), None)
        if wrong is not None:
            raise invalid(f"'{param}' holds {wrong}; token ids lie in 0..{tokenizer.vocab_size - 1}.", param)
        return tuple(prompt)
    raise invalid(
        f"Invalid '{param}': must be a text, a list of texts, or (lists of) token ids; none may be empty.", param
    )
