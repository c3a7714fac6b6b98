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
        if not request.state.account.admin:
            said = "This needs an administrator's key: one with the word admin after it, in the key file or --api-key."
            raise ApiError(403, said, code="not_admin")

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
        """What each key has used: all of them for an administrator, for anybody else the own one."""
        account = request.state.account
        accounts = keys.accounts if account.admin and not keys.is_open else [account]
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
