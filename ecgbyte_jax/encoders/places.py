"""Which samples of which leads the features of an ECG stand for, so that weights on them can be drawn over the trace.

Axes: L samples, N vectors of an ECG, T features of which they are made.
"""

from dataclasses import dataclass

import numpy as np

from ecgbyte_jax.encoders.config import LEADS, SIDE, STRIDE, EcgInputConfig, EncoderConfig, count_places, patch_grid, vision_of


@dataclass(frozen=True, eq=False)
class Places:
    """Where each of T features lies in a segment: its shares of the leads [T, 12] and of the samples [T, L], rows of sum 1.

    about: what vectors made of them stand for, in a sentence.
    """

    by_lead: np.ndarray
    by_sample: np.ndarray
    about: str

    def spread(self, weights: np.ndarray) -> np.ndarray:
        """The weights [T] of the features, each spread evenly over its place, float32 [12, L]; their sum stays the same."""
        return ((self.by_lead * weights[:, None]).T @ self.by_sample).astype(np.float32)


def feature_places(config: EcgInputConfig, encoder: EncoderConfig, samples: int) -> Places | None:
    """The places of what `EcgInput.shares` says each vector is made of; None where one vector is of all samples alike.

    A span that is mapped by itself is its place. The features of an encoder have seen more than theirs: all of the segment, by
    attention, or with MERL the samples around it: its places are centred 16 samples apart, and stand for the nearest ones.
    """
    kind = encoder.kind if config.kind == "encoder" else config.kind
    if config.vectors == 1 and not (config.kind == "encoder" and config.connector == "query"):
        return None
    leads, together = np.eye(LEADS), np.full((1, LEADS), 1 / LEADS)
    match kind:
        case "elf_patch":
            by_lead, by_sample, what = together, _spans(config.vectors, samples), "all leads"
        case "mtae":
            by_lead, by_sample, what = together, _spans(patch_grid(encoder, samples).patches, samples), "all leads"
        case "mlae":
            by_lead, by_sample, what = leads, np.full((1, samples), 1 / samples), "one lead"
        case "st_mem":
            spans = _spans(patch_grid(encoder, samples).patches, samples)
            by_lead, by_sample, what = np.repeat(leads, len(spans), axis=0), np.tile(spans, (LEADS, 1)), "one lead"
        case "merl":
            nearest = np.minimum((np.arange(samples) + STRIDE // 2) // STRIDE, count_places(samples) - 1)
            by_lead, by_sample, what = together, _evenly(nearest), "all leads"
        case "vit" | "clip":
            side = SIDE // vision_of(encoder).patch
            seen = LEADS if encoder.published_crop else samples
            rows, columns = _overlaps(side, LEADS, LEADS), _overlaps(side, samples, seen)
            by_lead, by_sample = np.repeat(rows, side, axis=0), np.tile(columns, (side, 1))
            what = f"{(rows > 0).sum(axis=1).max()} leads at most"
        case _:
            raise AssertionError(f"no places for {kind}")
    features = max(len(by_lead), len(by_sample))
    length = STRIDE if kind == "merl" else int((by_sample[0] > 0).sum())
    by_lead, by_sample = np.broadcast_to(by_lead, (features, LEADS)), np.broadcast_to(by_sample, (features, samples))
    return Places(by_lead, by_sample, _about(config, kind, features, f"{length} samples of {what}"))


def _about(config: EcgInputConfig, kind: str, features: int, place: str) -> str:
    if config.kind != "encoder":
        return f"Each of {config.vectors} vectors is a linear map of {place}."
    seen = "the samples around" if kind == "merl" else "the whole segment"
    if config.connector == "query":
        made = f"{config.vectors} vectors attend to {features} features"
    else:
        made = f"{config.vectors} vectors, means of {features // config.vectors} features"
    return f"{made}, each of {place}; a feature has also seen {seen}."


def _spans(count: int, samples: int) -> np.ndarray:
    """Consecutive spans of equal length."""
    return _evenly(np.arange(samples) * count // samples)


def _overlaps(parts: int, count: int, seen: int) -> np.ndarray:
    """The shares [parts, count] of places in equal parts of the `seen` ones in the middle; a part may end within a place."""
    edges = (count - seen) / 2 + np.arange(parts + 1) * seen / parts
    ends = np.minimum(edges[1:, None], np.arange(1, count + 1)) - np.maximum(edges[:-1, None], np.arange(count))
    return np.maximum(ends, 0) * parts / seen


def _evenly(span_of: np.ndarray) -> np.ndarray:
    """The shares [spans, L] of the samples, by the span int [L] that each belongs to."""
    spans = span_of == np.arange(span_of[-1] + 1)[:, None]
    return spans / spans.sum(axis=1, keepdims=True)
