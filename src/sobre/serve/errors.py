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


def no_room(n_prompt: int, max_context: int, param: str) -> ApiError:
    """400: the prompt alone fills the context."""
    message = (
        f"This model's maximum context length is {max_context} tokens. However, your {param} resulted in"
        f" {n_prompt} tokens, which leaves no room for an answer. Please reduce the length of the {param}."
    )
    return invalid(message, param, "context_length_exceeded")


def engine_failed(what: str) -> ApiError:
    """500: the engine could not go on with this request."""
    return ApiError(500, f"The engine failed while writing this answer: {what}.", code="engine_error")


def engine_stopped() -> ApiError:
    """503: there is no engine to go on with."""
    return ApiError(503, "The engine has stopped.", code="engine_stopped", headers={"retry-after": "5"})


def stopping() -> ApiError:
    """503: the server is leaving."""
    return ApiError(503, "The server is shutting down.", code="server_stopping", headers={"retry-after": "5"})


ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The same error as Anthropic's clients expect it."""
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": request_id}


def shaped(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """An error's body, in the shape that the clients of this path read."""
    return anthropic_body(error, request_id) if path.startswith("/v1/messages") else error.body()
