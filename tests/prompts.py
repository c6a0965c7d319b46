"""Plain texts of ids, for tests that need no tokenizer."""

from collections.abc import Sequence

import numpy as np

from ecgbyte_jax.inputs.prompt import PromptIds, Text, render


def plain_prompt(ids: PromptIds, question: Sequence[int] | np.ndarray, ecgs: int = 1) -> np.ndarray:
    """The ids of a plain prompt without its ECGs' tokens."""
    head = [] if ids.bos is None else [ids.bos]
    return np.array([*head, *[ids.sig_start, ids.sig_end] * ecgs, *question], np.int32)


def plain_text(ids: PromptIds, question, answer, ecgs: int = 1) -> Text:
    """The text of a question and an answer, both given as ids."""
    prompt = plain_prompt(ids, question, ecgs)
    whole = np.array([*prompt, *answer, ids.eos], np.int32)
    return Text(whole, np.arange(len(whole)) >= len(prompt), len(prompt))


def plainly(ids: PromptIds, ecgs, question, answer, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """`render` of such a text."""
    return render(ids, plain_text(ids, question, answer, len(ecgs)), ecgs, max_length)
