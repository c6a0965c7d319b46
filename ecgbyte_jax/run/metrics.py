"""Scores of generated answers: pure functions on (references, hypotheses), each in 0..1, as the published tables take them.

Axes: N pairs, M scores that are averaged over pairs.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.run.meteor import load_meteor

_ORDERS = 4  # BLEU's n-grams
_SMOOTHING = 0.1  # Chen & Cherry 2014, method 1
_ROUGE = ("rouge_1", "rouge_2", "rouge_l")
_ROUGE_EPSILON = 1e-8  # the library's, in the denominator of F
BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")

PairScore = Callable[[str, str], float]


@dataclass(frozen=True, eq=False)
class Scorers:
    """The scores that need more than this file: METEOR (WordNet) and BERTScore (a model); None, and why in `missing`."""

    meteor: PairScore | None = None
    bertscore: Callable[[list[str], list[str]], np.ndarray] | None = None
    missing: dict[str, str] | None = None

    @classmethod
    def load(cls, bertscore_model: str = "") -> "Scorers":
        """METEOR where WordNet is found, BERTScore where a model's folder is given; raises ScoresError for a bad folder."""
        bertscore = None
        if bertscore_model:
            from ecgbyte_jax.run.bertscore import load_bertscore  # brings PyTorch

            bertscore = load_bertscore(bertscore_model)
        try:
            return cls(load_meteor(), bertscore, {})
        except ScoresError as error:
            return cls(None, bertscore, {"meteor": str(error)})


@dataclass(frozen=True, eq=False)
class PairScores:
    """What the scores of N pairs follow from: what is averaged, float64 [N, M] by name, and BLEU's counts, int64 [N, 10].

    The counts: n-grams of the answer that the reference holds, n-grams of the answer (4 orders each), words of the answer and
    of the reference.
    """

    names: tuple[str, ...]
    averaged: np.ndarray
    counts: np.ndarray

    def sums(self, groups: np.ndarray, size: int) -> np.ndarray:
        """float64 [size, M + 11]: averaged scores, counts and pairs, summed over the pairs of each group int [N]."""
        columns = np.concatenate([self.averaged, self.counts, np.ones((len(groups), 1))], axis=1)
        return np.stack([np.bincount(groups, column, size) for column in columns.T], axis=1)

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> score [...] of sums [..., M + 11], in the order of the tables."""
        means = sums[..., : len(self.names)] / sums[..., -1:]
        found = {name: means[..., i] for i, name in enumerate(self.names)}
        return {"exact_match": found.pop("exact_match"), "bleu": _bleu_of(sums[..., len(self.names) : -1]), **found}

    def overall(self) -> dict[str, float]:
        """Name -> score of all pairs."""
        everything = self.sums(np.zeros(len(self.averaged), np.int64), 1)[0]
        return {name: float(value) for name, value in self.scores(everything).items()}

    def rows(self, chosen: np.ndarray) -> "PairScores":
        """Some of the pairs, by number or mask."""
        return PairScores(self.names, self.averaged[chosen], self.counts[chosen])


def measure(references: list[str], hypotheses: list[str], scorers: Scorers = Scorers()) -> PairScores:
    """What all scores of N >= 1 pairs follow from; an equal pair is looked at once. Raises ScoresError for no pairs."""
    _check(references, hypotheses)
    places: dict[tuple[str, str], int] = {}
    which = np.array([places.setdefault(pair, len(places)) for pair in zip(references, hypotheses)])
    names = ["exact_match", "mean_bleu", *(["meteor"] if scorers.meteor else []), *_ROUGE]
    counts = np.array([_bleu_counts(r.split(), h.split()) for r, h in places], np.int64)
    columns = [[_is_match(r, h) for r, h in places], _bleu_of(counts)]
    if scorers.meteor:
        columns.append([scorers.meteor(r, h) for r, h in places])
    columns += np.array([_rouge(r, h) for r, h in places]).T.tolist()
    if scorers.bertscore:
        names += BERTSCORE
        columns += scorers.bertscore(*map(list, zip(*places))).T.tolist()
    return PairScores(tuple(names), np.array(columns, np.float64).T[which], counts[which])


def score(references: list[str], hypotheses: list[str], scorers: Scorers = Scorers()) -> dict[str, float]:
    """Every score of N >= 1 pairs by name; an empty answer counts as wrong. Raises ScoresError for no pairs."""
    return measure(references, hypotheses, scorers).overall()


def exact_match(references: list[str], hypotheses: list[str]) -> float:
    """The share of answers that are the reference word for word; an empty answer is none."""
    _check(references, hypotheses)
    return float(np.mean([_is_match(*pair) for pair in zip(references, hypotheses)]))


def bleu(references: list[str], hypotheses: list[str]) -> float:
    """Corpus BLEU-4 of words parted at spaces (Papineni et al. 2002), smoothed as in Chen & Cherry 2014, method 1."""
    return float(_bleu_of(_all_counts(references, hypotheses).sum(axis=0)))


def mean_bleu(references: list[str], hypotheses: list[str]) -> float:
    """The mean of the BLEU-4 of each pair alone, which the published tables average."""
    return float(_bleu_of(_all_counts(references, hypotheses)).mean())


def meteor(references: list[str], hypotheses: list[str]) -> float:
    """The mean METEOR (Lavie & Agarwal 2007) of words parted at spaces; raises ScoresError where WordNet is missing."""
    _check(references, hypotheses)
    pair_score = load_meteor()
    return float(np.mean([pair_score(r, h) for r, h in zip(references, hypotheses)]))


def rouge(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, the mean F over the pairs (Lin 2004), as the library `rouge` takes it; an empty side scores 0."""
    _check(references, hypotheses)
    means = np.mean([_rouge(r, h) for r, h in zip(references, hypotheses)], axis=0)
    return dict(zip(_ROUGE, means.tolist()))


