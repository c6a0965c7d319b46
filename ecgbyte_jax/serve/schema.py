"""The API in OpenAPI's form, and the same for people to read, without anything from elsewhere."""

import json
from html import escape
from typing import Any

from starlette.responses import HTMLResponse

from ecgbyte_jax.ecg.formats.content import EXPECTED
from ecgbyte_jax.settings import ServeSettings

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_TEXT: dict[str, Any] = {"type": "string"}
_TEXT_OR_NONE: dict[str, Any] = {"type": ["string", "null"]}
_NUMBER: dict[str, Any] = {"type": "number"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_TRUTH: dict[str, Any] = {"type": "boolean"}
_ANYTHING: dict[str, Any] = {"type": "object"}


def describe_api(limits: ServeSettings) -> dict[str, Any]:
    """OpenAPI 3.1."""
    error = _object(error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NONE, code=_TEXT_OR_NONE))
    span = _object(start_s=_NUMBER, end_s=_NUMBER)
    recording = _object(
        id=_TEXT, name=_TEXT, rate_hz=_NUMBER, seconds=_NUMBER, beats_per_minute={"type": ["number", "null"]},
        notes=_list(_TEXT), warnings=_list(_TEXT), segments=_list(span), segment_seconds=_NUMBER,
        signal=_object(rate_hz=_NUMBER, leads=_list(_TEXT), microvolts=_ANYTHING | {
            "description": "by lead: the clean signal that the model reads, little-endian int16 in microvolts, base64"}),
    )  # fmt: skip
    file = _object(file_id=_TEXT, filename=_TEXT, file_data=_TEXT | {"description": "data:...;base64,..."})
    part = {"oneOf": [_object(type=_TEXT, text=_TEXT), _object(type=_TEXT, file=file)]}
    message = _object(role=_TEXT | {"enum": ["user", "assistant"]}, content={"oneOf": [_TEXT, _list(part)]})
    chat = _object(
        model=_TEXT, messages=_list(message) | {"maxItems": limits.messages}, stream=_TRUTH, logprobs=_TRUTH,
        max_completion_tokens=_WHOLE, ecg=_object(segment=_WHOLE),
    ) | {"required": ["model", "messages"]}  # fmt: skip
    about = {"recordings": _list(_TEXT), "question": _TEXT, "segment": _WHOLE}
    form = _object(file=_list(_TEXT | {"format": "binary"}), sample_rate=_NUMBER, leads=_TEXT, units=_TEXT)
    sent = {"multipart/form-data": {"schema": form}}
    attention = _object(**about, answer=_TEXT, history=_list(_list(_TEXT)))
    paths = {
        "/v1/run": {"get": _operation("The run: what its answers are worth, its questions, what is accepted.")},
        "/v1/models": {"get": _operation("The one model, as OpenAI lists them.")},
        "/v1/recordings": {
            "get": _operation("The run's demo recordings."),
            "post": _operation(f"Sends a recording: {EXPECTED}.", sent, recording, "201"),
        },
        "/v1/recordings/{id}": {
            "get": _operation("A recording.", answer=recording) | {"parameters": [_ID]},
            "delete": _operation("Forgets a recording.", status="204") | {"parameters": [_ID]},
        },
        "/v1/chat/completions": {
            "post": _operation(
                "Answers a question about a recording, or two, in OpenAI's form: the recording is a part of type 'file'. Each "
                "segment is answered, and the commonest answer given; the field 'ecg' has the others.",
                _json(chat),
            )
        },
        "/v1/attention": {"post": _operation("Where an answer comes from, by leads and samples.", _json(attention))},
        "/v1/controls": {"post": _operation("The commonest answer, and the one about another ECG.", _json(_object(**about)))},
        "/healthz": {"get": _operation("That the server is up.")},
    }
    security = {"security": [{"token": []}]} if limits.token else {}
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    info = {"title": "ECG-Byte in JAX", "version": "1", "description": "Research software, not a medical device."}
    components = {"schemas": {"Error": error}, "securitySchemes": schemes}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components} | security


def show_api(limits: ServeSettings) -> HTMLResponse:
    """A page with every operation, and what it is sent."""
    parts = []
    for path, operations in describe_api(limits)["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody")
            shown = f"<pre>{escape(json.dumps(body['content'], indent=1))}</pre>" if body else ""
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>{shown}")
    about = "Research software, not a medical device. The same for programs: <a href='/openapi.json'>openapi.json</a>."
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>API</title>"
    return HTMLResponse(f"{head}<main><h1>API</h1><p>{about}</p>{''.join(parts)}</main></html>")


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    summary: str, content: dict[str, Any] | None = None, answer: dict[str, Any] | None = None, status: str = "200"
) -> dict[str, Any]:
    bodies = {} if status == "204" else {"content": _json(answer or _ANYTHING)}
    refused = {"description": "refused", "content": _json({"$ref": "#/components/schemas/Error"})}
    operation = {"summary": summary, "responses": {status: {"description": "done"} | bodies, "4XX": refused}}
    return operation | ({"requestBody": {"required": True, "content": content}} if content else {})
