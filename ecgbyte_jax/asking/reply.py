"""A question's reply: the answers of all segments, the elected one, and what speaks against it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.asking.subject import Subject
from ecgbyte_jax.evaluate.familiar import Familiar
from ecgbyte_jax.evaluate.generations import Answer
from ecgbyte_jax.evaluate.votes import elect
from ecgbyte_jax.inputs.prompt import ecg_room, share_room
from ecgbyte_jax.train.restore import Trained

NOT_TO_USE = "research software, not a medical device"


@dataclass(frozen=True, eq=False)
class Reply:
    """The answers of all segments to a question, the number of the elected one, warnings, and pictures drawn."""

    question: str
    answers: list[Answer]
    best: int
    warnings: tuple[str, ...]
    pictures: tuple[Path, ...] = ()

    @property
    def agreeing(self) -> int:
        """How many segments have the elected answer."""
        return sum(answer.text == self.answers[self.best].text for answer in self.answers)

    @property
    def majority(self) -> bool:
        """Whether more than half of the segments have it."""
        return 2 * self.agreeing > len(self.answers)


def by_segment(subject: Subject, answers: Sequence[Answer], segments: Sequence[int]) -> list[dict]:
    """The answers of the segments with these numbers as JSON: their starts in s, and probabilities 0..1."""
    return [
        {"start_s": number * subject.seconds, "answer": answer.text, "probability": math.exp(answer.log_prob)}
        for number, answer in zip(segments, answers)
    ]


def vote(answers: list[Answer]) -> int:
    """The number of the answer that is elected."""
    return elect([answer.text for answer in answers], [answer.log_prob for answer in answers])


def doubts(trained: Trained, subject: Subject, question: str, prompt: np.ndarray, familiar: Familiar) -> Iterator[str]:
    """What speaks against the answer to this very question; prompt: its text ids int32 [n]."""
    nearest, same_form = familiar.nearest(question)
    if not same_form:
        yield f"no training question is like this one; the nearest is: {nearest}"
    count = len(subject.recordings)
    if count not in familiar.ecgs:
        known = f"{' or '.join(map(str, sorted(familiar.ecgs)))} ECG{'s' * (max(familiar.ecgs) > 1)}"
        yield f"the training's questions were about {known} at a time, this is about {count}"
    room = ecg_room(len(prompt), trained.max_length - 1, count)
    lengths = [[len(trained.ids.spell(ecg)) for ecg in ecgs] for ecgs in subject.segments]
    lost = [1 - sum(share_room(room, ecgs)) / sum(ecgs) for ecgs in lengths]
    if max(lost) > 0:
        cut = f"{sum(share > 0 for share in lost)} of {len(lost)} segments do not fit into the prompt"
        yield f"{cut}: up to {max(lost):.0%} of their tokens, those of the last leads, are cut off"
