"""The reports of segments: the answers to the questions about each, as features for MERL or tokens for CLIP.

Axes: M different texts, F features of a text, T tokens.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.encoders.config import TEXT_PLACES
from ecgbyte_jax.errors import ShardsError, TokenizerError
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.inputs.text import encode_texts, literal, load_text_tokenizer
from ecgbyte_jax.pretrain.text_encoder import encode_by_bert, encode_by_words

_TOGETHER = 10_000  # texts that are tokenised together


@dataclass(frozen=True)
class Reports:
    """The different texts, ascending, and the numbers among them of those about each segment."""

    texts: list[str]
    of_segment: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, outlines: list[Sequence]) -> "Reports":
        """What sequences say, see `batches.outlines_of`; those about several segments are left out.

        A segment that one question is asked about has the answer for its text, others have as many texts as questions, each
        with its answer; the earlier turns of a conversation count as well.
        """
        said: dict[int, set[tuple[str, str]]] = defaultdict(set)
        for outline in outlines:
            if len(outline.ecgs) == 1:
                said[int(outline.ecgs[0])] |= {*outline.history, (outline.question, outline.answer)}
        texts = {number: _texts(turns) for number, turns in said.items()}
        different = sorted({text for each in texts.values() for text in each})
        places = {text: place for place, text in enumerate(different)}
        return cls(different, {number: tuple(places[text] for text in each) for number, each in texts.items()})


def _texts(turns: set[tuple[str, str]]) -> list[str]:
    return [answer if len(turns) == 1 else f"{question} {answer}" for question, answer in sorted(turns)]


@dataclass(frozen=True)
class ReportFeatures:
    """The features float32 [F] of each segment's report: the mean over its texts of their features [M, F]."""

    reports: Reports
    features: np.ndarray

    @property
    def size(self) -> int:
        """F."""
        return self.features.shape[1]

    def row(self, number: int, batch: int) -> np.ndarray:
        """Of a segment, in any batch."""
        return np.mean(self.features[list(self.reports.of_segment[number])], axis=0, dtype=np.float32)

    @classmethod
    def open(cls, file: Path, reports: Reports) -> "ReportFeatures":
        """Reads what `write_features` wrote, from the disk where it is used; raises ShardsError where it is damaged."""
        try:
            features = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ShardsError(f"{file}: damaged ({error}); remove its folder") from error
        if features.ndim != 2 or len(features) != len(reports.texts):
            raise ShardsError(f"{file}: shape {features.shape} found for {len(reports.texts)} texts; remove its folder")
        return cls(reports, features)


@dataclass(frozen=True)
class ReportTokens:
    """The tokens int32 [n] of each text, those that begin a text, the one that ends it; `size`: how many ids there are."""

    reports: Reports
    tokens: list[np.ndarray]
    start: tuple[int, ...]
    end: int
    size: int

    def row(self, number: int, batch: int) -> np.ndarray:
        """Ids int32 [T] of a segment's report between start and end, -1 after it, T = 77.

        Its texts follow each other in an order that the two numbers draw, and what exceeds T is cut: over many batches, all of
        them are read.
        """
        texts = np.random.default_rng((number, batch)).permutation(self.reports.of_segment[number])
        free = TEXT_PLACES - len(self.start) - 1
        ids = [*self.start, *np.concatenate([self.tokens[text] for text in texts])[:free], self.end]
        return np.pad(np.array(ids, np.int32), (0, TEXT_PLACES - len(ids)), constant_values=-1)

    @classmethod
    def of(cls, reports: Reports, folder: Path) -> "ReportTokens":
        """Of all texts, by the tokenizer of a Hugging Face folder; raises TokenizerError where it cannot be used."""
        tokenizer = load_text_tokenizer(folder)
        if tokenizer.eos_token_id is None:
            raise TokenizerError(f"{folder}: the tokenizer has no token that ends a text, an eos_token expected")
        encoder, tokens = literal(tokenizer.backend_tokenizer), []
        for first in range(0, len(reports.texts), _TOGETHER):
            encoded = encode_texts(encoder, reports.texts[first : first + _TOGETHER])
            tokens += [ids[:TEXT_PLACES].copy() for ids in encoded]
        start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        return cls(reports, tokens, start, tokenizer.eos_token_id, len(tokenizer))


def write_features(file: Path, reports: Reports, text_encoder: str) -> None:
    """Writes the features [M, F] of all texts; raises as `encode_by_bert`, and ShardsError where there is no text."""
    if not reports.texts:
        raise ShardsError("no question about a single segment found: kind 'merl' reads the answers to them as reports")
    encoded = encode_by_bert(Path(text_encoder), reports.texts) if text_encoder else encode_by_words(reports.texts)
    first = next(encoded)
    shape = len(reports.texts), first.shape[1]
    written = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    written[: len(first)], start = first, len(first)
    for batch in encoded:
        written[start : start + len(batch)] = batch
        start += len(batch)
    written.flush()
