"""The ECG tokenizer: quantizer and byte pair encoding in one readable JSON file.

Axes: L leads (12), T samples of a segment, S segments.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, Quantizer
from ecgbyte_jax.errors import TokenizerError

_FORMAT, _VERSION = "ecgbyte_jax.ecg_tokenizer", 1
_FIELDS = {"format", "version", "percentile_1_mv", "percentile_99_mv", "merges"}


@dataclass(frozen=True)
class ECGTokenizer:
    """Turns a clean signal into ECG tokens and back; leads are flattened one after the other, tokens may cross them."""

    quantizer: Quantizer
    bpe: BPE

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """A clean segment [12, T] in mV to int32 ids [n]."""
        return self.encode_batch(np.asarray(signal)[None])[0]

    def encode_batch(self, segments: np.ndarray) -> list[np.ndarray]:
        """Clean segments [S, 12, T] in mV to S arrays of int32 ids."""
        if segments.ndim != 3 or segments.shape[1] != len(LEADS):
            raise TokenizerError(f"segments of shape {segments.shape} found, [segments, {len(LEADS)}, samples] wanted")
        return self.bpe.encode_batch(self.quantizer.encode(segments).reshape(len(segments), -1))

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids [n] to float64 mV [12, T], each sample at the centre of its bin.

        Raises TokenizerError where the ids do not stand for whole leads of equal length.
        """
        symbols = self.bpe.decode(ids)
        if symbols.size % len(LEADS):
            raise TokenizerError(f"the ids stand for {symbols.size} samples, a multiple of {len(LEADS)} leads wanted")
        return self.quantizer.decode(symbols.reshape(len(LEADS), -1))

    def save(self, path: str | Path) -> None:
        """Writes the JSON file; the same tokenizer gives the same bytes."""
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "percentile_1_mv": self.quantizer.percentile_1,
            "percentile_99_mv": self.quantizer.percentile_99,
        }
        rows = [f"[{left}, {right}, {n}]" for (left, right), n in zip(self.bpe.merges, self.bpe.counts)]
        text = json.dumps(head, indent=1)[:-2] + ',\n "merges": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    @classmethod
    def load(cls, path: str | Path) -> "ECGTokenizer":
        """Reads what `save` wrote; raises TokenizerError, naming file and field, for anything else."""
        try:
            found = json.loads(Path(path).read_text())
        except FileNotFoundError as error:
            raise TokenizerError(f"{path}: no such file; `--stage=prepare` makes it") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: not readable as JSON, or truncated: {error}") from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise TokenizerError(f"{path}: field 'format' is not '{_FORMAT}', so this is no ECG tokenizer")
        if found.get("version") != _VERSION:
            raise TokenizerError(f"{path}: version {found.get('version')} found, {_VERSION} wanted; update ecgbyte_jax")
        if set(found) != _FIELDS:
            raise TokenizerError(f"{path}: fields {sorted(found)} found, {sorted(_FIELDS)} wanted")
        return cls(_quantizer(found, path), _bpe(found["merges"], path))


def _quantizer(found: dict, path: str | Path) -> Quantizer:
    percentiles = found["percentile_1_mv"], found["percentile_99_mv"]
    if not all(isinstance(p, float) and np.isfinite(p) for p in percentiles):
        raise TokenizerError(f"{path}: percentiles {percentiles} found, two numbers in mV wanted")
    return Quantizer(*percentiles)


def _bpe(rows: list, path: str | Path) -> BPE:
    try:
        table = np.array(rows, np.int64).reshape(-1, 3) if rows else np.empty((0, 3), np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise TokenizerError(f"{path}: field 'merges' holds a row that is not [left, right, count]: {error}") from error
    try:
        return BPE(table[:, :2], table[:, 2])
    except TokenizerError as error:
        raise TokenizerError(f"{path}: field 'merges': {error}") from error


def published_id(ids: np.ndarray) -> np.ndarray:
    """The published ids of compact ones: 97 + letter ('a' is 97), 256 + merge."""
    ids = np.asarray(ids)
    return np.where(ids < ALPHABET_SIZE, ids + ord("a"), ids - ALPHABET_SIZE + 256)
