import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
from rouge import Rouge

from ecgbyte_jax.run.metrics import bleu, exact_match, rouge, score

REFERENCES = ["sinus rhythm normal ecg", "atrial fibrillation", "yes", "sinusrhythmus lagetyp Övrig"]
HYPOTHESES = ["sinus rhythm", "atrial fibrillation", "no", "sinusrhythmus lagetyp normal Övrig"]


def test_exact_match_counts_whole_answers():
    assert exact_match(REFERENCES, HYPOTHESES) == 0.25
    assert exact_match(["yes "], ["yes"]) == 1.0


def test_bleu_is_nltk_s_method_1():
    expected = corpus_bleu(
        [[r.split()] for r in REFERENCES], [h.split() for h in HYPOTHESES], smoothing_function=SmoothingFunction().method1
    )
    assert bleu(REFERENCES, HYPOTHESES) == pytest.approx(expected)


def test_rouge_is_the_mean_f_of_the_library():
    expected = Rouge().get_scores(HYPOTHESES, REFERENCES, avg=True)
    ours = rouge(REFERENCES, HYPOTHESES)
    assert ours == pytest.approx(
        {"rouge_1": expected["rouge-1"]["f"], "rouge_2": expected["rouge-2"]["f"], "rouge_l": expected["rouge-l"]["f"]}
    )


@pytest.mark.parametrize("empty", ["", "  ", ".", ". ."])
def test_an_empty_answer_is_wrong_and_still_counted(empty):
    scores = score(["yes", "no"], ["yes", empty])
    assert scores["exact_match"] == 0.5 and scores["rouge_1"] == pytest.approx(0.5)


def test_perfect_answers_score_one():
    long = ["sinus rhythm with normal axis and no other finding"]
    assert score(long, long) == pytest.approx(dict.fromkeys(score(long, long), 1.0))
