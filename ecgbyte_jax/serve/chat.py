"""Requests to /v1/chat/completions, in OpenAI's form, read strictly: what would change an answer is done or refused."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from ecgbyte_jax.serve.errors import ApiError
from ecgbyte_jax.serve.reader import Upload
from ecgbyte_jax.settings import ServeSettings

_MOST_RECORDINGS = 2
# Fields that change nothing here, and those that change nothing at these values.
_WITHOUT_EFFECT = ("user", "seed", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "top_p")
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "temperature": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
_KNOWN = ("model", "messages", "stream", "stream_options", "logprobs", "max_tokens", "max_completion_tokens", "ecg")


@dataclass(frozen=True)
class ChatRequest:
    """turns: questions with their answers, the last one's unknown; recordings: ids or files; segment: None for all."""

    turns: tuple[tuple[str, str], ...]
    recordings: tuple[str | Upload, ...]
    stream: bool
    usage: bool
    logprobs: bool
    most: int
    segment: int | None

    @classmethod
    def of(cls, body: Any, model: str, most: int, limits: ServeSettings) -> "ChatRequest":
        """Reads the JSON of a request; most: new tokens. Raises ApiError that names the field at fault."""
        fields = expect(body, dict, "the request")
        _check_fields(fields)
        name = expect(fields.get("model"), str, "model")
        if name != model:
            raise ApiError(404, f"model {name[:60]!r} found, {model!r} expected", "model", "model_not_found")
        turns, recordings = _read_messages(fields.get("messages"), limits)
        options = expect(fields.get("stream_options") or {}, dict, "stream_options")
        ecg = expect(fields.get("ecg") or {}, dict, "ecg")
        if ecg.keys() - {"segment"}:
            raise ApiError(400, f"ecg: {sorted(ecg)} found, 'segment' expected", "ecg")
        segment = ecg.get("segment")
        flags = (expect(fields.get(name) or False, bool, name) for name in ("stream", "logprobs"))
        stream, logprobs = flags
        return cls(
            turns, recordings, stream, expect(options.get("include_usage") or False, bool, "stream_options"), logprobs,
            _most(fields, most), None if segment is None else expect(segment, int, "ecg.segment"),
        )  # fmt: skip


def expect(value: Any, kind: type, name: str) -> Any:
    """The value, if it is of that type; raises ApiError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}[kind]
        found = "nothing" if value is None else repr(value)[:60]
        raise ApiError(400, f"{name}: {found} found, {words} expected", name)
    return value


def check_question(text: str, limits: ServeSettings, name: str = "messages") -> str:
    """The text; raises ApiError for an empty one, and as `check_text` does."""
    if not text.strip():
        raise ApiError(400, f"{name}: a question without words found", name)
    return check_text(text, limits, name)


def check_text(text: str, limits: ServeSettings, name: str) -> str:
    """The text; raises ApiError for one that is too long, and one that is no text."""
    if len(text) > limits.question_length:
        raise ApiError(400, f"{name}: {len(text)} characters found, at most {limits.question_length} expected", name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, f"{name}: half a character found, text expected", name) from error
    return text


def _check_fields(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name in _KNOWN or name in _WITHOUT_EFFECT or value is None:
            continue
        if name not in _ONLY:
            raise ApiError(400, f"{name[:60]}: a field that is not known here", name[:60], "unknown_parameter")
        if value not in _ONLY[name]:
            only = f"{_ONLY[name][0]!r} expected: the likeliest answer is given, one, as text"
            raise ApiError(400, f"{name}: {repr(value)[:60]} found, {only}", name, "unsupported_value")


def _most(fields: dict[str, Any], most: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        if fields.get(name) is not None:
            given = expect(fields[name], int, name)
            if given < 1:
                raise ApiError(400, f"{name}: {given} found, 1 or more expected", name)
            return min(given, most)
    return most


def _read_messages(messages: Any, limits: ServeSettings) -> tuple[tuple[tuple[str, str], ...], tuple[str | Upload, ...]]:
    """Turns, the question last, and the recordings in their order, each once."""
    messages = expect(messages, list, "messages")
    if not messages or len(messages) > limits.messages:
        raise ApiError(400, f"messages: {len(messages)} found, 1 to {limits.messages} expected", "messages")
    texts, files = [], []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        fields = expect(message, dict, where)
        role = ("user", "assistant")[number % 2]
        if fields.get("role") != role:
            found = repr(fields.get("role"))[:60]
            raise ApiError(
                400, f"{where}.role: {found} found, {role!r} expected: questions and answers in turn", f"{where}.role"
            )
        text, parts = _read_content(fields.get("content"), f"{where}.content")
        if role == "assistant" and parts:
            raise ApiError(400, f"{where}.content: a file found in an answer, text expected", f"{where}.content")
        texts.append(check_question(text, limits, f"{where}.content"))
        files += parts
    if len(texts) % 2 == 0:
        raise ApiError(400, "messages: an answer found at the end, a question expected", "messages")
    recordings = tuple(dict.fromkeys(files))
    if not 1 <= len(recordings) <= _MOST_RECORDINGS:
        raise ApiError(
            400, f"messages: {len(recordings)} recordings found, one expected, or two to be compared: a part of type 'file'",
            "messages", "recording",
        )  # fmt: skip
    return tuple(zip(texts[::2], (*texts[1::2], ""))), recordings


def _read_content(content: Any, where: str) -> tuple[str, list[str | Upload]]:
    if isinstance(content, str):
        return content, []
    texts, files = [], []
    for number, part in enumerate(expect(content, list, where)):
        fields = expect(part, dict, f"{where}[{number}]")
        match fields.get("type"):
            case "text":
                texts.append(expect(fields.get("text"), str, f"{where}[{number}].text"))
            case "file":
                files.append(read_file(expect(fields.get("file"), dict, f"{where}[{number}].file"), f"{where}[{number}].file"))
            case other:
                raise ApiError(400, f"{where}: a part of type {repr(other)[:60]} found, 'text' or 'file' expected", where)
    return "\n".join(texts), files


def read_file(fields: dict[str, Any], where: str) -> str | Upload:
    """The id of a recording, or a file in base64; raises ApiError."""
    if fields.get("file_id") is not None:
        return expect(fields["file_id"], str, f"{where}.file_id")
    name = expect(fields.get("filename") or "recording", str, f"{where}.filename")
    data = expect(fields.get("file_data"), str, f"{where}.file_data")
    encoded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        return Upload(name, base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{where}.file_data: not base64, 'data:...;base64,...' expected", f"{where}.file_data") from error
