"""What is asked about, as a model reads it: one recording in segments, or several in one prompt.

Axes: S segments, T samples of a segment, n ids of a prompt's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.form import fit
from ecgbyte_jax.inputs.prompt import Dialogue
from ecgbyte_jax.inputs.recording import Recording
from ecgbyte_jax.train.restore import Trained

FOREIGN = "the model was trained on synthetic ECGs alone, and this is not one of them: expect wrong answers"
_CLIPPED = 0.05  # share of a lead beyond the tokenizer's range, which 6% of 49 recordings of PTB-XL exceed: worth a warning


@dataclass(frozen=True, eq=False)
class Subject:
    """What is asked about: one recording, or several in one prompt.

    name: of all of them; rate in Hz; seconds of a segment; segments, signals: of each segment what the model reads of the
    ECGs, see `PromptIds.spell`, and their clean signals float64 [12, T] in mV.
    """

    name: str
    recordings: tuple[Recording, ...]
    rate: float
    seconds: float
    segments: tuple[tuple[np.ndarray, ...], ...]
    signals: tuple[tuple[np.ndarray, ...], ...]

    @classmethod
    def of(cls, trained: Trained, group: Sequence[Recording]) -> "Subject":
        """As many segments as the shortest recording has; with a warning where the tokenizer clips much of a lead."""
        if not trained.ids.vectors:
            group = [_with_clipping(recording, trained) for recording in group]
        first = group[0]
        signals = tuple(zip(*(recording.segments for recording in group)))
        if trained.ids.vectors:
            ecgs = tuple(tuple(signal.astype(np.float32) for signal in segment) for segment in signals)
        else:
            ecgs = tuple(zip(*(trained.ecg_tokenizer.encode_batch(recording.segments) for recording in group)))
        name, seconds = " and ".join(recording.name for recording in group), first.segments.shape[-1] / first.clean_rate
        return cls(name, tuple(group), first.clean_rate, seconds, ecgs, signals)

    def prompt(self, trained: Trained, turns: Sequence[tuple[str, str]]) -> tuple[np.ndarray, int]:
        """The text ids int32 [n] of the prompt for the last turn's question, and how many of the turns were left out.

        Raises ExampleError where they leave the ECGs no room.
        """
        dialogue, fewest = Dialogue(len(self.recordings), tuple(turns)), trained.ids.fewest(self.segments[0])
        ((prompt, left_out),) = fit(trained.form.prompts, [dialogue], trained.max_length - 1, fewest)
        if isinstance(prompt, ExampleError):
            raise prompt
        return prompt, left_out


def with_foreign(recording: Recording) -> Recording:
    """Adds the warning that a model of synthetic ECGs has seen nothing like it."""
    return replace(recording, warnings=(FOREIGN, *recording.warnings))


def _with_clipping(recording: Recording, trained: Trained) -> Recording:
    low, high = trained.ecg_tokenizer.quantizer.low, trained.ecg_tokenizer.quantizer.high
    outside = (recording.segments < low) | (recording.segments > high)
    worst = int(outside.mean(axis=(0, 2)).argmax())
    share = float(outside[:, worst].mean())
    if share < _CLIPPED:
        return recording
    span = f"{low:.2f} to {high:.2f} mV"
    text = f"{share:.0%} of the samples of {LEADS[worst]} lie beyond the tokenizer's range of {span} and are clipped"
    return replace(recording, warnings=(*recording.warnings, text))
