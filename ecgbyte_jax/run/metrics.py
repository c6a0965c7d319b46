"""Scores of generated answers: pure functions on (references, hypotheses), each in 0..1."""

import nltk.translate.bleu_score as nltk_bleu
from rouge import Rouge


def score(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """exact_match, bleu, rouge_1, rouge_2 and rouge_l (F) of N >= 1 pairs; an empty answer counts as wrong."""
    return {
        "exact_match": exact_match(references, hypotheses),
        "bleu": bleu(references, hypotheses),
        **rouge(references, hypotheses),
    }


def exact_match(references: list[str], hypotheses: list[str]) -> float:
    """The share of answers that are the reference word for word."""
    return sum(r.strip() == h.strip() for r, h in zip(references, hypotheses, strict=True)) / len(references)


def bleu(references: list[str], hypotheses: list[str]) -> float:
    """Corpus BLEU-4 of words parted at spaces, smoothed as in Chen & Cherry 2014, method 1."""
    words = [[r.split()] for r in references], [h.split() for h in hypotheses]
    return float(nltk_bleu.corpus_bleu(*words, smoothing_function=nltk_bleu.SmoothingFunction().method1))


def rouge(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, the mean F over the pairs (Lin 2004); a pair with an empty side scores 0."""
    scorer, totals = Rouge(), {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        # What holds nothing but full stops is empty to the library.
        if reference.strip(" .") and hypothesis.strip(" ."):
            found = scorer.get_scores(hypothesis, reference)[0]
            totals = {name: total + found[name]["f"] for name, total in totals.items()}
    return {name.replace("-", "_"): total / len(references) for name, total in totals.items()}
