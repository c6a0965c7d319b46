"""The terms of the report, and the links by which their explanations are shown."""

import re

from markupsafe import Markup, escape

_TERMS = {
    "95% interval": "The range in which the value would lie 95 times of 100 if other patients had been drawn: a bootstrap that "
    "draws whole patients. Where two intervals overlap widely, the difference may be chance.",
    "ECG-Byte": "A way to give an ECG to a language model: samples become letters, and frequent runs of letters become tokens.",
    "AUPRC": "The mean, over the recordings with a label, of the share of such ones among those with no lower probability "
    "of it (average precision); where probabilities say nothing, the share of such recordings among all.",
    "AUROC": "How often a recording with a label is given a higher probability of it than one without; 50% for one who does "
    "not look at the ECG.",
    "Brier score": "The mean squared distance of a label's probability to 1 where it is right and to 0 elsewhere; 0 is best.",
    "F1": "The balance of how often what is given is right and how much of what is right is given; of labels, at the "
    "probability that is best on the validation split.",
    "another patient's ECG": "A control: the same model answers the same question, but is given another patient's ECG. What it "
    "loses there it had read from the ECG; what it keeps it had guessed from the question.",
    "attention": "The weights with which the model, when it chose the answer, looked back at each token before it; the mean "
    "over layers and heads. It tells where the model looked, not why.",
    "balanced accuracy": "The mean of sensitivity and specificity; 50% for one who always says the same.",
    "BERTScore": "How alike two texts are in meaning, judged by a language model: precision (P), recall (R) and F1.",
    "BLEU": "The share of runs of one to four words of the answer that are in the reference too, over all answers together.",
    "calibration error": "By how much the probabilities of the likeliest answers miss how often these are right: the mean over "
    "ten bins of probability.",
    "candidate": "One of the answers that a question has in training; their probabilities add up to 1.",
    "commonest answer": "A control without a model: each question gets the answer that it has most often in training.",
    "exact match": "The share of answers that are the reference word for word.",
    "gradient x input": "How strongly the answer's probability depends on each token, to first order: the gradient at its "
    "embedding times that embedding. It can be negative.",
    "label": "One answer to one question against all others, such as yes to a finding.",
    "loss": "How surprised the model is by the right token: minus the natural logarithm of the probability it gave it (nats).",
    "macro F1": "For every possible answer the balance (F1) of how often it is given rightly and found where it is right; the "
    "mean over the answers, so that rare ones count like common ones.",
    "mean BLEU": "BLEU of each answer by itself; the mean of these.",
    "merge": "One step of the tokenizer's training: the pair of tokens that is most frequent becomes a token of its own.",
    "METEOR": "How well the words of answer and reference pair up; stems and synonyms count.",
    "probability": "The one that the model itself gave to its answer; it may be sure and wrong.",
    "recording": "One 12-lead ECG of a patient, as it was stored.",
    "ROUGE-1": "The balance (F1) of the single words that answer and reference share.",
    "ROUGE-2": "The balance (F1) of the pairs of neighbouring words that answer and reference share.",
    "ROUGE-L": "The balance (F1) of the longest sequence of words, gaps allowed, that answer and reference share.",
    "rollout": "Attention followed through all layers (Abnar and Zuidema 2020), instead of the mean over layers.",
    "segment": "A piece of a recording, of the length that the settings name: the model is given one at a time.",
    "sensitivity": "Of the questions whose right answer is yes, the share that got a yes.",
    "sequence": "One question about one segment, with its answer.",
    "single-choose": "A question about one ECG that offers answers to choose from.",
    "single-query": "An open question about one ECG.",
    "single-verify": "A question about one ECG, to be answered by yes or no.",
    "specificity": "Of the questions whose right answer is no, the share that got a no.",
    "split": "The part of the data: train, valid (to watch the training) or test. A patient is in only one of them, except in "
    "the published splits.",
    "synthetic": "Computed, not recorded from a patient.",
    "token": "A unit that the model reads: a run of one or more ECG samples, or a piece of text.",
}  # fmt: skip
_LONGEST_FIRST = "|".join(re.escape(term) for term in sorted(_TERMS, key=len, reverse=True))
_PLACES = re.compile(rf"(?<![\w'-])({_LONGEST_FIRST})(s?)(?![\w-])")


class Glossary:
    """Links the terms in texts of one page to their explanations, and knows which ones the page has used."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def link(self, text: str) -> Markup:
        """The text, escaped, with its terms as links; only the first link of a term is a stop of the tab key."""
        parts = _PLACES.split(text)  # text, term, plural, text, ...
        linked = [escape(parts[0])]
        for term, plural, rest in zip(parts[1::3], parts[2::3], parts[3::3]):
            later = Markup(' tabindex="-1"') if term in self._used else ""
            self._used.add(term)
            linked.append(Markup('<a class="term" href="#{}"{}>{}{}</a>{}').format(_anchor(term), later, term, plural, rest))
        return Markup("").join(linked)

    def entries(self) -> list[tuple[str, str, str]]:
        """(anchor, term, explanation) of the terms that were linked so far, in the order of the alphabet."""
        return [(_anchor(term), term, _TERMS[term]) for term in sorted(self._used, key=str.lower)]


def _anchor(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term.lower())
