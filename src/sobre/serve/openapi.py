"""The OpenAPI document of this server (GET /openapi.json, version 3.1).

The bodies of its requests are made from the classes that check them, so that it cannot say anything else than the
server does: fields of the class, fields that are accepted with nothing-asked values alone (`NEUTRAL`), and labels.
Rules across fields and what depends on the model (its context, its special tokens) are 400s that no schema tells.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

import sobre
from sobre.serve import chat_schema, embeddings, messages, responses, text_schema
from sobre.serve.batches import BatchRequest
from sobre.serve.chat_schema import NEUTRAL_IN_MESSAGE, ChatRequest
from sobre.serve.decode import Neutral, Strict
from sobre.serve.embeddings import EmbeddingsRequest
from sobre.serve.messages import MessagesRequest
from sobre.serve.responses import ResponsesRequest
from sobre.serve.text_schema import TextRequest
from sobre.serve.thinking import ThinkingFields, ThoughtControl
from sobre.serve.tokens import DetokenizeRequest, TokenizeRequest

Json = dict[str, Any]
REASONS = {
    400: "The request is wrong; `param` names the field, the message says what would fit.",
    401: "No key, or none that this server knows.",
    402: "The key's budget of the day is used up.",
    403: "The key may not do this, or the host name is unknown.",
    404: "There is no such model, answer, file or batch.",
    408: "The body did not arrive in time.",
    409: "The Idempotency-Key belongs to another request, or the batch has ended.",
    413: "The body is larger than this server takes.",
    415: "The body is not plain application/json (a file: multipart/form-data).",
    429: "Over a limit; `Retry-After` says when to come back.",
    431: "Too many header lines, or too long ones.",
    499: "The client left.",
    500: "The server failed.",
    502: "The engine behind this server failed.",
    503: "The server is leaving, or its engine has stopped.",
    504: "The engine behind this server says nothing.",
}
EVERYWHERE = (401, 403, 431, 500)
OF_BODIES = (400, 404, 408, 413, 415)
OF_ANSWERS = (402, 409, 429, 499, 502, 503, 504)


@dataclass(frozen=True)
class Body:
    """A request body: its class, and what is accepted besides the fields of the class."""

    kind: type[Strict]
    neutral: Neutral
    labels: Collection[str] = ()


BODIES = (
    Body(ChatRequest, chat_schema.NEUTRAL, chat_schema.LABELS),
    Body(TextRequest, text_schema.NEUTRAL, text_schema.LABELS),
    Body(MessagesRequest, messages.NEUTRAL, messages.LABELS),
    Body(ResponsesRequest, responses.NEUTRAL, responses.LABELS),
    Body(EmbeddingsRequest, {}, embeddings.LABELS),
    Body(TokenizeRequest, {}),
    Body(DetokenizeRequest, {}),
    Body(ThoughtControl, {}),
    Body(BatchRequest, {}),
)


def document(models: Sequence[str], *, needs_key: bool) -> Json:
    """The whole document of a server with these models."""
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "sobre serve", "version": sobre.__version__},
        "paths": paths(),
        "components": {
            "schemas": schemas(models),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    if needs_key:
        found["security"] = [{"bearer": []}, {"key": []}]
    return found


def schemas(models: Sequence[str]) -> dict[str, Json]:
    """Every named schema: requests as they are checked, and what comes back."""
    kinds: list[type[Strict]] = [ThinkingFields, *(body.kind for body in BODIES)]
    _, made = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    found: dict[str, Json] = made["$defs"]
    found["ChatRequest"]["properties"] |= found.pop("ThinkingFields")["properties"]
    for body in BODIES:
        own = found[body.kind.__name__]
        own["properties"] |= nothing_asked(body.neutral) | {name: label() for name in body.labels}
        if "model" in own["properties"]:
            own["properties"]["model"] = {"enum": list(models)}
    found["Message"]["properties"] |= nothing_asked(NEUTRAL_IN_MESSAGE)
    counted = found["MessagesRequest"]
    found["CountRequest"] = counted | {"required": [name for name in counted["required"] if name != "max_tokens"]}
    return found | ANSWERS


def nothing_asked(neutral: Neutral) -> dict[str, Json]:
    return {
        name: {"enum": list(values), "description": "Not offered: accepted where it asks for nothing."}
        for name, values in neutral.items()
    }


def label() -> Json:
    return {"description": "Has no effect; the answer's header x-ignored-params names it."}


def record(required: Mapping[str, Json], **more: Json) -> Json:
    """An object with these fields, and perhaps others."""
    return {"type": "object", "properties": {**required, **more}, "required": list(required)}


def listed(items: Json) -> Json:
    return record({"object": {"const": "list"}, "data": {"type": "array", "items": items}})


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
COST: dict[str, Json] = {"cost_usd": {"type": "number", "minimum": 0}, "cost_basis": TEXT}
OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
ANSWERS: dict[str, Json] = {
    "Error": record(
        {"error": record({"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}, "code": TEXT})}
    ),
    "MessagesError": record(
        {"type": {"const": "error"}, "error": record({"type": TEXT, "message": TEXT}), "request_id": TEXT}
    ),
    "Usage": record(
        {
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            **COST,
        }
    ),
    "ChatCompletion": record(
        {
            "id": TEXT,
            "object": {"const": "chat.completion"},
            "created": COUNT,
            "model": TEXT,
            "choices": {
                "type": "array",
                "items": record(
                    {
                        "index": COUNT,
                        "message": record({"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}}),
                        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
                    }
                ),
            },
            "usage": ref("Usage"),
        }
    ),
    "TextCompletion": record(
        {
            "id": TEXT,
            "object": {"const": "text_completion"},
            "created": COUNT,
            "model": TEXT,
            "choices": {
                "type": "array",
                "items": record({"index": COUNT, "text": TEXT, "finish_reason": {"enum": ["stop", "length"]}}),
            },
            "usage": ref("Usage"),
        }
    ),
    "Tokens": record(
        {"tokens": {"type": "array", "items": COUNT}, "count": COUNT, "max_model_len": COUNT}, prompt=TEXT
    ),
    "Embeddings": record(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": record(
                    {
                        "object": {"const": "embedding"},
                        "index": COUNT,
                        "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, TEXT]},
                    }
                ),
            },
            "model": TEXT,
            "usage": record({"prompt_tokens": COUNT, "total_tokens": COUNT, **COST}),
        }
    ),
    "AnthropicMessage": record(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": TEXT,
            "content": OBJECTS,
            "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            "usage": record({"input_tokens": COUNT, "output_tokens": COUNT, "reasoning_tokens": COUNT, **COST}),
        }
    ),
    "Response": record(
        {
            "id": TEXT,
            "object": {"const": "response"},
            "model": TEXT,
            "status": {"enum": ["completed", "incomplete"]},
            "output": OBJECTS,
            "usage": record({"input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT, **COST}),
        }
    ),
    "File": record(
        {
            "id": TEXT,
            "object": {"const": "file"},
            "bytes": COUNT,
            "created_at": COUNT,
            "filename": TEXT,
            "purpose": {"enum": ["batch", "batch_output"]},
        }
    ),
    "Batch": record(
        {
            "id": TEXT,
            "object": {"const": "batch"},
            "endpoint": TEXT,
            "input_file_id": TEXT,
            "status": TEXT,
            "request_counts": record({"total": COUNT, "completed": COUNT, "failed": COUNT}),
        }
    ),
    "Event": record({"data": TEXT}, event=TEXT)
    | {"description": "One event of a stream: `data` is JSON, and for OpenAI's older routes at last [DONE]."},
    "Model": record({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT}),
}
REQUEST_ID: Json = {"x-request-id": {"schema": TEXT, "required": True}}
TIMEOUT: Json = {
    "name": "x-request-timeout-s",
    "in": "header",
    "description": "Seconds after which what is written is the answer.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
}

REPEAT: Json = {
    "name": "idempotency-key",
    "in": "header",
    "description": "The same request under the same key is answered once; streams are not shared.",
    "schema": {"type": "string", "maxLength": 255},
}
PAGE: list[Json] = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
    {"name": "after", "in": "query", "description": "The id of an entry of the list.", "schema": TEXT},
]
FILE: Json = {"type": "object", "properties": {"file": {"type": "string", "format": "binary", "minLength": 1}}}
FILE["properties"]["purpose"] = {"const": "batch"}
FORM: Json = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": FILE | {"required": ["file", "purpose"], "additionalProperties": False}}
    },
}


def paths() -> dict[str, Json]:
    """Every route but the files of the page."""
    return {
        "/v1/chat/completions": answer("Answer a chat (OpenAI, DeepSeek)", "ChatRequest", "ChatCompletion"),
        "/v1/completions": answer("Go on with a text, or fill a gap", "TextRequest", "TextCompletion"),
        "/v1/embeddings": {
            "post": operation("Texts as vectors", ref("Embeddings"), (*OF_BODIES, *OF_ANSWERS))
            | sent("EmbeddingsRequest")
            | {"parameters": [REPEAT]}
        },
        "/v1/responses": answer("Answer (OpenAI's responses)", "ResponsesRequest", "Response"),
        "/v1/messages": answer("Answer a chat (Anthropic)", "MessagesRequest", "AnthropicMessage", "MessagesError"),
        "/v1/messages/count_tokens": {
            "post": operation("Count the tokens of a chat", record({"input_tokens": COUNT}), OF_BODIES, "MessagesError")
            | sent("CountRequest")
        },
        "/v1/tokenize": {"post": operation("The tokens of a text", ref("Tokens"), OF_BODIES) | sent("TokenizeRequest")},
        "/v1/detokenize": {
            "post": operation("The text of tokens", record({"prompt": TEXT}), OF_BODIES) | sent("DetokenizeRequest")
        },
        "/v1/apply-template": {
            "post": operation("A chat as text and tokens", ref("Tokens"), OF_BODIES) | sent("ChatRequest")
        },
        "/v1/chat/completions/control": {
            "post": operation("Answer now", record({"success": {"type": "boolean"}}), OF_BODIES)
            | sent("ThoughtControl")
        },
        "/v1/files": {
            "get": operation("The files of this key", listed(ref("File")), (400,)) | {"parameters": PAGE},
            "post": operation("Send the requests of a batch", ref("File"), OF_BODIES) | {"requestBody": FORM},
        },
        "/v1/files/{file_id}": {
            "get": operation("One file", ref("File"), (404,)) | named("file_id"),
            "delete": operation("Delete a file", record({"id": TEXT, "deleted": {"const": True}}), (404,))
            | named("file_id"),
        },
        "/v1/files/{file_id}/content": {
            "get": operation("What is in a file", None, (404,), kind="application/jsonl") | named("file_id")
        },
        "/v1/batches": {
            "get": operation("The batches of this key", listed(ref("Batch")), (400,)) | {"parameters": PAGE},
            "post": operation("Answer the requests of a file", ref("Batch"), (*OF_BODIES, 503)) | sent("BatchRequest"),
        },
        "/v1/batches/{batch_id}": {"get": operation("One batch", ref("Batch"), (404,)) | named("batch_id")},
        "/v1/batches/{batch_id}/cancel": {
            "post": operation("Stop a batch", ref("Batch"), (404, 409)) | named("batch_id")
        },
        "/v1/models": {"get": operation("The models of this server", listed(ref("Model")))},
        "/v1/models/{name}": {"get": operation("One model", ref("Model"), (404,)) | named("name")},
        "/v1/sobre/examples": {"get": operation("Questions of the model's tasks", listed({"type": "object"}))},
        "/v1/sobre/keys": {
            "get": operation(
                "What each key has used (the own one, for keys that are no administrator's)", listed({"type": "object"})
            )
        },
        "/metrics": {"get": operation("Prometheus's series", None)},
        "/healthz": {"get": operation("The process runs", record({"status": TEXT})) | {"security": []}},
        "/readyz": {"get": operation("Requests are answered", record({"status": TEXT}), (503,)) | {"security": []}},
        "/openapi.json": {"get": operation("This document", {"type": "object"})},
    }


def answer(summary: str, request: str, body: str, error: str = "Error") -> Json:
    """A route that writes text, whole or as server-sent events."""
    made = operation(summary, ref(body), (*OF_BODIES, *OF_ANSWERS), error)
    made["responses"]["200"]["content"]["text/event-stream"] = {"schema": ref("Event")}
    return {"post": made | sent(request) | {"parameters": [TIMEOUT, REPEAT]}}


def named(what: str) -> Json:
    """A part of the path that names something."""
    return {"parameters": [{"name": what, "in": "path", "required": True, "schema": TEXT}]}


def sent(request: str) -> Json:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": ref(request)}}}}


def operation(
    summary: str, body: Json | None, statuses: Sequence[int] = (), error: str = "Error", *, kind: str = "text/plain"
) -> Json:
    """What comes back: `body` as JSON (None: text of this kind), or an error with one of `statuses`."""
    content = {kind: {"schema": TEXT}} if body is None else {"application/json": {"schema": body}}
    found: Json = {"200": {"description": "Done.", "content": content, "headers": REQUEST_ID}}
    for status in sorted({*statuses, *EVERYWHERE}):
        told = {"content": {"application/json": {"schema": ref(error)}}} if status != 499 else {}
        found[str(status)] = {"description": REASONS[status], "headers": REQUEST_ID, **told}
    return {"summary": summary, "responses": found}
