"""Files of a batch: JSON lines that a client sends, and those that come back (OpenAI's /v1/files).

They lie in memory, each belongs to the key that sent or made it, and each is gone a day after it was made; a restart
forgets them all. Nothing is dropped to make room: where there is none, the client is told to delete something.
"""

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from sobre.serve.errors import ApiError, invalid
from sobre.serve.wire import read_body

KEEP_S = 86_400
MAX_BYTES = 64 << 20
"""Of all files together."""
MAX_NAME_CHARS = 255


@dataclass(frozen=True)
class File:
    """One file, and whose it is."""

    id: str
    owner: str
    name: str
    purpose: str
    created: int
    content: bytes

    def body(self) -> dict[str, Any]:
        """As it is told to clients."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created,
            "expires_at": self.created + KEEP_S,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class Files:
    """All that there are, by id, the oldest first."""

    clock: Callable[[], float] = time.time
    max_bytes: int = MAX_BYTES
    _each: dict[str, File] = field(default_factory=dict)

    def add(self, owner: str, name: str, purpose: str, content: bytes) -> File:
        """Keep a file, or say that there is no room."""
        self._forget_old()
        free = self.max_bytes - sum(len(one.content) for one in self._each.values())
        if len(content) > free:
            said = f"This server keeps {self.max_bytes:,} bytes of files and has room for {free:,}: delete some."
            raise ApiError(413, said, code="storage_full", param="file")
        made = File(f"file-{secrets.token_hex(12)}", owner, name, purpose, int(self.clock()), content)
        self._each[made.id] = made
        return made

    def find(self, owner: str, file_id: str) -> File:
        """A file of this owner; what belongs to others is not there."""
        self._forget_old()
        found = self._each.get(file_id)
        if found is None or found.owner != owner:
            raise ApiError(404, "There is no such file; it may have expired.", code="file_not_found", param="file_id")
        return found

    def of(self, owner: str) -> list[File]:
        """Everything that this owner has, the newest first."""
        self._forget_old()
        return [one for one in reversed(self._each.values()) if one.owner == owner]

    def delete(self, owner: str, file_id: str) -> None:
        del self._each[self.find(owner, file_id).id]

    def _forget_old(self) -> None:
        now = self.clock()
        self._each = {key: one for key, one in self._each.items() if now < one.created + KEEP_S}


def add_files(app: FastAPI, files: Files, max_body_bytes: int, read_timeout_s: float) -> None:
    """The routes."""

    @app.post("/v1/files")
    async def upload(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            raise ApiError(415, "Send the file as 'multipart/form-data'.", code="unsupported_media_type")
        parts = form_parts(kind, await read_body(request, max_body_bytes, read_timeout_s))
        unknown = sorted(set(parts) - {"file", "purpose"})
        if unknown:
            raise invalid(f"Unknown field: '{unknown[0][:100]}'.", unknown[0][:100], "unknown_field")
        if parts.get("purpose", ("", b""))[1] != b"batch":
            raise invalid("'purpose' must be 'batch': files of this server are those of batches.", "purpose")
        name, content = parts.get("file", ("", b""))
        if not content:
            raise invalid("'file' is missing or empty.", "file", "missing_field")
        return JSONResponse(files.add(request.state.account.id, name or "file.jsonl", "batch", content).body())

    @app.get("/v1/files")
    async def list_files(request: Request) -> Response:
        return JSONResponse(page_of([one.body() for one in files.of(request.state.account.id)], request))

    @app.get("/v1/files/{file_id}")
    async def show_file(request: Request, file_id: str) -> Response:
        return JSONResponse(files.find(request.state.account.id, file_id).body())

    @app.get("/v1/files/{file_id}/content")
    async def show_content(request: Request, file_id: str) -> Response:
        found = files.find(request.state.account.id, file_id)
        return Response(found.content, media_type="application/jsonl")

    @app.delete("/v1/files/{file_id}")
    async def delete_file(request: Request, file_id: str) -> Response:
        files.delete(request.state.account.id, file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def form_parts(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """Field to (file name, content) of a form, each field once."""
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    found: dict[str, tuple[str, bytes]] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        field_name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if part.defects or not isinstance(field_name, str) or not isinstance(content, bytes) or field_name in found:
            raise invalid("The form has a part without a name of its own.", None, "invalid_form")
        if part.get("content-transfer-encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
            raise invalid("The parts of the form must come as they are, not encoded.", field_name[:100], "invalid_form")
        found[field_name] = (re.sub(r"[^\w. -]", "_", part.get_filename() or "")[:MAX_NAME_CHARS], content)
    if message.defects or not found:
        raise invalid("The body is no form: the boundary of its Content-Type does not divide it.", None, "invalid_form")
    return found


def page_of(bodies: list[dict[str, Any]], request: Request) -> dict[str, Any]:
    """A list as OpenAI's clients walk through it: `limit` entries after the one called `after`."""
    asked = dict(request.query_params)
    after, limit = asked.pop("after", None), asked.pop("limit", "100")
    if asked:
        name = next(iter(asked))[:100]
        raise invalid(f"Unknown parameter of a list: '{name}'; there are 'limit' and 'after'.", name, "unknown_field")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= 1000):
        raise invalid("'limit' must be a whole number from 1 to 1000.", "limit")
    ids = [body["id"] for body in bodies]
    if after is not None and after not in ids:
        raise invalid("'after' names nothing in this list.", "after")
    rest = bodies[0 if after is None else ids.index(after) + 1 :]
    shown = rest[: int(limit)]
    edges = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **edges, "has_more": len(shown) < len(rest)}
