"""POST /v1/embeddings: texts as vectors, from the hidden states of the model's final norm.

A text is read once, without a cache, its beginning-of-sequence token before it; its vector is the mean over its tokens,
or the state of the last one, scaled to length 1. A model that was trained to write was not trained for this: its
vectors find near copies and topics, and lose to models made for search. There is one width, the model's.

Shapes: D width.
"""

import array
import base64
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from sobre.engine.engine import Pooling
from sobre.serve.decode import Strict, absent_if_null, decode, read_object, sent_as, without_labels
from sobre.serve.errors import invalid
from sobre.serve.load import PREFILL_TOKENS
from sobre.serve.text_schema import ids_of
from sobre.tokenizer.tokenizer import Tokenizer

MAX_INPUTS = 2048
MAX_TOKENS = 300_000
"""Of all inputs of a request together; both as at OpenAI."""
LABELS = ("user",)
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Inputs = Text | Ids | Annotated[list[Text | Ids], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingsRequest(Strict):
    """The whole body, checked."""

    model: str
    input: Annotated[Any, sent_as(Inputs)]
    encoding_format: Annotated[Literal["float", "base64"], absent_if_null("float")] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    pooling: Annotated[Pooling, absent_if_null("mean")] = "mean"
    """Ours: which tokens' states make the vector."""
    ignored: SkipJsonSchema[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request, and what they took."""

    vectors: list[list[float]]
    n_tokens: int
    cost_usd: float
    cost_basis: str


def parse_embeddings_request(body: bytes) -> EmbeddingsRequest:
    """Decode a request body, or raise the 400 that says what is wrong and where."""
    fields, ignored = without_labels(read_object(body), LABELS)
    if "ignored" in fields:
        raise invalid("Unknown field: 'ignored'.", "ignored", "unknown_field")
    return decode(EmbeddingsRequest, fields).model_copy(update={"ignored": ignored})


def inputs_of(asked: EmbeddingsRequest, tokenizer: Tokenizer, max_context: int, width: int) -> list[tuple[int, ...]]:
    """Token ids of the inputs: a text, texts, ids, or lists of ids; or the 400 that says what is wrong."""
    if asked.dimensions not in (None, width):
        raise invalid(f"This model's vectors have {width} dimensions and no other number.", "dimensions", "unsupported")
    given = asked.input
    many = given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    if len(many) > MAX_INPUTS:
        raise invalid(f"'input' may hold at most {MAX_INPUTS} inputs.", "input")
    if "" in many:
        raise invalid("Invalid 'input': a text must not be empty.", "input")
    longest = max_context * tokenizer.max_token_chars
    if any(isinstance(one, str) and len(one) > longest for one in many):
        raise invalid(
            f"An input of this model holds at most {max_context} tokens, at most {longest:,} characters.",
            "input",
            "context_length_exceeded",
        )
    found = [ids_of(one, tokenizer, "input") for one in many]
    too_long = next((ids for ids in found if len(ids) > max_context), None)
    if too_long is not None:
        said = f"This model's maximum context length is {max_context} tokens; an input has {len(too_long)}."
        raise invalid(said, "input", "context_length_exceeded")
    if sum(map(len, found)) > MAX_TOKENS:
        raise invalid(f"'input' may hold at most {MAX_TOKENS:,} tokens together.", "input")
    return found


def passes(inputs: Sequence[tuple[int, ...]], at_once: int = PREFILL_TOKENS) -> Iterator[list[int]]:
    """Which inputs are read together: alike in length, no more tokens than a piece of a prompt has; or one alone."""
    batch: list[int] = []
    for index in sorted(range(len(inputs)), key=lambda index: len(inputs[index])):
        if batch and (len(batch) + 1) * len(inputs[index]) > at_once:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def body_of(asked: EmbeddingsRequest, model: str, made: Embedded) -> dict[str, Any]:
    """What OpenAI's clients read; base64 is the float32 numbers, lowest byte first."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector if asked.encoding_format == "float" else _packed(vector),
        }
        for index, vector in enumerate(made.vectors)
    ]
    usage = {
        "prompt_tokens": made.n_tokens,
        "total_tokens": made.n_tokens,
        "cost_usd": made.cost_usd,
        "cost_basis": made.cost_basis,
    }
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _packed(vector_D: Sequence[float]) -> str:
    numbers = array.array("f", vector_D)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
