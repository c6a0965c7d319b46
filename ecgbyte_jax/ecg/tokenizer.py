"""The ECG tokenizer: quantizer and byte pair encoding in one readable JSON file.

Axes: L leads (12), T samples per segment, S segments, n tokens.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.published import ecg_text_ids, read_published
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, Quantizer, parse, spell
from ecgbyte_jax.errors import TokenizerError
from ecgbyte_jax.files import write_whole

_FORMAT, _VERSION = "ecgbyte_jax.ecg_tokenizer", 3
_FIELDS = {"format", "version", "sha256", "percentile_1_mv", "percentile_99_mv", "training"}


@dataclass(frozen=True)
class Training:
    """What a tokenizer was trained on, and how.

    num_merges: the number requested; boundary: "record" or "lead", whose ends no token crosses, or "" for none; segments,
    symbols: the corpus' size; clipped: its samples out of the quantizer's range; corpus_sha256: of the symbols, one byte each.
    """

    num_merges: int
    boundary: str
    segments: int
    symbols: int
    clipped: int
    corpus_sha256: str


@dataclass(frozen=True)
class ECGTokenizer:
    """Encodes clean signals as ECG tokens and back; leads are flattened one after the other, tokens may cross them."""

    quantizer: Quantizer
    bpe: BPE
    training: Training | None = None

    @overload
    def encode(self, signal: np.ndarray, *, return_offsets: Literal[False] = False) -> np.ndarray: ...

    @overload
    def encode(self, signal: np.ndarray, *, return_offsets: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def encode(self, signal: np.ndarray, *, return_offsets: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Encodes a clean segment [12, T] in mV as int32 ids [n].

        With `return_offsets`: (ids, offsets), offsets int32 [n] being where each token starts in the flattened segment, with
        lead l, sample t at l * T + t. Raises TokenizerError for other shapes or values that are not finite.
        """
        ids = self.encode_batch(np.asarray(signal)[None])[0]
        return (ids, self.bpe.offsets(ids)) if return_offsets else ids

    @overload
    def encode_batch(self, segments: np.ndarray, *, return_offsets: Literal[False] = False) -> list[np.ndarray]: ...

    @overload
    def encode_batch(
        self, segments: np.ndarray, *, return_offsets: Literal[True]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]: ...

    def encode_batch(
        self, segments: np.ndarray, *, return_offsets: bool = False
    ) -> list[np.ndarray] | tuple[list[np.ndarray], list[np.ndarray]]:
        """Encodes clean segments [S, 12, T] in mV as S arrays of int32 ids; with offsets, (ids, offsets), S arrays each."""
        segments = np.asarray(segments)
        if segments.ndim != 3 or segments.shape[1] != len(LEADS):
            raise TokenizerError(f"segments of shape {segments.shape} found, [segments, {len(LEADS)}, samples] expected")
        symbols = self.quantizer.encode(segments)
        ids = self.bpe.encode_batch(symbols.reshape(len(segments), math.prod(segments.shape[1:])))
        return (ids, [self.bpe.offsets(row) for row in ids]) if return_offsets else ids

    def encode_as_text_ids(self, signal: np.ndarray, text_tokenizer: Any) -> np.ndarray:
        """Encodes a clean segment [12, T] in mV as the text tokenizer's ids of its tokens, int32 [n], which a model reads.

        text_tokenizer: of transformers, with the tokens `signal_<published id>`; raises TokenizerError where it lacks them.
        """
        return ecg_text_ids(text_tokenizer, self.bpe.vocab_size)[self.encode(signal)]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Decodes ids [n] to float64 mV [12, T], each sample at the centre of its bin.

        Raises TokenizerError if the ids do not decode to leads of equal length.
        """
        symbols = self.bpe.decode(ids)
        if symbols.size % len(LEADS):
            raise TokenizerError(f"the ids decode to {symbols.size} samples, a multiple of {len(LEADS)} leads expected")
        return self.quantizer.decode(symbols.reshape(len(LEADS), -1))

    def encodes_like(self, other: "ECGTokenizer") -> bool:
        """Whether both encode every signal identically, however they were made."""
        return self.quantizer == other.quantizer and self.bpe.tokens_sha256 == other.bpe.tokens_sha256

    def digest(self) -> str:
        """SHA-256 of percentiles, training, tokens, merges and counts, independent of the file's formatting."""
        head = [self.quantizer.percentile_1, self.quantizer.percentile_99, self.training and asdict(self.training)]
        digest = hashlib.sha256(json.dumps([*head, self.bpe.tokens_sha256]).encode())
        if self.bpe.merges is not None and self.bpe.counts is not None:
            digest.update(np.column_stack([self.bpe.merges, self.bpe.counts]).astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the JSON file atomically, and next to it the encoder's tables, which only save time.

        The same tokenizer gives the same bytes. Raises OSError.
        """
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "sha256": self.digest(),
            "percentile_1_mv": self.quantizer.percentile_1,
            "percentile_99_mv": self.quantizer.percentile_99,
            "training": asdict(self.training) if self.training else None,
        }
        if self.bpe.merges is None or self.bpe.counts is None:
            name, rows = "tokens", [f'"{spell(token)}"' for token in self.bpe.tokens[ALPHABET_SIZE:]]
        else:
            merges = zip(self.bpe.merges.tolist(), self.bpe.counts.tolist())
            name, rows = "merges", [f"[{left}, {right}, {count}]" for (left, right), count in merges]
        text = json.dumps(head, indent=1)[:-2] + f',\n "{name}": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
        write_whole(Path(path), [text.encode()])
        self.bpe.save_automaton(_automaton_path(path))

    @classmethod
    def load(cls, path: str | Path) -> "ECGTokenizer":
        """Reads what `save` wrote; raises TokenizerError, naming file and field, for anything else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise TokenizerError(f"{path}: no such file; `--stage=prepare` creates it") from error
        except OSError as error:
            raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number of thousands of digits
            raise TokenizerError(f"{path}: not readable as JSON, or truncated: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise TokenizerError(f"{path}: field 'format' is not '{_FORMAT}', so this is not an ECG tokenizer")
        if content.get("version") != _VERSION:
            raise TokenizerError(
                f"{path}: version {content.get('version')} found, {_VERSION} expected; a newer file needs a newer ecgbyte_jax, "
                "an older one is rebuilt by `--stage=prepare`"
            )
        if set(content) not in (_FIELDS | {"merges"}, _FIELDS | {"tokens"}):
            raise TokenizerError(f"{path}: fields {sorted(content)} found, {sorted(_FIELDS)} and 'merges' or 'tokens' expected")
        try:
            bpe = _read_merges(content["merges"]) if "merges" in content else _read_tokens(content["tokens"])
            tokenizer = cls(_read_quantizer(content), bpe, _read_training(content["training"]))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error
        if content["sha256"] != tokenizer.digest():
            raise TokenizerError(
                f"{path}: field 'sha256' is {content['sha256']!r:.70}, {tokenizer.digest()!r} expected for its content: "
                "it is damaged or was edited; use another copy, or delete it and run --stage=prepare again"
            )
        bpe.load_automaton(_automaton_path(path))
        return tokenizer

    @classmethod
    def from_published(cls, pickle_path: str | Path, percentile_1: float, percentile_99: float) -> "ECGTokenizer":
        """Loads a published ECG-Byte tokenizer with its percentiles (mV); its merges are unknown.

        The pickle is not executed; raises TokenizerError like `read_published`. `published_id` and `compact_id` map ids.
        """
        return cls(Quantizer(percentile_1, percentile_99), BPE(read_published(pickle_path)))


def _automaton_path(path: str | Path) -> Path:
    return Path(path).with_suffix(".automaton.npz")


def _read_quantizer(content: dict) -> Quantizer:
    percentiles = content["percentile_1_mv"], content["percentile_99_mv"]
    if not all(type(p) in (int, float) for p in percentiles):
        raise TokenizerError(f"percentiles {percentiles!r:.80} found, two numbers in mV expected")
    return Quantizer(*percentiles)


def _read_training(values: Any) -> Training | None:
    if values is None:
        return None
    types = {field.name: field.type for field in fields(Training)}
    if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != types:
        raise TokenizerError(f"field 'training' is {values}, {', '.join(types)} expected")
    return Training(**values)


def _read_merges(rows: object) -> BPE:
    if not isinstance(rows, list):
        raise TokenizerError(f"field 'merges' is {rows!r:.40}, a list expected")
    for row in rows:
        if not (isinstance(row, list) and len(row) == 3 and all(type(value) is int and 0 <= value < 1 << 62 for value in row)):
            raise TokenizerError(f"field 'merges' holds {row!r:.40}, [left, right, count] expected")
    table = np.array(rows, np.int64).reshape(-1, 3)
    return BPE.of_merges(table[:, :2], table[:, 2])


def _read_tokens(rows: object) -> BPE:
    if not isinstance(rows, list):
        raise TokenizerError(f"field 'tokens' is {rows!r:.40}, a list expected")
    try:
        return BPE([*(np.array([letter], np.uint8) for letter in range(ALPHABET_SIZE)), *map(parse, rows)])
    except TokenizerError as error:
        raise TokenizerError(f"field 'tokens' holds {error}") from error
