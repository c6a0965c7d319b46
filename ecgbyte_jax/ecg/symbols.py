"""Quantising millivolts to the 26 letters a..z, stored as uint8 0..25, and back.

Axes: `...` any leading axes, T samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ecgbyte_jax.errors import TokenizerError

ALPHABET_SIZE = 26
_MARGIN_MV = 0.5
_EPSILON_MV = 1e-6
_FIT_SAMPLES = 100_000
_CHUNK = 1 << 15  # samples quantised at a time, few enough for the cache


@dataclass(frozen=True)
class Quantizer:
    """26 equal bins from 0.5 mV below the 1st to 0.5 mV above the 99th percentile (both in mV), as published.

    Raises TokenizerError unless the percentiles are two finite numbers, the first below the second.
    """

    percentile_1: float
    percentile_99: float

    def __post_init__(self) -> None:
        for name in ("percentile_1", "percentile_99"):
            object.__setattr__(self, name, _as_float(getattr(self, name)))  # so that JSON and repr do not depend on its type
        if not self.percentile_1 < self.percentile_99:
            raise TokenizerError(
                f"percentiles {self.percentile_1} and {self.percentile_99} mV found, the first below the second expected"
            )
        if not np.isfinite(self.high - self.low):
            raise TokenizerError(f"percentiles {self.percentile_1} and {self.percentile_99} mV found, finite ones expected")

    @property
    def low(self) -> float:
        """Lower end of the first bin in mV."""
        return self.percentile_1 - _MARGIN_MV

    @property
    def high(self) -> float:
        """Upper end of the last bin in mV."""
        return self.percentile_99 + _MARGIN_MV

    @classmethod
    def fit(cls, signals: Iterable[np.ndarray], *, seed: int = 0) -> "Quantizer":
        """Fits the percentiles to 100,000 random samples of `signals`, arrays of mV of any shape.

        One pass, constant memory: every sample draws a random key, and those with the smallest keys are kept, so all samples
        of the corpus are equally likely. Raises TokenizerError if there is none, or one is not finite.
        """
        rng = np.random.default_rng(seed)
        drawn = Drawn.none()
        for signal in signals:
            drawn = drawn.add(_finite(np.ravel(signal)), rng.random(np.size(signal)))
        return cls.of_samples(drawn)

    @classmethod
    def of_samples(cls, drawn: "Drawn") -> "Quantizer":
        """Fits the percentiles to samples already drawn; raises TokenizerError if there is none."""
        if not drawn.samples.size:
            raise TokenizerError("no signal found to fit the quantizer on, at least one sample expected")
        return cls(*(float(p) for p in np.percentile(drawn.samples, [1, 99])))

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """Quantises millivolts [..., T] to symbols uint8 [..., T] in 0..25; values out of range fall into the end bins.

        Raises TokenizerError if a value is not finite; `count_clipped` counts the values out of range.
        """
        signal = np.asarray(signal)
        symbols = np.empty(signal.shape, np.uint8)
        flat, out = signal.reshape(-1), symbols.reshape(-1)
        scaled = np.empty(min(_CHUNK, flat.size))
        for start in range(0, flat.size, _CHUNK):
            chunk = _finite(flat[start : start + _CHUNK])
            bins = scaled[: chunk.size]
            np.subtract(chunk, self.low, out=bins)
            bins /= self.high - self.low + _EPSILON_MV
            bins *= ALPHABET_SIZE
            np.clip(bins, 0, ALPHABET_SIZE - 0.5, out=bins)
            np.copyto(out[start : start + _CHUNK], bins, casting="unsafe")  # truncates
        return symbols

    def count_clipped(self, signal: np.ndarray) -> int:
        """Counts the samples [..., T] in mV that are out of range, which `decode` cannot restore."""
        return int(np.count_nonzero((signal < self.low) | (signal > self.high)))

    def decode(self, symbols: np.ndarray, *, published_inverse: bool = False) -> np.ndarray:
        """Restores float64 mV [..., T] from symbols [..., T]: the bin centres, with an error of at most half a bin.

        `published_inverse` spreads the symbols over [low, high], both included, with an error of up to one bin.
        """
        symbols = np.asarray(symbols)
        if published_inverse:
            return symbols / (ALPHABET_SIZE - 1) * (self.high - self.low) + self.low
        return (symbols + 0.5) / ALPHABET_SIZE * (self.high - self.low + _EPSILON_MV) + self.low


@dataclass(frozen=True, eq=False)
class Drawn:
    """The samples float64 [n] of a corpus with the smallest random keys float64 [n], at most 100,000."""

    samples: np.ndarray
    keys: np.ndarray

    @classmethod
    def none(cls) -> "Drawn":
        """No samples yet."""
        return cls(np.empty(0), np.empty(0))

    def add(self, samples: np.ndarray, keys: np.ndarray) -> "Drawn":
        """Adds samples [m] with their keys [m]; the result does not depend on the order or on how they are split up."""
        limit = self.keys.max() if len(self.keys) == _FIT_SAMPLES else np.inf
        keep = keys < limit
        samples, keys = np.concatenate([self.samples, samples[keep]]), np.concatenate([self.keys, keys[keep]])
        if len(keys) > _FIT_SAMPLES:
            smallest = np.argpartition(keys, _FIT_SAMPLES)[:_FIT_SAMPLES]
            samples, keys = samples[smallest], keys[smallest]
        return Drawn(samples, keys)


def _as_float(percentile: object) -> float:
    try:
        if isinstance(percentile, Real) and not isinstance(percentile, bool):
            return float(percentile)
    except OverflowError:
        pass  # an integer beyond the largest float
    raise TokenizerError(f"percentiles in mV: {percentile!r:.40} found, a finite number expected")


def _finite(signal: np.ndarray) -> np.ndarray:
    signal = np.asarray(signal, np.float64)
    if not np.isfinite(signal).all():
        raise TokenizerError("the signal holds values that are not finite (NaN); clean it first")
    return signal


def check_symbols(symbols: np.ndarray) -> np.ndarray:
    """Returns the array if it holds uint8 in 0..25; otherwise raises TokenizerError that names the type or symbol found."""
    symbols = np.asarray(symbols)
    if symbols.dtype != np.uint8:
        raise TokenizerError(f"symbols of type {symbols.dtype} found, uint8 expected; quantize the signal first")
    if symbols.size and symbols.max() >= ALPHABET_SIZE:
        raise TokenizerError(f"symbol {symbols.max()} found, 0 to {ALPHABET_SIZE - 1} expected")
    return symbols


def spell(symbols: np.ndarray) -> str:
    """Spells symbols uint8 [n] as the letters a to z."""
    return (check_symbols(symbols) + np.uint8(ord("a"))).tobytes().decode("ascii")


def parse(text: object) -> np.ndarray:
    """Parses a string of the letters a to z as symbols uint8 [n]; raises TokenizerError for anything else."""
    if not (isinstance(text, str) and text.isascii() and text.islower() and text.isalpha()):
        raise TokenizerError(f"{text!r:.40}, a string of the letters a to z expected")
    return np.frombuffer(text.encode("ascii"), np.uint8) - np.uint8(ord("a"))
