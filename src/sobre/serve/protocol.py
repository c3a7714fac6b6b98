"""uvicorn's protocol, with our error in place of its own: what cannot be read as a request never reaches the guard."""

import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

from sobre.serve.errors import ApiError
from sobre.serve.guard import MAX_HEADER_BYTES, encode, head_too_large, new_request_id

log = logging.getLogger("sobre.serve")
PHRASES = {400: "Bad Request", 431: "Request Header Fields Too Large"}


class Protocol(H11Protocol):
    """HTTP/1.1 by h11, whether or not a faster parser is installed: what is refused is the same everywhere."""

    def send_400_response(self, msg: str) -> None:
        """Say in the usual shape that these bytes are no request, or begin one that is too long; and hang up."""
        unread, _ = self.conn.trailing_data
        error = ApiError(400, "This is no valid HTTP request.", code="invalid_http")
        if len(unread) > MAX_HEADER_BYTES:
            error = head_too_large()
        request_id, body = new_request_id(), encode(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} {PHRASES[error.status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        log.info("- - %d id=%s", error.status, request_id)