def macro_f1(references: list[str], hypotheses: list[str]) -> float:
    """The mean F1 over the classes of the references; answers that list the same words in another order are one class.

    An answer that is no class of the references, an empty one too, is wrong and makes no class of its own.
    """
    _check(references, hypotheses)
    wanted, given = ([_answer_class(text) for text in texts] for texts in (references, hypotheses))
    right, expected = Counter(w for w, g in zip(wanted, given) if w == g and g), Counter(wanted)
    answered = Counter(given)
    return sum(2 * right[name] / (expected[name] + answered[name]) for name in expected) / len(expected)


def is_closed(question_type: str) -> bool:
    """Whether ECG-QA's type of question lists its answers: yes and no, or some to choose from."""
    return question_type.endswith(("-verify", "-choose"))


def _check(references: list[str], hypotheses: list[str]) -> None:
    if not references or len(references) != len(hypotheses):
        raise ScoresError(
            f"{len(references)} references and {len(hypotheses)} answers found, as many of each wanted, at least one"
        )


def _is_match(reference: str, hypothesis: str) -> bool:
    return bool(hypothesis.strip()) and reference.strip() == hypothesis.strip()


def _answer_class(text: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[^\s,]+", text)))


def _all_counts(references: list[str], hypotheses: list[str]) -> np.ndarray:
    _check(references, hypotheses)
    return np.array([_bleu_counts(r.split(), h.split()) for r, h in zip(references, hypotheses)], np.int64)


def _bleu_counts(reference: list[str], hypothesis: list[str]) -> list[int]:
    """10 counts, as `PairScores` names them."""
    matched, given = [], []
    for order in range(1, _ORDERS + 1):
        found = Counter(_ngrams(hypothesis, order))
        wanted = Counter(_ngrams(reference, order))
        matched.append(sum(min(count, wanted[ngram]) for ngram, count in found.items() if ngram in wanted))
        given.append(max(1, len(hypothesis) - order + 1))
    return [*matched, *given, len(hypothesis), len(reference)]


def _ngrams(words: list[str], order: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(order)))


def _bleu_of(counts: np.ndarray) -> np.ndarray:
    """BLEU [...] of counts [..., 10], summed over a corpus or of one pair."""
    matched, given = counts[..., :_ORDERS], counts[..., _ORDERS : 2 * _ORDERS]
    words, wanted = counts[..., -2], counts[..., -1]
    precisions = np.where(matched == 0, _SMOOTHING, matched) / given
    brevity = np.exp(np.minimum(0.0, 1 - wanted / np.maximum(words, 1)))
    return np.where(matched[..., 0] == 0, 0.0, brevity * np.exp(np.log(precisions).mean(axis=-1)))


def _rouge(reference: str, hypothesis: str) -> tuple[float, float, float]:
    """F of ROUGE-1, -2 and -L of one pair; sentences end at full stops, and repeated words count once, as in the library."""
    sides = [[" ".join(part.split()).split(" ") for part in text.split(".") if part] for text in (reference, hypothesis)]
    if not all(sides):
        return 0.0, 0.0, 0.0
    words = [[word for sentence in side for word in sentence] for side in sides]
    found = []
    for order in (1, 2):
        wanted, given = (set(_ngrams(some, order)) for some in words)
        found.append(_f(len(wanted & given), len(wanted), len(given)))
    common = set().union(*(_common_words(r, h) for r in sides[0] for h in sides[1]))
    return *found, _f(len(common), len(set(words[0])), len(set(words[1])))


def _f(common: int, wanted: int, given: int) -> float:
    precision, recall = common / max(given, 1), common / max(wanted, 1)
    return 2 * precision * recall / (precision + recall + _ROUGE_EPSILON)


def _common_words(reference: list[str], hypothesis: list[str]) -> set[str]:
    """The words of a longest common subsequence; of several, the one that the library finds."""
    if reference == hypothesis:
        return set(reference)
    if set(reference).isdisjoint(hypothesis):
        return set()
    table = [[0] * (len(hypothesis) + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for j, other in enumerate(hypothesis):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, words = len(reference), len(hypothesis), set()
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            words.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
