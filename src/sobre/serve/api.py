"""The routes of the server. What they do is in service.py; how it goes over the wire, in wire.py and the dialects."""

from collections.abc import AsyncIterator, Callable
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
from sobre.serve.chat_schema import ChatRequest, check_thoughts, parse_chat_request
from sobre.serve.config import ServeConfig
from sobre.serve.decode import decode, read_object
from sobre.serve.embeddings import body_of as body_of_embeddings
from sobre.serve.embeddings import parse_embeddings_request
from sobre.serve.errors import ApiError, shaped
from sobre.serve.files import Files, add_files
from sobre.serve.guard import Guard
from sobre.serve.information import add_information
from sobre.serve.keys import Keyring
from sobre.serve.messages import MessagesDialect, parse_messages_request
from sobre.serve.page import HEADERS, Asset, load_assets
from sobre.serve.responses import ResponsesDialect, parse_responses_request
from sobre.serve.sending import Asked, Sender, Whole, naming
from sobre.serve.service import Services
from sobre.serve.text import TextDialect
from sobre.serve.text_schema import DEFAULT_MAX_TOKENS, parse_text_request
from sobre.serve.thinking import ThoughtControl
from sobre.serve.tokens import add_tokens
from sobre.serve.wire import Dialect


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
    add_answers(app, services, Sender(cfg), cfg)
    add_files(app, files, cfg.max_body_bytes, cfg.read_timeout_s)
    add_batches(app, batches, services, cfg)
    add_information(app, services, keys, examples)
    assets = load_assets()
    for asset in assets:
        app.add_api_route(asset.path, serve_asset(asset), methods=["GET", "HEAD"])
    open_paths = {"/healthz", "/readyz", *(asset.path for asset in assets)}
    return Guard(app, keys=keys, open_paths=open_paths, hosts=cfg.known_hosts, responded=services.metrics.responded)


def add_answers(app: FastAPI, services: Services, sender: Sender, cfg: ServeConfig) -> None:
    """The four ways to ask for text, embeddings, "answer now", and Anthropic's count of tokens."""
    named = ("reasoning_content", "reasoning") if cfg.reasoning_field == "both" else (cfg.reasoning_field,)

    add_tokens(app, services, sender.body_of)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        chat = parse_chat_request(await sender.body_of(request))
        if cfg.strict_reasoning:
            check_thoughts(chat)
        answer_id = f"chatcmpl-{request.state.request_id}"
        return await chatted(request, chat, answer_id, lambda found: ChatDialect(chat, found, named), n_choices=chat.n)

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        chat = parse_messages_request(await sender.body_of(request))
        request_id = request.state.request_id
        return await chatted(request, chat, f"msg_{request_id}", lambda found: MessagesDialect(chat, found, request_id))

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        asked, chat = parse_responses_request(await sender.body_of(request))
        answer_id = f"resp_{request.state.request_id}"
        return await chatted(request, chat, answer_id, lambda found: ResponsesDialect(asked, chat, found))

    async def chatted(
        request: Request, chat: ChatRequest, answer_id: str, dialect: Callable[[Answer], Dialect], n_choices: int = 1
    ) -> Response:
        service = services.find(chat.model)

        def make() -> Ask:
            return service.writer.chat(chat, answer_id, request.state.account.cache_key(chat.cache_salt))

        return await sender.answer(request, service, Asked(n_choices, make, dialect, chat.stream, chat.ignored))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        text = parse_text_request(await sender.body_of(request))
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
                request.state.account.cache_key(text.cache_salt),
                n_logprobs=text.logprobs,
            )

        def dialect(found: Answer) -> Dialect:
            echoes = [service.writer.spell(ids) if text.echo else "" for ids in prompts for _ in range(text.n)]
            return TextDialect(text, found, echoes)

        return await sender.answer(request, service, Asked(text.n, make, dialect, text.stream, text.ignored))

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        asked = parse_embeddings_request(await sender.body_of(request))
        service, account = services.find(asked.model), request.state.account

        async def whole() -> Whole:
            made = await service.embed(account, asked)
            request.state.note.update(key=account.name, prompt_tokens=made.n_tokens)
            return body_of_embeddings(asked, service.model, made), account.headers() | naming(asked.ignored)

        return await sender.once(request, whole)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        chat = parse_messages_request(await sender.body_of(request), counting=True)
        service = services.find(chat.model)
        return JSONResponse({"input_tokens": len(service.writer.render(chat, chat.offered_tools))})

    @app.post("/v1/chat/completions/control")
    async def control(request: Request) -> Response:
        asked = decode(ThoughtControl, read_object(await sender.body_of(request)))
        return JSONResponse({"success": services.answer_now(asked.id, request.state.account)})


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

    async def unforeseen(request: Request, error: Exception) -> Response:
        """Sent by the outermost layer of the framework, which then raises the error again: the guard logs it."""
        return response(request, ApiError(500, "The server failed.", code="server_error"))

    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(RequestValidationError, unprocessable)


def serve_asset(asset: Asset) -> Callable[[], Any]:
    async def send_asset() -> Response:
        return Response(asset.content, media_type=asset.media_type, headers=HEADERS)

    return send_asset
