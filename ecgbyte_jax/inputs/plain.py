"""The published prompt: bos, the ECGs, the question and the answer, with nothing between them, and eos.

Where the text tokenizer has no bos token (Qwen), it begins with <sig_start>. The earlier turns of a conversation are in front
of the question, each on a line of its own.
"""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from ecgbyte_jax.inputs.prompt import Dialogue, PromptIds, Text
from ecgbyte_jax.inputs.text import encode_texts


@dataclass(frozen=True, eq=False)
class Plain:
    """How dialogues become ids; encoder: as `text.load_encoder` loads it."""

    encoder: Tokenizer
    bos: int | None
    eos: int
    markers: tuple[int, int]

    @classmethod
    def of(cls, encoder: Tokenizer, ids: PromptIds) -> "Plain":
        """With the ids of the encoder's special tokens."""
        return cls(encoder, ids.bos, ids.eos, (ids.sig_start, ids.sig_end))

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return (self.eos,)

    def texts(self, dialogues: list[Dialogue], every_answer: bool = False) -> list[Text]:
        """The dialogues with the answer to the last question, on which the loss is taken; it never is on earlier ones."""
        prompts = self.prompts(dialogues)
        answers = encode_texts(self.encoder, [dialogue.turns[-1][1] for dialogue in dialogues])
        texts = []
        for prompt, answer in zip(prompts, answers):
            ids = np.concatenate([prompt, answer, [self.eos]]).astype(np.int32)
            texts.append(Text(ids, np.arange(len(ids)) >= len(prompt), len(prompt)))
        return texts

    def prompts(self, dialogues: list[Dialogue]) -> list[np.ndarray]:
        """The ids int32 [n] that a model is given to answer the last question of each dialogue."""
        questions = encode_texts(self.encoder, [_question(dialogue) for dialogue in dialogues])
        return [np.append(self._head(dialogue), ids).astype(np.int32) for dialogue, ids in zip(dialogues, questions)]

    def locate(self, dialogue: Dialogue) -> tuple[str, np.ndarray, list[tuple[int, int]]]:
        """The question as the prompt has it, the places int [q] of its tokens in the prompt's ids, and their characters."""
        question = _question(dialogue)
        offsets = self.encoder.encode(question, add_special_tokens=False).offsets
        return question, len(self._head(dialogue)) + np.arange(len(offsets)), offsets

    def _head(self, dialogue: Dialogue) -> list[int]:
        return ([] if self.bos is None else [self.bos]) + [*self.markers] * dialogue.ecgs


def _question(dialogue: Dialogue) -> str:
    """The last question, after the earlier turns."""
    return "\n".join([text for turn in dialogue.turns for text in turn][:-1])
