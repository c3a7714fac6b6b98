"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} with a fitting status."""

from collections.abc import Mapping
from typing import Any

from sobre.errors import SobreError


class ApiError(SobreError):
    """A request that is answered with an error; `message` tells the client what would fit."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that goes over the wire."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, code=code, param=param)


def context_exceeded(n_prompt: int, n_asked: int | None, max_context: int) -> ApiError:
    """400: prompt and answer do not fit, with the numbers that would."""
    room = max_context - n_prompt
    if room < 1:
        message = (
            f"This model's maximum context length is {max_context} tokens. However, your messages resulted in"
            f" {n_prompt} tokens, which leaves no room for an answer. Please reduce the length of the messages."
        )
        return invalid(message, "messages", "context_length_exceeded")
    message = (
        f"This model's maximum context length is {max_context} tokens. However, you requested"
        f" {n_prompt + (n_asked or 0)} tokens ({n_prompt} in the messages, {n_asked} in the completion)."
        f" Please ask for at most {room}."
    )
    return invalid(message, "max_tokens", "context_length_exceeded")


def engine_failed(what: str) -> ApiError:
    """500: the engine could not go on with this request."""
    return ApiError(500, f"The engine failed while writing this answer: {what}.", code="engine_error")


def stopping() -> ApiError:
    """503: the server is leaving."""
    return ApiError(503, "The server is shutting down.", code="server_stopping", headers={"retry-after": "5"})
