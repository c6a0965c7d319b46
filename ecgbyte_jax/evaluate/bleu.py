"""BLEU-4 (Papineni et al. 2002) from counts that can be summed over pairs, smoothed as in Chen & Cherry 2014, method 1."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

_ORDERS = 4  # n-grams of 1 to 4 words
_SMOOTHING = 0.1  # in place of no match


def bleu_counts(reference: list[str], hypothesis: list[str]) -> list[int]:
    """The 10 counts of a pair, in the order that `PairScores` names."""
    matched, given = [], []
    for order in range(1, _ORDERS + 1):
        answered = Counter(ngrams(hypothesis, order))
        expected = Counter(ngrams(reference, order))
        matched.append(sum(min(count, expected[ngram]) for ngram, count in answered.items() if ngram in expected))
        given.append(max(1, len(hypothesis) - order + 1))
    return [*matched, *given, len(hypothesis), len(reference)]


def ngrams(words: list[str], order: int) -> Iterable[tuple[str, ...]]:
    """All runs of `order` consecutive words."""
    return zip(*(words[start:] for start in range(order)))


def bleu_of(counts: np.ndarray) -> np.ndarray:
    """BLEU [...] of counts [..., 10], those of one pair or summed over a corpus."""
    matched, given = counts[..., :_ORDERS], counts[..., _ORDERS : 2 * _ORDERS]
    answer_words, reference_words = counts[..., -2], counts[..., -1]
    precisions = np.where(matched == 0, _SMOOTHING, matched) / given
    brevity = np.exp(np.minimum(0.0, 1 - reference_words / np.maximum(answer_words, 1)))
    return np.where(matched[..., 0] == 0, 0.0, brevity * np.exp(np.log(precisions).mean(axis=-1)))
