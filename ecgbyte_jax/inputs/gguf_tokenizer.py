"""The text tokenizer of a GGUF file, from its metadata."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgbyte_jax.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_KIND = "tokenizer.ggml."
# Our names are transformers'; the metadata's are without "tokenizer.ggml.".
_PARTS = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
}
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_KINDS = ("gpt2", "llama")  # byte-level BPE and SentencePiece


def make_gguf_tokenizer(metadata: dict[str, Any], file: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a GGUF file's metadata describes, with its special tokens and chat template; file: for errors.

    transformers converts it. Raises TokenizerError where the metadata describe none that it knows.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        conversion: Any = import_module("transformers.integrations.gguf")  # not there in an older transformers
    except ImportError as error:
        raise TokenizerError(f"{file}: a GGUF file needs the extra: pip install -e '.[gguf]' ({error})") from error
    parts = {name: metadata[f"{_KIND}{key}"] for key, name in _PARTS.items() if f"{_KIND}{key}" in metadata}
    _check(parts, file)
    try:
        converted, _ = conversion.convert_gguf_tokenizer(metadata["general.architecture"], parts)
    except (ValueError, TypeError, LookupError) as error:
        raise TokenizerError(f"{file}: its tokenizer cannot be read: {error!r:.200}") from error
    options: dict[str, Any] = {"add_bos_token": metadata.get(f"{_KIND}add_bos_token", parts["tokenizer_type"] == "llama")}
    if f"{_KIND}add_eos_token" in metadata:
        options["add_eos_token"] = metadata[f"{_KIND}add_eos_token"]
    for key, name in _SPECIAL.items():
        options[name] = _token(parts["tokens"], metadata.get(f"{_KIND}{key}_token_id"), f"{file}: {_KIND}{key}_token_id")
    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(tokenizer_object=converted, clean_up_tokenization_spaces=False, **options)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _check(parts: dict[str, Any], file: Path) -> None:
    if (kind := parts.get("tokenizer_type")) not in _KINDS:
        raise TokenizerError(f"{file}: {_KIND}model {kind!r:.60} found, one of {_KINDS} expected")
    for name, expected in {"tokens": str, "merges": str, "scores": float, "token_type": int}.items():
        values = parts.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, expected) for value in values):
            raise TokenizerError(f"{file}: {_KIND}{name}: {values!r:.60} found, a list of {expected.__name__} expected")
    tokens = {*parts.get("tokens", [])}
    if not tokens or not ("merges" in parts or (kind == "llama" and len(parts.get("scores", [])) == len(parts["tokens"]))):
        raise TokenizerError(f"{file}: {_KIND}tokens and merges, or scores of all tokens, expected; {sorted(parts)} found")
    for merge in parts.get("merges", []):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= tokens:
            raise TokenizerError(f"{file}: {_KIND}merges: {merge!r:.60} found, two tokens that make up a third expected")


def _token(tokens: list[str], id: int | None, where: str) -> str | None:
    if id is not None and not 0 <= id < len(tokens):
        raise TokenizerError(f"{where}: {id} found, 0 to {len(tokens) - 1} expected")
    return None if id is None else tokens[id]
