"""What the server tells about itself: models, tokens, health, metrics, keys."""

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from sobre.serve.errors import ApiError, engine_stopped, stopping
from sobre.serve.keys import Keyring
from sobre.serve.metrics import CONTENT_TYPE_LATEST
from sobre.serve.openapi import document
from sobre.serve.service import Services


def add_information(app: FastAPI, services: Services, keys: Keyring, examples: list[dict[str, str]]) -> None:
    """Routes that read and change nothing."""
    described = document([service.model for service in services.each], needs_key=not keys.is_open)

    def only_admin(request: Request) -> None:
        account = request.state.account
        if keys.has_admin and not account.admin:
            raise ApiError(403, "This needs an administrator's key.", code="not_admin")

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [service.about for service in services.each]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        return JSONResponse(services.find(name).about)

    @app.get("/v1/sobre/examples")
    async def list_examples() -> Response:
        return JSONResponse({"object": "list", "data": examples})

    @app.get("/v1/sobre/keys")
    async def list_keys(request: Request) -> Response:
        """What each key has used."""
        only_admin(request)
        accounts = [keys.anyone] if keys.is_open else keys.accounts
        return JSONResponse({"object": "list", "data": [account.report() for account in accounts]})

    @app.get("/openapi.json")
    async def openapi() -> Response:
        """What every route takes and gives."""
        return JSONResponse(described)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        only_admin(request)
        text = await asyncio.to_thread(services.metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        if any(service.failure is not None for service in services.each):
            raise engine_stopped()
        if any(service.draining for service in services.each):
            raise stopping()
        return JSONResponse({"status": "ready"})
