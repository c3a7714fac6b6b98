"""Many requests in one file, answered when there is time (OpenAI's /v1/batches).

A line is a request of its own: it goes through the same routes as one that a client sends, with the same checks, limits
and prices, under the key that made the batch. `AT_ONCE` lines of all batches run together; where the server or the key
has no room (429), a line waits as long as it is told. Answers with status 200 become the output file, everything else
the error file. A batch is over after a day, whatever is left of it then; in memory like its files.
"""

import asyncio
import json
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.types import ASGIApp, Message, Scope

from sobre.serve.config import ServeConfig
from sobre.serve.decode import Strict, absent_if_null, decode, read_object
from sobre.serve.errors import ApiError, invalid, stopping
from sobre.serve.files import Files, page_of
from sobre.serve.guard import encode, log, where
from sobre.serve.keys import Account
from sobre.serve.service import Services
from sobre.serve.wire import read_json_body

AT_ONCE = 8
MAX_LINES = 10_000
MAX_TOLD = 20
"""Faulty lines that are named."""
WINDOW_S = 86_400
ENDED = ("completed", "failed", "expired", "cancelled")
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
Words = Annotated[str, Field(max_length=512)]


class BatchRequest(Strict):
    """The body of POST /v1/batches."""

    input_file_id: Annotated[str, Field(max_length=100)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Words, Words], absent_if_null({}), Field(max_length=16)] = {}


class Line(Strict):
    """A line of the file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass
class Batch:
    """One batch, whose it is, and how far it is."""

    id: str
    account: Account
    asked: BatchRequest
    created: int
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    file_ids: dict[str, str] = field(default_factory=dict)
    task: "asyncio.Task[None] | None" = None

    def body(self) -> dict[str, Any]:
        """As it is told to clients."""
        events = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        counts = {"total": len(self.lines), "completed": len(self.answers), "failed": len(self.errors)}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.asked.endpoint,
            "errors": {"object": "list", "data": self.faults} if self.faults else None,
            "input_file_id": self.asked.input_file_id,
            "completion_window": self.asked.completion_window,
            "status": self.status,
            "output_file_id": self.file_ids.get("output"),
            "error_file_id": self.file_ids.get("error"),
            "created_at": self.created,
            "expires_at": self.created + WINDOW_S,
            **{f"{event}_at": self.times.get(event) for event in events},
            "request_counts": counts,
            "metadata": self.asked.metadata,
        }


class Batches:
    """All that there are, and the task of each."""

    def __init__(self, app: ASGIApp, files: Files) -> None:
        self.app, self.files = app, files
        self._each: dict[str, Batch] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def begin(self, account: Account, asked: BatchRequest) -> Batch:
        """Take a batch; its lines are checked and asked in a task of their own."""
        content = self.files.find(account.id, asked.input_file_id).content
        now = time.time()
        self._each = {key: one for key, one in self._each.items() if now < one.created + 2 * WINDOW_S}
        batch = Batch(f"batch_{secrets.token_hex(12)}", account, asked, int(now))
        self._each[batch.id] = batch
        batch.task = asyncio.create_task(self._run(batch, content))
        return batch

    def find(self, account: Account, batch_id: str) -> Batch:
        found = self._each.get(batch_id)
        if found is None or found.account is not account:
            raise ApiError(404, "There is no such batch.", code="batch_not_found", param="batch_id")
        return found

    def of(self, account: Account) -> list[Batch]:
        """The newest first."""
        return [one for one in reversed(self._each.values()) if one.account is account]

    def cancel(self, batch: Batch) -> None:
        """Stop what runs; what is answered already stays."""
        if batch.status in ENDED:
            raise ApiError(409, f"The batch is {batch.status} already.", code="batch_ended", param="batch_id")
        if batch.status != "cancelling" and batch.task is not None:
            self._turn(batch, "cancelling")
            batch.task.cancel()

    async def close(self) -> None:
        """The server leaves: stop every batch."""
        for batch in self._each.values():
            if batch.task is not None:
                batch.task.cancel()
                with suppress(asyncio.CancelledError):
                    await batch.task

    async def _run(self, batch: Batch, content: bytes) -> None:
        try:
            batch.lines, batch.faults = await asyncio.to_thread(lines_of, content, batch.asked.endpoint)
            if batch.faults:
                self._turn(batch, "failed")
                return
            self._turn(batch, "in_progress")
            try:
                async with asyncio.timeout(WINDOW_S), asyncio.TaskGroup() as group:
                    for line in batch.lines:
                        await self._room.acquire()
                        group.create_task(self._ask(batch, line)).add_done_callback(lambda _: self._room.release())
                ended = "completed"
            except TimeoutError:
                ended = "expired"
                self._leave(batch, "batch_expired", "The batch was not answered in its window.")
        except asyncio.CancelledError:
            ended = "cancelled"
        self._finish(batch, ended)

    async def _ask(self, batch: Batch, line: Line) -> None:
        """One line, as often as there is no room for it."""
        request_id = f"batch_req_{secrets.token_hex(12)}"
        while True:
            status, headers, content = await answered(
                self.app, batch.asked.endpoint, encode(line.body).encode(), batch.account, request_id
            )
            if status != 429:
                break
            await asyncio.sleep(float(headers.get("retry-after", "1")))
        response = {"status_code": status, "request_id": request_id, "body": json.loads(content)}
        record = {"id": request_id, "custom_id": line.custom_id, "response": response, "error": None}
        (batch.answers if status == 200 else batch.errors).append(record)

    def _leave(self, batch: Batch, code: str, message: str) -> None:
        """Say in the error file of each line without an answer why it has none."""
        told = {record["custom_id"] for record in batch.answers + batch.errors}
        for line in batch.lines:
            if line.custom_id not in told:
                error = {"code": code, "message": message}
                record = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id}
                batch.errors.append(record | {"response": None, "error": error})

    def _finish(self, batch: Batch, ended: str) -> None:
        """Write the two files."""
        self._turn(batch, "finalizing")
        try:
            for kind, records in (("output", batch.answers), ("error", batch.errors)):
                if records:
                    content = "".join(encode(record) + "\n" for record in records).encode()
                    made = self.files.add(batch.account.id, f"{batch.id}_{kind}.jsonl", "batch_output", content)
                    batch.file_ids[kind] = made.id
        except ApiError as error:  # no room for the answers
            batch.faults.append({"code": error.code, "line": None, "message": str(error), "param": None})
            ended = "failed"
        self._turn(batch, ended)

    @staticmethod
    def _turn(batch: Batch, status: str) -> None:
        batch.status = status
        batch.times[status] = int(time.time())


def lines_of(content: bytes, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of a file, and what is wrong with it: nothing is asked of a file with faults."""
    lines: list[Line] = []
    faults: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        if len(lines) == MAX_LINES or len(faults) == MAX_TOLD:
            if not faults:
                faults.append(fault(number, f"A batch has at most {MAX_LINES:,} lines.", None, "too_many_lines"))
            break
        try:
            line = decode(Line, read_object(text))
            if line.url != endpoint:
                raise invalid(f"'url' must be the batch's endpoint, {endpoint}.", "url")
            if line.custom_id in seen:
                raise invalid("'custom_id' is that of an earlier line.", "custom_id", "duplicate_custom_id")
            if line.body.get("stream"):
                raise invalid("A line of a batch cannot be streamed.", "body.stream")
        except ApiError as error:
            faults.append(fault(number, str(error).replace("The body", "The line"), error.param, error.code))
            continue
        seen.add(line.custom_id)
        lines.append(line)
    if not lines and not faults:
        faults.append(fault(None, "The file has no lines.", None, "empty_file"))
    return lines, faults


