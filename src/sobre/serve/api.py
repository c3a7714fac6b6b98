"""The routes of the server. What they do is in service.py; how it goes over the wire, in wire.py and the dialects."""

import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from sobre.serve.answer import Answer
from sobre.serve.ask import Ask
from sobre.serve.batches import Batches, add_batches
from sobre.serve.chat import ChatDialect
from sobre.serve.chat_schema import parse_chat_request
from sobre.serve.config import ServeConfig
from sobre.serve.decode import decode, read_object
from sobre.serve.embeddings import body_of as body_of_embeddings
from sobre.serve.embeddings import parse_embeddings_request
from sobre.serve.errors import ApiError, invalid, shaped
from sobre.serve.files import Files, add_files
from sobre.serve.guard import LOOPBACK, Guard
from sobre.serve.information import add_information
from sobre.serve.keys import Keyring
from sobre.serve.messages import MessagesDialect, parse_messages_request
from sobre.serve.page import HEADERS, Asset, load_assets
from sobre.serve.repeats import MAX_KEY_CHARS, Repeats
from sobre.serve.responses import ResponsesDialect, parse_responses_request
from sobre.serve.service import Running, Service, Services
from sobre.serve.text import TextDialect
from sobre.serve.text_schema import DEFAULT_MAX_TOKENS, parse_text_request
from sobre.serve.thinking import ThoughtControl
from sobre.serve.tokens import add_tokens
from sobre.serve.wire import Dialect, EventStream, collected, read_json_body, unless_gone, with_keep_alive, written

MAX_TIMEOUT_S = 86_400.0


