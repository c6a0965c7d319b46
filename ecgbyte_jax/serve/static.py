"""The files of the page, read once; no other file of this machine is served."""

from collections.abc import Mapping
from importlib.resources import files

from starlette.responses import Response

from ecgbyte_jax.serve.errors import ApiError

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_SHARED = ("trace.js", "trace.css")  # with the report


class Static:
    """Files by name."""

    def __init__(self) -> None:
        page, report = files("ecgbyte_jax.serve") / "page", files("ecgbyte_jax.report")
        paths = [*(page.iterdir() if page.is_dir() else ()), *(report / name for name in _SHARED)]
        ends = {path.name: path.name[path.name.rfind(".") :] for path in paths if path.is_file()}
        self._files: Mapping[str, tuple[bytes, str]] = {
            path.name: (path.read_bytes(), _TYPES[ends[path.name]]) for path in paths if ends.get(path.name) in _TYPES
        }

    def response(self, name: str) -> Response:
        """A file; raises ApiError for any other name."""
        if name not in self._files:
            raise ApiError(404, f"no file {name[:60]!r} here", "name")
        content, kind = self._files[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
