"""The reports of segments: the answers to the questions about each, as features that MERL is trained to agree with.

Axes: M different texts, F features of a text.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.pretrain.text_encoder import encode_by_bert, encode_by_words


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

    def __getitem__(self, number: int) -> np.ndarray:
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
