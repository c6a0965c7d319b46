"""Scores of generated answers: pure functions of (references, hypotheses), each in 0..1, as in the published tables.

Axes: N pairs, M scores that are averaged over pairs.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.evaluate.bleu import bleu_counts, bleu_of
from ecgbyte_jax.evaluate.rouge import ROUGE, rouge_scores

BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
YES_NO = ("yes", "no")
_OF_SEVERAL_WORDS = ("bleu", "mean_bleu", "rouge_2")
PairScore = Callable[[str, str], float]


@dataclass(frozen=True, eq=False)
class Scorers:
    """The scores that need further files: METEOR (WordNet) and BERTScore (a model); one is None for the reason in `missing`."""

    meteor: PairScore | None = None
    bertscore: Callable[[list[str], list[str]], np.ndarray] | None = None
    missing: dict[str, str] | None = None

    @classmethod
    def load(cls, bertscore_model: str = "") -> "Scorers":
        """METEOR where WordNet is found, BERTScore where a model's folder is given; raises ScoresError for a bad folder."""
        from ecgbyte_jax.evaluate.meteor import load_meteor  # brings nltk: a second, which training need not wait for

        bertscore = None
        if bertscore_model:
            from ecgbyte_jax.evaluate.bertscore import load_bertscore  # brings PyTorch

            bertscore = load_bertscore(bertscore_model)
        try:
            return cls(load_meteor(), bertscore, {})
        except ScoresError as error:
            return cls(None, bertscore, {"meteor": str(error)})


@dataclass(frozen=True, eq=False)
class PairScores:
    """What the scores of N pairs are computed from: scores to average, float64 [N, M] by name; BLEU's counts, int64 [N, 10].

    The counts: n-grams of the answer that the reference has too, n-grams of the answer (4 orders each), words of the answer and
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
        averages = {name: means[..., i] for i, name in enumerate(self.names)}
        return {"exact_match": averages.pop("exact_match"), "bleu": bleu_of(sums[..., len(self.names) : -1]), **averages}

    def overall(self) -> dict[str, float]:
        """Name -> score of all pairs."""
        everything = self.sums(np.zeros(len(self.averaged), np.int64), 1)[0]
        return {name: float(value) for name, value in self.scores(everything).items()}

    def rows(self, chosen: np.ndarray) -> "PairScores":
        """Some of the pairs, by number or mask."""
        return PairScores(self.names, self.averaged[chosen], self.counts[chosen])


def measure(references: list[str], hypotheses: list[str], scorers: Scorers = Scorers()) -> PairScores:
    """What all scores of N >= 1 pairs are computed from; equal pairs are scored once. Raises ScoresError for no pairs."""
    _check(references, hypotheses)
    places: dict[tuple[str, str], int] = {}
    which = np.array([places.setdefault(pair, len(places)) for pair in zip(references, hypotheses)])
    names = ["exact_match", "mean_bleu", *(["meteor"] if scorers.meteor else []), *ROUGE]
    counts = np.array([bleu_counts(r.split(), h.split()) for r, h in places], np.int64)
    columns = [[_is_match(r, h) for r, h in places], bleu_of(counts)]
    if scorers.meteor:
        columns.append([scorers.meteor(r, h) for r, h in places])
    columns += np.array([rouge_scores(r, h) for r, h in places]).T.tolist()
    if scorers.bertscore:
        names += BERTSCORE
        columns += scorers.bertscore(*map(list, zip(*places))).T.tolist()
    return PairScores(tuple(names), np.array(columns, np.float64).T[which], counts[which])


def score(references: list[str], hypotheses: list[str], scorers: Scorers = Scorers()) -> dict[str, float]:
    """Every score of N >= 1 pairs by name; an empty answer counts as wrong. Raises ScoresError for no pairs."""
    return measure(references, hypotheses, scorers).overall()


def exact_match(references: list[str], hypotheses: list[str]) -> float:
    """The share of answers that are the reference word for word; an empty answer is not."""
    _check(references, hypotheses)
    return float(np.mean([_is_match(*pair) for pair in zip(references, hypotheses)]))


def bleu(references: list[str], hypotheses: list[str]) -> float:
    """Corpus BLEU-4 of words split at spaces (Papineni et al. 2002), smoothed as in Chen & Cherry 2014, method 1."""
    return float(bleu_of(_all_counts(references, hypotheses).sum(axis=0)))


def mean_bleu(references: list[str], hypotheses: list[str]) -> float:
    """The mean of each pair's own BLEU-4, as in the published tables."""
    return float(bleu_of(_all_counts(references, hypotheses)).mean())


def meteor(references: list[str], hypotheses: list[str]) -> float:
    """The mean METEOR (Lavie & Agarwal 2007) of words split at spaces; raises ScoresError where WordNet is missing."""
    from ecgbyte_jax.evaluate.meteor import load_meteor

    _check(references, hypotheses)
    pair_score = load_meteor()
    return float(np.mean([pair_score(r, h) for r, h in zip(references, hypotheses)]))


def rouge(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, the mean F over the pairs (Lin 2004), as in the library `rouge`; an empty side scores 0."""
    _check(references, hypotheses)
    means = np.mean([rouge_scores(r, h) for r, h in zip(references, hypotheses)], axis=0)
    return dict(zip(ROUGE, means.tolist()))


def macro_f1(references: list[str], hypotheses: list[str]) -> float:
    """The mean F1 over the classes of the references; texts that list the same words in another order are one class.

    An answer outside the references' classes, such as an empty one, is wrong and makes no class of its own.
    """
    _check(references, hypotheses)
    true, given = ([_answer_class(text) for text in texts] for texts in (references, hypotheses))
    right = Counter(t for t, g in zip(true, given) if t == g and g)
    expected, answered = Counter(true), Counter(given)
    return sum(2 * right[name] / (expected[name] + answered[name]) for name in expected) / len(expected)


def yes_no_scores(references: list[str], hypotheses: list[str]) -> dict[str, float | None]:
    """Sensitivity and specificity over the questions whose reference is 'yes' or 'no', and their mean; None where undefined.

    An answer that is neither counts as wrong; capital letters make no difference.
    """
    references, hypotheses = ([text.strip().lower() for text in texts] for texts in (references, hypotheses))
    sensitivity, specificity = (
        float(np.mean([_is_match(r, h) for r, h in zip(references, hypotheses) if r == word])) if word in references else None
        for word in YES_NO
    )
    both = None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
    return {"sensitivity": sensitivity, "specificity": specificity, "balanced_accuracy": both}


def uninformative(references: list[str]) -> list[str]:
    """The scores that are meaningless for these references: those of word sequences, where every reference is a single word."""
    return [] if any(len(text.split()) > 1 for text in references) else list(_OF_SEVERAL_WORDS)


def is_closed(question_type: str) -> bool:
    """Whether a question of this type of ECG-QA lists its answers: yes and no, or several to choose from."""
    return question_type.endswith(("-verify", "-choose"))


def _check(references: list[str], hypotheses: list[str]) -> None:
    if not references or len(references) != len(hypotheses):
        raise ScoresError(
            f"{len(references)} references and {len(hypotheses)} answers found, as many of each expected, at least one"
        )


def _is_match(reference: str, hypothesis: str) -> bool:
    return bool(hypothesis.strip()) and reference.strip() == hypothesis.strip()


def _answer_class(text: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[^\s,]+", text)))


def _all_counts(references: list[str], hypotheses: list[str]) -> np.ndarray:
    _check(references, hypotheses)
    return np.array([bleu_counts(r.split(), h.split()) for r, h in zip(references, hypotheses)], np.int64)
