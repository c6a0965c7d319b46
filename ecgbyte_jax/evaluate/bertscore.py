"""BERTScore (Zhang et al. 2020) by the library `bert-score`, with a model from a folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ecgbyte_jax.errors import ScoresError


def load_bertscore(folder: str) -> Callable[[list[str], list[str]], np.ndarray]:
    """A function (references, hypotheses) -> precision, recall, F1 float64 [N, 3]; a pair with an empty side scores 0.

    The layer is the one that the library recommends for the folder's name (17 for roberta-large, as published), else the last.
    Raises ScoresError where the extra is not installed or the folder holds no model.
    """
    if not Path(folder, "config.json").is_file():
        raise ScoresError(f"eval.bertscore_model: no config.json in '{folder}'; a Hugging Face folder, or '', expected")
    try:
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
        from transformers import AutoConfig
    except ImportError as error:
        raise ScoresError(f"eval.bertscore_model needs the extra `bertscore` ({error}): pip install bert-score") from error
    try:
        config = AutoConfig.from_pretrained(folder)
        scorer = BERTScorer(folder, num_layers=model2layers.get(Path(folder).name, config.num_hidden_layers))
    except (OSError, ValueError, AssertionError) as error:
        raise ScoresError(f"eval.bertscore_model: '{folder}' cannot be loaded: {error}") from error
    # Where a tokenizer does not state its limit, the library passes on one that overflows.
    limit = getattr(config, "max_position_embeddings", 512) - 2
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)

    def score(references: list[str], hypotheses: list[str]) -> np.ndarray:
        scores = np.zeros((len(references), 3))
        whole = [i for i, pair in enumerate(zip(references, hypotheses)) if all(text.strip() for text in pair)]
        if whole:  # for an empty text the library calls what version 5 of transformers no longer has
            parts = scorer.score([hypotheses[i] for i in whole], [references[i] for i in whole])
            scores[whole] = np.stack([part.numpy() for part in parts], axis=1)
        return scores

    return score
