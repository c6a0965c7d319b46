"""Splits whose sequences show another ECG than their own, or none: what a model answers without reading the ECG.

A score that does not fall with these says little about reading ECGs.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import grain
import numpy as np

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import ConfigError, ExampleError
from ecgbyte_jax.inputs.batches import open_ecgs, open_outlines, open_split, outlines_of
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.inputs.shards import Sequence, read_lengths
from ecgbyte_jax.inputs.signals import open_signals


def open_shown(prepared: Prepared, split: str, shown: str, samples: int, seed: int) -> grain.MapDataset:
    """The sequences of a split, with the ECGs that `shown` says in place of their own ones, as a model reads them.

    shown: "own"; "shuffled": those of another patient, the same for all questions about an ECG; "zeros": 0 mV everywhere, for
    the `samples` of a segment; "none": no token between <sig_start> and <sig_end>. Raises ShardsError as `open_split` does,
    ConfigError where no other patient's ECG can be shown.
    """
    sequences = open_split(prepared.shards, prepared.manifest, split, _open_ecgs(prepared, split))
    if shown == "own":
        return sequences
    if shown == "shuffled":
        opened = prepared.shards, prepared.manifest, split
        donors, outlines, ecgs = _donors(outlines_of(*opened), split, seed), open_outlines(*opened), _open_ecgs(prepared, split)

        def read(number: int) -> Sequence:
            places = donors[_places(outlines[number])]
            return replace(sequences[number], ecgs=tuple(ecgs(place) for place in places))

        return grain.MapDataset.range(len(sequences)).map(read)
    same = _constant(prepared, shown, samples)
    return sequences.map(lambda sequence: replace(sequence, ecgs=(same,) * len(sequence.ecgs)))


def _open_ecgs(prepared: Prepared, split: str) -> Callable[[int], np.ndarray]:
    """Reads what a model reads of an ECG, see `PromptIds.spell`, by its number; raises ShardsError if a file is damaged."""
    if prepared.ids.vectors:
        return open_signals(prepared.workdir.signals).__getitem__
    return open_ecgs(prepared.shards, prepared.manifest, split)


def shown_lengths(prepared: Prepared, split: str, shown: str, sequences: grain.MapDataset, max_length: int) -> np.ndarray:
    """Of the sequences of `open_shown`, int32 [n, 2]: the tokens of each, and on how many of them the loss is taken.

    Raises ExampleError as `vector_lengths` does.
    """
    if prepared.ids.vectors:
        return vector_lengths(prepared, split, shown, max_length)
    lengths = read_lengths(prepared.shards, prepared.manifest, split)
    if shown == "own":
        return lengths
    members = (sequences[number] for number in range(len(sequences)))
    tokens = [min(len(member.text) + sum(map(len, member.ecgs)), max_length) for member in members]
    return np.stack([np.array(tokens, lengths.dtype), lengths[:, 1]], axis=1)


def vector_lengths(prepared: Prepared, split: str, shown: str, max_length: int) -> np.ndarray:
    """The `shown_lengths` for a model that reads vectors; raises ExampleError for a sequence that these do not fit into."""
    outlines = outlines_of(prepared.shards, prepared.manifest, split)
    vectors = 0 if shown == "none" else prepared.ids.vectors
    tokens = [len(outline.text) + vectors * len(outline.ecgs) for outline in outlines]
    if tokens and max(tokens) > max_length:
        longest = outlines[tokens.index(max(tokens))]
        raise ExampleError(
            f"prompt.max_length: {max_length} found, {max(tokens)} expected for question {longest.id!r} with ecg_input.vectors "
            f"{vectors} for each of its {len(longest.ecgs)} ECG; vectors are not cut"
        )
    lengths = read_lengths(prepared.shards, prepared.manifest, split)
    return np.stack([np.array(tokens, lengths.dtype), lengths[:, 1]], axis=1)


def shown_places(outlines: list[Sequence], split: str, shown: str, seed: int) -> list[tuple[int, ...]]:
    """The numbers of the recorded ECGs that each sequence of a split shows, none for zeros.

    outlines: of all sequences, see `batches.outlines_of`.
    """
    if shown in ("zeros", "none"):
        return [()] * len(outlines)
    donors = _donors(outlines, split, seed) if shown == "shuffled" else {}
    return [donors.get(places, places) for places in map(_places, outlines)]


def _constant(prepared: Prepared, shown: str, samples: int) -> np.ndarray:
    """What every sequence shows: compact ids, or the signal."""
    if prepared.ids.vectors:
        return np.zeros((len(LEADS), 0 if shown == "none" else samples), np.float32)
    if shown == "none":
        return np.zeros(0, np.int32)
    return prepared.ecg_tokenizer.encode(np.zeros((len(LEADS), samples)))


def _places(outline: Sequence) -> tuple[int, ...]:
    return tuple(int(place) for place in outline.ecgs)


def _donors(outlines: list[Sequence], split: str, seed: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For the ECGs that sequences show together, as many that none of their patients has; every one is a donor about once.

    In a mixture they are of the same set where it has such: a model may tell the sets apart and still read nothing.
    """
    patients: dict[tuple[int, ...], frozenset[str]] = {}
    sources = {_places(outline): outline.source for outline in outlines}
    for outline in outlines:
        owners = frozenset(outline.meta.get("patients", (outline.patient,)))
        patients[_places(outline)] = patients.get(_places(outline), frozenset()) | owners
    rng, donors = np.random.default_rng(seed), {}
    for count in sorted({len(places) for places in patients}):
        alike = [places for places in sorted(patients) if len(places) == count]
        drawn = [alike[i] for i in rng.permutation(len(alike))]
        by_source: dict[str, list[tuple[int, ...]]] = {}
        for places in drawn:
            by_source.setdefault(sources[places], []).append(places)
        for places, order, i in ((places, alike, i) for alike in by_source.values() for i, places in enumerate(alike)):
            others = chain((order[(i + step) % len(order)] for step in range(1, len(order))), drawn)
            donor = next((other for other in others if patients[places].isdisjoint(patients[other])), None)
            if donor is None:
                raise ConfigError(
                    f"data.ecg or eval.ecg: 'shuffled' found, but no other patient of split '{split}' has {count} ECG(s) to "
                    "show; 'own', 'zeros' or 'none' expected"
                )
            donors[places] = donor
    return donors
