"""The API in OpenAPI's form, and the same for people to read, without anything from elsewhere."""

from html import escape
from typing import Any

from starlette.responses import HTMLResponse

from ecgbyte_jax.settings import ServeSettings


def describe_api(limits: ServeSettings) -> dict[str, Any]:
    """OpenAPI 3.1."""
    return {"openapi": "3.1.0", "info": {"title": "ECG-Byte in JAX", "version": "1"}, "paths": {}}


def show_api(limits: ServeSettings) -> HTMLResponse:
    """A page."""
    return HTMLResponse(escape(str(describe_api(limits))))
