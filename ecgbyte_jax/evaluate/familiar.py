"""Whether a question has the form of a training question: any other gets an answer that was learnt for those."""

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.shards import read_manifest

_SEQUENCES = 2_000  # of the training, drawn at random, whose questions are compared with
_ALIKE = 0.6  # share of the words, in their order, that two questions of one form have in common


@dataclass(frozen=True)
class Familiar:
    """The distinct questions of the training split, the commonest first, and the numbers of ECGs that they are about.

    conversations: whether some of them follow others.
    """

    questions: tuple[str, ...]
    ecgs: frozenset[int] = frozenset({1})
    conversations: bool = False

    @classmethod
    def of(cls, shards: Path, seed: int) -> "Familiar":
        """The questions of training sequences drawn at random from the shards' folder, and all that occur more than once."""
        manifest = read_manifest(shards)
        sequences = open_split(shards, manifest, "train")
        drawn = np.random.default_rng(seed).choice(len(sequences), min(_SEQUENCES, len(sequences)), replace=False)
        seen = [sequences[int(place)] for place in np.sort(drawn)]
        found = Counter(question for sequence in seen for question, _ in (*sequence.history, (sequence.question, "")))
        found.update(dict.fromkeys(manifest.commonest, 0))
        del found[""]
        questions = sorted(found, key=lambda question: (-found[question], question))
        ecgs, conversations = frozenset(len(sequence.ecgs) for sequence in seen), any(sequence.history for sequence in seen)
        return cls(tuple(questions), ecgs, conversations)

    def nearest(self, question: str) -> tuple[str, bool]:
        """The training's question that is most like this one, and whether both have the same form."""
        words = _words(question)
        matcher = SequenceMatcher(b=words, autojunk=False)
        best, likeness = "", -1.0
        for known in self.questions:
            matcher.set_seq1(_words(known))
            if matcher.real_quick_ratio() > likeness and matcher.quick_ratio() > likeness:
                ratio = matcher.ratio()
                best, likeness = (known, ratio) if ratio > likeness else (best, likeness)
        return best, likeness >= _ALIKE


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
