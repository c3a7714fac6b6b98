"""The routes of the server. What they do is in completion.py; how it goes over the wire, in wire.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from sobre.serve.completion import ChatService
from sobre.serve.config import ServeConfig
from sobre.serve.errors import ApiError
from sobre.serve.guard import LOOPBACK, Guard
from sobre.serve.page import HEADERS, Asset, load_assets
from sobre.serve.schema import parse_chat_request
from sobre.serve.wire import EventStream, collect, read_json_body, stream_events, unless_gone, with_keep_alive


def create_app(
    service: ChatService, cfg: ServeConfig, about: dict[str, Any], examples: list[dict[str, str]]
) -> ASGIApp:
    """The whole server as one ASGI app; `about` is the model's entry in /v1/models."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.bridge.start()
        yield
        await service.bridge.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    add_errors(app)
    add_chat(app, service, cfg)
    add_information(app, service, about, examples)
    assets = load_assets()
    for asset in assets:
        app.add_api_route(asset.path, serve_asset(asset), methods=["GET", "HEAD"])
    hosts = {*LOOPBACK, *cfg.allowed_hosts} if cfg.host in LOOPBACK else None
    open_paths = {"/healthz", "/readyz", *(asset.path for asset in assets)}
    return Guard(app, keys=cfg.api_key, open_paths=open_paths, hosts=hosts)


def add_chat(app: FastAPI, service: ChatService, cfg: ServeConfig) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        note = request.state.note

        def gone() -> None:
            note["left"] = "early"

        chat = parse_chat_request(await read_json_body(request, cfg.max_body_bytes, cfg.read_timeout_s))
        answer_id = f"chatcmpl-{request.state.request_id}"
        requests = await asyncio.to_thread(service.prepare, chat, answer_id)
        completion, stream = service.begin(chat, answer_id, requests)
        if chat.stream:
            events = stream_events(completion, stream, include_usage=chat.include_usage)

            def release() -> None:
                stream.close()
                note.update(prompt_tokens=completion.n_prompt, completion_tokens=completion.n_tokens)

            return EventStream(with_keep_alive(events, cfg.keep_alive_s), gone, release)
        try:
            body = await unless_gone(request.receive, collect(completion, stream), gone)
        finally:
            stream.close()
            note.update(prompt_tokens=completion.n_prompt, completion_tokens=completion.n_tokens)
        return Response(status_code=499) if body is None else JSONResponse(body)


def add_information(app: FastAPI, service: ChatService, about: dict[str, Any], examples: list[dict[str, str]]) -> None:
    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [about]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        if name != service.model:
            message = f"The model '{name[:100]}' does not exist; this server has '{service.model}'."
            raise ApiError(404, message, code="model_not_found", param="model")
        return JSONResponse(about)

    @app.get("/v1/sobre/examples")
    async def list_examples() -> Response:
        return JSONResponse({"object": "list", "data": examples})

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        if service.bridge.failure is not None:
            raise ApiError(503, "The engine has stopped.", code="engine_stopped")
        return JSONResponse({"status": "ready"})


def add_errors(app: FastAPI) -> None:
    """Every error, the framework's own too, leaves in the same shape."""

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, error.headers)

    async def framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path[:100]}: {error.detail}."
        shaped = ApiError(error.status_code, message, code=code, headers=error.headers)
        return JSONResponse(shaped.body(), shaped.status, shaped.headers)

    async def unprocessable(request: Request, error: Exception) -> Response:
        shaped = ApiError(422, "The request does not fit this route.", code="unprocessable")
        return JSONResponse(shaped.body(), shaped.status)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(RequestValidationError, unprocessable)


def serve_asset(asset: Asset) -> Callable[[], Any]:
    async def send_asset() -> Response:
        return Response(asset.content, media_type=asset.media_type, headers=HEADERS)

    return send_asset