def fault(number: int | None, message: str, param: str | None, code: str) -> dict[str, Any]:
    return {"code": code, "line": number, "message": message, "param": param}


async def answered(
    app: ASGIApp, path: str, body: bytes, account: Account, request_id: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of a request to a route of `app`, in this process."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    state = {"request_id": request_id, "note": {}, "account": account}
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": state,
    }
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, told, content = 500, dict[str, str](), bytearray()

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        return await asyncio.get_running_loop().create_future()  # nobody leaves before the end

    async def send(message: Message) -> None:
        nonlocal status, told
        if message["type"] == "http.response.start":
            status = message["status"]
            told = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            content.extend(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception as error:  # as guard.py does for those who are connected
        log.error("%s failed: %s", request_id, where(error))
        failed = ApiError(500, "The server failed.", code="server_error")
        return failed.status, {}, encode(failed.body()).encode()
    return status, told, bytes(content)


def add_batches(app: FastAPI, batches: Batches, services: Services, cfg: ServeConfig) -> None:
    """The routes."""

    @app.post("/v1/batches")
    async def make_batch(request: Request) -> Response:
        body = await read_json_body(request, cfg.max_body_bytes, cfg.read_timeout_s)
        asked = decode(BatchRequest, read_object(body))
        if any(service.draining for service in services.each):
            raise stopping()
        return JSONResponse(batches.begin(request.state.account, asked).body())

    @app.get("/v1/batches")
    async def list_batches(request: Request) -> Response:
        return JSONResponse(page_of([one.body() for one in batches.of(request.state.account)], request))

    @app.get("/v1/batches/{batch_id}")
    async def show_batch(request: Request, batch_id: str) -> Response:
        return JSONResponse(batches.find(request.state.account, batch_id).body())

    @app.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(request: Request, batch_id: str) -> Response:
        batch = batches.find(request.state.account, batch_id)
        batches.cancel(batch)
        return JSONResponse(batch.body())