def create_app(services: Services, cfg: ServeConfig, keys: Keyring, examples: list[dict[str, str]]) -> ASGIApp:
    """The whole server as one ASGI app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for service in services.each:
            service.start()
        yield
        await batches.close()
        for service in services.each:
            await service.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    files = Files()
    batches = Batches(app, files)
    add_errors(app)
    add_answers(app, services, cfg)
    add_files(app, files, cfg.max_body_bytes, cfg.read_timeout_s)
    add_batches(app, batches, services, cfg)
    add_information(app, services, keys, examples)
    assets = load_assets()
    for asset in assets:
        app.add_api_route(asset.path, serve_asset(asset), methods=["GET", "HEAD"])
    hosts = {*LOOPBACK, *cfg.allowed_hosts} if cfg.host in LOOPBACK else None
    open_paths = {"/healthz", "/readyz", *(asset.path for asset in assets)}
    return Guard(app, keys=keys, open_paths=open_paths, hosts=hosts, responded=services.metrics.responded)


def add_answers(app: FastAPI, services: Services, cfg: ServeConfig) -> None:
    """The four ways to ask for text, "answer now", and Anthropic's count of tokens."""

    repeats: Repeats[tuple[dict[str, Any], dict[str, str]]] = Repeats()

    async def body_of(request: Request) -> bytes:
        body = await read_json_body(request, cfg.max_body_bytes, cfg.read_timeout_s)
        request.state.body_digest = hashlib.sha256(body).digest()
        return body

    add_tokens(app, services, body_of)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        chat = parse_chat_request(await body_of(request))
        service = services.find(chat.model)
        answer_id = f"chatcmpl-{request.state.request_id}"
        return await answer(
            request,
            service,
            n_choices=chat.n,
            make=lambda: service.writer.chat(chat, answer_id, request.state.account.id),
            dialect=lambda found: ChatDialect(chat, found),
            stream=chat.stream,
            ignored=chat.ignored,
        )

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        text = parse_text_request(await body_of(request))
        service = services.find(text.model)
        answer_id = f"cmpl-{request.state.request_id}"
        prompts: list[tuple[int, ...]] = []

        def make() -> Ask:
            prompts.extend(service.writer.prompts(text))
            return service.writer.text(
                prompts,
                text,
                text.max_tokens or DEFAULT_MAX_TOKENS,
                answer_id,
                request.state.account.id,
                n_logprobs=text.logprobs,
            )

        def dialect(found: Answer) -> Dialect:
            echoes = [service.writer.spell(ids) if text.echo else "" for ids in prompts for _ in range(text.n)]
            return TextDialect(text, found, echoes)

        return await answer(
            request, service, n_choices=text.n, make=make, dialect=dialect, stream=text.stream, ignored=text.ignored
        )

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        asked = parse_embeddings_request(await body_of(request))
        service, account = services.find(asked.model), request.state.account

        async def whole() -> tuple[dict[str, Any], dict[str, str]]:
            made = await service.embed(account, asked)
            request.state.note.update(key=account.name, prompt_tokens=made.n_tokens)
            named = {"x-ignored-params": ", ".join(asked.ignored)} if asked.ignored else {}
            return body_of_embeddings(asked, service.model, made), account.headers() | named

        return await answered_once(request, whole)

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        chat = parse_messages_request(await body_of(request))
        service = services.find(chat.model)
        request_id = request.state.request_id
        return await answer(
            request,
            service,
            n_choices=1,
            make=lambda: service.writer.chat(chat, f"msg_{request_id}", request.state.account.id),
            dialect=lambda found: MessagesDialect(chat, found, request_id),
            stream=chat.stream,
            ignored=chat.ignored,
        )

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        chat = parse_messages_request(await body_of(request), counting=True)
        service = services.find(chat.model)
        return JSONResponse({"input_tokens": len(service.writer.render(chat, chat.offered_tools))})

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        asked, chat = parse_responses_request(await body_of(request))
        service = services.find(chat.model)
        return await answer(
            request,
            service,
            n_choices=1,
            make=lambda: service.writer.chat(chat, f"resp_{request.state.request_id}", request.state.account.id),
            dialect=lambda found: ResponsesDialect(asked, chat, found),
            stream=chat.stream,
            ignored=chat.ignored,
        )

    async def answer(
        request: Request,
        service: Service,
        *,
        n_choices: int,
        make: Callable[[], Ask],
        dialect: Callable[[Answer], Dialect],
        stream: bool,
        ignored: tuple[str, ...],
    ) -> Response:
        """Begin an answer and send it, whole or as it is written; a client that leaves ends it."""
        note, account = request.state.note, request.state.account

        def gone() -> None:
            note["left"] = "early"

        async def begin() -> tuple[Running, Dialect, dict[str, str]]:
            running = await service.begin(account, n_choices, make, timeout_of(request))
            named = {"x-ignored-params": ", ".join(ignored)} if ignored else {}
            return running, dialect(running.answer), account.headers() | named

        def release(running: Running, *, left: bool) -> None:
            found = running.answer
            service.end(running, left=left)
            note.update(key=account.name, prompt_tokens=found.n_prompt, completion_tokens=found.n_tokens)

        if stream:
            running, shape, headers = await begin()
            events = running.answer.events(running.stream)
            source = with_keep_alive(written(shape, events), cfg.keep_alive_s)
            timeout_s = cfg.write_timeout_s
            return EventStream(
                source, gone, lambda: release(running, left="left" in note), write_timeout_s=timeout_s, headers=headers
            )

        async def whole() -> tuple[dict[str, Any], dict[str, str]]:
            running, shape, headers = await begin()
            left = True
            try:
                body = await collected(shape, running.answer.events(running.stream))
                left = False
                return body, headers
            except ApiError:
                left = False
                raise
            finally:
                release(running, left=left)

        return await answered_once(request, whole)

    async def answered_once(
        request: Request, whole: Callable[[], Coroutine[Any, Any, tuple[dict[str, Any], dict[str, str]]]]
    ) -> Response:
        """Body and headers from `whole`, or from the same request under the same Idempotency-Key."""
        key = idempotency_key(request)
        place = (request.state.account.id, request.url.path, key)
        work = repeats.once(place, request.state.body_digest, whole) if key else whole()
        found = await unless_gone(request.receive, work, lambda: request.state.note.update(left="early"))
        return Response(status_code=499) if found is None else JSONResponse(found[0], headers=found[1])

    @app.post("/v1/chat/completions/control")
    async def control(request: Request) -> Response:
        asked = decode(ThoughtControl, read_object(await body_of(request)))
        return JSONResponse({"success": services.answer_now(asked.id, request.state.account)})


def idempotency_key(request: Request) -> str:
    """What names this request when it is sent again; "" for none."""
    key = request.headers.get("idempotency-key", "")
    if len(key) > MAX_KEY_CHARS:
        raise invalid(f"The header 'idempotency-key' is longer than {MAX_KEY_CHARS} characters.", "idempotency-key")
    return key


def timeout_of(request: Request) -> float | None:
    """`x-request-timeout-s`: what is written by then is the answer."""
    given = request.headers.get("x-request-timeout-s")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise invalid("The header 'x-request-timeout-s' must be a number of seconds above 0.", "x-request-timeout-s")
    return seconds


def add_errors(app: FastAPI) -> None:
    """Every error, the framework's own too, leaves in the same shape."""

    def response(request: Request, error: ApiError) -> Response:
        body = shaped(error, request.url.path, request.state.request_id)
        return JSONResponse(body, error.status, error.headers)

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return response(request, error)

    async def framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path[:100]}: {error.detail}."
        return response(request, ApiError(error.status_code, message, code=code, headers=error.headers))

    async def unprocessable(request: Request, error: Exception) -> Response:
        return response(request, ApiError(422, "The request does not fit this route.", code="unprocessable"))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(RequestValidationError, unprocessable)


def serve_asset(asset: Asset) -> Callable[[], Any]:
    async def send_asset() -> Response:
        return Response(asset.content, media_type=asset.media_type, headers=HEADERS)

    return send_asset
