"""Routes about tokens alone: a text's, a chat's, and back. Nothing is generated, and nothing is charged.

A text is read as `/v1/completions` reads a prompt: the beginning-of-sequence token before it, special tokens spelt
inside it as plain text. A chat is laid out as `/v1/chat/completions` does with the same body.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from sobre.serve.ask import Writer
from sobre.serve.chat_schema import parse_chat_request
from sobre.serve.decode import Strict, absent_if_null, decode, read_object
from sobre.serve.errors import invalid
from sobre.serve.service import Service, Services

MAX_IDS = 1_000_000


class TokenizeRequest(Strict):
    """The body of POST /v1/tokenize."""

    model: str
    prompt: str
    add_special_tokens: Annotated[bool, absent_if_null(True)] = True
    """Whether the beginning-of-sequence token comes first."""


class DetokenizeRequest(Strict):
    """The body of POST /v1/detokenize."""

    model: str
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_IDS)]


def add_tokens(app: FastAPI, services: Services, body_of: Callable[[Request], Awaitable[bytes]]) -> None:
    """The three routes."""

    @app.post("/v1/tokenize")
    async def tokenize(request: Request) -> Response:
        asked = decode(TokenizeRequest, read_object(await body_of(request)))
        writer = writer_of(services.find(asked.model))
        writer.check_length(len(asked.prompt), "prompt")
        ids = await asyncio.to_thread(writer.tokenizer.encode, asked.prompt)
        return told(writer, [writer.tokenizer.bos_id, *ids] if asked.add_special_tokens else ids)

    @app.post("/v1/detokenize")
    async def detokenize(request: Request) -> Response:
        asked = decode(DetokenizeRequest, read_object(await body_of(request)))
        tokenizer = writer_of(services.find(asked.model)).tokenizer
        wrong = next((one for one in asked.tokens if one >= tokenizer.vocab_size), None)
        if wrong is not None:
            raise invalid(f"'tokens' holds {wrong}; token ids lie in 0..{tokenizer.vocab_size - 1}.", "tokens")
        return JSONResponse({"prompt": tokenizer.decode(asked.tokens)})

    @app.post("/v1/apply-template")
    async def apply_template(request: Request) -> Response:
        chat = parse_chat_request(await body_of(request))
        writer = writer_of(services.find(chat.model))
        ids = await asyncio.to_thread(writer.render, chat, chat.offered_tools)
        return told(writer, list(ids), prompt=writer.tokenizer.decode(ids))


def told(writer: Writer, ids: list[int], **more: Any) -> Response:
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": writer.max_context} | more)


def writer_of(service: Service) -> Writer:
    """Of a model whose tokenizer is here."""
    if not isinstance(service.writer, Writer):
        raise invalid("The engine behind this server keeps its tokenizer.", "model", "unsupported")
    return service.writer
